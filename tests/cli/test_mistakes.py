"""Deliberate mistakes: one line that names the value, what is allowed, and what to do."""

from pathlib import Path
from runpy import run_path
from typing import Any

import pytest

SCRIPT = run_path(str(Path(__file__).parents[2] / "benchmarks" / "mistakes.py"))
MISTAKES = SCRIPT["MISTAKES"]


def test_there_are_fifty() -> None:
    assert len({mistake.command for mistake in MISTAKES}) >= 50


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.command.replace("/", "_"))
def test_a_mistake_is_answered(
    mistake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    status, said = SCRIPT["answer"](mistake.command)
    assert status == 2
    assert len(said.splitlines()) == 1
    assert mistake.value in said
    assert mistake.advice in said
