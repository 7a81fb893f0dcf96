"""Metrics of subgroups of patients, and tests of their differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import (
    bootstrap,
    patient_codes,
    skewness,
    sum_by_patient,
    summarise,
)
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions

UNKNOWN: Final = "not known"
OTHER: Final = "other"
MIN_MALIGNANT: Final = 10
"""Malignant rows that a group needs for its sensitivity to be compared with that of others."""

_AGES: Final = (0, 40, 60, 80, np.inf)  # years
_AGE_NAMES: Final = ("under 40", "40 to 59", "60 to 79", "80 and over")
_MAX_VALUES: Final = 6


@dataclass(frozen=True)
class Group:
    """Mask of the rows that share a value of a column."""

    column: str
    name: str
    rows: Bool[np.ndarray, " n"]


def build_groups(records: pd.DataFrame) -> list[Group]:
    """Group rows by sex, age band, site, source, image size and skin tone.

    A column with one value gives no group. Values beyond the six most frequent are one group.
    Categorical columns give groups in the order of their categories.

    Args:
        records: canonical rows, in the order of the predictions; columns and cells may be missing.
    """
    columns = {name: records[name] for name in ("sex", "age", "site", "source") if name in records}
    numbers = records.filter(["age", "width", "height"]).apply(pd.to_numeric, errors="coerce")
    if "age" in columns:
        columns["age"] = pd.cut(numbers["age"], _AGES, right=False, labels=_AGE_NAMES)
    if {"width", "height"} <= set(records):
        sides = numbers[["width", "height"]]
        text = sides.fillna(0).astype(int).astype(str)
        sizes = text["width"].str.cat(text["height"], sep="x")
        columns["image size"] = sizes.where(sides.notna().all(axis=1))
    if "skin_tone" in records:
        columns["skin tone (estimated)"] = records["skin_tone"]
    return [group for name, values in columns.items() for group in _split(name, values)]


def _split(column: str, values: "pd.Series[Any]") -> list[Group]:
    words = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
    frequent = [word for word in words.value_counts().index if word != UNKNOWN][:_MAX_VALUES]
    words = words.where(words.isin([*frequent, UNKNOWN]), OTHER)
    has_order = isinstance(values.dtype, pd.CategoricalDtype)
    order = [*(values.cat.categories if has_order else sorted(frequent)), OTHER, UNKNOWN]
    names = [name for name in dict.fromkeys(order) if (words == name).any()]
    if len(names) <= 1:
        return []
    return [Group(column, name, (words == name).to_numpy(bool)) for name in names]


def evaluate_subgroups(
    predictions: Predictions, groups: Sequence[Group], **settings: Any
) -> list[dict[str, Any]]:
    """Return the result of `evaluate(..., **settings)` of each group, with `column` and `group`."""
    return [
        {"column": group.column, "group": group.name}
        | evaluate(predictions.select(group.rows), **settings)
        for group in groups
    ]


def sensitivity_gaps(
    predictions: Predictions,
    groups: Sequence[Group],
    *,
    threshold: float,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the highest minus the lowest sensitivity at the threshold, for each column.

    Only groups with a known value and at least `MIN_MALIGNANT` malignant rows are compared; columns
    with fewer than two are omitted. The interval is from a bootstrap over patients with the two
    groups fixed. As these were selected for their difference, it does not test for a gap.

    Returns:
        For each column `column`, the names `lowest` and `highest`, `value`, `low`, `high`,
        `left_out`.
    """
    malignant = predictions.malignant
    hits = malignant & (predictions.malignancy >= threshold)
    codes, patients = patient_codes(predictions.patient_id)

    def sensitivity(group: Group) -> float:
        return float(hits[group.rows].sum() / malignant[group.rows].sum())

    gaps = []
    for column in dict.fromkeys(group.column for group in groups):
        candidates = [
            group
            for group in groups
            if group.column == column
            and group.name not in (UNKNOWN, OTHER)
            and malignant[group.rows].sum() >= MIN_MALIGNANT
        ]
        if len(candidates) <= 1:
            continue
        lowest, *_, highest = sorted(candidates, key=sensitivity)
        masks = [rows & group.rows for group in (highest, lowest) for rows in (hits, malignant)]
        statistic = partial(_gap, sum_by_patient(codes, masks))
        value = statistic(np.ones((1, patients), dtype=np.int64))["gap"][0]
        drawn = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
        units = min(len(np.unique(codes[malignant & end.rows])) for end in (highest, lowest))
        skew = skewness(statistic, patients, len(codes))["gap"]
        entry = summarise("gap", float(value), drawn["gap"], skew, confidence, units)
        gaps.append({"column": column, "lowest": lowest.name, "highest": highest.name, **entry})
    return gaps


def _gap(
    sums: Float64[np.ndarray, "p 4"], draws: Int64[np.ndarray, "b p"]
) -> dict[str, Float64[np.ndarray, " b"]]:
    """Subtract two sensitivities, from the hits and malignant rows of each patient."""
    hits, malignant, other_hits, other_malignant = (draws @ sums).T
    return {"gap": ratio(hits, malignant) - ratio(other_hits, other_malignant)}
