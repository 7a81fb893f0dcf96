"""Drift of inputs: comparison of new rows with the distributions of columns in training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy.stats import chi2_contingency

PARTS: Final = 10
"""Number of parts that numeric columns are divided into, at quantiles."""
_MISSING: Final = "missing"
MIN_EXPECTED: Final = 5  # rows that the chi-squared test expects in each cell
_SMOOTH: Final = 0.5  # added to every count, so that an empty cell has a logarithm


@dataclass(frozen=True)
class ColumnShift:
    """Distribution of a column in training and in new rows.

    Attributes:
        column: name of the column.
        labels: of the cells: values or ranges, and missing.
        before: number of training rows in each cell.
        now: number of new rows in each cell.
        index: population stability index (Siddiqi 2006): below 0.1 is usually called stable, above
            0.25 a shift. Chance alone gives about (cells - 1) * (1 / rows before + 1 / rows now).
        p: p-value of the chi-squared test of equal distributions, with rare cells pooled;
            None with too few rows for a test.
    """

    column: str
    labels: tuple[str, ...]
    before: Int64[np.ndarray, " cells"]
    now: Int64[np.ndarray, " cells"]
    index: float
    p: float | None


def describe_columns(table: pd.DataFrame, columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the distribution of columns as counts by decile or value, never rows."""
    reference = {}
    for name in columns:
        column = table[name]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            values = column.dropna().to_numpy(np.float64)
            steps = np.linspace(0, 1, PARTS + 1)[1:-1]
            ends = np.unique(np.quantile(values, steps)) if len(values) else np.empty(0)
            cells: dict[str, Any] = {"ends": ends.tolist()}
        else:
            cells = {"values": sorted(column.dropna().astype(str).unique())}
        reference[name] = {**cells, "counts": _count(cells, column).tolist()}
    return reference


def compare_columns(
    reference: Mapping[str, Mapping[str, Any]], table: pd.DataFrame
) -> list[ColumnShift]:
    """Compare new rows with a reference from `describe_columns`; absent columns are skipped."""
    shifts = []
    for name in [name for name in reference if name in table]:
        cells = reference[name]
        before, now = np.array(cells["counts"], np.int64), _count(cells, table[name])
        used = before + now > 0
        labels = tuple(compress(_label(cells), used))
        counts = np.stack([before, now])[:, used]
        pooled = _pool_rare(counts)
        is_defined = pooled.shape[1] > 1
        p = float(chi2_contingency(pooled, correction=False).pvalue) if is_defined else None
        shifts.append(ColumnShift(name, labels, counts[0], counts[1], stability_index(*counts), p))
    return shifts


def _pool_rare(counts: Int64[np.ndarray, "2 cells"]) -> Int64[np.ndarray, "2 pooled"]:
    """Pool the smallest cells until a chi-squared test expects `MIN_EXPECTED` rows in each.

    One cell is left, and no test is possible, if there are too few rows.
    """
    share = counts.sum(axis=1).min() / max(counts.sum(), 1)
    cells = sorted(counts.T.tolist(), key=sum)
    while len(cells) > 1 and share * sum(cells[0]) < MIN_EXPECTED:
        first, second, *others = cells
        cells = sorted([[a + b for a, b in zip(first, second, strict=True)], *others], key=sum)
    return np.array(cells, dtype=np.int64).reshape(-1, 2).T


def stability_index(before: Int64[np.ndarray, " cells"], now: Int64[np.ndarray, " cells"]) -> float:
    """Return sum((q - p) * log(q / p)) of the reference shares p and the new shares q.

    The population stability index is the symmetric divergence of Kullback and Leibler (1951).
    """
    counts = np.stack([before, now]) + _SMOOTH
    p, q = counts / counts.sum(axis=1, keepdims=True)
    return float(((q - p) * np.log(q / p)).sum())


def _count(cells: Mapping[str, Any], column: "pd.Series[Any]") -> Int64[np.ndarray, " cells"]:
    """Count the rows of each bin or value, then of other values, then of missing values."""
    if "ends" in cells:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
        present = np.isfinite(numbers)
        bins = np.searchsorted(cells["ends"], numbers[present])
        counts = [*np.bincount(bins, minlength=len(cells["ends"]) + 1)]
    else:
        present = column.notna().to_numpy()
        values = column[present].astype(str)
        counts = [int((values == value).sum()) for value in cells["values"]]
        counts.append(int(present.sum()) - sum(counts))
    return np.array([*counts, (~present).sum()], dtype=np.int64)


def _label(cells: Mapping[str, Any]) -> tuple[str, ...]:
    if "values" in cells:
        return (*cells["values"], "other", _MISSING)
    ends = [f"{end:.3g}" for end in cells["ends"]]
    if not ends:
        return ("any", _MISSING)
    between = [f"{low} to {high}" for low, high in pairwise(ends)]
    return (f"up to {ends[0]}", *between, f"above {ends[-1]}", _MISSING)
