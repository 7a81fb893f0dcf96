"""Metrics as functions of how often a bootstrap draws each patient."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64

from skinmm.evaluation import curves
from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import Statistic
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.referral import ReferralMetrics

DEFAULT_THRESHOLD: Final = 0.5
Counts = Float64[np.ndarray, " b"]


def decision_metrics(
    hits: Counts,
    called: Counts,
    positives: Counts,
    rows: Counts,
    *,
    threshold: float,
    prevalence: float | None,
) -> dict[str, Float64[np.ndarray, " b"]]:
    """Metrics of calling rows malignant.

    Args:
        hits: malignant and called malignant.
        called: called malignant.
        positives: malignant.
        rows: all.
        threshold: the probability that made the call, for the net benefit.
        prevalence: of the clinic, for `ppv`, `npv` and `number_needed_to_treat`; None: of the data.
    """
    tn = rows - called - positives + hits
    sensitivity, specificity = ratio(hits, positives), ratio(tn, rows - positives)
    share = positives / rows if prevalence is None else np.full_like(rows, prevalence)
    # A class that does not occur has no say, though its sensitivity or specificity is undefined.
    found = np.where(share > 0, share * sensitivity, 0)
    missed = np.where(share > 0, share - found, 0)
    cleared = np.where(share < 1, (1 - share) * specificity, 0)
    alarmed = np.where(share < 1, 1 - share - cleared, 0)
    ppv = ratio(found, found + alarmed)
    return {
        "accuracy": (hits + tn) / rows,
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "precision": ratio(hits, called),
        "recall": sensitivity,
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": ratio(2 * hits, called + positives),
        "ppv": ppv,
        "npv": ratio(cleared, cleared + missed),
        "number_needed_to_treat": ratio(np.ones_like(ppv), ppv),
        "net_benefit": net_benefit(hits / rows, (called - hits) / rows, threshold),
    }


def net_benefit(
    hits: Float64[np.ndarray, "..."],
    false_alarms: Float64[np.ndarray, "..."],
    threshold: Float64[np.ndarray, "..."] | float,
) -> Float64[np.ndarray, "..."]:
    """Share of hits, less false alarms at the exchange rate that the threshold implies.

    Vickers and Elkin 2006, doi:10.1177/0272989X06295361. At threshold 1 a false alarm costs
    endlessly much: NaN.

    Args:
        hits: true positives over all rows.
        false_alarms: false positives over all rows.
        threshold: in [0, 1].
    """
    inside = np.where(np.less(threshold, 1), threshold, np.nan)
    return hits - false_alarms * inside / (1 - inside)


class ClassMetrics:
    """Per-class and macro metrics, as a function of how often patients are drawn.

    Macro metrics average over the classes that the file has rows of; a resample that lacks one of
    them leaves them undefined.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        """Sorts the rows once per class.

        Args:
            predictions: of a multi-class file.
            codes: number of each row's patient.
        """
        self.classes, self.codes = predictions.classes, codes
        count = len(self.classes)
        target, probabilities = predictions.target, predictions.probabilities
        self.present = np.bincount(target, minlength=count) > 0
        cells = target * count + predictions.predicted_classes()
        self.order = np.argsort(cells, kind="stable")
        self.cells, self.starts = np.unique(cells[self.order], return_index=True)
        self.rankings = [
            self._ranking(probabilities[:, i], target == i) for i in np.flatnonzero(self.present)
        ]
        truth = np.eye(count)[target]
        tiny = np.finfo(np.float64).eps
        loss = -np.log(np.clip(probabilities[np.arange(len(target)), target], tiny, 1))
        brier = ((probabilities - truth) ** 2).sum(axis=1)
        self.sums = np.column_stack(
            [np.bincount(codes, weights=column) for column in (loss, brier, np.ones_like(loss))]
        )

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        """Metrics of each resample."""
        loss, brier, rows = (draws @ self.sums).T
        counts = self._confusion(draws)
        hits = np.einsum("bcc->bc", counts)
        recall = ratio(hits, counts.sum(axis=2))
        precision = ratio(hits, counts.sum(axis=1))
        f1 = ratio(2 * hits, counts.sum(axis=1) + counts.sum(axis=2))
        auroc = self._aurocs(draws)
        result = {
            "class_accuracy": hits.sum(axis=1) / rows,
            "class_balanced_accuracy": self._macro(recall),
            "class_log_loss": loss / rows,
            "class_brier": brier / rows,
            "macro_auroc": self._macro(auroc),
            "macro_f1": self._macro(f1),
        }
        per_class = {"auroc": auroc, "recall": recall, "precision": precision, "f1": f1}
        for name, values in per_class.items():
            result |= {f"{name}_{label}": values[:, i] for i, label in enumerate(self.classes)}
        return result

    def _ranking(
        self, scores: Float64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]
    ) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"], Int64[np.ndarray, " l"]]:
        order = np.argsort(scores, kind="stable")
        positives = positives[order]
        return self.codes[order], positives, curves.level_starts(scores[order], positives)

    def _aurocs(self, draws: Int64[np.ndarray, "b p"]) -> Float64[np.ndarray, "b c"]:
        result = np.full((len(draws), len(self.classes)), np.nan)
        for i, (codes, positives, starts) in zip(
            np.flatnonzero(self.present), self.rankings, strict=True
        ):
            curve = curves.Curve.of(
                curves.Cumulated.of(np.take(draws, codes, axis=1), positives), starts
            )
            result[:, i] = curves.partial_auroc(curve, 0.0)
        return result

    def _confusion(self, draws: Int64[np.ndarray, "b p"]) -> Float64[np.ndarray, "b c c"]:
        count = len(self.classes)
        result = np.zeros((len(draws), count**2))
        result[:, self.cells] = np.add.reduceat(
            np.take(draws, self.codes[self.order], axis=1), self.starts, axis=1
        )
        return result.reshape(-1, count, count)

    def _macro(self, values: Float64[np.ndarray, "b c"]) -> Float64[np.ndarray, " b"]:
        return values[:, self.present].mean(axis=1)


def confusion(predictions: Predictions, threshold: float) -> dict[str, list[str] | list[list[int]]]:
    """Counts of truth (rows) against call (columns).

    Args:
        predictions: of a file.
        threshold: makes the call in a binary file.
    """
    count = len(predictions.classes)
    cells = predictions.target * count + predictions.predicted_classes(threshold)
    counts = np.bincount(cells, minlength=count**2)
    return {"classes": list(predictions.classes), "counts": counts.reshape(count, count).tolist()}


class MalignancyMetrics:
    """Metrics of the probability of malignancy, as a function of how often patients are drawn."""

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
        """Sorts the rows once and adds up per patient what is a sum over rows.

        Args:
            scores: probability of malignancy.
            positives: whether a row is malignant.
            codes: number of each row's patient.
            threshold: a row is called malignant at or above it.
            prevalence: of the clinic; None: of the data.
            exact: fit the calibration lines to every row, rather than to cells of a fine grid.
        """
        order = np.argsort(scores, kind="stable")
        self.scores, self.positives, self.codes = scores[order], positives[order], codes[order]
        self.threshold, self.prevalence = threshold, prevalence
        self.called = np.searchsorted(self.scores, [threshold])
        self.levels = curves.level_starts(self.scores, self.positives)
        log_odds = curves.log_odds(self.scores)
        self.cells = curves.line_cells(log_odds, None if exact else curves.GRID)
        errors = (self.scores - self.positives) ** 2
        losses = np.logaddexp(0, np.where(self.positives, -log_odds, log_odds))
        self.sums = np.column_stack(
            [np.bincount(self.codes, weights=column) for column in (errors, losses, self.scores)]
        )

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        """Metrics of each resample."""
        weights = np.take(draws, self.codes, axis=1)
        cumulated = curves.Cumulated.of(weights, self.positives)
        brier, loss, mean = (draws @ self.sums).T / cumulated.mass[:, -1]
        return {
            **self._ranked(cumulated),
            **self._decided(cumulated),
            "brier": brier,
            "log_loss": loss,
            "mean_probability": mean,
            "ece": curves.calibration_error(weights, cumulated, self.scores),
            **self._lines(cumulated),
        }

    def _ranked(self, cumulated: curves.Cumulated) -> dict[str, Float64[np.ndarray, " b"]]:
        curve = curves.Curve.of(cumulated, self.levels)
        return {
            "auroc": curves.partial_auroc(curve, 0.0),
            "average_precision": curves.average_precision(curve),
            "partial_auroc": curves.partial_auroc(curve, curves.PARTIAL_FLOOR),
            "sensitivity_at_90_specificity": curves.sensitivity_at(curve, 0.90),
            "sensitivity_at_95_specificity": curves.sensitivity_at(curve, 0.95),
            "specificity_at_90_sensitivity": curves.specificity_at(curve, 0.90),
            "specificity_at_95_sensitivity": curves.specificity_at(curve, 0.95),
        }

    def _decided(self, cumulated: curves.Cumulated) -> dict[str, Float64[np.ndarray, " b"]]:
        rows, positives = cumulated.mass[:, -1], cumulated.hits[:, -1]
        mass, hits = cumulated.before(self.called)
        return decision_metrics(
            (positives - hits[:, 0]).astype(np.float64),
            (rows - mass[:, 0]).astype(np.float64),
            positives.astype(np.float64),
            rows.astype(np.float64),
            threshold=self.threshold,
            prevalence=self.prevalence,
        )

    def _lines(self, cumulated: curves.Cumulated) -> dict[str, Float64[np.ndarray, " b"]]:
        starts, x = self.cells
        rows, hits = cumulated.between(starts)
        intercept, _ = curves.calibration_line(rows, hits, x, free=False)
        _, slope = curves.calibration_line(rows, hits, x, free=True)
        return {"calibration_slope": slope, "calibration_intercept": intercept}


def build_statistic(
    predictions: Predictions,
    codes: Int64[np.ndarray, " n"],
    *,
    threshold: float = DEFAULT_THRESHOLD,
    prevalence: float | None = None,
    exact: bool = False,
) -> Statistic:
    """All metrics of a file as a function of how often its patients are drawn."""
    binary = MalignancyMetrics(
        predictions.malignancy,
        predictions.malignant,
        codes,
        threshold=threshold,
        prevalence=prevalence,
        exact=exact,
    )
    parts: list[Statistic] = [binary]
    if not predictions.is_binary:
        parts.append(ClassMetrics(predictions, codes))
    if predictions.decision is not None:
        parts.append(ReferralMetrics(predictions, codes))
    return lambda draws: {name: value for part in parts for name, value in part(draws).items()}
