"""README and docs say what can be typed: commands, settings, choices and links that exist."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Final

import pytest
from quick_runs import ROOT

from skinmm.cli import main as cli
from skinmm.cli.compose import CONF
from skinmm.config import commands as commands_schema
from skinmm.config import data_commands, outputs, remote_commands, schema

PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT: Final = {page: page.read_text(encoding="utf-8") for page in PAGES}
TYPED: Final = re.compile(r"[+~]?([a-z_]+(?:\.[a-z_]+)*)=(.*)")


def stems(group: str) -> list[str]:
    return [path.stem for path in (CONF / group).glob("*.yaml")]


def commands() -> Iterator[list[str]]:
    """The lines of the shell blocks that start one of ours, as `skinmm` takes them."""
    for text in TEXT.values():
        for block in re.findall(r"^```(?:ba)?sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for script in {"train.py", "predict.py", "skinmm"} & {*words}:
                    rest = words[words.index(script) + 1 :]
                    yield rest if script == "skinmm" else [script.removesuffix(".py"), *rest]


def spoken(text: str) -> list[str]:
    """The words of the code in sentences."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [word.strip("'") for span in re.findall(r"`([^`]+)`", prose) for word in span.split()]


def settings(schema: object, prefix: str = "") -> Iterator[str]:
    for item in fields(schema):  # type: ignore[arg-type]
        value = getattr(schema, item.name)
        yield prefix + item.name
        if is_dataclass(value):
            yield from settings(value, f"{prefix}{item.name}.")


KNOWN: Final = {
    key
    for module in (*(schema, commands_schema, data_commands, remote_commands, outputs),)
    for name, item in vars(module).items()
    if name.endswith("Config") and is_dataclass(item)
    for key in settings(item())  # type: ignore[operator]
}


def known(key: str) -> bool:
    """Whether a key is a setting, one that a setting holds, a group, or Hydra's."""
    holder = re.sub(r"\.(args|arms)\..*", r".\1", key)
    return holder in KNOWN or key in CHOICES or key.startswith("hydra.")


CHOICES: Final = {path.name for path in CONF.iterdir() if path.is_dir()} - {"sweep"}


# Of commands that differ in values alone the last one: a group's options are looked at below.
LIKE: Final = {
    (words[0], *(each.partition("=")[0] for each in words)): words for words in commands()
}


@pytest.mark.parametrize("words", LIKE.values(), ids=" ".join)
def test_every_command_is_understood(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = words
    assert cli.main([name, *rest, "--help"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_setting_in_a_sentence_exists(page: Path) -> None:
    words = spoken(TEXT[page])
    typed = [found for word in words if (found := TYPED.fullmatch(word))]
    named = [word for word in words if re.fullmatch(r"[a-z]+(\.[a-z_]+)+", word)]
    sections = {key.partition(".")[0] for key in KNOWN if "." in key}
    keys = [found[1] for found in typed] + [w for w in named if w.partition(".")[0] in sections]
    assert [key for key in keys if not known(key)] == []


def test_every_choice_exists() -> None:
    words = [word for words in (*commands(), *map(spoken, TEXT.values())) for word in words]
    for group, option in (found.groups() for word in words if (found := TYPED.fullmatch(word))):
        if group in CHOICES and option and option.islower():
            assert {*option.split(",")} <= {*stems(group)}


def test_the_table_has_every_choice() -> None:
    rows = re.findall(r"^\| (`[a-z]+=`.*?) \| (.*) \|$", TEXT[PAGES[0]], re.MULTILINE)
    told = {group: cell for groups, cell in rows for group in re.findall(r"`([a-z]+)=`", groups)}
    assert told.keys() == CHOICES
    for group, cell in told.items():
        assert {*stems(group)} <= {*re.findall(r"\w+", cell)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", TEXT[page]):
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", line.lower()).replace(" ", "-") for line in headings]
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_named_table_exists(name: str) -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "skinmm").rglob("*.py"))
    tables = {*re.findall(r"`([A-Z][A-Z_]{3,})`", (ROOT / name).read_text())} - {"SKINMM_DATA"}
    assert len(tables) >= 4
    assert not [table for table in tables if not re.search(rf"(?m)^{table}\b", source)]


def test_every_test_that_a_result_names_exists() -> None:
    text = (ROOT / "benchmarks" / "results" / "input.md").read_text(encoding="utf-8")
    names = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(names) > 40
    missing = [name for file, name in names if f"\ndef {name}(" not in (ROOT / file).read_text()]
    assert missing == []
