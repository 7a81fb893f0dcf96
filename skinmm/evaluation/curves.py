"""How well scores rank malignant above benign, for many weightings of the rows at once.

Weights are how often a resample drew each row; ones give the plain metric. An undefined metric is
NaN inside this package and None where it leaves it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

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


BINS = 15
GRID = 128
"""Cells per unit of log odds in which the calibration lines of resamples gather their rows: moves a
slope by less than 1e-4, and makes its cost independent of the number of rows."""
_MOST_STEPS = 40
_LONGEST_STEP = 2.0
_CONVERGED = 1e-10


def log_odds(probabilities: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Log odds; 0 and 1 are moved inside by the smallest step of a double, as log loss does."""
    tiny = np.finfo(np.float64).eps
    inside = np.clip(probabilities, tiny, 1 - tiny)
    return np.log(inside) - np.log1p(-inside)


def calibration_error(
    weights: Int64[np.ndarray, "b n"],
    cumulated: Cumulated,
    probabilities: Float64[np.ndarray, " n"],
    bins: int = BINS,
) -> Float64[np.ndarray, " b"]:
    """Expected calibration error: |mean probability - frequency|, averaged over equal-mass bins.

    The bins are those of scikit-learn's `calibration_curve(strategy="quantile")` on the rows that
    a resample drew: between quantiles of the probability, ties together.

    Args:
        weights: of the rows.
        cumulated: the same weights, with the truth.
        probabilities: rising.
        bins: number of bins.
    """
    edges = _quantiles(cumulated, probabilities, np.linspace(0, 1, bins + 1)[1:-1] * 100 / 100)
    ends = np.searchsorted(probabilities, edges, side="right")
    ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=(0, len(probabilities)))
    expected = np.empty((len(weights), bins))
    padded = np.zeros(len(probabilities) + 1)
    for row, starts in enumerate(ends[:, :-1]):
        np.multiply(weights[row], probabilities, out=padded[:-1])
        expected[row] = np.add.reduceat(padded, starts)
    expected[np.diff(ends, axis=1) == 0] = 0  # reduceat gives an empty bin its first row
    seen = np.diff(np.take_along_axis(cumulated.hits, cumulated.found[ends], axis=1), axis=1)
    return np.abs(expected - seen).sum(axis=1) / cumulated.mass[:, -1]


def line_cells(
    x: Float64[np.ndarray, " n"], grid: int | None
) -> tuple[Int64[np.ndarray, " l"], Float64[np.ndarray, " l"]]:
    """Where runs of (nearly) equal log odds start, and their means.

    Args:
        x: log odds, rising.
        grid: cells per unit, or None for exact ties only.
    """
    cells = x if grid is None else np.floor(x * grid)
    starts = np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
    return starts, np.add.reduceat(x, starts) / np.diff(np.r_[starts, len(x)])


def _quantiles(
    cumulated: Cumulated, values: Float64[np.ndarray, " n"], shares: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "b k"]:
    """What numpy.percentile says of each resample written out row by row."""
    mass = cumulated.mass[:, 1:]
    last = mass[:, -1:] - 1
    rank = last * shares
    below = np.floor(rank).astype(np.int64)
    ranks = np.hstack([below, np.minimum(below + 1, last)])
    rows = np.array([np.searchsorted(m, r, side="right") for m, r in zip(mass, ranks, strict=True)])
    low, high = np.split(values[rows], 2, axis=1)
    part = rank - below
    return np.where(part < 1 / 2, low + (high - low) * part, high - (high - low) * (1 - part))


def calibration_line(
    rows: Float64[np.ndarray, "b l"],
    positives: Float64[np.ndarray, "b l"],
    x: Float64[np.ndarray, " l"],
    *,
    free: bool,
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]]:
    """Logistic regression of the truth on the log odds: intercept and slope by Newton's method.

    Perfect calibration is (0, 1). NaN where no finite answer exists: one class only, or classes
    that the log odds separate.

    Args:
        rows: weight of the rows at each value of x.
        positives: weight of the malignant ones among them.
        x: log odds.
        free: fit the slope; else it is 1, and the intercept is the calibration in the large
            (Van Calster et al. 2019, doi:10.1186/s12916-019-1466-7).
    """
    centre, scale = (x.mean(), x.std() or 1.0) if free else (0.0, 1.0)
    z = (x - centre) / scale
    total, hits = rows.sum(axis=1), positives.sum(axis=1)
    start = np.log((hits + 0.5) / (total - hits + 0.5))
    a, b = (start, np.zeros_like(start)) if free else (np.zeros_like(start), np.ones_like(start))
    step = np.full_like(a, np.inf)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # no finite answer: NaN
        for _ in range(_MOST_STEPS):
            step_a, step_b = _newton_step(rows, positives, z, (a, b), free=free)
            step = np.maximum(np.abs(step_a), np.abs(step_b))
            shrink = _LONGEST_STEP / np.maximum(step, _LONGEST_STEP)
            a, b = a + step_a * shrink, b + step_b * shrink
            if not (step > _CONVERGED).any():
                break
    defined = (step < 1e3 * _CONVERGED) & (hits > 0) & (hits < total)
    if free:
        defined &= ~_separated(positives > 0, rows > positives)
    slope = b / scale
    return np.where(defined, a - slope * centre, np.nan), np.where(defined, slope, np.nan)


def _separated(
    malignant: Bool[np.ndarray, "b l"], benign: Bool[np.ndarray, "b l"]
) -> Bool[np.ndarray, " b"]:
    """Whether a value of x parts the classes, both of which may lie on it."""
    last = malignant.shape[1] - 1
    lowest = [held.argmax(axis=1) for held in (malignant, benign)]
    highest = [last - held[:, ::-1].argmax(axis=1) for held in (malignant, benign)]
    return (lowest[0] >= highest[1]) | (highest[0] <= lowest[1])


def _newton_step(
    rows: Float64[np.ndarray, "b l"],
    positives: Float64[np.ndarray, "b l"],
    z: Float64[np.ndarray, " l"],
    line: tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]],
    *,
    free: bool,
) -> tuple[Float64[np.ndarray, " b"], Float64[np.ndarray, " b"]]:
    a, b = line
    chance = expit(a[:, None] + b[:, None] * z)
    residual = positives - rows * chance
    spread = rows * chance * (1 - chance)
    g0, h00 = residual.sum(axis=1), spread.sum(axis=1)
    if not free:
        return g0 / h00, np.zeros_like(b)
    g1, h01, h11 = residual @ z, spread @ z, spread @ z**2
    determinant = h00 * h11 - h01**2
    return (h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant
