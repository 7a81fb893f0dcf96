"""Patient record: the columns that a model may use, and their encoding as a vector."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32

from skinmm.errors import InputError
from skinmm.vocabulary import Table, count_table_rows, is_missing, parse_numbers, parse_truth

_REASONS: Final[dict[str, str]] = {
    "it is the answer, or a synonym of it": (
        "target diagnosis benign_malignant malignant melanoma dx"
    ),
    "it is known only after the diagnosis was made": (
        "dx_type diagnosis_confirm_type biopsed mel_thick_mm mel_mitotic_index"
    ),
    "it describes the camera or the archive, not the patient": (
        "width height file_size bytes megapixels pixels image_size"
    ),
    "it describes how the data were collected, not the patient": (
        "images_per_patient n_images image_id path patient_id lesion_id source part fold "
        "public_fold attribution copyright_license"
    ),
}
NOT_AT_BEDSIDE: Final[dict[str, str]] = {
    name: reason for reason, names in _REASONS.items() for name in names.split()
}
"""Columns that no model may use, with the reason: they do not exist for a new patient."""


def check_columns(columns: Sequence[str], present: Sequence[str]) -> None:
    """Refuse record columns that no model may use, or that are not in the table."""
    for name in columns:
        reason = NOT_AT_BEDSIDE.get(name)
        reason = "ISIC knows it only after histology" if name.startswith("iddx") else reason
        if reason:
            raise InputError(f"data.columns: '{name}' cannot be an input: {reason}")
        if name not in present:
            usable = sorted(c for c in present if c not in NOT_AT_BEDSIDE)
            raise InputError(f"data.columns: no column '{name}'; the table has {', '.join(usable)}")


@dataclass(frozen=True)
class ColumnLayout:
    """Slice `[start, stop)` of a column in the encoded vector."""

    name: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Column:
    """Fitted state of one column: `mean` and `scale`, or `values` if it is categorical."""

    name: str
    kind: str
    mean: float = 0.0
    scale: float = 1.0
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        return 2 if self.kind == "numeric" else len(self.values) + 1

    @cached_property
    def _slots(self) -> dict[str | None, int]:
        slots: dict[str | None, int] = {value: slot for slot, value in enumerate(self.values)}
        spellings = {parse_truth(value): slot for value, slot in slots.items()}
        return slots if None in spellings else {**spellings, **slots}

    def find(self, cell: Any) -> int:
        """Return the slot of a value, in any spelling of true and false; -1 if it is unknown."""
        slot = self._slots.get(str(cell), -1)
        return slot if slot >= 0 else self._slots.get(parse_truth(cell), -1)


class RecordEncoder:
    """Encoder of record columns as a vector, with statistics of the training rows only.

    A numeric column becomes its standardised value (0 if missing) and a flag for missing. A
    categorical column becomes a one-hot vector over the training values and one slot for missing
    or unknown. `fit` and `from_state` create an encoder.

    Attributes:
        layout: the slice of the vector that each column fills.
    """

    def __init__(self, columns: Sequence[_Column]) -> None:
        self._columns = tuple(columns)
        stops = np.cumsum([column.width for column in columns]).tolist()
        self.layout = tuple(
            ColumnLayout(column.name, column.kind, stop - column.width, stop)
            for column, stop in zip(columns, stops, strict=True)
        )

    @classmethod
    def fit(cls, table: pd.DataFrame, columns: Sequence[str]) -> "RecordEncoder":
        """Fit means, scales and values.

        Args:
            table: canonical training rows; a column of numbers is numeric, any other categorical.
            columns: names of the columns, in the order of the vector.
        """
        check_columns(columns, list(table.columns))
        return cls([_fit_column(table[name]) for name in columns])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return tuple(column.name for column in self._columns)

    @property
    def dim(self) -> int:
        """Length of the encoded vector."""
        return sum(column.width for column in self._columns)

    @property
    def blank(self) -> Float32[np.ndarray, " dim"]:
        """Encoded record with every value missing."""
        return self.transform({name: np.array([None]) for name in ("", *self.columns)})[0]

    def transform(self, table: Table) -> Float32[np.ndarray, "n dim"]:
        """Encode rows; an unusable value counts as missing."""
        encoded = np.zeros((count_table_rows(table), self.dim), np.float32)
        for column, layout in zip(self._columns, self.layout, strict=True):
            if column.name not in table:
                raise InputError(f"the table has no column '{column.name}', which the model needs")
            cells = np.asarray(table[column.name], object)
            block = encoded[:, layout.start : layout.stop]
            if column.kind == "numeric":
                numbers = parse_numbers(cells)
                is_known = np.isfinite(numbers)
                block[is_known, 0] = (numbers[is_known] - column.mean) / column.scale
                block[~is_known, 1] = 1
            else:
                # The last slot is for missing and unknown values.
                pairs = zip(cells, pd.isna(cells), strict=True)
                indices = [-1 if empty else column.find(cell) for cell, empty in pairs]
                block[np.arange(len(block)), indices] = 1
        return encoded

    def unknown(self, name: str, cells: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Return a mask of cells whose value was not in training and so counts as missing."""
        column = next(column for column in self._columns if column.name == name)
        if column.kind == "numeric":
            unusable = ~np.isfinite(parse_numbers(cells))
        else:
            unusable = np.array([column.find(cell) < 0 for cell in cells], np.bool_)
        return unusable & np.array([not is_missing(cell) for cell in cells], np.bool_)

    def to_state(self) -> dict[str, Any]:
        """Return the fitted state as plain data (text, numbers, lists) for a checkpoint."""
        return {"columns": [{**asdict(c), "values": list(c.values)} for c in self._columns]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RecordEncoder":
        """Restore an encoder from the result of `to_state`."""
        return cls([_Column(**{**c, "values": tuple(c["values"])}) for c in state["columns"]])


def _fit_column(column: "pd.Series[Any]") -> _Column:
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        numbers = parse_numbers(column)
        numbers = numbers[np.isfinite(numbers)]
        mean, scale = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 1.0)
        return _Column(name, "numeric", mean=mean, scale=scale or 1.0)
    return _Column(name, "categorical", values=tuple(sorted(column.dropna().astype(str).unique())))
