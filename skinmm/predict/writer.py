"""Crash-safe output table, which appears only when complete; interrupted jobs can be resumed."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, Final

import pandas as pd

from skinmm.errors import InputError, print_error, require_new_output
from skinmm.files import import_parquet

BLOCK: Final = 16_384
"""Rows of a complete table that are in memory at a time."""
Rows = Iterable[pd.DataFrame]


class OutputTable:
    """Output table, written as CSV next to its path, then converted and renamed.

    After every chunk a progress file records the rows so far, so that a job that was killed, or ran
    into a full disk, can be resumed. An existing output stays until the end.

    Args:
        path: file whose suffix is one of `FORMATS`; CSV if it has none.
        job: everything that determines the rows, as plain data; the keys appear in messages.
        resume: continue an interrupted job.
        overwrite: replace an existing output.

    Attributes:
        rows: number of rows so far, including the rows of an interrupted job.
        decisions: number of rows per decision; "" for rows that could not be predicted.
        unknown: per column, number of cells with an unknown value.
    """

    def __init__(
        self, path: Path, job: dict[str, Any], *, resume: bool = False, overwrite: bool = False
    ) -> None:
        require_output_file("output", path, overwrite=overwrite)
        self._path, self._job = path, job
        self._partial = path.with_name(f".{path.name}.partial")
        self._progress = path.with_name(f".{path.name}.partial.json")
        self._bytes = self.rows = 0
        self.decisions, self.unknown = Counter[str](), Counter[str]()
        if self._progress.is_file() and self._partial.is_file():
            self._load_progress(resume=resume, overwrite=overwrite)

    def __enter__(self) -> "OutputTable":
        """Open the partial file; rows after the last progress record are cut off."""
        self._file: BinaryIO = self._partial.open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise InputError(f"output={self._path}: another job is writing it") from error
        self._file.truncate(self._bytes)
        return self

    def write(self, table: pd.DataFrame, unknown: Counter[str]) -> None:
        """Append rows; numbers have nine significant digits, missing values are empty."""
        data = to_csv(table, header=self.rows == 0).encode()
        try:
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._bytes += len(data)
            self.rows += len(table)
            self.decisions.update(table["decision"])
            self.unknown.update(unknown)
            progress = {
                "rows": self.rows,
                "bytes": self._bytes,
                "decisions": self.decisions,
                "unknown": self.unknown,
                "job": self._job,
            }
            fresh = self._progress.with_name(f"{self._progress.name}.new")
            fresh.write_text(json.dumps(progress), encoding="utf-8")
            fresh.replace(self._progress)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def read(self) -> Iterator[pd.DataFrame]:
        """Yield the rows written so far, in blocks, with every cell as text."""
        options: dict[str, Any] = {"dtype": str, "keep_default_na": False}
        with pd.read_csv(self._partial, chunksize=BLOCK, **options) as blocks:
            yield from blocks

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Finish the output, or save the rows of an interrupted job."""
        is_complete = False
        try:
            if kind is None:
                self._finish()
                is_complete = True
        finally:
            with suppress(OSError):  # a full disk fails again
                self._file.close()
            if is_complete or not self.rows:
                self._partial.unlink(missing_ok=True)
                self._progress.unlink(missing_ok=True)
            else:
                print_error(
                    f"{self.rows} rows are saved; run the same command with resume=true to continue"
                )

    def _finish(self) -> None:
        convert = FORMATS[find_format(self._path)]
        if convert is None:
            self._partial.replace(self._path)
            return
        converted = self._path.with_name(f".{self._path.name}.converted")
        try:
            convert(self.read(), converted)
            converted.replace(self._path)
        finally:
            converted.unlink(missing_ok=True)

    def _load_progress(self, *, resume: bool, overwrite: bool) -> None:
        try:
            progress = json.loads(self._progress.read_text(encoding="utf-8"))
            rows, size, job = progress["rows"], progress["bytes"], progress["job"]
            counts = Counter(progress["decisions"]), Counter(progress["unknown"])
        except (ValueError, LookupError, TypeError) as error:
            raise InputError(f"{self._progress}: damaged; delete it to start again") from error
        if not resume:
            if overwrite:
                return
            raise InputError(
                f"output={self._path}: an interrupted job left {rows} rows; resume=true continues, "
                "overwrite=true starts again"
            )
        if changed := [name for name, value in self._job.items() if job.get(name) != value]:
            raise InputError(
                f"resume=true: {', '.join(changed)} changed since {rows} rows were predicted; "
                "overwrite=true starts again"
            )
        if self._partial.stat().st_size < size:
            raise InputError(f"{self._partial}: truncated; overwrite=true starts again")
        self.rows, self._bytes, (self.decisions, self.unknown) = rows, size, counts


def to_csv(table: pd.DataFrame, *, header: bool) -> str:
    """Return a table as CSV, with numbers of nine significant digits."""
    return table.to_csv(index=False, header=header, float_format="%.9g", lineterminator="\n")


def require_output_file(key: str, path: Path, *, overwrite: bool, suffix: str = "") -> None:
    """Raise InputError if an output file is not writable, or has another suffix."""
    if path.is_dir():
        raise InputError(f"{key}={path} is a folder; name a file in it")
    require_new_output(key, path, overwrite=overwrite, suffix=suffix)
    if not path.parent.is_dir():
        raise InputError(f"{key}={path}: the folder {path.parent} does not exist")


def find_format(path: Path) -> str:
    """Return the key of `FORMATS` for a file."""
    suffix = path.suffix.lower()
    if suffix and suffix not in FORMATS:
        raise InputError(f"output={path}: the suffix must be one of {', '.join(FORMATS)}")
    if suffix == ".parquet":
        import_parquet(f"output={path}")
    return suffix if suffix in FORMATS else ".csv"


def number_columns(table: pd.DataFrame) -> list[str]:
    """Return the columns of an output that contain numbers; the others contain text."""
    names = ("malignancy", "threshold", "ood")
    return [name for name in table.columns if name.startswith(("p_", "half_")) or name in names]


def _to_jsonl(rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for table in rows:
            numeric = number_columns(table)
            for record in table.to_dict("records"):
                numbers = {n: float(record[n]) if record[n] else None for n in numeric}
                file.write(json.dumps(record | numbers, ensure_ascii=False) + "\n")


def to_arrow(table: pd.DataFrame) -> Any:
    """Convert rows of an output to an Arrow table."""
    import pyarrow as arrow

    numeric = number_columns(table)
    types = {name: arrow.float64() if name in numeric else arrow.string() for name in table}
    converted = {
        # Names and targets of the input may have any type.
        name: pd.to_numeric(cells) if name in numeric else cells.map(str, na_action="ignore")
        for name, cells in table.items()
    }
    schema = arrow.schema(types)
    return arrow.Table.from_pandas(pd.DataFrame(converted), schema, preserve_index=False)


def _to_parquet(rows: Rows, path: Path) -> None:
    parquet = import_parquet(f"output={path}")
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
"""Suffix of the output -> function that converts the CSV rows."""
