"""Smooth calibration curves: observed malignant share as a function of the probability."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import expit

from skinmm.evaluation import curves
from skinmm.evaluation.intervals import bootstrap, patient_codes

_SPAN: Final = 0.75  # share of the rows near a point, as in R's loess
_POINTS: Final = 33  # of the grid by quantiles, and of the grid by equal steps
_EXACT_ROWS: Final = 512  # the curve of more rows uses cells of probabilities
_CELLS: Final = 20  # per unit of log odds
_SINGULAR: Final = 1e-9

Cells = Float64[np.ndarray, "b c"]


class CalibrationSmoother:
    """Local linear regression of the truth on the probability, for many row weights.

    LOESS of degree 1 with tricube weights and a span of 0.75 (Cleveland 1979), as Austin and
    Steyerberg use it (2014, doi:10.1002/sim.5941). The curve is computed at a grid and interpolated
    linearly. Resamples use the neighbourhoods of the data.

    Args:
        log_odds: of each row, in ascending order.
    """

    def __init__(self, log_odds: Float64[np.ndarray, " n"]) -> None:
        cells = None if len(log_odds) <= _EXACT_ROWS else _CELLS
        self.starts, _ = curves.group_log_odds(log_odds, cells)
        counts = np.diff(np.r_[self.starts, len(log_odds)])
        self.x = np.add.reduceat(expit(log_odds), self.starts) / counts
        shares = np.linspace(0, 1, _POINTS)
        ranks = np.searchsorted(np.cumsum(counts), shares * len(log_odds))
        quantiles = self.x[ranks.clip(max=len(self.x) - 1)]
        steps = self.x[0] + (self.x[-1] - self.x[0]) * shares
        self.grid = np.unique(np.r_[quantiles, steps])
        offsets = self.x - self.grid[:, None]
        distances = np.abs(offsets)
        order = np.argsort(distances, axis=1)
        near = (np.cumsum(counts[order], axis=1) >= _SPAN * len(log_odds)).argmax(axis=1)
        widths = distances[np.arange(len(order)), order[np.arange(len(order)), near]]
        scaled = np.minimum(distances / np.maximum(widths, _SINGULAR)[:, None], 1)
        kernel = (1 - scaled**3) ** 3
        # The width is 0, or the nearest probability is that of most rows: it has all the weight.
        is_alone = (widths == 0) | ~kernel.any(axis=1)
        kernel[is_alone] = distances[is_alone] <= widths[is_alone, None]
        self.moments = [(kernel * offsets**power).T for power in range(3)]

    def curve(self, rows: Cells, positives: Cells) -> Float64[np.ndarray, "b g"]:
        """Return the observed share at the grid points, given rows and positives by cell."""
        s0, s1, s2 = (rows @ moment for moment in self.moments)
        t0, t1 = (positives @ moment for moment in self.moments[:2])
        determinant = s0 * s2 - s1**2
        is_line = determinant > _SINGULAR * s0**2
        line = np.divide(s2 * t0 - s1 * t1, determinant, out=np.zeros_like(s0), where=is_line)
        return np.clip(np.where(is_line, line, curves.ratio(t0, s0)), 0, 1)

    def errors(self, rows: Cells, positives: Cells) -> dict[str, curves.Samples]:
        """Return mean (ICI) and 90th percentile (E90) of the error (doi:10.1002/sim.8281)."""
        curve = self.curve(rows, positives)
        left = (np.searchsorted(self.grid, self.x) - 1).clip(0, max(len(self.grid) - 2, 0))
        right = np.minimum(left + 1, len(self.grid) - 1)
        step = np.maximum(self.grid[right] - self.grid[left], _SINGULAR)
        part = (self.x - self.grid[left]) / step
        errors = np.abs(curve[:, left] * (1 - part) + curve[:, right] * part - self.x)
        errors = np.where(rows > 0, errors, 0)  # the curve may be undefined where no row was drawn
        order = np.argsort(errors, axis=1)
        ranked, weights = (np.take_along_axis(a, order, axis=1) for a in (errors, rows))
        total = rows.sum(axis=1)
        position = (np.cumsum(weights, axis=1) >= 0.9 * total[:, None]).argmax(axis=1)
        e90 = ranked[np.arange(len(ranked)), position]
        return {"ici": (errors * rows).sum(axis=1) / total, "e90": e90}


@dataclass(frozen=True)
class CalibrationBand:
    """Smooth calibration curve with the interval of each point."""

    x: Float64[np.ndarray, " g"]
    y: Float64[np.ndarray, " g"]
    low: Float64[np.ndarray, " g"]
    high: Float64[np.ndarray, " g"]


def fit_calibration_band(
    probabilities: Float64[np.ndarray, " n"],
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    *,
    confidence: float = 0.95,
    resamples: int = 300,
    seed: int = 0,
) -> CalibrationBand:
    """Return the smooth calibration curve with percentile intervals from resampled patients."""
    order = np.argsort(probabilities, kind="stable")
    positives = positives[order]
    codes, count = patient_codes(patients[order])
    smoother = CalibrationSmoother(curves.log_odds(probabilities[order]))

    def statistic(draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, "b g"]]:
        weights = np.take(draws, codes, axis=1)
        cumulative = curves.CumulativeWeights.from_weights(weights, positives)
        return {"curve": smoother.curve(*cumulative.between(smoother.starts))}

    value = statistic(np.ones((1, count), dtype=np.int64))["curve"][0]
    drawn = bootstrap(statistic, count, len(codes), resamples=resamples, seed=seed)["curve"]
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return CalibrationBand(smoother.grid, value, np.minimum(low, value), np.maximum(high, value))


def calibration_noise(
    probabilities: Float64[np.ndarray, " n"], *, draws: int = 50, seed: int = 0
) -> dict[str, float]:
    """Return the mean calibration errors that a perfectly calibrated model has by chance.

    A calibration error cannot be negative, so that chance alone raises it. The truth of each row is
    drawn from its probability, independently of other rows.

    Returns:
        `ece`, `ici`, `e90`.
    """
    p = np.sort(probabilities)
    smoother = CalibrationSmoother(curves.log_odds(p))
    weights = np.ones((1, len(p)), dtype=np.int64)
    rng = np.random.default_rng(seed)
    errors = []
    for _ in range(draws):
        cumulative = curves.CumulativeWeights.from_weights(weights, rng.random(len(p)) < p)
        smooth = smoother.errors(*cumulative.between(smoother.starts))
        ece = curves.calibration_error(weights, cumulative, p)
        errors.append((ece[0], smooth["ici"][0], smooth["e90"][0]))
    return dict(zip(("ece", "ici", "e90"), np.mean(errors, axis=0).tolist(), strict=True))
