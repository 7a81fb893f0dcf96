"""Whether the numbers hold for everyone: every metric by group, and the gaps between groups."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation.intervals import bootstrap, patient_codes, skewness, summarise
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.ranking import ratio
from skinmm.images.measure import TONES

UNKNOWN: Final = "not known"
OTHER: Final = "other"
FEWEST: Final = 10
"""Malignant rows that a group needs before its sensitivity is held against another's."""

_AGES: Final = (0, 40, 60, 80, np.inf)  # years
_AGE_NAMES: Final = ("under 40", "40 to 59", "60 to 79", "80 and over")
_MOST: Final = 6


@dataclass(frozen=True)
class Group:
    """Rows that share a value of a column."""

    column: str
    name: str
    rows: Bool[np.ndarray, " n"]


def groups_of(records: pd.DataFrame) -> list[Group]:
    """Groups by sex, age band, site, source, image size and skin tone; one value makes none.

    Image sizes beyond the six most frequent are one group.

    Args:
        records: canonical rows, in the order of the predictions; columns may be absent, cells
            missing.
    """
    columns = {name: records[name] for name in ("sex", "age", "site", "source") if name in records}
    if "age" in columns:
        columns["age"] = pd.cut(_numbers(columns["age"]), _AGES, right=False, labels=_AGE_NAMES)
    if {"width", "height"} <= set(records):
        columns["image size"] = _sizes(records)
    if "skin_tone" in records:
        columns["skin tone (estimated)"] = records["skin_tone"]
    return [group for name, values in columns.items() for group in _split(name, values)]


def evaluate_subgroups(
    predictions: Predictions, groups: Sequence[Group], **settings: Any
) -> list[dict[str, Any]]:
    """`evaluate` of each group, with `column` and `group` before it.

    Args:
        predictions: of all rows.
        groups: masks of them.
        **settings: of `evaluate`.
    """
    return [
        {
            "column": group.column,
            "group": group.name,
            **evaluate(predictions.select(group.rows), **settings),
        }
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
    """Highest minus lowest sensitivity at the threshold, per column.

    Among groups with at least `FEWEST` malignant rows, and a known value. The interval resamples
    patients but keeps the two groups, which were picked for being far apart: it is no test of
    whether any gap exists.

    Returns:
        Per column with two such groups: `column`, `lowest` and `highest` (names), and `value`,
        `low`, `high`, `left_out`.
    """
    malignant = predictions.malignant
    found = malignant & (predictions.malignancy >= threshold)
    codes, patients = patient_codes(predictions.patient_id)
    gaps = []
    for column in dict.fromkeys(group.column for group in groups):
        fit = [
            group
            for group in groups
            if group.column == column
            and group.name not in (UNKNOWN, OTHER)
            and malignant[group.rows].sum() >= FEWEST
        ]
        if len(fit) <= 1:
            continue
        fit.sort(key=lambda group: float(found[group.rows].sum() / malignant[group.rows].sum()))
        kinds = [rows & fit[end].rows for end in (-1, 0) for rows in (found, malignant)]
        statistic = _Gap(np.column_stack([np.bincount(codes, weights=rows) for rows in kinds]))
        value = statistic(np.ones((1, patients), dtype=np.int64))["gap"][0]
        drawn = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
        units = min(len(np.unique(codes[malignant & fit[end].rows])) for end in (-1, 0))
        names = {"column": column, "lowest": fit[0].name, "highest": fit[-1].name}
        skew = skewness(statistic, patients, len(codes))["gap"]
        entry = summarise("gap", float(value), drawn["gap"], skew, confidence, units)
        gaps.append({**names, **entry})
    return gaps


@dataclass(frozen=True)
class _Gap:
    """Found and malignant rows of each patient, in one group and in another."""

    sums: Float64[np.ndarray, "p 4"]

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        one, all_one, other, all_other = (draws @ self.sums).T
        return {"gap": ratio(one, all_one) - ratio(other, all_other)}


def _sizes(records: pd.DataFrame) -> "pd.Series[str]":
    sides = records[["width", "height"]].apply(_numbers)
    known = sides.notna().all(axis=1)
    text = sides.fillna(0).astype(int).astype(str)
    sizes: pd.Series[str] = text["width"].str.cat(text["height"], sep="x").where(known)
    return sizes


def _numbers(column: "pd.Series[Any]") -> "pd.Series[float]":
    return pd.to_numeric(column, errors="coerce").astype(float)


def _split(column: str, values: "pd.Series[str]") -> list[Group]:
    words = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
    common = [word for word in words.value_counts().index if word != UNKNOWN]
    words = words.where(words.isin([*common[:_MOST], UNKNOWN]), OTHER)
    order = [*_AGE_NAMES, *TONES, *sorted(common[:_MOST]), OTHER, UNKNOWN]
    present = [name for name in dict.fromkeys(order) if (words == name).any()]
    if len(present) <= 1:
        return []
    return [Group(column, name, (words == name).to_numpy(bool)) for name in present]
