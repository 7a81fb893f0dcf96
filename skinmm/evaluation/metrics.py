"""Every metric of a prediction file with its interval, for binary and multi-class files."""

from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Int64
from scipy.stats import binomtest
from sklearn.metrics import confusion_matrix, roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.delong import delong_interval, perfect_ranking_bound
from skinmm.evaluation.intervals import (
    Entry,
    Shape,
    Statistic,
    allow_misses,
    bootstrap,
    combine_intervals,
    compute_exact,
    estimate_shapes,
    independent_units,
    patient_codes,
    summarise,
)
from skinmm.evaluation.predictions import DECISIONS, REFER, Predictions
from skinmm.evaluation.smooth_calibration import calibration_noise
from skinmm.evaluation.sources import summarise_sources
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, ClinicMetrics, build_statistic
from skinmm.vocabulary import UNITS

CLINIC_PREVALENCE: Final = 0.0176
"""Share of malignant lesions in the SIIM-ISIC 2020 cohort, whose patients were followed up."""
NUMBER: Final = "number_needed_to_treat"
_MAX_RATIO: Final = 2  # of two prevalences that are about the same
_GROUP: Final = 20  # minimum rows of a group of similar probability
_MANY_UNITS: Final = 1000  # of so many independent units hardly any skewness is left


def evaluate(
    predictions: Predictions,
    *,
    threshold: float | None = None,
    prevalence: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Compute every metric of a prediction file, with intervals from a bootstrap over patients.

    Names without a prefix are about malignancy, so that binary and multi-class files can be
    compared. Multi-class files also have `class_*`, `macro_*` and `<metric>_<class>`; files with
    decisions have the metrics of `ReferralMetrics`. Rows of several folds are pooled as if one
    model had predicted them, which requires calibrated probabilities. If the folds are not
    comparable, the pooled AUROC is lower than the AUROCs in `folds` (Airola et al. 2011,
    doi:10.1016/j.csda.2010.11.023).

    Args:
        predictions: at least one row.
        threshold: rows at or above it are called malignant; None: 0.5.
        prevalence: of the clinic, see `evaluate_clinic`.
        resamples: number of bootstrap resamples; 0: no intervals.
        confidence: confidence level of the intervals.
        seed: seed of the resamples.

    Returns:
        Plain data: `n`, `patients` (resampled units), `units` (rows that name a `patient`, a
        `lesion` or only an `image`), `positives`, `malignant_patients` (units with a malignant
        row), `unpredicted`, `threshold`, `prevalence`, `metrics` (name -> value, low, high,
        left_out: resamples in which it is undefined), `clinic` (see `evaluate_clinic`),
        `auroc_delong` (see `delong_interval`), `confusion` (rows of each true class by predicted
        class), `support` (rows of each class), `calibration_noise` (calibration errors of a
        calibrated model), `folds` (AUROC of each) and `sources` (see `summarise_sources`).
        Undefined metrics are None.
    """
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    _check_arguments(predictions, threshold=threshold, prevalence=prevalence)
    # Numbering patients in order of score keeps the memory accesses of the metrics local.
    predictions = predictions.select(np.argsort(predictions.malignancy, kind="stable"))
    codes, _ = patient_codes(predictions.patient_id)
    options: dict[str, Any] = {"resamples": resamples, "confidence": confidence, "seed": seed}
    rule: dict[str, Any] = {"threshold": threshold, "prevalence": prevalence}
    scores = predictions.malignancy, predictions.malignant, predictions.patient_id
    return {
        **_count_rows(predictions, codes),
        "threshold": threshold,
        "metrics": _metrics(predictions, codes, threshold, **options),
        "clinic": evaluate_clinic(predictions, **rule, **options),
        "auroc_delong": delong_interval(*scores, confidence=confidence),
        **_count_classes(predictions, threshold),
        "calibration_noise": calibration_noise(predictions.malignancy),
        "folds": _fold_aurocs(predictions),
        "sources": summarise_sources(predictions, confidence=confidence),
    }


def _check_arguments(predictions: Predictions, **shares: float | None) -> None:
    if len(predictions) == 0:
        raise InputError("no rows to evaluate")
    for name, value in shares.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} {value} is outside [0, 1]")


def _count_rows(predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    malignant, units = predictions.malignant, predictions.list_units()
    return {
        "n": len(predictions),
        "patients": int(codes.max()) + 1,
        "units": {name: int((units == name).sum()) for name in UNITS},
        "positives": int(malignant.sum()),
        "malignant_patients": len(np.unique(codes[malignant])),
        "unpredicted": predictions.unpredicted,
        "prevalence": float(malignant.mean()),
    }


def _count_classes(predictions: Predictions, threshold: float) -> dict[str, Any]:
    classes, called = predictions.classes, predictions.predicted_classes(threshold)
    counts = confusion_matrix(predictions.target, called, labels=range(len(classes)))
    return {
        "confusion": {"classes": [*classes], "counts": counts.tolist()},
        "support": dict(zip(classes, counts.sum(axis=1).tolist(), strict=True)),
    }


def _metrics(
    predictions: Predictions,
    codes: Int64[np.ndarray, " n"],
    threshold: float,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Entry]:
    build = partial(build_statistic, predictions, codes, threshold=threshold)
    units = independent_units(codes, predictions.malignant)
    exact = build(exact=True)
    metrics = estimate(exact, build(), codes, units, resamples, confidence, seed)
    if resamples == 0 or codes.max() == 0:
        return metrics
    for name, rows in _list_denominators(predictions, threshold).items():
        if name in metrics:
            counted = len(np.unique(codes[rows]))
            others = len(np.unique(codes[~rows])) if "auroc" in name else None
            metrics[name] = bound_extreme(metrics[name], confidence, counted, others)
    halves = [(0.5, metrics[name]) for name in ("sensitivity", "specificity")]
    metrics["balanced_accuracy"] = combine_intervals(metrics["balanced_accuracy"], halves)
    return finish(metrics, metrics["sensitivity"], float(predictions.malignant.mean()))


def finish(metrics: dict[str, Entry], sensitivity: Entry, prevalence: float) -> dict[str, Entry]:
    """Complete the intervals that depend on intervals of other metrics.

    The number needed to treat has the interval of 1 / ppv: a bootstrap of it is too narrow.
    """
    low, high = (1 / end if (end := metrics["ppv"][key]) else None for key in ("high", "low"))
    number = {**metrics[NUMBER], "low": low if high else None, "high": high}
    metrics = {**metrics, NUMBER: number}
    return metrics | allow_misses(metrics, sensitivity, prevalence)


def estimate(
    exact: Statistic,
    statistic: Statistic,
    codes: Int64[np.ndarray, " n"],
    units: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Entry]:
    """Return the value of a statistic, and its interval over resamples of patients."""
    patients = int(codes.max()) + 1
    values = compute_exact(exact, patients)
    if resamples == 0 or patients == 1:  # all resamples of one patient are equal
        none = np.empty(0)
        return {k: summarise(k, v, none, None, confidence, units) for k, v in values.items()}
    samples = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
    shapes = estimate_shapes(statistic, patients, len(codes)) if units <= _MANY_UNITS else {}
    metrics = {}
    for name, value in values.items():
        shape = shapes.get(name, Shape(skew=0.0, freedom=units))
        metrics[name] = summarise(name, value, samples[name], shape, confidence, units)
    return metrics


def evaluate_clinic(
    predictions: Predictions,
    *,
    threshold: float,
    prevalence: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any] | None:
    """Restate predictive values and net benefit at the prevalence of a clinic.

    Arguments as of `evaluate`; without a prevalence that of `CLINIC_PREVALENCE`.

    Returns:
        `prevalence` and `metrics`. None if there is nothing to restate: the data have one class
        only, or no prevalence is given and theirs is within a factor of two of
        `CLINIC_PREVALENCE`.
    """
    malignant = predictions.malignant
    share = float(malignant.mean())
    is_near = 1 / _MAX_RATIO <= share / CLINIC_PREVALENCE <= _MAX_RATIO
    if share in (0, 1) or (prevalence is None and is_near):
        return None
    prevalence = CLINIC_PREVALENCE if prevalence is None else prevalence
    codes, _ = patient_codes(predictions.patient_id)
    statistic = ClinicMetrics(predictions, codes, threshold, prevalence)
    units = independent_units(codes, malignant)
    metrics = estimate(statistic, statistic, codes, units, resamples, confidence, seed)
    # Without an error in the data, all resamples agree; the exact bound of its rate is restated.
    sides = {"ppv": (~malignant, 1 - prevalence), "npv": (malignant, prevalence)}
    for name, entry in metrics.items():
        rows, weight = sides.get(name.removeprefix("decided_"), (None, 0.0))
        if rows is None or entry["value"] != 1 or not resamples:
            continue
        calls = _rows_called(predictions, threshold, name)
        correct = (1 - weight) * float(calls[~rows].mean())
        bound = bound_extreme({"value": 0}, confidence, len(np.unique(codes[rows])))["high"]
        low = correct / (correct + weight * float(bound or 1))
        metrics[name] = {**entry, "low": low, "high": 1.0}
    flagged: Entry = {"value": float((predictions.malignancy[malignant] >= threshold).mean())}
    sensitivity = bound_extreme(flagged, confidence, len(np.unique(codes[malignant])))
    return {"prevalence": prevalence, "metrics": finish(metrics, sensitivity, prevalence)}


def _rows_called(predictions: Predictions, threshold: float, name: str) -> Bool[np.ndarray, " n"]:
    """Return a mask of the rows in the denominator of a predictive value."""
    is_positive = name.endswith("ppv")
    if name.startswith("decided_"):
        return np.asarray(predictions.decision == DECISIONS[int(is_positive)])
    return (predictions.malignancy >= threshold) == is_positive


def _list_denominators(
    predictions: Predictions, threshold: float
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return the rows counted by each metric: the denominator of a share, positives of an AUROC."""
    malignant, called = predictions.malignant, predictions.malignancy >= threshold
    shares = dict.fromkeys(("sensitivity", "recall", "found_or_referred", "auroc"), malignant)
    shares["within_source_auroc"] = malignant
    shares |= dict.fromkeys(("specificity", "cleared_or_referred"), ~malignant)
    shares |= {"precision": called, "ppv": called, "npv": ~called}
    shares |= {f"sensitivity_at_{level}_specificity": malignant for level in (90, 95)}
    shares |= {f"specificity_at_{level}_sensitivity": ~malignant for level in (90, 95)}
    shares["accuracy"] = np.ones(len(predictions), dtype=bool)
    of_patients = malignant & (predictions.list_units() == "patient")
    shares |= dict.fromkeys(("patient_sensitivity", "top_15_sensitivity"), of_patients)
    if predictions.decision is not None:
        decided = predictions.decision != REFER
        shares["decided_sensitivity"] = malignant & decided
        shares["decided_specificity"] = ~malignant & decided
        for name in ("decided_ppv", "decided_npv"):
            shares[name] = _rows_called(predictions, threshold, name)
    for index, name in enumerate(predictions.classes):
        rows = predictions.target == index
        shares |= dict.fromkeys((f"recall_{name}", f"coverage_{name}", f"auroc_{name}"), rows)
    return shares


def bound_extreme(entry: Entry, confidence: float, units: int, others: int | None = None) -> Entry:
    """Add the interval of a share or an AUROC of exactly 0 or 1, for which all resamples agree.

    A share of n of n units has the exact interval ((a / 2) ** (1 / n), 1), a = 1 - confidence
    (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404). Each patient counts as one unit: 46 of
    46 may well be 92 %. For an AUROC see `perfect_ranking_bound`.

    Args:
        entry: result of `summarise`.
        confidence: confidence level.
        units: number of patients in the denominator of a share, or with malignant lesions.
        others: number of patients with benign lesions, of an AUROC only.
    """
    if entry["value"] not in (0, 1) or units == 0:
        return entry
    if others is None:
        bound = ((1 - confidence) / 2) ** (1 / units)
    else:
        bound = perfect_ranking_bound(units, others, confidence)
    low, high = (bound, 1.0) if entry["value"] == 1 else (0.0, 1 - bound)
    return {**entry, "low": low, "high": high}


def describe_probabilities(predictions: Predictions) -> dict[str, list[float]]:
    """Return the observed share of malignant rows in up to ten groups of similar probability.

    Returns:
        For each group: `first` and `last` probability, `rows`, `positives`, and `low` and `high` of
        the 95 % Wilson interval of the share, in which each patient counts once.
    """
    order = np.argsort(predictions.malignancy, kind="stable")
    groups = np.array_split(order, np.clip(len(order) // _GROUP, 1, 10))
    table: dict[str, list[float]] = {
        name: [] for name in ("first", "last", "rows", "positives", "low", "high")
    }
    for rows in groups:
        patients, hits = len(set(predictions.patient_id[rows])), predictions.malignant[rows]
        interval = binomtest(round(hits.mean() * patients), patients).proportion_ci(method="wilson")
        ends = predictions.malignancy[rows[[0, -1]]].tolist()
        line = (*ends, len(rows), int(hits.sum()), float(interval.low), float(interval.high))
        for values, value in zip(table.values(), line, strict=True):
            values.append(value)
    return table


def _fold_aurocs(predictions: Predictions) -> dict[str, float | None]:
    aurocs: dict[str, float | None] = {}
    for fold in [] if predictions.fold is None else np.unique(predictions.fold):
        rows = predictions.select(predictions.fold == fold)
        defined = len(np.unique(rows.malignant)) > 1
        auroc = float(roc_auc_score(rows.malignant, rows.malignancy)) if defined else None
        aurocs[str(fold)] = auroc
    return aurocs
