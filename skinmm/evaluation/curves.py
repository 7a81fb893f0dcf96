"""Metrics of ROC, precision-recall and calibration curves, for many row weights at once.

The weights of b resamples are how often each of them drew each of n rows; ones give the plain
metric. An undefined metric is NaN inside this package and None in its results.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

Samples = Float64[np.ndarray, " b"]
Levels = Float64[np.ndarray, "b l"]
_Axis = Float64[np.ndarray, " l"]
_Array = Float64[np.ndarray, "..."]
_Scores = Float64[np.ndarray, " n"]
_Mask = Bool[np.ndarray, " n"]
_Positions = Int64[np.ndarray, " l"]
_Weights = Int64[np.ndarray, "b n"]
_Lines = Float64[np.ndarray, "2 b"]
_Sums = Int64[np.ndarray, "b l"]

CONSTANT: Final = 1e-4  # standard deviation of log odds up to which no slope is defined
PARTIAL_FLOOR: Final = 0.8
"""Sensitivity above which the ISIC 2024 challenge measures the area under the ROC curve."""
GRID: Final = 64
"""Cells per unit of log odds into which the calibration lines of resamples gather their rows. The
cells move a slope by less than 1e-3, a hundredth of its standard error, and make its cost
independent of the number of rows."""
_BINS: Final = 15
_TIE: Final = 1e-12
_MAX_STEPS: Final = 40
_LONGEST_STEP: Final = 2.0
_CONVERGED: Final = 1e-7  # of a step; that of the line is its square
_CONVERGED_RESAMPLE: Final = 1e-4


def ratio(numerator: _Array, denominator: _Array) -> _Array:
    """Divide, with NaN and no warning where the denominator is zero."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator != 0)


def find_levels(scores: _Scores, positives: _Mask) -> _Positions:
    """Return the first row of each level of scores in ascending order.

    Tied scores form one level. Adjacent levels without a positive are merged: the curves are flat
    between them, so no metric of this module depends on the split in any resample.
    """
    starts = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
    has_positive = np.logical_or.reduceat(positives, starts)
    return starts[np.r_[True, has_positive[1:] | has_positive[:-1]]]


@dataclass(frozen=True)
class CumulativeWeights:
    """Cumulative sums of integer weights, over rows in ascending order of score.

    Integer sums are exact, and eight times faster than sums of floats.

    Attributes:
        rows: weight of the rows before each of n + 1 positions.
        positives: weight of the first 0 to k positives. Positives are few, so the sums are indexed
            by their number and not by row.
        count: number of positives before each of n + 1 positions, which indexes `positives`.
    """

    rows: Int64[np.ndarray, "b n"]
    positives: Int64[np.ndarray, "b k"]
    count: Int64[np.ndarray, " n"]

    @classmethod
    def from_weights(cls, weights: _Weights, positives: _Mask) -> "CumulativeWeights":
        """Sum the weights of rows in ascending order of score."""
        sums = []
        for part in (weights, weights[:, positives]):
            sums.append(np.zeros((len(part), part.shape[1] + 1), dtype=np.int64))
            np.cumsum(part, axis=1, out=sums[-1][:, 1:])
        return cls(sums[0], sums[1], np.r_[0, np.cumsum(positives, dtype=np.int64)])

    def before(self, positions: _Positions) -> tuple[_Sums, _Sums]:
        """Return the weight of all rows and of the positives before each position."""
        return self.rows[:, positions], self.positives[:, self.count[positions]]

    def between(self, starts: _Positions) -> tuple[Levels, Levels]:
        """Return the weight of all rows and of the positives in each interval of rows.

        An interval reaches from one start to the next, the last one to the end. Its weights are
        differences of cumulative sums at its ends (summed-area tables, Crow 1984,
        doi:10.1145/800031.808600), so their cost does not depend on its length.
        """
        rows, positives = self.before(np.r_[starts, len(self.count) - 1])
        return np.diff(rows, axis=1).astype(float), np.diff(positives, axis=1).astype(float)


@dataclass(frozen=True)
class Curve:
    """Positives and negatives at or above each level, from the highest level to the lowest."""

    positives: Levels
    negatives: Levels

    @classmethod
    def from_levels(cls, cumulative: CumulativeWeights, starts: _Positions) -> "Curve":
        """Count the rows at or above each level that `find_levels` found."""
        rows_below, positives_below = cumulative.before(starts)
        positives = (cumulative.positives[:, -1:] - positives_below)[:, ::-1]
        negatives = (cumulative.rows[:, -1:] - rows_below)[:, ::-1] - positives
        return cls(positives.astype(np.float64), negatives.astype(np.float64))

    def sensitivity(self) -> Float64[np.ndarray, "b m"]:
        """Return the sensitivity at a threshold above all scores, then at each level."""
        return np.pad(ratio(self.positives, self.positives[:, -1:]), ((0, 0), (1, 0)))

    def specificity(self) -> Float64[np.ndarray, "b m"]:
        """Return the specificity at a threshold above all scores, then at each level."""
        return 1 - np.pad(ratio(self.negatives, self.negatives[:, -1:]), ((0, 0), (1, 0)))


def partial_auroc(curve: Curve, floor: float) -> Samples:
    """Return the partial AUROC above a minimum sensitivity (0 to 1 - floor).

    Floor 0 gives the AUROC, floor 0.8 the score of the ISIC 2024 challenge. scikit-learn's
    `max_fpr` differs: it bounds the false positive rate.
    """
    sensitivity, specificity = curve.sensitivity(), curve.specificity()
    rise = np.diff(sensitivity, axis=1)
    above = np.minimum(np.maximum(sensitivity[:, 1:] - floor, 0), rise)
    share = np.nan_to_num(ratio(above, rise))
    fall = -np.diff(specificity, axis=1)
    area = np.sum(above * (specificity[:, 1:] + fall * share / 2), axis=1)
    defined = (curve.positives[:, -1] > 0) & (curve.negatives[:, -1] > 0)
    return np.where(defined, area, np.nan)


def average_precision(curve: Curve) -> Samples:
    """Return scikit-learn's average precision, but undefined without a negative row."""
    precision = np.nan_to_num(ratio(curve.positives, curve.positives + curve.negatives))
    area = np.sum(np.diff(curve.sensitivity(), axis=1) * precision, axis=1)
    return np.where(curve.negatives[:, -1] > 0, area, np.nan)


def highest(values: Levels, constraint: Levels, minimum: float) -> Samples:
    """Return the highest value over the thresholds whose `constraint` reaches the minimum."""
    best = np.where(constraint >= minimum - _TIE, values, -1).max(axis=1)
    return np.where(np.isnan(constraint[:, -1]) | np.isnan(values[:, -1]), np.nan, best)


def log_odds(probabilities: _Scores) -> _Scores:
    """Return log(p / (1 - p)), with p clipped to [epsilon, 1 - epsilon] as in log loss."""
    epsilon = np.finfo(np.float64).eps
    inside = np.clip(probabilities, epsilon, 1 - epsilon)
    return np.log(inside) - np.log1p(-inside)


def calibration_error(
    weights: _Weights, cumulative: CumulativeWeights, probabilities: _Scores
) -> Samples:
    """Return the expected calibration error: |mean probability - frequency|, averaged over bins.

    The 15 bins have equal mass: their edges are quantiles of the probabilities that a resample
    drew, as in scikit-learn's `calibration_curve(strategy="quantile")`. Ties share a bin. Rows are
    in ascending order of probability; `cumulative` are the sums of `weights`.
    """
    # numpy.percentile, which scikit-learn calls, divides by 100: "* 100 / 100" rounds as it does.
    quantiles = np.linspace(0, 1, _BINS + 1)[1:-1] * 100 / 100
    edges = _weighted_quantiles(cumulative, probabilities, quantiles)
    ends = np.searchsorted(probabilities, edges, side="right")
    ends = np.pad(ends, ((0, 0), (1, 1)), constant_values=(0, len(probabilities)))
    expected = np.empty((len(weights), _BINS))
    products = np.zeros(len(probabilities) + 1)
    for row, starts in enumerate(ends[:, :-1]):
        np.multiply(weights[row], probabilities, out=products[:-1])
        expected[row] = np.add.reduceat(products, starts)
    expected[np.diff(ends, axis=1) == 0] = 0  # reduceat gives an empty bin its first row
    observed = np.take_along_axis(cumulative.positives, cumulative.count[ends], axis=1)
    return np.abs(expected - np.diff(observed, axis=1)).sum(axis=1) / cumulative.rows[:, -1]


def _weighted_quantiles(
    cumulative: CumulativeWeights, values: _Scores, shares: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "b k"]:
    """Return numpy.percentile of each resample, in which rows are repeated by their weights."""
    sums = cumulative.rows[:, 1:]
    last = sums[:, -1:] - 1
    rank = last * shares
    below = np.floor(rank).astype(np.int64)
    ranks = np.hstack([below, np.minimum(below + 1, last)])
    rows = np.array([np.searchsorted(s, r, side="right") for s, r in zip(sums, ranks, strict=True)])
    low, high = np.split(values[rows], 2, axis=1)
    part = rank - below
    return np.where(part < 1 / 2, low + (high - low) * part, high - (high - low) * (1 - part))


def group_log_odds(x: _Scores, grid: int | None) -> tuple[_Positions, _Axis]:
    """Return first row and mean of each group of (nearly) equal log odds, which are sorted.

    `grid` is the number of cells per unit of log odds; None: exact ties only.
    """
    cells = x if grid is None else np.floor(x * grid)
    starts = np.flatnonzero(np.r_[True, cells[1:] != cells[:-1]])
    return starts, np.add.reduceat(x, starts) / np.diff(np.r_[starts, len(x)])


def calibration_line(
    rows: Levels, positives: Levels, x: _Axis, *, free: bool
) -> tuple[Samples, Samples]:
    """Return intercept and slope of a logistic regression of the truth on the log odds x.

    Perfect calibration is (0, 1). The line is NaN where no finite maximum of the likelihood exists:
    with rows of one class, or where the log odds are equal or separate the classes. `rows` and
    `positives` are the weights of all and of the malignant rows at each x. If the slope is not
    free, it is 1, and the intercept is the calibration in the large (Van Calster et al. 2019,
    doi:10.1186/s12916-019-1466-7).
    """
    centre, scale = (x.mean(), x.std() or 1.0) if free else (0.0, 1.0)
    z = (x - centre) / scale
    total, hits = rows.sum(axis=1), positives.sum(axis=1)
    intercept = np.log((hits + 0.5) / (total - hits + 0.5)) if free else np.zeros_like(hits)
    line = np.stack([intercept, np.full_like(intercept, 0 if free else 1)])
    if len(rows) > 1:  # resamples differ little from their sum, whose line is near all of theirs
        pooled = rows.sum(axis=0, keepdims=True), positives.sum(axis=0, keepdims=True)
        near, is_near = _newton(*pooled, z, line[:, :1], free=free)
        line = np.where(is_near, near, line)
    line, converged = _newton(rows, positives, z, line, free=free)
    defined = (hits > 0) & (hits < total)
    if free:
        # Separated: a value of x divides the classes, where both may have rows.
        present = positives > 0, rows > positives
        lowest, other_lowest = (mask.argmax(axis=1) for mask in present)
        top, other_top = (len(x) - 1 - mask[:, ::-1].argmax(axis=1) for mask in present)
        defined &= (lowest < other_top) & (top > other_lowest) & bool(scale > CONSTANT)
        for i in np.flatnonzero(defined & ~converged):
            one = slice(i, i + 1)
            near = _search_line(rows[i], positives[i], z)
            line[:, one], converged[one] = _newton(rows[one], positives[one], z, near, free=True)
    defined &= converged
    slope = line[1] / scale
    return np.where(defined, line[0] - slope * centre, np.nan), np.where(defined, slope, np.nan)


def _newton(
    rows: Levels, positives: Levels, z: _Axis, line: _Lines, *, free: bool
) -> tuple[_Lines, Bool[np.ndarray, " b"]]:
    """Fit one logistic line per resample by Newton's method; also return which ones converged."""
    size, least = np.full(line.shape[1], np.inf), _CONVERGED
    if line.shape[1] > 1:
        least = _CONVERGED_RESAMPLE
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # diverges to NaN
        for _ in range(_MAX_STEPS):
            step = _newton_step(rows, positives, z, line, free=free)
            size = np.abs(step).max(axis=0)
            line = line + step * (_LONGEST_STEP / np.maximum(size, _LONGEST_STEP))
            if not (size > least).any():
                break
    return line, size < least


def _newton_step(rows: Levels, positives: Levels, z: _Axis, line: _Lines, *, free: bool) -> _Lines:
    p = expit(line[0][:, None] + line[1][:, None] * z)
    residual = positives - rows * p
    variance = rows * p * (1 - p)
    g0, h00 = residual.sum(axis=1), variance.sum(axis=1)
    if not free:
        return np.stack([g0 / h00, np.zeros_like(h00)])
    g1, h01, h11 = residual @ z, variance @ z, variance @ z**2
    determinant = h00 * h11 - h01**2
    return np.stack([h11 * g0 - h01 * g1, h00 * g1 - h01 * g0]) / determinant


def _search_line(rows: _Axis, positives: _Axis, z: _Axis) -> _Lines:
    """Fit the line of one resample by L-BFGS, for which Newton's method diverges."""
    from scipy.optimize import minimize  # rarely needed, and slow to import

    def loss(line: Float64[np.ndarray, " 2"]) -> tuple[float, Float64[np.ndarray, " 2"]]:
        eta = line[0] + line[1] * z
        residual = (rows * expit(eta) - positives) / rows.sum()
        value = (rows * np.logaddexp(0, eta) - positives * eta).sum() / rows.sum()
        return value, np.array([residual.sum(), residual @ z])

    line = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B").x
    return np.asarray(line, dtype=np.float64)[:, None]
