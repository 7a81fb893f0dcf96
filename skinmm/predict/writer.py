"""The output file: complete or not there."""

import os
from pathlib import Path
from types import TracebackType

import pandas as pd

from skinmm.errors import InputError


class CsvWriter:
    """Writes chunks beside the output and renames at the end; what existed stays until then."""

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        """Checks the place; nothing is written yet.

        Raises:
            InputError: the output exists and may not be replaced, or cannot be a file there.
        """
        if path.is_dir():
            raise InputError(f"output={path} is a folder; name a file in it")
        if path.exists() and not overwrite:
            raise InputError(f"output={path} exists; choose another, or overwrite=true")
        if not path.parent.is_dir():
            raise InputError(f"output={path}: the folder {path.parent} does not exist")
        self._path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._first = True

    def __enter__(self) -> "CsvWriter":
        """Opens the partial file."""
        self._file = self._partial.open("w", newline="", encoding="utf-8")
        return self

    def write(self, rows: pd.DataFrame) -> None:
        """Appends rows; numbers as %.9g, missing ones empty."""
        rows.to_csv(
            self._file, index=False, header=self._first, float_format="%.9g", lineterminator="\n"
        )
        self._first = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Puts the file in its place, or takes it away if something went wrong."""
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink(missing_ok=True)
