"""Where a cohort's `path` becomes bytes: a file, a DICOM frame, a TFRecord or an HDF5 entry."""

import os
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.images import shards
from skinmm.images.decode import File, read_dicom_record
from skinmm.vocabulary import CONVERTERS, Table

HDF5_SUFFIXES: Final = (".hdf5", ".h5")
_HDF5: Final = re.compile(r"(?P<file>.+?\.(?:hdf5|h5))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)
FRAME: Final = "#frame="
"""What follows a DICOM file's path or name where it has several frames, then the number, from 1."""


class Source(NamedTuple):
    """Encoded bytes, and which frame of them is meant where that was said."""

    data: bytes
    frame: int | None = None


def read_source(location: str) -> Source:
    """The bytes at a path of the cohort table.

    Args:
        location: a file, `FILE#frame=N`, `FILE.hdf5#image_id`, or a TFRecord's `location`.

    Raises:
        OSError: the file cannot be read.
        InputError: the container has no such entry, or is damaged.
    """
    if shards.is_tfrecord_location(location):
        return Source(shards.read_tfrecord_image(location))
    if hdf5 := _HDF5.fullmatch(location):
        return Source(_hdf5_entry(hdf5["file"], hdf5["entry"]))
    file, frame = split_frame(location)
    return Source(Path(file).read_bytes(), frame)


def split_frame(location: str) -> tuple[str, int | None]:
    """A file, and which of its frames is meant where `#frame=N` says so.

    Raises:
        InputError: N is no number.
    """
    file, mark, frame = location.rpartition(FRAME)
    if not mark:
        return location, None
    if not frame.isdecimal():
        raise InputError(f"{location}: frame={frame} is not a number")
    return file, int(frame)


def list_hdf5_names(file: Path) -> list[str]:
    """The entries of an HDF5 file.

    Raises:
        InputError: it is no HDF5 file.
    """
    with _open_hdf5(str(file)) as opened:
        return list(opened)


def _hdf5_entry(file: str, entry: str) -> bytes:
    opened = _hdf5(file, os.getpid())
    if entry not in opened:
        raise InputError(f"{file}: no image '{entry}'")
    return bytes(opened[entry][()].tobytes())


@lru_cache(maxsize=8)
def _hdf5(file: str, _process: int) -> Any:
    """An open file that belongs to one process: h5py's do not survive a fork."""
    return _open_hdf5(file)


def _open_hdf5(file: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{file}: needs h5py: pip install 'skinmm[hdf5]'") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file}: not a readable HDF5 file: {error}") from error


COLUMNS: Final = ("age", "sex", "site", "patient_id")
_OTHERS: Final = re.compile(
    r"\.(?:jpe?g|png|tiff?|bmp|webp)$|\.(?:tfrec|tfrecords?|hdf5|h5)(?:\?[^#]*)?#", re.IGNORECASE
)
"""Paths of what is no DICOM file; a name without suffix, as archives give them, says nothing."""


def fill_from_headers(table: pd.DataFrame) -> pd.DataFrame:
    """Fills empty cells of `COLUMNS` from DICOM headers; only files of rows with one are opened.

    Raises:
        InputError: a file that cannot be read, by the image's name.
    """
    wanted = table["path"].map(may_be_dicom, na_action="ignore").eq(True) & has_empty_cell(
        table, COLUMNS
    )
    if not wanted.any():
        return table
    records: list[Mapping[str, Any]] = [{}] * len(table)
    for row in np.flatnonzero(wanted):
        path, image_id = table["path"].iloc[row], table["image_id"].iloc[row]
        try:
            with Path(split_frame(path)[0]).open("rb") as file:
                records[row] = read_header_record(path, file)
        except (OSError, InputError) as error:
            raise InputError(f"image {image_id} ({path}): {error}") from error
    filled = fill_empty_cells(table, records)
    kinds = {name: float if name == "age" else object for name in filled}
    return table.assign(
        **{name: pd.Series(filled[name], table.index, kind) for name, kind in kinds.items()}
    )


def has_empty_cell(table: Table, names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Which rows have an empty cell in any of some columns, of those that the table has."""
    empty = [pd.isna(np.asarray(table[name])) for name in names if name in table]
    return np.logical_or.reduce(empty) if empty else np.zeros(0, np.bool_)


def may_be_dicom(path: str) -> bool:
    """Whether a path of a cohort may lead to a DICOM file, by its name."""
    return not _OTHERS.search(path)


def read_header_record(path: str, file: File) -> dict[str, Any]:
    """What a file's header says, in the vocabulary; what is not in it stays missing.

    Args:
        path: of the image; what is not called `.dcm` may be another picture.
        file: its bytes, read as far as the pixels.

    Raises:
        DecodeError: a `.dcm` file that is none, or a damaged header.
    """
    if file.read(132)[128:] != b"DICM" and not split_frame(path)[0].lower().endswith(".dcm"):
        return {}
    record = read_dicom_record(file)
    known = {name: convert(record[name]) for name, convert in CONVERTERS.items()}
    patient = record["patient_id"]
    return {**known, "patient_id": str(patient) if patient else None}


def fill_empty_cells(
    table: Table, records: Sequence[Mapping[str, Any]], further: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Columns whose empty cells are filled from a header record for each row.

    Args:
        table: canonical rows with any of `COLUMNS`; others are not added.
        records: as `read_header_record` gives them.
        further: more columns that records may have.
    """
    filled = {}
    for name in (*COLUMNS, *further):
        if name in table:
            cells = np.asarray(table[name], object)
            found = np.array([record.get(name) for record in records], object)
            filled[name] = np.where(pd.isna(cells), found, cells)
    return filled
