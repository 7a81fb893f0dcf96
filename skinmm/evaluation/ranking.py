"""How well scores rank malignant above benign, for many weightings of the rows at once.

Weights are how often a resample drew each row; ones give the plain metric. An undefined metric is
NaN inside this package and None where it leaves it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

PARTIAL_FLOOR = 0.8
"""Sensitivity above which the ISIC 2024 challenge measures the area under the curve."""
_TIE = 1e-12


def ratio(
    numerator: Float64[np.ndarray, "..."], denominator: Float64[np.ndarray, "..."]
) -> Float64[np.ndarray, "..."]:
    """Division that gives NaN, silently, where the denominator is zero."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def level_starts(
    scores: Float64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]
) -> Int64[np.ndarray, " l"]:
    """Where the levels of a ranking start.

    Tied scores are one level. Neighbouring levels without a positive are joined too: between them
    the curves run flat, so that no metric here can tell them apart, in any resample.

    Args:
        scores: rising.
        positives: of the same rows.
    """
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    holds = np.logical_or.reduceat(positives, starts)
    return starts[np.r_[True, holds[1:] | holds[:-1]]]


@dataclass(frozen=True)
class Cumulated:
    """Whole weights added up in rising order of score: what lies before each of n rows, and in all.

    Integers, as their cumulated sums are exact and eight times faster than those of floats.

    Attributes:
        mass: of all rows.
        hits: of the positives, by their number k, as most data has few.
        found: how many positives lie before each row.
    """

    mass: Int64[np.ndarray, "b n"]
    hits: Int64[np.ndarray, "b k"]
    found: Int64[np.ndarray, " n"]

    @classmethod
    def of(
        cls, weights: Int64[np.ndarray, "b n"], positives: Bool[np.ndarray, " n"]
    ) -> "Cumulated":
        """Adds up weights of rows in rising order of score."""
        return cls(
            _add_up(weights),
            _add_up(weights[:, positives]),
            np.r_[0, np.cumsum(positives, dtype=np.int64)],
        )

    def before(
        self, rows: Int64[np.ndarray, " l"]
    ) -> tuple[Int64[np.ndarray, "b l"], Int64[np.ndarray, "b l"]]:
        """Weight of all rows, and of the positives, before each of these rows."""
        return self.mass[:, rows], self.hits[:, self.found[rows]]

    def between(
        self, starts: Int64[np.ndarray, " l"]
    ) -> tuple[Float64[np.ndarray, "b l"], Float64[np.ndarray, "b l"]]:
        """Weight of all rows, and of the positives, of the levels that start at these rows."""
        mass, hits = self.before(np.r_[starts, len(self.found) - 1])
        return np.diff(mass, axis=1).astype(np.float64), np.diff(hits, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Curve:
    """Positives and negatives at or above each level, from the highest level down."""

    positives: Float64[np.ndarray, "b l"]
    negatives: Float64[np.ndarray, "b l"]

    @classmethod
    def of(cls, cumulated: Cumulated, starts: Int64[np.ndarray, " l"]) -> "Curve":
        """Levels that start at these rows."""
        mass, hits = cumulated.before(starts)
        positives = (cumulated.hits[:, -1:] - hits)[:, ::-1]
        negatives = (cumulated.mass[:, -1:] - mass)[:, ::-1] - positives
        return cls(positives.astype(np.float64), negatives.astype(np.float64))

    def sensitivity(self) -> Float64[np.ndarray, "b m"]:
        """At the threshold above everything, then at each level."""
        return _from_zero(ratio(self.positives, self.positives[:, -1:]))

    def specificity(self) -> Float64[np.ndarray, "b m"]:
        """At the threshold above everything, then at each level."""
        return 1 - _from_zero(ratio(self.negatives, self.negatives[:, -1:]))


def _add_up(weights: Int64[np.ndarray, "b n"]) -> Int64[np.ndarray, "b m"]:
    sums = np.zeros((weights.shape[0], weights.shape[1] + 1), dtype=np.int64)
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums


def _from_zero(values: Float64[np.ndarray, "b l"]) -> Float64[np.ndarray, "b m"]:
    return np.pad(values, ((0, 0), (1, 0)))


def partial_auroc(curve: Curve, floor: float) -> Float64[np.ndarray, " b"]:
    """Area under the ROC curve and above a sensitivity, from 0 to 1 - floor; floor 0: the AUROC.

    With floor 0.8 it is the score of the ISIC 2024 challenge. It is not the partial area up to a
    false positive rate that scikit-learn calls `max_fpr`.
    """
    sensitivity, specificity = curve.sensitivity(), curve.specificity()
    rise = np.diff(sensitivity, axis=1)
    above = np.minimum(np.maximum(sensitivity[:, 1:] - floor, 0), rise)
    share = np.divide(above, rise, out=np.zeros_like(rise), where=rise > 0)
    fall = -np.diff(specificity, axis=1)
    area = np.sum(above * (specificity[:, 1:] + fall * share / 2), axis=1)
    defined = (curve.positives[:, -1] > 0) & (curve.negatives[:, -1] > 0)
    return np.where(defined, area, np.nan)


def average_precision(curve: Curve) -> Float64[np.ndarray, " b"]:
    """Precision averaged over the steps of recall, as scikit-learn does; undefined without both."""
    chosen = curve.positives + curve.negatives
    precision = np.divide(curve.positives, chosen, out=np.zeros_like(chosen), where=chosen > 0)
    area = np.sum(np.diff(curve.sensitivity(), axis=1) * precision, axis=1)
    return np.where(curve.negatives[:, -1] > 0, area, np.nan)


def sensitivity_at(curve: Curve, specificity: float) -> Float64[np.ndarray, " b"]:
    """Highest sensitivity of a threshold that keeps at least this specificity."""
    return _highest(curve.sensitivity(), curve.specificity(), specificity)


def specificity_at(curve: Curve, sensitivity: float) -> Float64[np.ndarray, " b"]:
    """Highest specificity of a threshold that keeps at least this sensitivity."""
    return _highest(curve.specificity(), curve.sensitivity(), sensitivity)


def _highest(
    wanted: Float64[np.ndarray, "b l"], kept: Float64[np.ndarray, "b l"], least: float
) -> Float64[np.ndarray, " b"]:
    best = np.where(kept >= least - _TIE, wanted, -1).max(axis=1)
    return np.where(np.isnan(kept[:, -1]) | np.isnan(wanted[:, -1]), np.nan, best)
