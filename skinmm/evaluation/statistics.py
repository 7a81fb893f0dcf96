"""Metrics as functions of bootstrap weights: the draws of each patient in each resample."""

from functools import partial
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation import curves
from skinmm.evaluation.call_rules import CallMetrics
from skinmm.evaluation.curves import CumulativeWeights, Samples, ratio
from skinmm.evaluation.intervals import Statistic, sum_by_patient
from skinmm.evaluation.predictions import DECISIONS, Predictions
from skinmm.evaluation.referral import ReferralMetrics
from skinmm.evaluation.smooth_calibration import CalibrationSmoother
from skinmm.evaluation.sources import build_source_statistic

DEFAULT_THRESHOLD: Final = 0.5
TOP: Final = 15


def build_statistic(
    predictions: Predictions, codes: Int64[np.ndarray, " n"], **settings: Any
) -> Statistic:
    """Return a function that computes every metric of a prediction file.

    `codes` number the patients of the rows; `settings` are arguments of `MalignancyMetrics`.
    """
    parts: list[Statistic] = [
        MalignancyMetrics(predictions.malignancy, predictions.malignant, codes, **settings)
    ]
    if not predictions.is_binary:
        parts.append(ClassMetrics(predictions, codes))
    if predictions.decision is not None:
        parts.append(ReferralMetrics(predictions, codes))
    if within_sources := build_source_statistic(predictions, codes):
        parts.append(within_sources)
    is_named = predictions.list_units() == "patient"
    if (predictions.malignant & is_named).any():
        parts.append(PatientMetrics(predictions, codes, is_named, settings.get("threshold")))
    return lambda draws: {name: value for part in parts for name, value in part(draws).items()}


class MalignancyMetrics:
    """Metrics of the probability of malignancy: ranking, decision and calibration.

    Args:
        scores: probability of malignancy.
        positives: mask of the malignant rows.
        codes: number of each row's patient.
        threshold: rows at or above it are called malignant.
        exact: fit the calibration lines to all rows; false: to cells of a fine grid.
    """

    def __init__(
        self,
        scores: Float64[np.ndarray, " n"],
        positives: Bool[np.ndarray, " n"],
        codes: Int64[np.ndarray, " n"],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        exact: bool = False,
    ) -> None:
        order = np.argsort(scores, kind="stable")
        self.scores, self.positives, self.codes = scores[order], positives[order], codes[order]
        self.threshold = threshold
        self.first_called = np.searchsorted(self.scores, [threshold])
        self.levels = curves.find_levels(self.scores, self.positives)
        log_odds = curves.log_odds(self.scores)
        self.cells = curves.group_log_odds(log_odds, None if exact else curves.GRID)
        self.smoother = CalibrationSmoother(log_odds)
        errors = (self.scores - self.positives) ** 2
        losses = np.logaddexp(0, np.where(self.positives, -log_odds, log_odds))
        self.sums = sum_by_patient(self.codes, [errors, losses, self.scores])

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        weights = np.take(draws, self.codes, axis=1)
        cumulative = CumulativeWeights.from_weights(weights, self.positives)
        brier, loss, mean = (draws @ self.sums).T / cumulative.rows[:, -1]
        curve = curves.Curve.from_levels(cumulative, self.levels)
        sensitivity, specificity = curve.sensitivity(), curve.specificity()
        starts, log_odds = self.cells
        lines = partial(curves.calibration_line, *cumulative.between(starts), log_odds)
        return {
            "auroc": curves.partial_auroc(curve, 0.0),
            "average_precision": curves.average_precision(curve),
            "partial_auroc": curves.partial_auroc(curve, curves.PARTIAL_FLOOR),
            "sensitivity_at_90_specificity": curves.highest(sensitivity, specificity, 0.90),
            "sensitivity_at_95_specificity": curves.highest(sensitivity, specificity, 0.95),
            "specificity_at_90_sensitivity": curves.highest(specificity, sensitivity, 0.90),
            "specificity_at_95_sensitivity": curves.highest(specificity, sensitivity, 0.95),
            **self._decision_metrics(cumulative),
            "brier": brier,
            "log_loss": loss,
            "mean_probability": mean,
            "ece": curves.calibration_error(weights, cumulative, self.scores),
            **self.smoother.errors(*cumulative.between(self.smoother.starts)),
            "calibration_slope": lines(free=True)[1],
            "calibration_intercept": lines(free=False)[0],
        }

    def _decision_metrics(self, cumulative: CumulativeWeights) -> dict[str, Samples]:
        """Return the metrics of the decision by the threshold."""
        rows = cumulative.rows[:, -1].astype(np.float64)
        positives = cumulative.positives[:, -1].astype(np.float64)
        rows_below, positives_below = cumulative.before(self.first_called)
        called, hits = rows - rows_below[:, 0], positives - positives_below[:, 0]
        tn = rows - called - positives + hits
        sensitivity, specificity = ratio(hits, positives), ratio(tn, rows - positives)
        benefit = net_benefit(hits / rows, (called - hits) / rows, self.threshold)
        return {
            "accuracy": (hits + tn) / rows,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "precision": ratio(hits, called),
            "recall": sensitivity,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "f1": ratio(2 * hits, called + positives),
            "ppv": ratio(hits, called),
            "npv": ratio(tn, rows - called),
            "number_needed_to_treat": ratio(called, hits),
            "net_benefit": benefit,
            "net_benefit_gain": benefit - default_benefit(positives / rows, self.threshold),
        }


class PatientMetrics:
    """Metrics over patients with a malignant lesion, from the rows that name a patient.

    `patient_sensitivity` is the share of these patients of whom at least one malignant lesion is
    flagged. `top_15_sensitivity` is the share of malignant lesions among the 15 with the highest
    probabilities of their patient (retrieval sensitivity of the ISIC 2024 challenge); equal
    probabilities count against the lesion. It is omitted if no patient with a malignant lesion has
    more than 15 lesions, because it is then 1.

    `codes` number the patients of the rows, and `is_named` masks the rows that name one. Rows are
    flagged from the threshold on, by default 0.5.
    """

    def __init__(
        self,
        predictions: Predictions,
        codes: Int64[np.ndarray, " n"],
        is_named: Bool[np.ndarray, " n"],
        threshold: float | None,
    ) -> None:
        scores = predictions.malignancy
        is_flagged = scores >= (DEFAULT_THRESHOLD if threshold is None else threshold)
        malignant = predictions.malignant & is_named
        counts, hits, lesions = sum_by_patient(
            codes, [malignant, malignant & is_flagged, is_named]
        ).T
        shares = {"patient_sensitivity": (hits > 0, counts > 0)}
        if (lesions[counts > 0] > TOP).any():
            ranks = pd.Series(scores).groupby(codes).rank(method="max", ascending=False).to_numpy()
            first = sum_by_patient(codes, [malignant & (ranks <= TOP)])[:, 0]
            shares[f"top_{TOP}_sensitivity"] = first, counts
        self.names = (*shares,)
        self.sums = np.column_stack([column for pair in shares.values() for column in pair]) * 1.0

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        sums = (draws @ self.sums).T
        return dict(zip(self.names, ratio(sums[::2], sums[1::2]), strict=True))


class ClinicMetrics:
    """Predictive values and net benefit at another prevalence than in the data.

    Only the prevalence changes (Bayes' theorem): sensitivity, specificity, the probabilities and
    the weight of a false alarm, given by the threshold, are the same as in the data.

    `codes` number the patients of the rows.
    """

    def __init__(
        self,
        predictions: Predictions,
        codes: Int64[np.ndarray, " n"],
        threshold: float,
        prevalence: float,
    ) -> None:
        self.threshold, self.prevalence = threshold, prevalence
        called = predictions.malignancy >= threshold
        calls = {"": (called, ~called)}
        if predictions.decision is not None:
            benign, malignant = (predictions.decision == name for name in DECISIONS[:2])
            calls["decided_"] = malignant, benign
        self.prefixes, truth = list(calls), predictions.malignant
        masks = [truth, ~truth]
        masks += [call & side for pair in calls.values() for call in pair for side in masks[:2]]
        self.sums = sum_by_patient(codes, masks)

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        malignant, benign, *counts = (draws @ self.sums).T.astype(np.float64)
        result = {}
        for index, prefix in enumerate(self.prefixes):
            hits, false_alarms, misses, rejected = counts[4 * index : 4 * index + 4]
            true_positives = self.prevalence * ratio(hits, malignant)
            false_positives = (1 - self.prevalence) * ratio(false_alarms, benign)
            false_negatives = self.prevalence * ratio(misses, malignant)
            true_negatives = (1 - self.prevalence) * ratio(rejected, benign)
            flagged = true_positives + false_positives
            result[f"{prefix}ppv"] = ratio(true_positives, flagged)
            result[f"{prefix}npv"] = ratio(true_negatives, true_negatives + false_negatives)
            if not prefix:
                benefit = net_benefit(true_positives, false_positives, self.threshold)
                result["number_needed_to_treat"] = ratio(flagged, true_positives)
                result["net_benefit"] = benefit
                share = np.full_like(benefit, self.prevalence)
                result["net_benefit_gain"] = benefit - default_benefit(share, self.threshold)
        return result


def default_benefit(share: Samples, threshold: float) -> Samples:
    """Return the net benefit of flagging all lesions or of flagging none, the higher of both."""
    return np.maximum(net_benefit(share, 1 - share, threshold), 0)


def net_benefit(
    hits: Float64[np.ndarray, "..."],
    false_alarms: Float64[np.ndarray, "..."],
    threshold: Float64[np.ndarray, "..."] | float,
) -> Float64[np.ndarray, "..."]:
    """Return hits - false alarms * t / (1 - t) at the threshold t, as shares of all rows.

    Vickers and Elkin 2006, doi:10.1177/0272989X06295361. At threshold 1 a false alarm has infinite
    cost, and the net benefit is NaN.
    """
    inside = np.where(np.less(threshold, 1), threshold, np.nan)
    return hits - false_alarms * inside / (1 - inside)


class ClassMetrics:
    """Metrics of each class and their macro averages, for multi-class files.

    Macro averages are over the classes that the file has rows of. They are undefined for a resample
    that lacks one of these classes. `codes` are the numbers of the rows' patients.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        self.classes = predictions.classes
        count = len(self.classes)
        target, probabilities = predictions.target, predictions.probabilities
        self.calls = CallMetrics(target, predictions.predicted_classes(), codes, self.classes)
        self.present = self.calls.present
        self.rankings = {}  # of each class: patient, truth and levels of the rows by score
        for i in np.flatnonzero(self.present):
            order = np.argsort(probabilities[:, i], kind="stable")
            positives = target[order] == i
            levels = curves.find_levels(probabilities[order, i], positives)
            self.rankings[i] = codes[order], positives, levels
        truth = np.eye(count)[target]
        epsilon = np.finfo(np.float64).eps
        loss = -np.log(np.clip(probabilities[np.arange(len(target)), target], epsilon, 1))
        brier = ((probabilities - truth) ** 2).sum(axis=1)
        self.sums = sum_by_patient(codes, [loss, brier, np.ones_like(loss)])

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        loss, brier, rows = (draws @ self.sums).T
        auroc = np.full((len(draws), len(self.classes)), np.nan)
        for i, (codes, positives, levels) in self.rankings.items():
            cumulative = CumulativeWeights.from_weights(np.take(draws, codes, axis=1), positives)
            auroc[:, i] = curves.partial_auroc(curves.Curve.from_levels(cumulative, levels), 0.0)
        losses = {"class_log_loss": loss / rows, "class_brier": brier / rows}
        macro = {"macro_auroc": auroc[:, self.present].mean(axis=1)}
        aurocs = {f"auroc_{label}": auroc[:, i] for i, label in enumerate(self.classes)}
        return losses | macro | aurocs | self.calls(draws)
