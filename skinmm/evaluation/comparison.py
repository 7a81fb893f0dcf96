"""Whether one system is better than another, on the same rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from skinmm.errors import InputError
from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import (
    bootstrap,
    delong_test,
    holm,
    independent_units,
    patient_codes,
    percentile_interval,
    skewness,
    summarise,
)
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, MalignancyMetrics
from skinmm.images.measure import TONES


def compare(
    files: Mapping[str, Predictions],
    *,
    thresholds: Mapping[str, float] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    against: Collection[str] = (),
) -> dict[str, Any]:
    """Compares the probabilities of malignancy of several systems, each pair on the same draws.

    Rows are joined by image; those that a file lacks are left out of all and counted. The p-value
    of a difference is twice the share of resamples (of patients, as in `evaluate`) on the far side
    of zero, and at least 2 / (resamples + 1). Holm's adjustment is over the pairs, per metric: it
    does not pay for looking at many metrics.

    Args:
        files: name -> predictions, two at least; binary and multi-class may meet.
        thresholds: name -> decision threshold; 0.5 where not given.
        resamples: of patients.
        confidence: of the intervals.
        seed: of the draws.
        against: compare pairs with one of these only, and adjust for no others; empty: all.

    Returns:
        Plain data: `n`, `patients`, `positives`, `left_out` (name -> rows), `systems` (name ->
        metric -> value, low, high, left_out), `pairs` (each `a`, `b`, `metrics`: name ->
        difference a - b, low, high, p, p_holm, left_out; and `delong`, of the AUROC).

    Raises:
        InputError: fewer than two files, no common row, or rows whose truth differs.
    """
    joined = _join(files)
    first = next(iter(joined.values()))
    codes, patients = patient_codes(first.patient_id)
    units = independent_units(codes, first.malignant)
    values, samples, systems = {}, {}, {}
    for name, rows in joined.items():
        threshold = (thresholds or {}).get(name, DEFAULT_THRESHOLD)
        metrics = MalignancyMetrics(rows.malignancy, rows.malignant, codes, threshold=threshold)
        everyone = metrics(np.ones((1, patients), dtype=np.int64))
        values[name] = {key: float(value[0]) for key, value in everyone.items()}
        samples[name] = bootstrap(metrics, patients, len(codes), resamples=resamples, seed=seed)
        skews = skewness(metrics, patients, len(codes))
        systems[name] = {
            key: summarise(key, value, samples[name][key], skews[key], confidence, units)
            for key, value in values[name].items()
        }
    return {
        "n": len(first),
        "patients": patients,
        "positives": int(first.malignant.sum()),
        "left_out": {name: len(files[name]) - len(first) for name in files},
        "systems": systems,
        "pairs": _pairs(joined, values, samples, confidence, units, against),
    }


def _pairs(
    joined: Mapping[str, Predictions],
    values: Mapping[str, Mapping[str, float]],
    samples: Mapping[str, Mapping[str, Float64[np.ndarray, " r"]]],
    confidence: float,
    units: int,
    against: Collection[str],
) -> list[dict[str, Any]]:
    pairs: list[dict[str, Any]] = []
    for a, b in combinations(joined, 2):
        if against and not {a, b} & {*against}:
            continue
        one, other = joined[a], joined[b]
        pairs.append(
            {
                "a": a,
                "b": b,
                "metrics": {
                    key: _difference(
                        value - values[b][key], samples[a][key] - samples[b][key], confidence, units
                    )
                    for key, value in values[a].items()
                },
                "delong": delong_test(
                    one.malignancy,
                    other.malignancy,
                    one.malignant,
                    one.patient_id,
                    confidence=confidence,
                ),
            }
        )
    for key in next(iter(values.values())):
        entries: list[dict[str, Any]] = [pair["metrics"][key] for pair in pairs]
        known = [entry for entry in entries if entry["p"] is not None]
        for entry, adjusted in zip(known, holm([entry["p"] for entry in known]), strict=True):
            entry["p_holm"] = adjusted
    return pairs


def _difference(
    value: float, samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> dict[str, float | int | None]:
    low, high, left_out = percentile_interval(samples, confidence, units)
    result = {"difference": None, "low": None, "high": None, "p": None, "p_holm": None}
    if np.isnan(value) or low is None:
        return {**result, "left_out": left_out}
    known = len(samples) - left_out
    far = min(np.sum(samples <= 0), np.sum(samples >= 0))
    p = min(1.0, 2 * (float(far) + 1) / (known + 1))
    return {**result, "difference": value, "low": low, "high": high, "p": p, "left_out": left_out}


def _join(files: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """The rows that all files have, in the order of the first."""
    if len(files) <= 1:
        raise InputError(f"comparing needs two prediction files or more, not {len(files)}")
    common = set.intersection(*(set(map(str, part.image_id)) for part in files.values()))
    if not common:
        raise InputError(f"{', '.join(files)} have no image in common")
    names = [name for name in map(str, next(iter(files.values())).image_id) if name in common]
    joined = {}
    for name, part in files.items():
        places = {image: row for row, image in enumerate(map(str, part.image_id))}
        joined[name] = part.select(np.array([places[image] for image in names]))
    first, *others = joined
    for other in others:
        differs = joined[first].malignant != joined[other].malignant
        if differs.any():
            raise InputError(
                f"image {names[int(np.argmax(differs))]} is malignant in one of {first} and "
                f"{other} and benign in the other; {int(differs.sum())} rows differ"
            )
    return joined


UNKNOWN: Final = "not known"
OTHER: Final = "other"
MIN_MALIGNANT: Final = 10
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


def build_groups(records: pd.DataFrame) -> list[Group]:
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

    Among groups with a known value and at least `MIN_MALIGNANT` malignant rows. The interval
    resamples patients but keeps the two groups, which were picked for being far apart: it is no
    test of whether any gap exists.

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
            and malignant[group.rows].sum() >= MIN_MALIGNANT
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
