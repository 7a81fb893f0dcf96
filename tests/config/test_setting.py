"""A setting is one line in its schema: its flags make it quoted, checked and explained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from skinmm.cli.commands import Command
from skinmm.cli.main import COMMANDS, run_single
from skinmm.cli.overrides import quote_override
from skinmm.config import Config, PredictConfig, from_mapping, keys_with
from skinmm.config.setting import output_path, section, setting
from skinmm.errors import InputError, print_line

Captured = pytest.CaptureFixture[str]


@dataclass
class Item:
    """An item of a list of mappings."""

    name: str = setting("", "name")
    file: str = setting("", "file", path=True)


@dataclass
class Extended(PredictConfig):
    """The prediction job with more settings."""

    figure: str | None = output_path(None, "figure to write", decides_rows=True)
    items: list[Item] = setting([], "items")
    files: list[str] = setting([], "files to read", path=True, positional=True)
    dry: bool = setting(False, "write nothing", disables_output=True)


@dataclass
class Section:
    """A section of settings."""

    low: int = setting(1, "a number", low=0)
    share: float = setting(0.5, "a share of one task only", task="classification")


@dataclass
class ExtendedRun(Config):
    """A training run with another section."""

    further: Section = section(Section, resumable=True)


def print_files(config: Extended) -> int:
    """Print the configuration, as a command would use it."""
    print_line(repr((config.files, config.figure)))
    return 0


COMMAND = Command("extended", Extended, f"{__name__}:print_files")
GIVEN = ["checkpoint=a.ckpt", "input=a.csv"]


def test_the_path_is_read_literally() -> None:
    for override, value in (
        ("figure=a (1), b=${c}.png", "a (1), b=\\${c}.png"),
        ("items=[{name:x,file:a (1), b.csv}]", [{"name": "x", "file": "a (1), b.csv"}]),
    ):
        parsed = OverridesParser.create().parse_override(quote_override(override, Extended))
        assert parsed.value() == value


def test_the_output_must_be_writable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_single([*GIVEN, "figure=/sys/x.png"], COMMAND) == 2
    error = "error: figure=/sys/x.png: not writable: "
    assert capsys.readouterr().err.startswith(error)
    assert run_single([*GIVEN, "figure=/sys/x.png", "dry=true"], COMMAND) == 0


def test_file_names_without_a_key_are_positional(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c=d.csv").touch()
    names = ["a, (1).csv", "c=d.csv", "./no=such.csv", "[x]"]
    assert run_single([names[0], *GIVEN, *names[1:]], COMMAND) == 0
    assert capsys.readouterr().out == f"{(names, None)}\n"
    assert run_single([*GIVEN, "files=a.csv, b.csv"], COMMAND) == 0
    assert capsys.readouterr().out == f"{(['a.csv', 'b.csv'], None)}\n"
    assert run_single([*GIVEN, "figrue=a.png"], COMMAND) == 2
    assert "unknown key 'figrue'; did you mean figure?" in capsys.readouterr().err


def test_the_help_explains_it(capsys: Captured) -> None:
    assert run_single(["--help"], COMMAND) == 0
    text = capsys.readouterr().out
    assert text.startswith("The prediction job with more settings:\n  skinmm extended input=")
    assert "  # figure to write\n" in text


def test_the_flag_of_a_section_applies_to_its_settings() -> None:
    assert {"further", "further.low", "further.share"} <= {*keys_with(ExtendedRun, "resumable")}
    assert "figure" in keys_with(Extended, "decides_rows")
    assert "items[].file" in keys_with(Extended, "path")


def test_a_setting_of_another_task_is_refused() -> None:
    values: dict[str, Any] = {"task": "segmentation", "trainer": {"monitor": "val/dice"}}
    assert from_mapping(ExtendedRun, values).further.share == 0.5
    with pytest.raises(InputError, match=r"further\.share=0\.1: not used by task=segmentation"):
        from_mapping(ExtendedRun, values | {"further": {"share": 0.1}})


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.name)
def test_every_command_names_a_function_that_exists(command: Command) -> None:
    module, _, name = command.function.partition(":")
    pytest.importorskip("pyspark") if "spark" in module else None
    assert callable(getattr(__import__(module, fromlist=[name]), name))
