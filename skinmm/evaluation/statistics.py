"""Metrics as functions of how often each of b bootstrap resamples draws each of p patients."""

from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation import curves
from skinmm.evaluation.curves import CumulativeWeights, Samples, ratio
from skinmm.evaluation.intervals import Statistic, sum_by_patient
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.referral import ReferralMetrics
from skinmm.evaluation.smooth_calibration import CalibrationSmoother

DEFAULT_THRESHOLD: Final = 0.5


def build_statistic(
    predictions: Predictions, codes: Int64[np.ndarray, " n"], **settings: Any
) -> Statistic:
    """Return a function that computes every metric of a prediction file.

    Args:
        predictions: rows of the file.
        codes: number of each row's patient.
        **settings: keyword arguments of `MalignancyMetrics`.
    """
    parts: list[Statistic] = [
        MalignancyMetrics(predictions.malignancy, predictions.malignant, codes, **settings)
    ]
    if not predictions.is_binary:
        parts.append(ClassMetrics(predictions, codes))
    if predictions.decision is not None:
        parts.append(ReferralMetrics(predictions, codes))
    return lambda draws: {name: value for part in parts for name, value in part(draws).items()}


class MalignancyMetrics:
    """Metrics of the probability of malignancy: ranking, decision and calibration.

    Args:
        scores: probability of malignancy.
        positives: mask of the malignant rows.
        codes: number of each row's patient.
        threshold: rows at or above it are called malignant.
        prevalence: of the clinic; None: of the data.
        exact: fit the calibration lines to all rows; false: to cells of a fine grid.
    """

    def __init__(
        self,
        scores: Float64[np.ndarray, " n"],
        positives: Bool[np.ndarray, " n"],
        codes: Int64[np.ndarray, " n"],
        *,
        threshold: float = DEFAULT_THRESHOLD,
        prevalence: float | None = None,
        exact: bool = False,
    ) -> None:
        order = np.argsort(scores, kind="stable")
        self.scores, self.positives, self.codes = scores[order], positives[order], codes[order]
        self.threshold, self.prevalence = threshold, prevalence
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
        """Return the metrics of the decision by the threshold.

        `ppv`, `npv` and `number_needed_to_treat` are for the prevalence, by Bayes' theorem.
        """
        rows = cumulative.rows[:, -1].astype(np.float64)
        positives = cumulative.positives[:, -1].astype(np.float64)
        rows_below, positives_below = cumulative.before(self.first_called)
        called, hits = rows - rows_below[:, 0], positives - positives_below[:, 0]
        tn = rows - called - positives + hits
        sensitivity, specificity = ratio(hits, positives), ratio(tn, rows - positives)
        share = positives / rows if self.prevalence is None else np.full_like(rows, self.prevalence)
        # A class without rows contributes 0, although its sensitivity or specificity is undefined.
        true_positives = np.where(share > 0, share * sensitivity, 0)
        false_negatives = np.where(share > 0, share - true_positives, 0)
        true_negatives = np.where(share < 1, (1 - share) * specificity, 0)
        false_positives = np.where(share < 1, 1 - share - true_negatives, 0)
        ppv = ratio(true_positives, true_positives + false_positives)
        return {
            "accuracy": (hits + tn) / rows,
            "balanced_accuracy": (sensitivity + specificity) / 2,
            "precision": ratio(hits, called),
            "recall": sensitivity,
            "sensitivity": sensitivity,
            "specificity": specificity,
            "f1": ratio(2 * hits, called + positives),
            "ppv": ppv,
            "npv": ratio(true_negatives, true_negatives + false_negatives),
            "number_needed_to_treat": ratio(np.ones_like(ppv), ppv),
            "net_benefit": net_benefit(hits / rows, (called - hits) / rows, self.threshold),
        }


def net_benefit(
    hits: Float64[np.ndarray, "..."],
    false_alarms: Float64[np.ndarray, "..."],
    threshold: Float64[np.ndarray, "..."] | float,
) -> Float64[np.ndarray, "..."]:
    """Return hits - false alarms * t / (1 - t), as shares of all rows, at the threshold t.

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
        self.present = np.bincount(target, minlength=count) > 0
        cells = target * count + predictions.predicted_classes()
        order = np.argsort(cells, kind="stable")
        self.cell_codes = codes[order]
        self.cells, self.starts = np.unique(cells[order], return_index=True)
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
        # Rows of each true class (second axis) by predicted class (third axis).
        counts = np.zeros((len(draws), len(self.classes), len(self.classes)))
        weights = np.take(draws, self.cell_codes, axis=1)
        counts.reshape(len(draws), -1)[:, self.cells] = np.add.reduceat(
            weights, self.starts, axis=1
        )
        hits = np.einsum("bcc->bc", counts)
        recall = ratio(hits, counts.sum(axis=2))
        precision = ratio(hits, counts.sum(axis=1))
        f1 = ratio(2 * hits, counts.sum(axis=1) + counts.sum(axis=2))
        auroc = np.full(recall.shape, np.nan)
        for i, (codes, positives, levels) in self.rankings.items():
            cumulative = CumulativeWeights.from_weights(np.take(draws, codes, axis=1), positives)
            auroc[:, i] = curves.partial_auroc(curves.Curve.from_levels(cumulative, levels), 0.0)
        result = {
            "class_accuracy": hits.sum(axis=1) / rows,
            "class_balanced_accuracy": recall[:, self.present].mean(axis=1),
            "class_log_loss": loss / rows,
            "class_brier": brier / rows,
            "macro_auroc": auroc[:, self.present].mean(axis=1),
            "macro_f1": f1[:, self.present].mean(axis=1),
        }
        per_class = {"auroc": auroc, "recall": recall, "precision": precision, "f1": f1}
        for name, values in per_class.items():
            result |= {f"{name}_{label}": values[:, i] for i, label in enumerate(self.classes)}
        return result
