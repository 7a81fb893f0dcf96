"""The output is whole or not there, can be gone on with, and nothing is replaced unasked."""

import json
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from skinmm.errors import InputError
from skinmm.predict.writer import FORMATS, OutputTable, to_arrow

ROWS = pd.DataFrame({"image_id": ["a,b", "c\nd"], "p_x": [1 / 3, None], "decision": ["benign", ""]})
LINES = ['"a,b",0.333333333,benign', '"c', 'd",,']
Said = pytest.CaptureFixture[str]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(output: OutputTable, *parts: pd.DataFrame, stop: bool = False) -> None:
    with output:
        for part in parts:
            output.write(part, Counter(sex=1))
        if stop:
            raise KeyboardInterrupt


def killed(path: Path, *parts: pd.DataFrame) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(OutputTable(path, {"input": "a"}), *parts, stop=True)


def test_chunks_become_one_table(tmp_path: Path) -> None:
    with OutputTable(tmp_path / "out.csv", {}) as output:
        output.write(ROWS, Counter())
        output.write(ROWS.head(1), Counter())
        assert not (tmp_path / "out.csv").exists()
    assert output.decisions == {"benign": 2, "": 1}
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines == ["image_id,p_x,decision", *LINES, LINES[0]]
    assert names(tmp_path) == ["out.csv"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_the_same_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    write(OutputTable(path, {}), ROWS, ROWS)
    read = {
        ".csv": lambda: pd.read_csv(path, keep_default_na=False, na_values={"p_x": ""}),
        ".jsonl": lambda: pd.DataFrame(map(json.loads, path.read_text().splitlines())),
        ".parquet": lambda: pd.read_parquet(path),
    }[suffix]()
    expected = pd.concat([ROWS, ROWS], ignore_index=True)
    pd.testing.assert_frame_equal(read, expected, check_dtype=False, rtol=1e-8)
    assert read["p_x"].dtype == float
    assert names(tmp_path) == [path.name]


def test_names_and_targets_of_any_type_are_text_in_arrow() -> None:
    pytest.importorskip("pyarrow")
    held = {"patient_id": [1, "", "P3"], "target": [0, None, 1], "p_x": [0.5, None, 1]}
    told = to_arrow(pd.DataFrame(held, dtype=object)).to_pydict()
    assert told == held | {"patient_id": ["1", "", "P3"], "target": ["0", None, "1"]}
    whole = pd.DataFrame({"patient_id": [7, 8], "target": [0, 1]})
    assert to_arrow(whole).to_pydict() == {"patient_id": ["7", "8"], "target": ["0", "1"]}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.usefixtures("kept")
def test_a_job_that_ended_early_is_gone_on_with(tmp_path: Path, suffix: str) -> None:
    whole, path = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    write(OutputTable(whole, {}), ROWS, ROWS.head(1), ROWS)
    killed(path, ROWS, ROWS.head(1))
    again = OutputTable(path, {"input": "a"}, resume=True)
    assert (again.rows, again.decisions, again.unknown) == (3, {"benign": 2, "": 1}, {"sex": 2})
    write(again, ROWS)
    assert path.read_bytes() == whole.read_bytes()
    assert names(tmp_path) == sorted([whole.name, path.name])


@pytest.fixture
def kept(capsys: Said) -> Iterator[None]:
    yield
    assert (
        "3 rows are saved; run the same command with resume=true to continue"
        in capsys.readouterr().err
    )


def test_what_was_written_after_the_last_note_is_written_again(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    killed(path, ROWS)
    with (tmp_path / ".out.csv.partial").open("a") as file:
        file.write("half a li")
    write(OutputTable(path, {"input": "a"}, resume=True))
    assert path.read_text().splitlines() == ["image_id,p_x,decision", *LINES]


def test_what_a_job_left_is_not_lost_unasked(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    killed(path, ROWS)
    with pytest.raises(InputError, match=r"left 2 rows; resume=true continues, overwrite=true"):
        OutputTable(path, {"input": "a"})
    with pytest.raises(InputError, match=r"resume=true: input changed since 2 rows"):
        OutputTable(path, {"input": "b"}, resume=True)
    (tmp_path / ".out.csv.partial").write_text("short")
    with pytest.raises(InputError, match="truncated"):
        OutputTable(path, {"input": "a"}, resume=True)
    write(OutputTable(path, {"input": "b"}, overwrite=True), ROWS.head(1))
    assert path.read_text().splitlines() == ["image_id,p_x,decision", LINES[0]]
    assert names(tmp_path) == ["out.csv"]


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    killed(tmp_path / "out.csv", ROWS)
    (tmp_path / ".out.csv.partial.json").write_text("{")
    with pytest.raises(InputError, match=r"partial\.json: damaged; delete it"):
        OutputTable(tmp_path / "out.csv", {"input": "a"}, resume=True)


def test_two_jobs_do_not_write_one_output(tmp_path: Path) -> None:
    with OutputTable(tmp_path / "out.csv", {}) as first:
        first.write(ROWS, Counter())
        second = OutputTable(tmp_path / "out.csv", {}, resume=True)
        with pytest.raises(InputError, match="another job is writing it"), second:
            pass
    assert len(pd.read_csv(tmp_path / "out.csv")) == 2


def test_a_failed_job_leaves_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    output.write_text("precious")
    with pytest.raises(KeyboardInterrupt):
        write(OutputTable(output, {}, overwrite=True), stop=True)
    assert output.read_text() == "precious"
    assert names(tmp_path) == ["out.csv"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """As a full disk: what goes beyond is an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_nothing_written_is_lost(tmp_path: Path) -> None:
    path, whole = tmp_path / "out.csv", tmp_path / "whole.csv"
    many = pd.concat([ROWS] * 20)
    with largest_file(2000), pytest.raises(OSError, match=r"out\.csv"):
        write(OutputTable(path, {}), *[many] * 4)
    again = OutputTable(path, {}, resume=True)
    assert 0 < again.rows < 160
    write(again, *[many] * ((160 - again.rows) // 40))
    write(OutputTable(whole, {}), *[many] * 4)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("there.csv", "exists; choose another path or set overwrite=true"),
        ("folder", "is a folder"),
        ("nowhere/out.csv", "nowhere does not exist"),
    ],
)
def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "there.csv").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=message):
        OutputTable(tmp_path / name, {})
