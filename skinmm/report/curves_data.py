"""Rows to the points of a curve: pure functions of scores and truth; both classes must occur."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from skinmm.evaluation.statistics import net_benefit
from skinmm.report.figures.curves import Line

BINS: Final = 10
_Z: Final = 1.959964  # two-sided 95 % of the normal distribution

Scores = Float[np.ndarray, " n"]
Truth = Bool[np.ndarray, " n"]


def roc_line(name: str, scores: Scores, positives: Truth) -> Line:
    """Sensitivity over the false positive rate; the name says the area under it."""
    false_alarms, sensitivity, _ = roc_curve(positives, scores)
    return Line(f"{name} ({auc(false_alarms, sensitivity):.3f})", false_alarms, sensitivity)


def precision_line(name: str, scores: Scores, positives: Truth) -> Line:
    """Positive predictive value over sensitivity, without the arbitrary point at sensitivity 0."""
    precision, recall, _ = precision_recall_curve(positives, scores)
    return Line(name, recall[-2::-1], precision[-2::-1])


def reliability_line(name: str, scores: Scores, positives: Truth, bins: int = BINS) -> Line:
    """Observed share over mean probability in bins of equal mass, with Wilson 95 % intervals.

    Ties stay in one bin, so that a model of few distinct probabilities has fewer bins.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, scores, side="left")
    count = np.bincount(place, minlength=len(edges) + 1)
    held = count > 0
    count = count[held]
    mean = np.bincount(place, scores, minlength=len(held))[held] / count
    observed = np.bincount(place, positives, minlength=len(held))[held] / count
    return Line(name, mean, observed, *wilson(observed, count))


def wilson(
    share: Float[np.ndarray, " k"], count: Int[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The 95 % interval of a share of `count` rows (Wilson 1927)."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + (_Z / count / 2) ** 2)
    # Rounding must not push a bound past the share itself, 0 and 1 above all.
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)


def net_benefit_lines(scores: Scores, positives: Truth) -> list[Line]:
    """Net benefit of the model, of calling every lesion malignant, and of calling none.

    The thresholds run up to where a decision is still in question: three times the share of
    malignant lesions, from 0.1 to 0.8 (Vickers and Elkin 2006, doi:10.1177/0272989X06295361).
    """
    share = float(positives.mean())
    thresholds = np.linspace(0, min(0.8, max(0.1, 3 * share)), 200)
    hits, alarms = (
        _at_least(np.sort(scores[mask]), thresholds) for mask in (positives, ~positives)
    )
    ours = net_benefit(hits / len(scores), alarms / len(scores), thresholds)
    everyone = net_benefit(np.full_like(thresholds, share), np.asarray(1 - share), thresholds)
    return [
        Line("model", thresholds, ours),
        Line("call all malignant", thresholds, everyone),
        Line("call none", thresholds, np.zeros_like(thresholds)),
    ]


def _at_least(rising: Scores, thresholds: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    return (len(rising) - np.searchsorted(rising, thresholds, side="left")).astype(np.float64)
