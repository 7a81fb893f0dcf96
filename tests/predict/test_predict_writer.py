"""The output is whole or not there, and nothing is replaced unasked."""

from pathlib import Path

import pandas as pd
import pytest

from skinmm.errors import InputError
from skinmm.predict.writer import CsvWriter

ROWS = pd.DataFrame({"image_id": ["a,b", "c"], "p_x": [1 / 3, None]})


def test_chunks_become_one_table(tmp_path: Path) -> None:
    with CsvWriter(tmp_path / "out.csv", overwrite=False) as writer:
        writer.write(ROWS)
        writer.write(ROWS.head(1))
        assert not (tmp_path / "out.csv").exists()
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines == ["image_id,p_x", '"a,b",0.333333333', "c,", '"a,b",0.333333333']
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def interrupted_job(output: Path) -> None:
    with CsvWriter(output, overwrite=True) as writer:
        writer.write(ROWS)
        raise KeyboardInterrupt


def test_a_failed_job_leaves_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        interrupted_job(output)
    assert output.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there.csv", "exists; choose another, or overwrite=true"),
        ("folder", "is a folder"),
        ("nowhere/out.csv", "nowhere does not exist"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        CsvWriter(tmp_path / name, overwrite=False)
