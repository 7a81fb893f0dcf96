"""A metric's value and resamples to what is told of it: value, interval, resamples left out."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float64

from skinmm.evaluation.intervals import (
    percentile_interval,
    perfect_ranking_bound,
    skewed_interval,
    students_reach,
)

Entry = dict[str, float | int | None]

_STEPPED: Final = (
    "average_precision",
    "sensitivity_at",
    "specificity_at",
    "ece",
    "number_needed_to_treat",
)
"""Read off a step curve, folded at zero or a reciprocal: leaving out rows says little of their
spread (Efron and Tibshirani 1993, section 11.6), so that their intervals are percentiles."""

_EVERYWHERE: Final = (-math.inf, math.inf)
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "partial_auroc": (0, 0.2),
    "log_loss": (0, math.inf),
    "class_log_loss": (0, math.inf),
    "class_brier": (0, 2),
    "net_benefit": _EVERYWHERE,
    "calibration_slope": _EVERYWHERE,
    "calibration_intercept": _EVERYWHERE,
    "set_size": (0, math.inf),
    "gap": (-1, 1),
}
"""Where a metric can lie; between 0 and 1 unless it is named here."""


def summarise(
    name: str,
    value: float,
    samples: Float64[np.ndarray, " r"],
    skew: float | None,
    confidence: float,
    units: int,
) -> Entry:
    """Value, interval and resamples left out; all None where the value is undefined.

    Where a metric is at its very best or worst all resamples agree with it, and know nothing of the
    truth: no interval, but for those that `all_or_none` and `perfect_ranking` can bound.

    Args:
        name: of the metric.
        value: NaN where undefined.
        samples: of a bootstrap, NaN where undefined; none: no interval.
        skew: see `skewness`; None: a percentile interval.
        confidence: of the interval.
        units: independent units behind the value, see `independent_units`.
    """
    if np.isnan(value):
        return {"value": None, "low": None, "high": None, "left_out": len(samples)}
    low, high, left_out = percentile_interval(samples, confidence, units)
    agree = low is not None and high is not None and math.isclose(low, high)
    if agree and any(map(partial(math.isclose, value, abs_tol=1e-12), _BOUNDS.get(name, (0, 1)))):
        return {"value": float(value), "low": None, "high": None, "left_out": left_out}
    if low is not None and skew is not None and not name.startswith(_STEPPED):
        spread = math.sqrt(max(units, 2) / (max(units, 2) - 1)) * float(np.nanstd(samples))
        ends = skewed_interval(value, spread, skew, students_reach(confidence, units))
        low, high = np.clip(ends, *_BOUNDS.get(name, (0, 1))).tolist()
    elif name == "ece" and low is not None and high is not None:
        low, high = _reflected(value, low, high)
    return {"value": float(value), "low": low, "high": high, "left_out": left_out}


def all_or_none(entry: Entry, units: int, confidence: float) -> Entry:
    """A share of exactly 0 or 1, about which resamples agree, with the bound that units give.

    Clopper and Pearson 1934, a patient counting as one: 46 of 46 may well be 92 %.
    """
    value = entry["value"]
    if value not in (0, 1) or units == 0:
        return entry
    other = ((1 - confidence) / 2) ** (1 / units)
    ends = (other, 1.0) if value == 1 else (0.0, 1 - other)
    return {**entry, "low": ends[0], "high": ends[1]}


def perfect_ranking(entry: Entry, positives: int, negatives: int, confidence: float) -> Entry:
    """An AUROC of exactly 0 or 1 with the bound that so many patients give."""
    value = entry["value"]
    if value not in (0, 1):
        return entry
    bound = perfect_ranking_bound(positives, negatives, confidence)
    ends = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    return {**entry, "low": ends[0], "high": ends[1]}


def _reflected(value: float, low: float, high: float) -> tuple[float, float]:
    """Turns a percentile interval about its value (the basic bootstrap), for a biased metric.

    A calibration error cannot be negative, so noise raises it: in the data above the truth, and in
    a resample above the data, each time by adding to its square. So the squares are turned. The
    interval still holds the value.
    """
    turned = [math.sqrt(max(0.0, 2 * value**2 - end**2)) for end in (high, low)]
    return min(value, turned[0]), max(value, turned[1])
