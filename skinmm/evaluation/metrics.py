"""Every metric of a prediction file, with intervals: one function for binary and multi-class."""

from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from sklearn.metrics import roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.intervals import (
    Entry,
    Statistic,
    all_or_none,
    bootstrap,
    delong_interval,
    independent_units,
    patient_codes,
    perfect_ranking,
    skewness,
    summarise,
)
from skinmm.evaluation.predictions import REFER, Predictions
from skinmm.evaluation.statistics import DEFAULT_THRESHOLD, build_statistic, confusion

MANY: Final = 1000


def evaluate(
    predictions: Predictions,
    *,
    threshold: float | None = None,
    prevalence: float | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of a prediction file, with intervals of a bootstrap over patients.

    The names without a prefix are about malignancy in every file, so that binary and multi-class
    runs compare; `class_*`, `macro_*` and `<metric>_<class>` exist in multi-class files only, those
    of `ReferralMetrics` where the file says what was decided. Rows
    of several folds are pooled as if one model had made them, which calibration makes fair; were
    the folds not comparable, the pooled AUROC would be lower than that of the folds, so those are
    given beside it (Airola et al. 2011, doi:10.1016/j.csda.2010.11.023).

    Args:
        predictions: at least one row.
        threshold: rows at or above it are called malignant; None: 0.5.
        prevalence: of the clinic, for `ppv`, `npv` and `number_needed_to_treat` (lesions called
            malignant per malignant one); None: of the data.
        resamples: of patients; 0: no intervals.
        confidence: of the intervals.
        seed: of the draws.

    Returns:
        Plain data: `n`, `patients`, `positives`, `unpredicted`, `threshold`, `prevalence`,
        `metrics` (name -> value, low, high, left_out), `auroc_delong` (see `delong_interval`),
        `confusion`, `support` (rows of each class) and `folds` (AUROC of each). A metric that is
        undefined in the data is None; resamples in which it is undefined are left out and counted.

    Raises:
        InputError: no rows, or a threshold or prevalence outside [0, 1].
    """
    threshold = DEFAULT_THRESHOLD if threshold is None else threshold
    _refuse(predictions, threshold, prevalence)
    # Patients numbered in order of score lie near each other where the metrics look them up.
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
        "confusion": confusion(predictions, threshold),
        "support": _support(predictions),
        "folds": _fold_aurocs(predictions),
    }


def _metrics(
    predictions: Predictions,
    codes: Int64[np.ndarray, " n"],
    threshold: float,
    prevalence: float | None,
    resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Entry]:
    """Every metric's value and interval; the arguments are those of `evaluate`."""
    measure = partial(
        build_statistic, predictions, codes, threshold=threshold, prevalence=prevalence
    )
    units = independent_units(codes, predictions.malignant)
    samples, skews = _resampled(measure(), codes, units, resamples, seed)
    everyone = np.ones((1, int(codes.max()) + 1), dtype=np.int64)
    metrics = {
        name: summarise(
            name,
            float(value[0]),
            samples.get(name, np.empty(0)),
            skews.get(name, 0.0),
            confidence,
            units,
        )
        for name, value in measure(exact=True)(everyone).items()
    }
    if samples:
        shares = _denominators(predictions, threshold, prevalence)
        ranked = _rankings(predictions)
        metrics |= _where_resamples_agree(metrics, shares, ranked, codes, confidence)
    return metrics


def _resampled(
    measure: Statistic, codes: Int64[np.ndarray, " n"], units: int, resamples: int, seed: int
) -> tuple[dict[str, Float64[np.ndarray, " r"]], dict[str, float]]:
    """Every metric's resamples and skewness; of one patient none, as they would be all alike."""
    patients = int(codes.max()) + 1
    if resamples == 0 or patients == 1:
        return {}, {}
    samples = bootstrap(measure, patients, len(codes), resamples=resamples, seed=seed)
    # Of many units hardly any skewness is left.
    return samples, skewness(measure, patients, len(codes)) if units <= MANY else {}


def _denominators(
    predictions: Predictions, threshold: float, prevalence: float | None
) -> dict[str, Bool[np.ndarray, " n"]]:
    """The rows that a share is of."""
    malignant, called = predictions.malignant, predictions.malignancy >= threshold
    shares = dict.fromkeys(("sensitivity", "recall", "found_or_referred"), malignant)
    shares |= {"specificity": ~malignant, "precision": called}
    shares |= {f"sensitivity_at_{level}_specificity": malignant for level in (90, 95)}
    shares |= {f"specificity_at_{level}_sensitivity": ~malignant for level in (90, 95)}
    shares["accuracy"] = np.ones(len(predictions), dtype=bool)
    if prevalence is None:  # else they are no shares of rows
        shares |= {"ppv": called, "npv": ~called}
    if predictions.decision is not None:
        decided = predictions.decision != REFER
        shares["decided_sensitivity"] = malignant & decided
        shares["decided_specificity"] = ~malignant & decided
    for index, name in enumerate(predictions.classes):
        rows = predictions.target == index
        shares |= {f"recall_{name}": rows, f"coverage_{name}": rows}
    return shares


def _where_resamples_agree(
    metrics: dict[str, Entry],
    shares: dict[str, Bool[np.ndarray, " n"]],
    ranked: dict[str, Bool[np.ndarray, " n"]],
    codes: Int64[np.ndarray, " n"],
    confidence: float,
) -> dict[str, Entry]:
    """Intervals of shares of 0 and 1 and of perfect rankings, from how many patients there are."""
    patients = {
        name: (len(np.unique(codes[rows])), len(np.unique(codes[~rows])))
        for name, rows in {**shares, **ranked}.items()
        if name in metrics
    }
    return {
        name: perfect_ranking(metrics[name], *counts, confidence)
        if name in ranked
        else all_or_none(metrics[name], counts[0], confidence)
        for name, counts in patients.items()
    }


def _rankings(predictions: Predictions) -> dict[str, Bool[np.ndarray, " n"]]:
    """The rows that an AUROC ranks above the others."""
    ranked = {"auroc": predictions.malignant}
    for index, name in enumerate(predictions.classes):
        ranked[f"auroc_{name}"] = predictions.target == index
    return ranked


def _refuse(predictions: Predictions, threshold: float, prevalence: float | None) -> None:
    if len(predictions) == 0:
        raise InputError("no rows to evaluate")
    for name, value in (("threshold", threshold), ("prevalence", prevalence)):
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{name} {value} is outside [0, 1]")


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
