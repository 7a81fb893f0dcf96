"""Comparisons on the same rows: systems with each other, and subgroups of one system's rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    independent_units,
    patient_codes,
    percentile_interval,
    skewness,
    sum_by_patient,
    summarise,
)
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, MalignancyMetrics

UNKNOWN: Final = "not known"
OTHER: Final = "other"
MIN_MALIGNANT: Final = 10
"""Malignant rows that a group needs for its sensitivity to be compared with that of others."""

_AGES: Final = (0, 40, 60, 80, np.inf)  # years
_AGE_NAMES: Final = ("under 40", "40 to 59", "60 to 79", "80 and over")
_MAX_VALUES: Final = 6


def compare(
    files: Mapping[str, Predictions],
    *,
    thresholds: Mapping[str, float] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    against: Collection[str] = (),
) -> dict[str, Any]:
    """Compare the probabilities of malignancy of several systems, each pair on the same resamples.

    Rows are joined by image; rows that a file lacks are excluded for all files and counted. The
    p-value of a difference is twice the share of resamples (of patients, as in `evaluate`) on the
    far side of zero, and at least 2 / (resamples + 1). Holm's adjustment is over the pairs, for
    each metric separately: it does not correct for the number of metrics. Binary and multi-class
    files can be mixed. The decision threshold of a file is 0.5 unless `thresholds` has its name.
    Only pairs with a name in `against` are compared and adjusted; all pairs if it is empty.

    Returns:
        Plain data: `n`, `patients`, `positives`, `left_out` (name -> rows), `systems` (name ->
        metric -> value, low, high, left_out), `pairs` (each `a`, `b`, `metrics`: name ->
        difference a - b, low, high, p, p_holm, left_out; and `delong`, of the AUROC).
    """
    joined = _join(files)
    first = next(iter(joined.values()))
    codes, patients = patient_codes(first.patient_id)
    units = independent_units(codes, first.malignant)
    values, samples, systems = {}, {}, {}
    for name, rows in joined.items():
        threshold = (thresholds or {}).get(name, DEFAULT_THRESHOLD)
        statistic = MalignancyMetrics(rows.malignancy, rows.malignant, codes, threshold=threshold)
        metrics = statistic(np.ones((1, patients), dtype=np.int64))
        values[name] = {key: float(value[0]) for key, value in metrics.items()}
        samples[name] = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
        skews = skewness(statistic, patients, len(codes))
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
        "pairs": _compare_pairs(joined, values, samples, confidence, units, against),
    }


def _join(files: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return the rows that all files have, in the order of the first file."""
    if len(files) <= 1:
        raise InputError(f"compare needs at least two prediction files, got {len(files)}")
    common = set.intersection(*(set(map(str, rows.image_id)) for rows in files.values()))
    if not common:
        raise InputError(f"{', '.join(files)} have no image in common")
    image_ids = [name for name in map(str, next(iter(files.values())).image_id) if name in common]
    joined = {}
    for name, rows in files.items():
        positions = {image_id: row for row, image_id in enumerate(map(str, rows.image_id))}
        joined[name] = rows.select(np.array([positions[image_id] for image_id in image_ids]))
    first, *others = joined
    for other in others:
        differs = joined[first].malignant != joined[other].malignant
        if differs.any():
            raise InputError(
                f"image {image_ids[int(np.argmax(differs))]} is malignant in one of {first} and "
                f"{other} and benign in the other; {int(differs.sum())} rows differ"
            )
    return joined


def _compare_pairs(
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
        metrics = {}
        for key, value in values[a].items():
            drawn = samples[a][key] - samples[b][key]
            metrics[key] = _difference(value - values[b][key], drawn, confidence, units)
        scores = joined[a].malignancy, joined[b].malignancy
        truth = joined[a].malignant, joined[a].patient_id
        delong = delong_test(*scores, *truth, confidence=confidence)
        pairs.append({"a": a, "b": b, "metrics": metrics, "delong": delong})
    for key in next(iter(values.values())):
        tested = [e for pair in pairs if (e := pair["metrics"][key])["p"] is not None]
        for entry, p in zip(tested, adjust_holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = p
    return pairs


def _difference(
    value: float, samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> dict[str, float | int | None]:
    low, high, left_out = percentile_interval(samples, confidence, units)
    result = {"difference": None, "low": None, "high": None, "p": None, "p_holm": None}
    if np.isnan(value) or low is None:
        return {**result, "left_out": left_out}
    far = float(min(np.sum(samples <= 0), np.sum(samples >= 0)))
    p = min(1.0, 2 * (far + 1) / (len(samples) - left_out + 1))
    return {**result, "difference": value, "low": low, "high": high, "p": p, "left_out": left_out}


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's step-down adjustment (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


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
