"""Paired comparisons of systems on the same rows."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped
from scipy.special import stdtr

from skinmm.errors import InputError
from skinmm.evaluation.call_rules import CALLS, CallMetrics, cross_fit_calls, parse_costs
from skinmm.evaluation.delong import delong_test
from skinmm.evaluation.intervals import (
    Entry,
    Statistic,
    bootstrap,
    compute_exact,
    estimate_shapes,
    independent_units,
    patient_codes,
    student_quantile,
    sum_by_patient,
    summarise,
)
from skinmm.evaluation.metrics import estimate, finish
from skinmm.evaluation.prediction_tables import match_names
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.sources import build_source_statistic
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, MalignancyMetrics
from skinmm.vocabulary import UNITS

RULE_METRICS: Final = ("class_accuracy", "class_balanced_accuracy", "macro_f1")
MEAN_COST: Final = "mean_cost"
_EQUAL: Final = 1e-12


def compare_rules(
    predictions: Predictions,
    *,
    costs: Any = None,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[str, dict[str, Entry]]:
    """Evaluate every decision rule on the rows of several classes, cross-fitted over patients.

    No row is called by a rule that was fitted to its patient. The fit uses four fifths of the
    patients, so it is slightly worse than one to all.

    Args:
        predictions: rows; their `called` is the rule `stated`, if there is one.
        costs: as `evaluation.costs`; None: without the rule `cost`.
        resamples: number of bootstrap resamples of patients, with the calls of each row fixed.
        confidence: confidence level of the intervals.

    Returns:
        For each rule, `class_accuracy`, `class_balanced_accuracy` and `macro_f1` with intervals;
        with costs also `mean_cost`, of a row.
    """
    matrix = parse_costs(costs, predictions.classes)
    fit = predictions.probabilities, predictions.target, predictions.patient_id, matrix
    rules = [name for name in CALLS if name != "cost" or matrix]
    calls = {name: cross_fit_calls(name, *fit) for name in rules}
    if predictions.called is not None:
        calls = {"stated": predictions.called, **calls}
    codes, _ = patient_codes(predictions.patient_id)
    units = independent_units(codes, predictions.malignant)
    settings = (codes, units, resamples, confidence, 0)
    results = {}
    for name, called in calls.items():
        statistic: Statistic = CallMetrics(predictions.target, called, codes, predictions.classes)
        metrics = estimate(statistic, statistic, *settings)
        results[name] = {key: metrics[key] for key in RULE_METRICS}
        if matrix:
            paid = np.array(matrix)[predictions.target, called]
            statistic = _build_mean_cost(sum_by_patient(codes, [paid, np.ones_like(paid)]))
            results[name] |= estimate(statistic, statistic, *settings)
    return results


def _build_mean_cost(sums: Float64[np.ndarray, "p 2"]) -> Statistic:
    """Return the mean cost of a row as a statistic of patients."""

    def statistic(draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        costs, rows = (draws @ sums).T
        return {MEAN_COST: costs / rows}

    return statistic


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
    interval of a difference is Student's, with the standard error of resamples of patients and the
    patients of the rarer class as units. Its p-value is that of the same t test, so that it is
    below 1 - confidence exactly where the interval excludes 0. Holm's adjustment is over the pairs,
    for each metric separately: it does not correct for the number of metrics. Binary and
    multi-class files can be mixed. The decision threshold of a file is 0.5 unless `thresholds` has
    its name. Only pairs with a name in `against` are compared and adjusted; all pairs if it is
    empty. AUROCs within sources are compared if the files agree on the source of each row.

    Returns:
        Plain data: `n`, `patients`, `positives`, `units` (patients of the rarer class),
        `confidence`, `left_out` (name -> rows), `systems` (name -> metric -> value, low, high,
        left_out), `pairs` (each `a`, `b`, `metrics`: name -> difference a - b, standard_error, low,
        high, p, p_holm, left_out; and `delong`, of the AUROC).
    """
    joined = _join(files)
    first = next(iter(joined.values()))
    codes, patients = patient_codes(first.patient_id)
    units, sources = independent_units(codes, first.malignant), _common_sources(joined)
    values, samples, systems = {}, {}, {}
    for name, rows in joined.items():
        threshold = (thresholds or {}).get(name, DEFAULT_THRESHOLD)
        statistic = _build_statistic(rows, codes, sources, threshold)
        drawn = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
        values[name], samples[name] = compute_exact(statistic, patients), drawn
        shapes = estimate_shapes(statistic, patients, len(codes))
        entries = {
            key: summarise(key, value, drawn[key], shapes[key], confidence, units)
            for key, value in values[name].items()
        }
        systems[name] = finish(entries, entries["sensitivity"], float(first.malignant.mean()))
    return {
        "n": len(first),
        "patients": patients,
        "positives": int(first.malignant.sum()),
        "units": max(units, 2),
        "confidence": confidence,
        "left_out": {name: len(files[name]) - len(first) for name in files},
        "systems": systems,
        "pairs": _compare_pairs(joined, values, samples, confidence, units, against),
    }


def _join(files: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """Return the rows that all files have, in the order of the first file, with common patients."""
    if len(files) <= 1:
        raise InputError(f"compare needs at least two prediction files, got {len(files)}")
    keys = dict(zip(files, match_names(rows.image_id for rows in files.values()), strict=True))
    common = set.intersection(*map(set, keys.values()))
    if not common:
        names = ", ".join(f"{rows.image_id[0]!r} in {name}" for name, rows in files.items())
        raise InputError(f"{', '.join(files)} have no image in common, e.g. {names}")
    image_ids = [name for name in next(iter(keys.values())) if name in common]
    joined = {}
    for name, rows in files.items():
        positions = {image_id: row for row, image_id in enumerate(keys[name])}
        joined[name] = rows.select(np.array([positions[image_id] for image_id in image_ids]))
    first, *others = joined
    for other in others:
        differs = joined[first].malignant != joined[other].malignant
        if differs.any():
            raise InputError(
                f"image {image_ids[int(np.argmax(differs))]} is malignant in one of {first} and "
                f"{other} but benign in the other ({int(differs.sum())} such rows); correct the "
                "labels"
            )
    patients = _choose_patients(joined, image_ids)
    return {name: replace(rows, patient_id=patients) for name, rows in joined.items()}


def _choose_patients(
    joined: Mapping[str, Predictions], image_ids: Sequence[str]
) -> Shaped[np.ndarray, " n"]:
    """Return the patients of the file that names most of them, or else most lesions.

    Raises:
        InputError: two files name different patients.
    """
    units = {name: rows.list_units() for name, rows in joined.items()}
    for a, b in combinations(joined, 2):
        both = (units[a] == "patient") & (units[b] == "patient")
        codes = [pd.factorize(joined[name].patient_id[both])[0] for name in (a, b)]
        if not np.array_equal(*codes):
            row = np.flatnonzero(both)[int(np.argmax(codes[0] != codes[1]))]
            raise InputError(
                f"{a} and {b} name different patients, first for image {image_ids[row]}; correct "
                "patient_id in one of them, or remove the column"
            )
    counts = {n: [int((u == unit).sum()) for unit in UNITS[:2]] for n, u in units.items()}
    return joined[max(sorted(joined), key=lambda name: counts[name])].patient_id


def _common_sources(joined: Mapping[str, Predictions]) -> Shaped[np.ndarray, " n"] | None:
    """Return the sources of the joined rows; None if no file has sources or the files differ."""
    sources = [rows.source for rows in joined.values() if rows.source is not None]
    is_common = sources and all(np.array_equal(sources[0], other) for other in sources[1:])
    return sources[0] if is_common else None


def _build_statistic(
    rows: Predictions,
    codes: Int64[np.ndarray, " n"],
    sources: Shaped[np.ndarray, " n"] | None,
    threshold: float,
) -> Statistic:
    """Return the statistic of malignancy metrics, and of AUROCs within several sources."""
    ranking = MalignancyMetrics(rows.malignancy, rows.malignant, codes, threshold=threshold)
    within = build_source_statistic(replace(rows, source=sources), codes)
    return lambda draws: ranking(draws) | (within(draws) if within else {})


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
        for key in [key for key in values[a] if key in values[b]]:
            drawn = samples[a][key] - samples[b][key]
            metrics[key] = _difference(values[a][key] - values[b][key], drawn, confidence, units)
        scores = joined[a].malignancy, joined[b].malignancy
        truth = joined[a].malignant, joined[a].patient_id
        delong = delong_test(*scores, *truth, confidence=confidence)
        pairs.append({"a": a, "b": b, "metrics": metrics, "delong": delong})
    for key in dict.fromkeys(key for pair in pairs for key in pair["metrics"]):
        entries = [e for pair in pairs if (e := pair["metrics"].get(key))]
        tested = [entry for entry in entries if entry["p"] is not None]
        for entry, p in zip(tested, adjust_holm([entry["p"] for entry in tested]), strict=True):
            entry["p_holm"] = p
    return pairs


def _difference(
    value: float, samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> dict[str, float | int | None]:
    """Return the t test of a difference, with the matching confidence interval.

    The standard error is that of the resamples. The difference of two equal systems has a symmetric
    distribution, so that the test needs no correction for skewness.
    """
    defined = samples[~np.isnan(samples)]
    names = ("difference", "standard_error", "low", "high", "p", "p_holm")
    result = {**dict.fromkeys(names), "left_out": len(samples) - len(defined)}
    if np.isnan(value) or len(defined) == 0:
        return result
    units = max(units, 2)
    error = math.sqrt(units / (units - 1)) * float(np.std(defined))
    if error < _EQUAL:  # all resamples agree: identical systems, or no evidence of the spread
        is_equal = abs(value) < _EQUAL
        ends = {"low": 0.0, "high": 0.0, "p": 1.0} if is_equal else {}
        return {**result, "difference": value, "standard_error": 0.0, **ends}
    reach = student_quantile(confidence, units) * error
    tests = {"p": float(2 * stdtr(units - 1, -abs(value) / error))}
    ends = {"low": value - reach, "high": value + reach}
    return {**result, "difference": value, "standard_error": error, **ends, **tests}


def find_not_inferior(
    result: Mapping[str, Any], margin: float, *, against: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Test whether the AUROC of systems is at most `margin` below that of others.

    The one-sided t test has the standard error of `compare`. It inverts the lower end of the
    two-sided interval: at half of the interval's alpha, a system is not inferior if the interval of
    its difference lies above -margin. Holm's adjustment is over all entries.

    Args:
        result: of `compare`.
        margin: largest difference that does not matter, above 0.
        against: references; empty: each system of a pair is compared with the other.

    Returns:
        For each tested system its name `system`, that of the `reference`, the `difference`, its
        `low` end, `p` and `p_holm`.
    """
    entries = []
    for pair in result["pairs"]:
        entry = pair["metrics"]["auroc"]
        if not entry["standard_error"]:
            continue
        for system, reference, sign in ((pair["a"], pair["b"], 1), (pair["b"], pair["a"], -1)):
            if against and reference not in against:
                continue
            difference = sign * entry["difference"]
            low = entry["low"] if sign > 0 else -entry["high"]
            p = float(stdtr(result["units"] - 1, -(difference + margin) / entry["standard_error"]))
            tested = {"system": system, "reference": reference, "difference": difference}
            entries.append({**tested, "low": low, "p": p})
    adjusted = adjust_holm([entry["p"] for entry in entries])
    return [{**entry, "p_holm": p} for entry, p in zip(entries, adjusted, strict=True)]


def adjust_holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values with Holm's step-down adjustment (Holm 1979), in the given order."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()
