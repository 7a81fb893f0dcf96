"""Intervals and tests that account for several rows per patient."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import expit, logit, ndtr, stdtrit

Draws = Int64[np.ndarray, "b p"]
Samples = Float64[np.ndarray, "r ..."]
_Mask = Bool[np.ndarray, " n"]
_Patients = Shaped[np.ndarray, " n"]
_Codes = Int64[np.ndarray, " n"]
Statistic = Callable[[Draws], dict[str, Float64[np.ndarray, "b ..."]]]
"""Function from the counts of drawn patients (b resamples, p patients) to b values per metric."""
Entry = dict[str, float | int | None]
"""`value`, `low` and `high` of a metric, and `left_out`: resamples in which it is undefined."""

_BLOCK: Final = 2**20
_THREADS: Final = 2
_GROUPS: Final = 100
_TINY: Final = 1e-30
_FLAT: Final = 1e-6  # a smaller skewness makes no difference
_MAX_SKEW: Final = 0.35
_MIN_FREEDOM: Final = 4
_STEPPED: Final = ("average_precision", "sensitivity_at", "specificity_at", "ece", "ici", "e90")
"""Metrics from a step curve, or folded at zero. The jackknife does not measure their spread (Efron
and Tibshirani 1993, section 11.6): their intervals are percentile intervals."""
_SHARES: Final = (
    *("sensitivity", "specificity", "recall", "precision", "ppv", "npv"),
    *("decided", "found", "cleared", "referred", "coverage", "patient"),
)
"""Shares of rows. A few errors have all the influence on a share near 1, so that its degrees of
freedom would be few; the skewness, which follows from its value, is enough."""
_AT_SENSITIVITY: Final = "specificity_at"
MIN_MALIGNANT_PATIENTS: Final[Mapping[str, int]] = dict.fromkeys(
    (
        *("partial_auroc", "balanced_accuracy", "ece", "mean_probability"),
        *("specificity_at_90_sensitivity", "specificity_at_95_sensitivity"),
    ),
    45,
)
"""Patients with malignant lesions below which an interval was measured to be too narrow
(benchmarks/results/evidence.md)."""
_FOLDED: Final = ("ece", "ici", "e90")
"""Calibration errors: chance raises them, because they cannot be negative."""
_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "partial_auroc": (0, 0.2),
    "log_loss": (0, math.inf),
    "class_log_loss": (0, math.inf),
    "class_brier": (0, 2),
    "mean_cost": (0, math.inf),
    **dict.fromkeys(
        ("net_benefit", "net_benefit_gain", "calibration_slope", "calibration_intercept"),
        (-math.inf, math.inf),
    ),
    "set_size": (0, math.inf),
    "number_needed_to_treat": (1, math.inf),
}
"""Bounds of the metrics that are not between 0 and 1."""


def patient_codes(patients: _Patients) -> tuple[_Codes, int]:
    """Number the patients in order of appearance; return each row's number and their count."""
    codes, names = pd.factorize(patients)
    return codes.astype(np.int64), len(names)


def sum_by_patient(
    codes: _Codes, columns: Iterable[Shaped[np.ndarray, " n"]]
) -> Float64[np.ndarray, "p k"]:
    """Sum each of k columns over the rows of each patient."""
    return np.column_stack([np.bincount(codes, weights=column) for column in columns])


def independent_units(codes: _Codes, positives: _Mask) -> int:
    """Return the number of patients in the rarer class, among classes with rows."""
    return min(len(np.unique(codes[rows])) for rows in (positives, ~positives) if rows.any())


def compute_exact(statistic: Statistic, patients: int) -> dict[str, float]:
    """Compute metrics of the data themselves: every patient is drawn once."""
    values = statistic(np.ones((1, patients), dtype=np.int64))
    return {name: float(value[0]) for name, value in values.items()}


def bootstrap(
    statistic: Statistic, patients: int, rows: int, *, resamples: int, seed: int
) -> dict[str, Samples]:
    """Compute metrics of resamples that draw whole patients with replacement.

    The statistic is called with blocks of resamples, whose size depends on the number of rows, from
    several threads. The same seed and sizes give the same draws, so that statistics can be paired.
    """

    def draw(start: int, size: int) -> Draws:
        drawn = np.random.default_rng([seed, start]).integers(patients, size=(size, patients))
        drawn += np.arange(size)[:, None] * patients
        return np.bincount(drawn.ravel(), minlength=size * patients).reshape(size, patients)

    return _compute_in_blocks(statistic, draw, resamples, max(rows, patients))


class Shape(NamedTuple):
    """Shape of the sampling distribution of a metric.

    Attributes:
        skew: six times the acceleration of Efron's BCa interval (1987,
            doi:10.1080/01621459.1987.10478410).
        freedom: degrees of freedom of the estimated variance (Satterthwaite 1946,
            doi:10.2307/3002019). A few patients with large influence make it small.
    """

    skew: float
    freedom: float


def estimate_shapes(statistic: Statistic, patients: int, rows: int) -> dict[str, Shape]:
    """Estimate the shape of the sampling distribution of metrics by a grouped jackknife.

    With the influences u of n patients, the skewness is sum(u**3) / sum(u**2)**1.5, and the
    relative variance of the estimated variance is sum(u**4) / sum(u**2)**2 - 1 / n, which is
    2 / freedom. The influences are computed for up to 100 groups of patients; the products of
    patients in the same group are subtracted from the sum of fourth powers.
    """
    count = min(patients, _GROUPS)
    shared = 3 * (patients / count - 1) / max(patients - 1, 1)
    group = np.random.default_rng(0).permutation(patients) % count

    def leave_one_out(start: int, size: int) -> Draws:
        return (group != np.arange(start, start + size)[:, None]).astype(np.int64)

    jackknife = _compute_in_blocks(statistic, leave_one_out, count, max(rows, patients))
    shapes = {}
    for name, values in jackknife.items():
        defined = values[~np.isnan(values)]
        influence = defined.mean() - defined if len(defined) else np.zeros(1)
        square = max(float(influence @ influence), _TINY)
        fourth = (float((influence**4).sum()) / square**2 - shared) / (1 - shared)
        freedom = np.clip(2 / max(fourth - 1 / patients, _TINY), _MIN_FREEDOM, patients)
        shapes[name] = Shape(skewness(influence, _TINY), float(freedom))
    return shapes


def skewness(influence: Float64[np.ndarray, " k"], least: float) -> float:
    """Return sum(u**3) / sum(u**2)**1.5 of influences u; 0 if sum(u**2) is at most `least`."""
    square = float(influence @ influence)
    return float((influence**3).sum()) / square**1.5 if square > least else 0.0


def _compute_in_blocks(
    statistic: Statistic, draw: Callable[[int, int], Draws], total: int, width: int
) -> dict[str, Samples]:
    """Compute the metrics of `total` vectors of patient weights, in blocks that fit the caches."""
    block = max(1, _BLOCK // width)

    def compute(start: int) -> dict[str, Float64[np.ndarray, "b ..."]]:
        return statistic(draw(start, min(block, total - start)))

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(compute, range(0, total, block)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def student_quantile(confidence: float, units: int | float) -> float:
    """Return Student's t quantile, the factor of the standard error in a two-sided interval."""
    return float(stdtrit(max(units, 2) - 1, (1 + confidence) / 2))


def percentile_interval(
    samples: Samples, confidence: float, units: int
) -> tuple[float | None, float | None, int]:
    """Return the percentile interval of a bootstrap, and the number of undefined resamples.

    The percentiles are widened as Student's quantiles are, because percentile intervals of few
    units are too narrow (Hesterberg 2015, doi:10.1080/00031305.2015.1089789).

    Undefined samples are NaN; `units` are independent units (see `independent_units`).
    """
    defined = samples[~np.isnan(samples)]
    left_out = len(samples) - len(defined)
    if len(defined) == 0:
        return None, None, left_out
    reach = np.sqrt(max(units, 2) / (max(units, 2) - 1)) * student_quantile(confidence, units)
    low, high = np.quantile(defined, ndtr([-reach, reach]))
    return float(low), float(high), left_out


def skewed_interval(value: float, error: float, skew: float, reach: float) -> tuple[float, float]:
    """Return the interval of an estimate with a skewed sampling distribution.

    Hall's transformation makes the distribution symmetric first (Hall 1992, On the removal of
    skewness by transformation, J. R. Stat. Soc. B 54). With few malignant lesions, an estimate that
    is high by chance also has too small a standard error: plain, logit and percentile intervals
    then miss the truth below them far more often than above.

    Args:
        value: the estimate.
        error: its standard error.
        skew: see `Shape`; limited to 0.35, beyond which a dozen lesions would widen the interval
            several times for hardly more coverage.
        reach: standard errors to either side without skew.
    """
    if abs(skew) < _FLAT:
        return value - reach * error, value + reach * error
    skew = min(max(skew, -_MAX_SKEW), _MAX_SKEW)
    shift = skew / 6
    low, high = ((np.cbrt(1 + skew * (x - shift)) - 1) * 3 / skew for x in (reach, -reach))
    return value - float(low) * error, value - float(high) * error


def logit_interval(value: float, error: float, reach: float) -> tuple[float, float]:
    """Return the interval of a share in (0, 1) that is symmetric on the logit scale."""
    half = reach * error / (value * (1 - value))
    return float(expit(logit(value) - half)), float(expit(logit(value) + half))


def summarise(
    name: str, value: float, samples: Samples, shape: Shape | None, confidence: float, units: int
) -> Entry:
    """Return value and interval of a metric; None where undefined.

    There is no interval where a metric is at its best or worst possible value and all resamples
    agree with it, because their agreement is no evidence about the truth.

    Args:
        name: name of the metric.
        value: NaN where undefined.
        samples: of a bootstrap, NaN where undefined; without samples there is no interval.
        shape: see `estimate_shapes`; None: a percentile interval.
        confidence: confidence level.
        units: number of independent units in the data, see `independent_units`.
    """
    if np.isnan(value):
        return {"value": None, "low": None, "high": None, "left_out": len(samples)}
    bounds = _BOUNDS.get(name, (0, 1))
    low, high, left_out = percentile_interval(samples, confidence, units)
    entry: Entry = {"value": float(value), "low": low, "high": high, "left_out": left_out}
    if low is None or high is None:
        return entry
    error = math.sqrt(max(units, 2) / (max(units, 2) - 1)) * float(np.nanstd(samples))
    if math.isclose(low, high) and any(map(partial(math.isclose, value, abs_tol=1e-12), bounds)):
        low, high = None, None
    elif shape is not None and not name.startswith(_STEPPED):
        freedom = math.inf if name.startswith(_SHARES) else shape.freedom
        reach = student_quantile(confidence, min(units, freedom + 1))
        low, high = np.clip(skewed_interval(value, error, shape.skew, reach), *bounds).tolist()
    elif name.startswith(_AT_SENSITIVITY) and 0 < value < 1:
        # No percentile lies beyond the lowest malignant score, and 10 % of samples of 45 lesions
        # have none below the threshold sought. The interval on the logit scale extrapolates.
        start, end = logit_interval(value, error, student_quantile(confidence, units))
        low, high = min(low, start), max(high, end)
    elif name in _FOLDED:
        # Noise raises a calibration error, which cannot be negative: in the data above the truth,
        # and in a resample above the data, each time by adding to its square. So the squares are
        # reflected about the value (the basic bootstrap). The interval still contains the value.
        # Smooth curves far from the diagonal gain no such noise: percentiles stay inside.
        ends = [math.sqrt(max(0.0, 2 * value**2 - end**2)) for end in (high, low)]
        low, high = min(value, ends[0]), max(value, ends[1], 0 if name == "ece" else high)
    return {**entry, "low": low, "high": high}


def combine_intervals(entry: Entry, parts: Sequence[tuple[float, Entry]]) -> Entry:
    """Return value and interval of a weighted sum, from the intervals of its parts.

    Method of variance estimates recovery (Zou and Donner 2008, doi:10.1002/sim.3095): the distances
    from the value to the ends of the interval add by their squares. A part of which all resamples
    agree has an exact interval, but adds nothing to the spread of a sum.

    `entry` is that of the sum; each part has a weight of at least 0.
    """
    total, ends = entry["value"], {}
    for end, sign in (("low", -1), ("high", 1)):
        distances = []
        for weight, part in parts:
            limit, value = part[end], part["value"]
            if limit is None or value is None or total is None:
                return entry
            distances.append(weight * (limit - value))
        ends[end] = (total or 0.0) + sign * math.hypot(*distances)
    return {**entry, **ends}


def allow_misses(
    metrics: Mapping[str, Entry], sensitivity: Entry, prevalence: float
) -> dict[str, Entry]:
    """Widen the intervals of net benefit and number needed to treat if no lesion is missed."""
    if sensitivity["value"] != 1 or not (lowest := sensitivity["low"]):
        return {}
    parts = dict.fromkeys(("net_benefit", "net_benefit_gain"), (prevalence, sensitivity))
    if value := metrics.get(name := "number_needed_to_treat", {}).get("value"):
        # It is 1 + false alarms / found.
        parts[name] = 1.0, {"value": value, "low": value, "high": 1 + (value - 1) / lowest}
    return {k: combine_intervals(metrics[k], [(1.0, metrics[k]), parts[k]]) for k in parts}
