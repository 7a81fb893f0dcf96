"""What a DICOM header knows about the patient, for rows whose table does not."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.images.decode import File, dicom_record
from skinmm.images.source import split_frame
from skinmm.vocabulary import CONVERTERS, Table

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
    wanted = table["path"].map(may_be_dicom, na_action="ignore").eq(True) & lacking(table, COLUMNS)
    if not wanted.any():
        return table
    records: list[Mapping[str, Any]] = [{}] * len(table)
    for row in np.flatnonzero(wanted):
        path, image_id = table["path"].iloc[row], table["image_id"].iloc[row]
        try:
            with Path(split_frame(path)[0]).open("rb") as file:
                records[row] = header_record(path, file)
        except (OSError, InputError) as error:
            raise InputError(f"image {image_id} ({path}): {error}") from error
    filled = completed(table, records)
    kinds = {name: float if name == "age" else object for name in filled}
    return table.assign(
        **{name: pd.Series(filled[name], table.index, kind) for name, kind in kinds.items()}
    )


def lacking(table: Table, names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Which rows have an empty cell in any of some columns, of those that the table has."""
    empty = [pd.isna(np.asarray(table[name])) for name in names if name in table]
    return np.logical_or.reduce(empty) if empty else np.zeros(0, np.bool_)


def may_be_dicom(path: str) -> bool:
    """Whether a path of a cohort may lead to a DICOM file, by its name."""
    return not _OTHERS.search(path)


def header_record(path: str, file: File) -> dict[str, Any]:
    """What a file's header says, in the vocabulary; what is not in it stays missing.

    Args:
        path: of the image; what is not called `.dcm` may be another picture.
        file: its bytes, read as far as the pixels.

    Raises:
        DecodeError: a `.dcm` file that is none, or a damaged header.
    """
    if file.read(132)[128:] != b"DICM" and not split_frame(path)[0].lower().endswith(".dcm"):
        return {}
    record = dicom_record(file)
    known = {name: convert(record[name]) for name, convert in CONVERTERS.items()}
    patient = record["patient_id"]
    return {**known, "patient_id": str(patient) if patient else None}


def completed(
    table: Table, records: Sequence[Mapping[str, Any]], further: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Columns whose empty cells are filled from a header record for each row.

    Args:
        table: canonical rows with any of `COLUMNS`; others are not added.
        records: as `header_record` gives them.
        further: more columns that records may have.
    """
    filled = {}
    for name in (*COLUMNS, *further):
        if name in table:
            cells = np.asarray(table[name], object)
            found = np.array([record.get(name) for record in records], object)
            filled[name] = np.where(pd.isna(cells), found, cells)
    return filled
