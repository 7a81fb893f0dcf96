"""Patient record: the encoding of its columns as a vector."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64

from skinmm.data.columns import (
    check_columns,
    describe_comma,
    has_ambiguous_comma,
    split_unit,
)
from skinmm.errors import InputError
from skinmm.vocabulary import Table, count_table_rows, is_missing, parse_numbers, parse_truth


@dataclass(frozen=True)
class ColumnLayout:
    """Slice `[start, stop)` of a column in the encoded vector."""

    name: str
    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class _Column:
    """Fitted state of one column.

    A numeric column has `mean`, `scale`, the `unit` that its cells had in training, and whether
    they were all 0 or 1. A categorical column has `values`.
    """

    name: str
    kind: str
    mean: float = 0.0
    scale: float = 1.0
    values: tuple[str, ...] = ()
    unit: str = ""
    is_truth: bool = False

    @property
    def width(self) -> int:
        return 2 if self.kind == "numeric" else len(self.values) + 1

    @cached_property
    def _slots(self) -> dict[str | None, int]:
        slots: dict[str | None, int] = {value: slot for slot, value in enumerate(self.values)}
        spellings = {parse_truth(value): slot for value, slot in slots.items()}
        return slots if None in spellings else {**spellings, **slots}

    def parse(self, cells: Iterable[Any]) -> Float64[np.ndarray, " n"]:
        """Parse cells as numbers, with the unit of training or none; NaN where this fails."""
        if self.unit:
            pairs = map(split_unit, cells)
            cells = [number if unit in ("", self.unit) else None for number, unit in pairs]
        if self.is_truth:
            words: dict[str | None, int] = {"true": 1, "false": 0}
            cells = [words.get(parse_truth(cell), cell) for cell in cells]
        return parse_numbers(cells)

    def refuse(self, cell: Any) -> str:
        """Return why the number in a cell is refused (unit or comma), or ""."""
        number, unit = split_unit(cell)
        if self.kind == "numeric" and unit not in ("", self.unit):
            stated = f"in {self.unit}" if self.unit else "without a unit"
            return f"{cell!r}, but the numbers of training are {stated}"
        is_ambiguous = self.kind == "numeric" and has_ambiguous_comma(number)
        return describe_comma(cell) if is_ambiguous else ""

    def find(self, cell: Any) -> int:
        """Return the one-hot index of a value, -1 if unknown; `yes`, `1` and `true` are equal."""
        slot = self._slots.get(str(cell), -1)
        return slot if slot >= 0 else self._slots.get(parse_truth(cell), -1)


class RecordEncoder:
    """Encoder of record columns as a vector, with statistics of the training rows only.

    A numeric column becomes its standardised value (0 if missing) and a flag for missing. A
    categorical column becomes a one-hot vector over the training values and one slot for missing
    or unknown. `fit` and `from_state` create an encoder.

    Attributes:
        layout: the slice of the vector that each column fills.
        widths: the number of values of each column.
    """

    def __init__(self, columns: Sequence[_Column]) -> None:
        self._columns = tuple(columns)
        self.widths = [column.width for column in columns]
        stops = np.cumsum(self.widths).tolist()
        self.layout = tuple(
            ColumnLayout(column.name, column.kind, stop - column.width, stop)
            for column, stop in zip(columns, stops, strict=True)
        )

    @classmethod
    def fit(
        cls, table: pd.DataFrame, columns: Sequence[str], units: Mapping[str, str] | None = None
    ) -> "RecordEncoder":
        """Fit means, scales and values.

        Args:
            table: canonical training rows; a column of numbers is numeric, any other categorical.
            columns: names of the columns, in the order of the vector.
            units: units that columns of numbers had in the user's table.
        """
        check_columns(columns, list(table.columns))
        units = units or {}
        return cls([_fit_column(table[name], units.get(name, "")) for name in columns])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the encoded columns."""
        return tuple(column.name for column in self._columns)

    @property
    def units(self) -> dict[str, str]:
        """Units of the numeric columns that had a unit in training."""
        return {column.name: column.unit for column in self._columns if column.unit}

    @property
    def dim(self) -> int:
        """Length of the encoded vector."""
        return sum(column.width for column in self._columns)

    @property
    def blank(self) -> Float32[np.ndarray, " dim"]:
        """Encoded record with every value missing."""
        return self.transform({name: np.array([None]) for name in ("", *self.columns)})[0]

    def transform(self, table: Table) -> Float32[np.ndarray, "n dim"]:
        """Encode rows; unknown values count as missing."""
        encoded = np.zeros((count_table_rows(table), self.dim), np.float32)
        for column, layout in zip(self._columns, self.layout, strict=True):
            if column.name not in table:
                raise InputError(f"the table has no column '{column.name}', which the model needs")
            cells = np.asarray(table[column.name], object)
            block = encoded[:, layout.start : layout.stop]
            if column.kind == "numeric":
                numbers = column.parse(cells)
                is_known = np.isfinite(numbers)
                block[is_known, 0] = (numbers[is_known] - column.mean) / column.scale
                block[~is_known, 1] = 1
            else:
                # The last slot is for missing and unknown values.
                pairs = zip(cells, pd.isna(cells), strict=True)
                indices = [-1 if empty else column.find(cell) for cell, empty in pairs]
                block[np.arange(len(block)), indices] = 1
        return encoded

    def parse(self, name: str, cells: Iterable[Any]) -> Float64[np.ndarray, " n"]:
        """Parse the cells of a numeric column as in training; NaN if not a number."""
        return self._find_column(name).parse(cells)

    def unknown(self, name: str, cells: np.ndarray) -> Bool[np.ndarray, " n"]:
        """Return a mask of the cells whose values did not occur in training."""
        column = self._find_column(name)
        if column.kind == "numeric":
            unusable = ~np.isfinite(column.parse(cells))
        else:
            unusable = np.array([column.find(cell) < 0 for cell in cells], np.bool_)
        return unusable & np.array([not is_missing(cell) for cell in cells], np.bool_)

    def refuse(self, name: str, cells: np.ndarray) -> dict[int, str]:
        """Return why the number of a row is refused (unit or comma), by row number."""
        column, texts = self._find_column(name), (c for c in cells if isinstance(c, str))
        reasons = {text: reason for text in {*texts} if (reason := column.refuse(text))}
        if not reasons:
            return {}
        return {
            row: f"column '{name}': {reasons[c]}" for row, c in enumerate(cells) if c in reasons
        }

    def read_numbers(self, record: Mapping[str, Any]) -> dict[str, float]:
        """Return the numbers of a record by column; they may be text, also with a unit."""
        numbers = {c.name: c.parse([record[c.name]])[0] for c in self._columns if c.name in record}
        kinds = {column.name: column.kind for column in self._columns}
        return {
            name: float(number)
            for name, number in numbers.items()
            if kinds[name] == "numeric" and np.isfinite(number)
        }

    def decode(self, vector: Float32[np.ndarray, " dim"]) -> dict[str, str]:
        """Decode one encoded row to text."""
        values = {}
        for column, layout in zip(self._columns, self.layout, strict=True):
            block = vector[layout.start : layout.stop]
            slot = int(block.argmax())
            if column.kind == "numeric":
                number = float(block[0]) * column.scale + column.mean
                values[column.name] = "missing" if block[1] else f"{number:.4g}"
            else:
                values[column.name] = [*column.values, "missing"][slot]
        return values

    def _find_column(self, name: str) -> _Column:
        return next(column for column in self._columns if column.name == name)

    def to_state(self) -> dict[str, Any]:
        """Return the fitted state as plain data (text, numbers, lists) for a checkpoint."""
        return {"columns": [{**asdict(c), "values": list(c.values)} for c in self._columns]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RecordEncoder":
        """Restore an encoder from the result of `to_state`."""
        return cls([_Column(**{**c, "values": tuple(c["values"])}) for c in state["columns"]])


def _fit_column(column: "pd.Series[Any]", unit: str) -> _Column:
    name = str(column.name)
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        numbers = parse_numbers(column)
        numbers = numbers[np.isfinite(numbers)]
        mean, scale = (float(numbers.mean()), float(numbers.std())) if len(numbers) else (0.0, 1.0)
        is_truth = bool(len(numbers)) and bool(np.isin(numbers, (0, 1)).all())
        return _Column(name, "numeric", mean, scale or 1.0, unit=unit, is_truth=is_truth)
    return _Column(name, "categorical", values=tuple(sorted(column.dropna().astype(str).unique())))
