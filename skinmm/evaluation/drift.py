"""Whether what a model is shown now comes as it came in training: distributions kept, compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy.stats import chi2_contingency

PARTS: Final = 10
"""A column of numbers is divided at its deciles."""
MISSING: Final = "missing"
OTHER: Final = "other"
_SMOOTH: Final = 0.5  # added to every count, so that an empty cell has a logarithm


@dataclass(frozen=True)
class ColumnShift:
    """A column then and now.

    Attributes:
        column: its name.
        labels: of the cells: values or ranges, and what is missing.
        before: rows in each cell, in training.
        now: the same, since.
        index: the population stability index (Siddiqi 2006): below 0.1 is usually called stable,
            above 0.25 a shift; chance alone gives about (cells - 1)(1 / rows + 1 / rows now).
        p: of the chi-squared test that both come from one distribution; None where it has no say.
    """

    column: str
    labels: tuple[str, ...]
    before: Int64[np.ndarray, " cells"]
    now: Int64[np.ndarray, " cells"]
    index: float
    p: float | None


def describe_columns(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The distribution of columns, as plain data: counts, never rows.

    Args:
        table: rows; a column of numbers is divided at its deciles, any other by value.
        columns: which.
    """
    return {name: _described(table[name]) for name in columns}


def compare_columns(
    reference: Mapping[str, Mapping[str, Any]], table: pd.DataFrame
) -> list[ColumnShift]:
    """Sets rows beside a distribution that was kept.

    Args:
        reference: of `describe`.
        table: rows; a column that is not there is left out.
    """
    return [
        _shift(name, kept, _counts(kept, table[name]))
        for name, kept in reference.items()
        if name in table
    ]


def stability_index(before: Int64[np.ndarray, " cells"], now: Int64[np.ndarray, " cells"]) -> float:
    """Kullback and Leibler's symmetric divergence of two tables of counts."""
    shares: list[Float64[np.ndarray, " cells"]] = [
        (counts + _SMOOTH) / (counts + _SMOOTH).sum() for counts in (before, now)
    ]
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _described(column: "pd.Series[Any]") -> dict[str, Any]:
    numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    if numeric:
        known = column.dropna().to_numpy(np.float64)
        steps = np.linspace(0, 1, PARTS + 1)[1:-1]
        ends = np.unique(np.quantile(known, steps)) if len(known) else np.empty(0)
        kept: dict[str, Any] = {"ends": ends.tolist()}
    else:
        kept = {"values": sorted(column.dropna().astype(str).unique())}
    return {**kept, "counts": _counts(kept, column).tolist()}


def _counts(kept: Mapping[str, Any], column: "pd.Series[Any]") -> Int64[np.ndarray, " cells"]:
    """Rows of each cell; the last but one holds values that were not there, the last nothing."""
    if "ends" in kept:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        known = np.isfinite(numbers)
        cells = len(kept["ends"]) + 1
        found = np.bincount(np.searchsorted(kept["ends"], numbers[known]), minlength=cells)
        return np.append(found, (~known).sum()).astype(np.int64)
    known = column.notna().to_numpy()
    values = column[known].astype(str)
    each = [int((values == value).sum()) for value in kept["values"]]
    return np.array([*each, int(known.sum()) - sum(each), int((~known).sum())], dtype=np.int64)


def _labels(kept: Mapping[str, Any]) -> tuple[str, ...]:
    if "values" in kept:
        return (*kept["values"], OTHER, MISSING)
    ends = [f"{end:.3g}" for end in kept["ends"]]
    if not ends:
        return ("any", MISSING)
    between = [f"{low} to {high}" for low, high in pairwise(ends)]
    return (f"up to {ends[0]}", *between, f"above {ends[-1]}", MISSING)


def _shift(name: str, kept: Mapping[str, Any], now: Int64[np.ndarray, " cells"]) -> ColumnShift:
    before = np.array(kept["counts"], dtype=np.int64)
    held = before + now > 0
    table = np.stack([before, now])[:, held]
    defined = table.shape[1] > 1 and bool((table.sum(axis=1) > 0).all())
    p = float(chi2_contingency(table, correction=False).pvalue) if defined else None
    labels = tuple(label for label, any_ in zip(_labels(kept), held, strict=True) if any_)
    return ColumnShift(name, labels, before[held], now[held], stability_index(*table), p)
