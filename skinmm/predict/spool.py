"""What a first pass saw of every row, in a file, until the rows of every patient are there."""

import json
import sqlite3
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64

from skinmm.errors import InputError
from skinmm.predict.parts import Part

TABLES: Final = """
create table if not exists job (said text);
create table if not exists rows
    (row integer primary key, named text, key integer, seen blob, patient text, error text,
     missing text);
"""


class Spool(AbstractContextManager["Spool"]):
    """Rows in SQLite: however many there are, few are in memory.

    Attributes:
        rows: kept so far, by an earlier job too.
    """

    def __init__(
        self,
        path: Path | None = None,
        job: dict[str, Any] | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        """Opens a file beside an output, or a temporary one.

        Args:
            path: of the file, which is kept only where the job ends early; None: temporary.
            job: what decides about the rows; plain data.
            resume: go on with what a killed job left.
            overwrite: start again.

        Raises:
            InputError: what a killed job left is in the way, damaged, or of another job.
        """
        self._path, self._sorted = path, False
        if overwrite and not resume:
            self._remove()
        self._file = sqlite3.connect(path or "")  # "": on disk, and gone with the connection
        said = json.dumps(job)
        try:
            self._file.executescript(TABLES)
            (self.rows,) = self._file.execute("select count(*) from rows").fetchone()
            left = self._file.execute("select said from job").fetchone()
        except sqlite3.DatabaseError as error:
            raise InputError(f"{path}: damaged; overwrite=true starts again") from error
        if self.rows and not resume:
            raise InputError(
                f"a job that ended early has looked at {self.rows} rows; resume=true goes on, "
                "overwrite=true starts again"
            )
        if self.rows and left[0] != said:
            raise InputError(
                f"resume=true: the job changed since {self.rows} rows were looked at; "
                "overwrite=true starts again"
            )
        self._file.execute("delete from job")
        self._file.execute("insert into job values (?)", (said,))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Removes the file, unless something went wrong and there are rows to go on with."""
        self._file.close()
        if kind is None or not self.rows:
            self._remove()

    def add(self, part: Part) -> None:
        """Appends a part's rows, all or none of them.

        Raises:
            OSError: they could not be written; those before them are safe.
        """
        part.start = self.rows
        rows = zip(
            range(self.rows, self.rows + part.size),
            part.named,
            part.keys.tolist(),
            [row.tobytes() for row in part.seen],
            [None if pd.isna(name) else str(name) for name in part.cells["patient_id"]],
            part.errors,
            part.missing,
            strict=True,
        )
        try:
            self._file.executemany("insert into rows values (?, ?, ?, ?, ?, ?, ?)", rows)
            self._file.commit()
        except sqlite3.OperationalError as error:  # a full disk
            raise OSError(None, str(error), str(self._path or "temporary file")) from error
        self.rows += part.size

    def fill(self, part: Part) -> None:
        """Gives a part what was seen of its rows."""
        found = self._file.execute(
            "select key, seen, patient, error, missing from rows "
            "where row >= ? order by row limit ?",
            (part.start, part.size),
        ).fetchall()
        keys, seen, patients, errors, missing = zip(*found, strict=True)
        part.keys = np.array(keys, np.int64)
        part.seen = np.array([np.frombuffer(row) for row in seen])
        own = part.cells["patient_id"]
        part.cells["patient_id"] = np.where(pd.isna(own), np.array(patients, object), own)
        part.errors[:], part.missing[:] = errors, missing

    def others(
        self, part: Part, rows: slice, most: int
    ) -> tuple[Float64[np.ndarray, "b most seen"], Bool[np.ndarray, "b most"]]:
        """What was seen of the others of each row's patient, and which of these there are.

        Of more than can be compared with, those of the lowest keys are taken.
        """
        if not self._sorted:  # nothing is added any more
            self._file.execute("create index if not exists by_patient on rows (named, key)")
            self._file.commit()
            self._sorted = True
        named, keys = part.named[rows], part.keys[rows].tolist()
        found = {name: self._first(name, most + 1) for name in set(named)}
        seen = np.zeros((len(named), most, part.seen.shape[1]))
        there = np.zeros((len(named), most), dtype=bool)
        for place, name in enumerate(named):
            # Rows of the own key are the same row again, and no others.
            others = [row for key, row in found[name] if key != keys[place]][:most]
            there[place, : len(others)] = True
            for slot, row in enumerate(others):
                seen[place, slot] = row
        return seen, there

    def _first(self, name: str | None, most: int) -> list[tuple[int, Float64[np.ndarray, " seen"]]]:
        rows = self._file.execute(
            "select key, seen from rows where named = ? group by key order by key limit ?",
            (name, most),
        )
        return [(key, np.frombuffer(row)) for key, row in rows]

    def _remove(self) -> None:
        if self._path is not None:
            for suffix in ("", "-journal"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
