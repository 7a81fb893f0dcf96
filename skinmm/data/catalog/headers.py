"""What a DICOM header knows about the patient, for rows whose table does not."""

from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.data.decode_dicom import dicom_record
from skinmm.data.record import CONVERTERS
from skinmm.errors import InputError

HEADER_BYTES: Final = 1 << 20  # far more than the elements before the pixels take
COLUMNS: Final = ("age", "sex", "site", "patient_id")


def fill_from_headers(table: pd.DataFrame) -> pd.DataFrame:
    """Fills empty cells of `COLUMNS` from DICOM headers; only files of rows with one are opened.

    Raises:
        InputError: a file that cannot be read, by the image's name.
    """
    dicom = table["path"].str.lower().str.contains(r"\.dcm(?:#|$)", na=False)
    rows = table.index[dicom & table[list(COLUMNS)].isna().any(axis=1)]
    if rows.empty:
        return table
    lacking = table.loc[rows, ["path", "image_id"]].to_numpy()
    found = pd.DataFrame([_record(path, image_id) for path, image_id in lacking], index=rows)
    return table.assign(
        **{name: table[name].where(table[name].notna(), found[name]) for name in COLUMNS}
    )


def _record(path: str, image_id: str) -> dict[str, Any]:
    """The header's words in the vocabulary; what is not in it stays missing."""
    try:
        with Path(path.partition("#")[0]).open("rb") as file:
            record = dicom_record(file.read(HEADER_BYTES))
    except (OSError, InputError) as error:
        raise InputError(f"image {image_id} ({path}): {error}") from error
    known = {name: convert(record[name]) for name, convert in CONVERTERS.items()}
    patient = record["patient_id"]
    return {**known, "patient_id": str(patient) if patient else None}
