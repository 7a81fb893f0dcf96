"""Metrics as functions of how often each of b bootstrap resamples draws each of p patients."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation import curves
from skinmm.evaluation.curves import CumulativeWeights, Samples, ratio
from skinmm.evaluation.intervals import Statistic
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.referral import ReferralMetrics

DEFAULT_THRESHOLD: Final = 0.5


def build_statistic(
    predictions: Predictions,
    codes: Int64[np.ndarray, " n"],
    *,
    threshold: float = DEFAULT_THRESHOLD,
    prevalence: float | None = None,
    exact: bool = False,
) -> Statistic:
    """Return a function that computes every metric of a prediction file.

    Args:
        predictions: rows of the file.
        codes: number of each row's patient.
        threshold: rows at or above it are called malignant.
        prevalence: of the clinic; None: of the data.
        exact: as in `MalignancyMetrics`.
    """
    parts: list[Statistic] = [
        MalignancyMetrics(
            predictions.malignancy,
            predictions.malignant,
            codes,
            threshold=threshold,
            prevalence=prevalence,
            exact=exact,
        )
    ]
    if not predictions.is_binary:
        parts.append(ClassMetrics(predictions, codes))
    if predictions.decision is not None:
        parts.append(ReferralMetrics(predictions, codes))
    return lambda draws: {name: value for part in parts for name, value in part(draws).items()}


class MalignancyMetrics:
    """Metrics of the probability of malignancy: ranking, decision and calibration."""

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
        """Sort the rows once, and sum over each patient what is a sum over rows.

        Args:
            scores: probability of malignancy.
            positives: whether a row is malignant.
            codes: number of each row's patient.
            threshold: rows at or above it are called malignant.
            prevalence: of the clinic; None: of the data.
            exact: fit the calibration lines to all rows; false: to cells of a fine grid.
        """
        order = np.argsort(scores, kind="stable")
        self.scores, self.positives, self.codes = scores[order], positives[order], codes[order]
        self.threshold, self.prevalence = threshold, prevalence
        self.first_called = np.searchsorted(self.scores, [threshold])
        self.levels = curves.find_levels(self.scores, self.positives)
        log_odds = curves.log_odds(self.scores)
        self.cells = curves.group_log_odds(log_odds, None if exact else curves.GRID)
        errors = (self.scores - self.positives) ** 2
        losses = np.logaddexp(0, np.where(self.positives, -log_odds, log_odds))
        self.sums = np.column_stack(
            [np.bincount(self.codes, weights=column) for column in (errors, losses, self.scores)]
        )

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        weights = np.take(draws, self.codes, axis=1)
        cumulative = CumulativeWeights.from_weights(weights, self.positives)
        brier, loss, mean = (draws @ self.sums).T / cumulative.rows[:, -1]
        return {
            **self._ranking_metrics(cumulative),
            **self._decision_metrics(cumulative),
            "brier": brier,
            "log_loss": loss,
            "mean_probability": mean,
            "ece": curves.calibration_error(weights, cumulative, self.scores),
            **self._calibration_lines(cumulative),
        }

    def _ranking_metrics(self, cumulative: CumulativeWeights) -> dict[str, Samples]:
        curve = curves.Curve.from_levels(cumulative, self.levels)
        return {
            "auroc": curves.partial_auroc(curve, 0.0),
            "average_precision": curves.average_precision(curve),
            "partial_auroc": curves.partial_auroc(curve, curves.PARTIAL_FLOOR),
            "sensitivity_at_90_specificity": curves.sensitivity_at(curve, 0.90),
            "sensitivity_at_95_specificity": curves.sensitivity_at(curve, 0.95),
            "specificity_at_90_sensitivity": curves.specificity_at(curve, 0.90),
            "specificity_at_95_sensitivity": curves.specificity_at(curve, 0.95),
        }

    def _decision_metrics(self, cumulative: CumulativeWeights) -> dict[str, Samples]:
        rows, positives = cumulative.rows[:, -1], cumulative.positives[:, -1]
        rows_below, positives_below = cumulative.before(self.first_called)
        return decision_metrics(
            (positives - positives_below[:, 0]).astype(np.float64),
            (rows - rows_below[:, 0]).astype(np.float64),
            positives.astype(np.float64),
            rows.astype(np.float64),
            threshold=self.threshold,
            prevalence=self.prevalence,
        )

    def _calibration_lines(self, cumulative: CumulativeWeights) -> dict[str, Samples]:
        starts, x = self.cells
        rows, positives = cumulative.between(starts)
        intercept, _ = curves.calibration_line(rows, positives, x, free=False)
        _, slope = curves.calibration_line(rows, positives, x, free=True)
        return {"calibration_slope": slope, "calibration_intercept": intercept}


def decision_metrics(
    hits: Samples,
    called: Samples,
    positives: Samples,
    rows: Samples,
    *,
    threshold: float,
    prevalence: float | None,
) -> dict[str, Samples]:
    """Return the metrics of a binary decision from its four counts.

    Args:
        hits: number of malignant rows that are called malignant.
        called: number of rows that are called malignant.
        positives: number of malignant rows.
        rows: number of rows.
        threshold: probability at which rows are called malignant, for `net_benefit`.
        prevalence: of the clinic, for `ppv`, `npv` and `number_needed_to_treat` (Bayes' theorem);
            None: of the data.
    """
    tn = rows - called - positives + hits
    sensitivity, specificity = ratio(hits, positives), ratio(tn, rows - positives)
    share = positives / rows if prevalence is None else np.full_like(rows, prevalence)
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
        "net_benefit": net_benefit(hits / rows, (called - hits) / rows, threshold),
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
    that lacks one of these classes.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        """Sort the rows once for each class; `codes` number the patients of the rows."""
        self.classes, self.codes = predictions.classes, codes
        count = len(self.classes)
        target, probabilities = predictions.target, predictions.probabilities
        self.present = np.bincount(target, minlength=count) > 0
        cells = target * count + predictions.predicted_classes()
        self.order = np.argsort(cells, kind="stable")
        self.cells, self.starts = np.unique(cells[self.order], return_index=True)
        self.rankings = [
            self._sort_by_score(probabilities[:, i], target == i)
            for i in np.flatnonzero(self.present)
        ]
        truth = np.eye(count)[target]
        epsilon = np.finfo(np.float64).eps
        loss = -np.log(np.clip(probabilities[np.arange(len(target)), target], epsilon, 1))
        brier = ((probabilities - truth) ** 2).sum(axis=1)
        self.sums = np.column_stack(
            [np.bincount(codes, weights=column) for column in (loss, brier, np.ones_like(loss))]
        )

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        loss, brier, rows = (draws @ self.sums).T
        counts = self._confusion(draws)
        hits = np.einsum("bcc->bc", counts)
        recall = ratio(hits, counts.sum(axis=2))
        precision = ratio(hits, counts.sum(axis=1))
        f1 = ratio(2 * hits, counts.sum(axis=1) + counts.sum(axis=2))
        auroc = self._aurocs(draws)
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

    def _sort_by_score(
        self, scores: Float64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"], Int64[np.ndarray, " l"]]:
        order = np.argsort(scores, kind="stable")
        positives = positives[order]
        return self.codes[order], positives, curves.find_levels(scores[order], positives)

    def _aurocs(self, draws: Int64[np.ndarray, "b p"]) -> Float64[np.ndarray, "b c"]:
        """Return the one-vs-rest AUROC of each class."""
        result = np.full((len(draws), len(self.classes)), np.nan)
        for i, ranking in zip(np.flatnonzero(self.present), self.rankings, strict=True):
            codes, positives, starts = ranking
            weights = np.take(draws, codes, axis=1)
            cumulative = CumulativeWeights.from_weights(weights, positives)
            curve = curves.Curve.from_levels(cumulative, starts)
            result[:, i] = curves.partial_auroc(curve, 0.0)
        return result

    def _confusion(self, draws: Int64[np.ndarray, "b p"]) -> Float64[np.ndarray, "b c c"]:
        """Count the rows of each true class (second axis) by predicted class (third axis)."""
        count = len(self.classes)
        result = np.zeros((len(draws), count**2))
        weights = np.take(draws, self.codes[self.order], axis=1)
        result[:, self.cells] = np.add.reduceat(weights, self.starts, axis=1)
        return result.reshape(-1, count, count)
