"""The output file: complete or not there; what a killed job had written is gone on from."""

import fcntl
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pandas as pd

from skinmm.errors import InputError
from skinmm.predict.reader import pyarrow_parquet, read_tables

BLOCK: Final = 16_384
"""Rows of a finished table that are held at a time."""
Rows = Iterable[pd.DataFrame]


class Output:
    """Rows, appended beside the output as CSV and put in its place, in its format, at the end.

    After every chunk a note says how far the rows go. So when the job is killed, or the disk is
    full, the next one can go on where they end; what stood in the output's place stays until the
    end.

    Attributes:
        rows: written so far, by an earlier job too.
        decisions: how many of them have each; "" for those that could not be predicted.
        unknown: by column, how many cells held no known value.
    """

    def __init__(
        self, path: Path, job: dict[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        """Checks the place; nothing is written yet.

        Args:
            path: a name that ends in one of `FORMATS`, or else becomes a CSV.
            job: what decides about the rows, by the name that a message gives it; plain data.
            resume: go on where a killed job ended.
            overwrite: replace what is there.

        Raises:
            InputError: the output exists and may not be replaced, or cannot be a file there; what a
                killed job left is in the way, or was made of something else.
        """
        check_place("output", path, overwrite=overwrite)
        self._path, self._job = path, job
        self._partial = path.with_name(f".{path.name}.partial")
        self._note = path.with_name(f".{path.name}.partial.json")
        self._bytes = self.rows = 0
        self.decisions, self.unknown = Counter[str](), Counter[str]()
        if self._note.is_file() and self._partial.is_file():
            self._meet(resume=resume, overwrite=overwrite)

    def __enter__(self) -> "Output":
        """Opens the rows, cut to where the note says they end.

        Raises:
            InputError: another job is writing them.
        """
        self._file: BinaryIO = self._partial.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"output={self._path}: another job is writing it") from error
        self._file.truncate(self._bytes)
        return self

    def write(self, table: pd.DataFrame, unknown: Counter[str]) -> None:
        """Appends rows; numbers as %.9g, missing ones empty.

        Raises:
            OSError: they could not be written; those before them are safe.
        """
        text = table.to_csv(
            index=False, header=self.rows == 0, float_format="%.9g", lineterminator="\n"
        )
        try:
            data = text.encode()
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._bytes += len(data)
            self.rows += len(table)
            self.decisions.update(table["decision"])
            self.unknown.update(unknown)
            self._write_note()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def finished(self) -> Iterator[pd.DataFrame]:
        """The rows so far as text, in blocks."""
        return read_tables(self._partial, BLOCK)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Puts the file in its place; if something went wrong, keeps what can be gone on from."""
        done = False
        try:
            if kind is None:
                self._finish()
                done = True
        finally:
            with suppress(OSError):  # of a full disk, once more
                self._file.close()
            if done or not self.rows:
                self._partial.unlink(missing_ok=True)
                self._note.unlink(missing_ok=True)
            else:
                kept = f"{self.rows} rows are kept; the same command with resume=true goes on"
                print(kept, file=sys.stderr)  # noqa: T201

    def _finish(self) -> None:
        convert = FORMATS[format_of(self._path)]
        if convert is None:
            self._partial.replace(self._path)
            return
        converted = self._path.with_name(f".{self._path.name}.converted")
        try:
            convert(self.finished(), converted)
            converted.replace(self._path)
        finally:
            converted.unlink(missing_ok=True)

    def _meet(self, *, resume: bool, overwrite: bool) -> None:
        """Goes on from what an earlier job left, or starts again."""
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            rows, size, job = note["rows"], note["bytes"], note["job"]
            counts = Counter(note["decisions"]), Counter(note["unknown"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self._note}: damaged; delete it to start again") from error
        if not resume:
            if overwrite:
                return
            raise InputError(
                f"output={self._path}: a job that ended early left {rows} rows; resume=true goes "
                "on, overwrite=true starts again"
            )
        if changed := [name for name, value in self._job.items() if job.get(name) != value]:
            raise InputError(
                f"resume=true: {', '.join(changed)} changed since {rows} rows were predicted; "
                "overwrite=true starts again"
            )
        if self._partial.stat().st_size < size:
            raise InputError(f"{self._partial}: cut short; overwrite=true starts again")
        self.rows, self._bytes, (self.decisions, self.unknown) = rows, size, counts

    def _write_note(self) -> None:
        note = {
            "rows": self.rows,
            "bytes": self._bytes,
            "decisions": self.decisions,
            "unknown": self.unknown,
            "job": self._job,
        }
        fresh = self._note.with_name(f"{self._note.name}.new")
        fresh.write_text(json.dumps(note), encoding="utf-8")
        fresh.replace(self._note)


def check_place(key: str, path: Path, *, overwrite: bool) -> None:
    """Refuses a file that cannot be written.

    Raises:
        InputError: it exists and may not be replaced, is a folder, or is in none.
    """
    if path.is_dir():
        raise InputError(f"{key}={path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise InputError(f"{key}={path} exists; choose another, or overwrite=true")
    if not path.parent.is_dir():
        raise InputError(f"{key}={path}: the folder {path.parent} does not exist")


def format_of(path: Path) -> str:
    """The key of `FORMATS` that a name ends in.

    Raises:
        InputError: another ending, or Parquet without what writes it.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in FORMATS:
        raise InputError(f"output={path}: its name may end in {', '.join(FORMATS)}")
    if suffix == ".parquet":
        pyarrow_parquet(f"output={path}")
    return suffix if suffix in FORMATS else ".csv"


def numbers(table: pd.DataFrame) -> list[str]:
    """The columns of an output that hold numbers; the others hold text."""
    known = ("malignancy", "threshold", "ood")
    return [name for name in table.columns if name.startswith("p_") or name in known]


def _to_jsonl(rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in rows:
            floats = set(numbers(table))
            for record in table.to_dict("records"):
                cells = {
                    name: (float(cell) if cell else None) if name in floats else cell
                    for name, cell in record.items()
                }
                file.write(json.dumps(cells, ensure_ascii=False) + "\n")


def to_arrow(table: pd.DataFrame) -> Any:
    """An output's rows as an Arrow table."""
    import pyarrow as arrow

    floats = numbers(table)
    kinds = [arrow.float64() if name in floats else arrow.string() for name in table]
    schema = arrow.schema([*zip(table.columns, kinds, strict=True)])
    typed = {
        # An input's names and targets may be of any type.
        name: pd.to_numeric(cells) if name in floats else cells.map(str, na_action="ignore")
        for name, cells in table.items()
    }
    return arrow.Table.from_pandas(pd.DataFrame(typed), schema, preserve_index=False)


def _to_parquet(rows: Rows, path: Path) -> None:
    parquet = pyarrow_parquet(f"output={path}")
    writer = None
    try:
        for table in map(to_arrow, rows):
            writer = writer or parquet.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


FORMATS: Final[dict[str, Callable[[Rows, Path], None] | None]] = {
    ".csv": None,
    ".jsonl": _to_jsonl,
    ".parquet": _to_parquet,
}
"""How a name ends -> what turns the finished rows into it."""
