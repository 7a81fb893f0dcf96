"""Encoded bytes of images from files, TFRecord and HDF5; record values from DICOM headers."""

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError, list_words, warn
from skinmm.files import IMAGE_SUFFIXES, OTHER_PICTURES
from skinmm.images import shards
from skinmm.images.dicom import File, read_dicom_record
from skinmm.vocabulary import CONVERTERS, Table, is_missing

HDF5_SUFFIXES: Final = (".hdf5", ".h5")
_MANY: Final = 10_000
"""Names from which a file is only listed, not visited, which takes five times as long."""
_HDF5: Final = re.compile(r"(?P<file>.+?\.(?:hdf5|h5))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)
FRAME: Final = "#frame="  # ends the location of a DICOM file, before the frame's number from 1


class Source(NamedTuple):
    """Bytes of an image file, and the number of the frame to decode."""

    data: bytes
    frame: int | None = None


Read = Callable[[str], tuple[bytes, int | None]]
"""Function such as `read_source`, from a location to bytes and the number of the frame."""


def read_source(location: str) -> Source:
    """Read the bytes of an image.

    Args:
        location: a file, `FILE#frame=N`, `FILE.hdf5#NAME`, or a location in a TFRecord file (see
            `shards.format_location`).

    Raises:
        OSError: the file cannot be read.
        InputError: the container has no such image, or is damaged.
    """
    if shards.is_tfrecord_location(location):
        return Source(shards.read_tfrecord_image(location))
    if hdf5 := _HDF5.fullmatch(location):
        images = _open_hdf5_once(hdf5["file"], os.getpid())
        if hdf5["entry"] not in images:
            raise InputError(f"{hdf5['file']}: no image '{hdf5['entry']}'")
        return Source(bytes(images[hdf5["entry"]][()].tobytes()))
    file, frame = split_frame(location)
    return Source(Path(file).read_bytes(), frame)


def split_frame(location: str) -> tuple[str, int | None]:
    """Split `FILE#frame=N` into file and frame, which is None without the suffix."""
    file, mark, frame = location.rpartition(FRAME)
    if not mark:
        return location, None
    if not frame.isdecimal():
        raise InputError(f"{location}: frame={frame} is not a number")
    return file, int(frame)


def list_hdf5_names(file: Path) -> list[str]:
    """Return the names of the images in an HDF5 file, also in groups (`GROUP/NAME`)."""
    with _open_hdf5(str(file)) as images:
        top = list(images)
        if len(top) > _MANY and hasattr(images[top[0]], "dtype"):
            return top
        names: list[str] = []
        images.visit(names.append)
        groups = {name.rpartition("/")[0] for name in names}
        return [name for name in names if name not in groups]


@lru_cache(maxsize=8)
def _open_hdf5_once(file: str, _process: int) -> Any:
    """Open a file once per process, because h5py files do not survive a fork."""
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
    rf"(?:{'|'.join(map(re.escape, {*IMAGE_SUFFIXES, *OTHER_PICTURES} - {'.dcm'}))})$"
    r"|\.(?:tfrec|tfrecords?|hdf5|h5)(?:-\d+-of-\d+)?(?:\?[^#]*)?#",
    re.IGNORECASE,
)
"""Paths of other files; a name without suffix, as archives use them, may be a DICOM file."""


def fill_from_headers(table: pd.DataFrame) -> pd.DataFrame:
    """Fill empty cells of `COLUMNS` from DICOM headers; files of complete rows are not opened.

    If no row has a `source` and the first header names an institution, that of each row is filled
    (see `hash_institution`). Words that the vocabulary lacks are printed.
    """
    is_dicom = table["path"].map(may_be_dicom, na_action="ignore").eq(True).to_numpy(bool)
    if not is_dicom.any():
        return table
    is_needed = is_dicom & has_empty_cell(table, COLUMNS)
    is_read, further = is_needed, list[str]()
    # Most archives remove the institution; one header decides whether the others are opened for it.
    first = int(np.flatnonzero(is_dicom)[0])
    if table["source"].isna().all() and _read_file_header(table, first, {}).get("source"):
        is_read, further = is_dicom, ["source"]
    if not is_read.any():
        return table
    records: list[Mapping[str, Any]] = [{}] * len(table)
    for row in np.flatnonzero(is_read).tolist():
        records[row] = _read_file_header(table, row, None if is_needed[row] else {})
    for name in CONVERTERS:
        words = Counter(
            record["unknown"][name]
            for record, is_empty in zip(records, table[name].isna(), strict=True)
            if is_empty and name in record.get("unknown", {})
        )
        if words:
            count = f"{words.total()} unknown values treated as missing"
            warn(f"DICOM headers: {name}: {count}: {list_words(words)}")
    filled: dict[str, Any] = fill_empty_cells(table, records, further)
    for name, cells in filled.items():
        filled[name] = pd.Series(cells, table.index, float if name == "age" else object)
    return table.assign(**filled)


def _read_file_header(
    table: pd.DataFrame, row: int, default: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the header of a row, or `default` if it cannot be read; without a default, raise."""
    path, image_id = table["path"].iloc[row], table["image_id"].iloc[row]
    try:
        with Path(split_frame(path)[0]).open("rb") as file:
            return read_header_record(path, file)
    except (OSError, InputError) as error:
        if default is not None:
            return default
        raise InputError(f"image {image_id} ({path}): {error}") from error


def hash_institution(name: Any) -> str | None:
    """Return a pseudonym for an institution, from the hash of its name.

    It is `institution`, and the first 8 hexadecimal digits of the SHA-256 of the name in lower case
    with single blanks. There is no salt, so that tables of several hospitals agree; a list
    of hospitals is therefore enough to find the name.
    """
    words = " ".join(str(name or "").lower().split())
    return f"institution {sha256(words.encode()).hexdigest()[:8]}" if words else None


def has_empty_cell(table: Table, names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return a mask of rows with an empty cell in these columns; absent columns are ignored."""
    empty = [pd.isna(np.asarray(table[name])) for name in names if name in table]
    return np.logical_or.reduce(empty) if empty else np.zeros(0, np.bool_)


def may_be_dicom(path: str) -> bool:
    """Return whether a location may be a DICOM file, by its name alone."""
    return not _OTHERS.search(path)


def read_header_record(path: str, file: File) -> dict[str, Any]:
    """Read `COLUMNS` and `source` from a DICOM header as canonical values, None if missing.

    Args:
        path: location of the image; a name without `.dcm` may be that of another format.
        file: file that is read up to the pixels.

    Returns:
        The record, and `unknown`: column -> word that the vocabulary lacks; empty for a file of
        another format.
    """
    if file.read(132)[128:] != b"DICM" and not split_frame(path)[0].lower().endswith(".dcm"):
        return {}
    record = read_dicom_record(file)
    values = {name: convert(record[name]) for name, convert in CONVERTERS.items()}
    unknown = {
        name: str(record[name])
        for name, value in values.items()
        if value is None and not is_missing(record[name])
    }
    patient = record["patient_id"]
    return {
        **values,
        "patient_id": str(patient) if patient else None,
        "source": hash_institution(record["institution"]),
        "unknown": unknown,
    }


def fill_empty_cells(
    table: Table, records: Sequence[Mapping[str, Any]], further: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Fill empty cells of a table from one record per row; return the filled columns.

    Columns that the table lacks are not added. The records are results of `read_header_record`;
    `further` names columns besides `COLUMNS`.
    """
    filled = {}
    for name in (*COLUMNS, *further):
        if name in table:
            cells = np.asarray(table[name], object)
            values = np.array([record.get(name) for record in records], object)
            filled[name] = np.where(pd.isna(cells), values, cells)
    return filled
