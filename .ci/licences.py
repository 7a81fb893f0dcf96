"""Licences of all dependencies by extra, as a table; exit status 1 if one is under the (A)GPL.

    python .ci/licences.py > licences.md

It reads the metadata of what is installed, so run it where `make test` has installed all extras.
"""

import re
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PYPROJECT: Final = Path(__file__).parents[1] / "pyproject.toml"
LESSER: Final = re.compile(r"LGPL|Lesser General Public", re.IGNORECASE)
COPYLEFT: Final = re.compile(r"\bA?GPL|General Public License", re.IGNORECASE)
PREFIX: Final = "License :: OSI Approved :: "
MAX_TEXT: Final = 80
"""A longer licence field is the text of the licence; its classifier has the name."""


def read_licence(package: Distribution) -> str:
    """Return the licence that the metadata of a package states, or an empty string."""
    metadata = package.metadata
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in metadata.get_all("Classifier") or []
        if text.startswith(PREFIX)
    ]
    stated = " ".join((metadata.get("License") or "").replace("UNKNOWN", "").split())
    if classifiers:
        return " AND ".join(classifiers)
    return stated if len(stated) <= MAX_TEXT else stated[:MAX_TEXT]


def is_copyleft(licence: str) -> bool:
    """Return whether every choice of a licence is the GPL or AGPL; the LGPL is not."""
    choices = re.split(r"\s+OR\s+", licence)
    return all(COPYLEFT.search(LESSER.sub("", text)) for text in choices)


def collect(requirements: list[str]) -> tuple[dict[str, Distribution], set[str]]:
    """Return the installed packages that requirements bring, by name, and those not installed."""
    packages: dict[str, Distribution] = {}
    absent: set[str] = set()
    todo = [Requirement(line) for line in requirements]
    visited: set[tuple[str, str]] = set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        try:
            package = packages.setdefault(name, distribution(name))
        except PackageNotFoundError:
            absent.add(name)
            continue
        for extra in ("", *requirement.extras):
            if (name, extra) in visited:
                continue
            visited.add((name, extra))
            for line in package.requires or ():
                needed = Requirement(line)
                if not needed.marker or needed.marker.evaluate({"extra": extra}):
                    todo.append(needed)
    return packages, absent


def main() -> int:
    """Print the table and return the exit status."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    groups = {"(core)": project["dependencies"], **project["optional-dependencies"]}
    core = collect(project["dependencies"])[0]
    lines, refused = ["| extra | package | version | licence |", "|---|---|---|---|"], set[str]()
    for group, requirements in groups.items():
        packages, absent = collect(requirements)
        for name, package in sorted(packages.items()):
            licence = read_licence(package) or "not stated"
            if is_copyleft(licence):
                refused.add(f"{name}: {licence} (extra {group})")
            if group == "(core)" or name not in core:
                lines.append(f"| {group} | {name} | {package.version} | {licence} |")
        lines += [f"| {group} | {name} | not installed | |" for name in sorted(absent)]
    sys.stdout.write("\n".join(lines) + "\n")
    for text in sorted(refused):
        sys.stderr.write(f"not compatible with Apache-2.0: {text}\n")
    return 1 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
