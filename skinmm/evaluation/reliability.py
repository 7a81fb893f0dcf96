"""How far probabilities can be taken at their word, for many weightings of the rows at once."""

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit

from skinmm.evaluation.ranking import Cumulated

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
