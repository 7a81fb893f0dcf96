"""Every metric of a prediction file with its interval, for binary and multi-class files."""

from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.optimize import brentq
from scipy.special import ndtri
from sklearn.metrics import roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.intervals import (
    Entry,
    Statistic,
    bootstrap,
    delong_interval,
    independent_units,
    patient_codes,
    skewness,
    summarise,
)
from skinmm.evaluation.predictions import REFER, Predictions
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, build_statistic

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
        prevalence: of the clinic, for `ppv`, `npv` and `number_needed_to_treat` (lesions called
            malignant per malignant one); None: of the data.
        resamples: number of bootstrap resamples; 0: no intervals.
        confidence: confidence level of the intervals.
        seed: seed of the resamples.

    Returns:
        Plain data: `n`, `patients`, `positives`, `unpredicted`, `threshold`, `prevalence`,
        `metrics` (name -> value, low, high, left_out), `auroc_delong` (see `delong_interval`),
        `confusion`, `support` (rows of each class) and `folds` (AUROC of each). A metric that is
        undefined for the data is None; `left_out` counts the resamples where it is undefined.

    Raises:
        InputError: there are no rows, or the threshold or prevalence is outside [0, 1].
    """
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    _check_input(predictions, threshold, prevalence)
    # Numbering patients in order of score keeps the memory accesses of the metrics local.
    predictions = predictions.select(np.argsort(predictions.malignancy, kind="stable"))
    codes, patients = patient_codes(predictions.patient_id)
    malignant = predictions.malignant
    return {
        "n": len(predictions),
        "patients": patients,
        "positives": int(malignant.sum()),
        "unpredicted": predictions.unpredicted,
        "threshold": threshold,
        "prevalence": float(malignant.mean()) if prevalence is None else prevalence,
        "metrics": _metrics(predictions, codes, threshold, prevalence, resamples, confidence, seed),
        "auroc_delong": delong_interval(
            predictions.malignancy, malignant, predictions.patient_id, confidence=confidence
        ),
        "confusion": _confusion(predictions, threshold),
        "support": _support(predictions),
        "folds": _fold_aurocs(predictions),
    }


def _check_input(predictions: Predictions, threshold: float, prevalence: float | None) -> None:
    if len(predictions) == 0:
        raise InputError("no rows to evaluate")
    for name, value in (("threshold", threshold), ("prevalence", prevalence)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} {value} is outside [0, 1]")


def _metrics(
    predictions: Predictions,
    codes: Int64[np.ndarray, " n"],
    threshold: float,
    prevalence: float | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Entry]:
    """Return value and interval of every metric."""
    build = partial(build_statistic, predictions, codes, threshold=threshold, prevalence=prevalence)
    units = independent_units(codes, predictions.malignant)
    samples, skews = _resample(build(), codes, units, resamples, seed)
    all_patients = np.ones((1, int(codes.max()) + 1), dtype=np.int64)
    metrics = {
        name: summarise(
            name,
            float(value[0]),
            samples.get(name, np.empty(0)),
            skews.get(name, 0.0),
            confidence,
            units,
        )
        for name, value in build(exact=True)(all_patients).items()
    }
    if samples:
        for name, rows in _denominators(predictions, threshold, prevalence).items():
            if name in metrics:
                patients = len(np.unique(codes[rows]))
                metrics[name] = bound_extreme_share(metrics[name], patients, confidence)
        for name, rows in _ranked_rows(predictions).items():
            if name in metrics:
                counts = len(np.unique(codes[rows])), len(np.unique(codes[~rows]))
                metrics[name] = _bound_perfect_ranking(metrics[name], *counts, confidence)
    return metrics


def _resample(
    statistic: Statistic, codes: Int64[np.ndarray, " n"], units: int, resamples: int, seed: int
) -> tuple[dict[str, Float64[np.ndarray, " r"]], dict[str, float]]:
    """Return resamples and skewness of every metric; none for one patient, as all would agree."""
    patients = int(codes.max()) + 1
    if resamples == 0 or patients == 1:
        return {}, {}
    samples = bootstrap(statistic, patients, len(codes), resamples=resamples, seed=seed)
    skews = skewness(statistic, patients, len(codes)) if units <= _MANY_UNITS else {}
    return samples, skews


def _denominators(
    predictions: Predictions, threshold: float, prevalence: float | None
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return the rows in the denominator of each metric that is a share of rows.

    Their number of patients bounds a share of exactly 0 or 1 (Clopper and Pearson 1934,
    doi:10.1093/biomet/26.4.404), where all resamples agree.
    """
    malignant, called = predictions.malignant, predictions.malignancy >= threshold
    shares = dict.fromkeys(("sensitivity", "recall", "found_or_referred"), malignant)
    shares |= {"specificity": ~malignant, "precision": called}
    shares |= {f"sensitivity_at_{level}_specificity": malignant for level in (90, 95)}
    shares |= {f"specificity_at_{level}_sensitivity": ~malignant for level in (90, 95)}
    shares["accuracy"] = np.ones(len(predictions), dtype=bool)
    if prevalence is None:  # with a stated prevalence they are not shares of rows
        shares |= {"ppv": called, "npv": ~called}
    if predictions.decision is not None:
        decided = predictions.decision != REFER
        shares["decided_sensitivity"] = malignant & decided
        shares["decided_specificity"] = ~malignant & decided
    for index, name in enumerate(predictions.classes):
        rows = predictions.target == index
        shares |= {f"recall_{name}": rows, f"coverage_{name}": rows}
    return shares


def _ranked_rows(predictions: Predictions) -> dict[str, Bool[np.ndarray, " n"]]:
    """Return the positive rows of each AUROC."""
    positives = {
        f"auroc_{name}": predictions.target == i for i, name in enumerate(predictions.classes)
    }
    return {"auroc": predictions.malignant, **positives}


def bound_extreme_share(entry: Entry, units: int, confidence: float) -> Entry:
    """Add the exact interval of a share of 0 or 1: n of n units give ((a / 2) ** (1 / n), 1).

    Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404, with a = 1 - confidence. Each patient
    counts as one unit: 46 of 46 may well be 92 %.
    """
    value = entry["value"]
    if value not in (0, 1) or units == 0:
        return entry
    other = ((1 - confidence) / 2) ** (1 / units)
    low, high = (other, 1.0) if value == 1 else (0.0, 1 - other)
    return {**entry, "low": low, "high": high}


def _bound_perfect_ranking(
    entry: Entry, positives: int, negatives: int, confidence: float
) -> Entry:
    """Add the interval of an AUROC of exactly 0 or 1 for so many patients."""
    value = entry["value"]
    if value not in (0, 1):
        return entry
    bound = perfect_ranking_bound(positives, negatives, confidence)
    low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    return {**entry, "low": low, "high": high}


def perfect_ranking_bound(positives: int, negatives: int, confidence: float) -> float:
    """Return the lower end of the interval of an AUROC of 1, whose upper end is 1.

    All resamples of a perfect ranking are perfect too, and its standard error is 0. Method 5 of
    Newcombe (2006, doi:10.1002/sim.2324) finds instead the lowest true AUROC for which 1 is not
    surprising, with the variance of Hanley and McNeil.

    Args:
        positives: number of patients with malignant lesions, at least 1.
        negatives: number of patients with benign lesions, at least 1.
        confidence: confidence level.
    """
    reach = ndtri((1 + confidence) / 2)

    def excess(auroc: float) -> float:
        spread = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
        pairs = 1 + ((positives + negatives) / 2 - 1) * spread
        return 1 - auroc - reach**2 * auroc * pairs / (positives * negatives)

    return float(brentq(excess, 0, 1))


def _confusion(
    predictions: Predictions, threshold: float
) -> dict[str, list[str] | list[list[int]]]:
    """Count the rows of each true class (rows) by predicted class (columns)."""
    count = len(predictions.classes)
    cells = predictions.target * count + predictions.predicted_classes(threshold)
    counts = np.bincount(cells, minlength=count**2)
    return {"classes": list(predictions.classes), "counts": counts.reshape(count, count).tolist()}


def _support(predictions: Predictions) -> dict[str, int]:
    counts = np.bincount(predictions.target, minlength=len(predictions.classes)).tolist()
    return dict(zip(predictions.classes, counts, strict=True))


def _fold_aurocs(predictions: Predictions) -> dict[str, float | None]:
    if predictions.fold is None:
        return {}
    scores, positives, folds = predictions.malignancy, predictions.malignant, predictions.fold
    result: dict[str, float | None] = {}
    for fold in np.unique(folds):
        rows = folds == fold
        defined = len(np.unique(positives[rows])) > 1
        result[str(fold)] = float(roc_auc_score(positives[rows], scores[rows])) if defined else None
    return result
