"""What the repository promises about itself: licence, versions, changelog, wheel, no secrets."""

import ast
import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path
from typing import Any, Final
from zipfile import ZipFile

import pytest
import yaml
from jaxtyping import TypeCheckError
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT: Final = Path(__file__).parents[1]
PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: Final[dict[str, list[str]]] = PROJECT["optional-dependencies"]
PACKAGE_FOLDERS: Final = ("skinmm", "conf")


def tracked() -> list[Path]:
    """The files of the repository, or of an unpacked release that git does not know."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    names = [Path(name) for name in listed.stdout.decode().split("\0") if name]
    if not names:
        pytest.skip("not a git checkout")
    return [name for name in names if (ROOT / name).is_file()]


def constraints() -> dict[str, Version]:
    """The pinned versions by canonical name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(pin) for name, _, pin in pins}


def declared() -> list[Requirement]:
    """Every requirement of pyproject.toml, the extras' included."""
    extras = [line for lines in EXTRAS.values() for line in lines]
    return [Requirement(line) for line in (*PROJECT["dependencies"], *extras)]


def test_licence_is_apache_2() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])


def test_changelog_keeps_the_format() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", line) for line in headings[1:])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE)) <= kinds


def test_every_requirement_is_pinned_within_its_bounds() -> None:
    pins = constraints()
    for requirement in declared():
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_every_requirement_gives_its_reason() -> None:
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    bare = [line for line in lines if re.match(r'\s+"[\w-]+[<>=]=?\d', line) and "#" not in line]
    assert bare == []


def test_constraints_name_no_place() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    wrong = [line for line in lines if not re.fullmatch(r"#.*|[\w.-]+==[\w.!]+", line)]
    assert wrong == []


def test_these_are_the_versions_that_the_tests_run_with() -> None:
    if not Path(sys.prefix, ".installed").is_file():
        pytest.skip("this environment was not made by make")
    wrong = {}
    for name, pin in constraints().items():
        try:
            found = Version(Version(version(name)).public)
        except PackageNotFoundError:
            continue  # another platform's
        if found != pin:
            wrong[name] = f"{found} is installed, {pin} is pinned"
    assert wrong == {}


def imported(folder: Path) -> Iterator[str]:
    """The top-level names that a folder's modules import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module.partition(".")[0]


def test_every_import_is_a_declared_requirement() -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared()}
    owners = packages_distributions()
    foreign = set(imported(ROOT / "skinmm")) - set(sys.stdlib_module_names) - {"skinmm"}
    undeclared = {
        name
        for name in foreign
        if name in owners and names.isdisjoint(map(canonicalize_name, owners[name]))
    }
    assert undeclared == set()


def test_no_registry_and_no_machine_is_named() -> None:
    hosts = r"pypi\.org|python" + r"hosted|deb\.debian\.org|registry\.npmjs"
    machine = r"(?<![\w.])/(?:wo" + r"rk|ro" + r"ot|ho" + r"me/\w)(?:/|\b)"
    private = re.compile(f"{hosts}|{machine}")
    found = []
    for path in tracked():
        data = (ROOT / path).read_bytes()
        if b"\0" in data[:8192]:
            continue
        for number, line in enumerate(data.decode(errors="replace").splitlines(), start=1):
            if private.search(line):
                found.append(f"{path}:{number}: {line.strip()[:80]}")
    assert found == []


def test_every_module_says_what_it_is_for() -> None:
    modules = [path for path in tracked() if path.suffix == ".py"]
    silent = [
        path for path in modules if not ast.get_docstring(ast.parse((ROOT / path).read_text()))
    ]
    assert silent == []


def test_signatures_are_checked_even_of_what_is_imported_late() -> None:
    from skinmm.images.decode import decode

    with pytest.raises(TypeCheckError, match="decode"):
        decode("text, not bytes")  # type: ignore[arg-type]


def test_the_embedded_cohort_and_the_included_model_are_the_only_data() -> None:
    data = {".jpg", ".jpeg", ".png", ".dcm", ".tfrec", ".csv", ".ckpt", ".safetensors", ".npz"}
    elsewhere = [
        path
        for path in tracked()
        if path.suffix in data
        and path.parts[:2] not in (("skinmm", "demo"), ("skinmm", "zoo"))
        and not path.is_relative_to("benchmarks/results")
        and path.parent != Path("skinmm/report/templates")  # checklists, not data
        and path.parent != Path("docs")  # screenshots
    ]
    assert elsewhere == []
    assert sum((ROOT / path).stat().st_size for path in tracked() if path.suffix == ".jpg") < 6e6
    assert (ROOT / "skinmm" / "zoo" / "cc0.safetensors").stat().st_size < 1e7


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    text = (ROOT / "skinmm" / "__init__.py").read_text()
    assert f'__version__ = "{citation["version"]}"' in text
    assert (citation["license"], citation["title"]) == (PROJECT["license"], PROJECT["name"])


def test_workflows_run_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    jobs = dict[str, dict[str, Any]]()
    for path in sorted((ROOT / ".github" / "workflows").glob("*.yml")):
        jobs |= yaml.safe_load(path.read_text())["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    made = {word for line in commands if line.startswith("make ") for word in line.split()[1:]}
    assert {word for word in made if "=" not in word} <= targets
    classifiers = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert jobs["test"]["strategy"]["matrix"]["python"] == classifiers
    assert jobs["publish"]["permissions"] == {"id-token": "write"}  # no stored password


@pytest.mark.parametrize(
    ("licence", "is_refused"),
    [
        ("GPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("LGPL-3.0-only AND GPL-2.0-or-later", True),
        ("GPL-2.0-or-later OR MIT", False),
        ("GNU Lesser General Public License v3 (LGPLv3)", False),
        ("LGPL-3.0-only", False),
        ("Apache-2.0", False),
    ],
)
def test_dependencies_under_the_gpl_are_refused(licence: str, *, is_refused: bool) -> None:
    assert runpy.run_path(str(ROOT / ".ci" / "licences.py"))["is_copyleft"](licence) == is_refused


def test_the_source_archive_builds_and_tests_the_package(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    hidden = (".ci", ".github", ".pre-commit-config.yaml")
    expected = {str(path) for path in tracked() if path.parts[0] not in hidden}
    assert names - {"PKG-INFO"} == expected


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """The wheel, built from the checkout without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return ZipFile(built)


def test_the_wheel_holds_all_that_is_needed_to_run(wheel: ZipFile) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        str("skinmm" / path if path.is_relative_to("conf") else path)
        for path in tracked()
        if path.parts[0] in PACKAGE_FOLDERS
    }
    assert expected <= names
    assert all(name.startswith("skinmm/") for name in names)


def test_the_wheel_carries_licence_and_command(wheel: ZipFile) -> None:
    names = wheel.namelist()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    (entries,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "skinmm = skinmm.cli.main:main" in wheel.read(entries).decode()
