"""Intervals and tests that know that rows of one patient are not independent."""

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Statistic = Callable[[Int64[np.ndarray, "b p"]], dict[str, Float64[np.ndarray, " b"]]]
"""From how often each of b resamples drew each patient, to metrics; NaN where undefined."""

_BLOCK: Final = 2**20
_THREADS: Final = 2
_GROUPS: Final = 100
_TINY: Final = 1e-30
_FLAT: Final = 1e-6  # skewness below makes no difference
_STEEP: Final = 0.35  # with more, the longer end runs away


def patient_codes(
    patients: Shaped[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " n"], int]:
    """Numbers the patients in order of appearance: each row's number, and how many there are."""
    codes, names = pd.factorize(patients)
    return codes.astype(np.int64), len(names)


def bootstrap(
    statistic: Statistic, patients: int, rows: int, *, resamples: int, seed: int
) -> dict[str, Float64[np.ndarray, " r"]]:
    """Metrics of resamples that draw whole patients with replacement.

    Args:
        statistic: of a block of resamples; called from several threads.
        patients: how many there are to draw from.
        rows: how many there are.
        resamples: how many.
        seed: the same seed and sizes give the same draws, so that two statistics can be paired.
    """

    def drawn(start: int, size: int) -> Int64[np.ndarray, "b p"]:
        chosen = np.random.default_rng([seed, start]).integers(patients, size=(size, patients))
        chosen += np.arange(size)[:, None] * patients
        return np.bincount(chosen.ravel(), minlength=size * patients).reshape(size, patients)

    return _measured(statistic, drawn, resamples, max(rows, patients))


def skewness(statistic: Statistic, patients: int, rows: int) -> dict[str, float]:
    """Skewness of metrics' sampling distributions, from leaving out a group of patients in turn.

    The groups' influences added up to the third power over those to the second, as in the
    acceleration of Efron's BCa interval (1987), which is a sixth of it.
    """
    count = min(patients, _GROUPS)
    group = np.random.default_rng(0).permutation(patients) % count

    def all_but_one(start: int, size: int) -> Int64[np.ndarray, "b p"]:
        return (group != np.arange(start, start + size)[:, None]).astype(np.int64)

    left = _measured(statistic, all_but_one, count, max(rows, patients))
    skews = {}
    for name, values in left.items():
        known = values[~np.isnan(values)]
        influence = known.mean() - known if len(known) else known
        square = float(influence @ influence)
        skews[name] = float((influence**3).sum()) / square**1.5 if square > _TINY else 0.0
    return skews


def _measured(
    statistic: Statistic,
    counts: Callable[[int, int], Int64[np.ndarray, "b p"]],
    total: int,
    width: int,
) -> dict[str, Float64[np.ndarray, " r"]]:
    """The metrics of `total` weightings of the patients, in blocks that fit the caches."""
    block = max(1, _BLOCK // width)

    def measure(start: int) -> dict[str, Float64[np.ndarray, " b"]]:
        return statistic(counts(start, min(block, total - start)))

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(measure, range(0, total, block)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def independent_units(codes: Int64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]) -> int:
    """Patients of the rarer class; of the only one, where there is one."""
    counts = [len(np.unique(codes[rows])) for rows in (positives, ~positives) if rows.any()]
    return min(counts)


def percentile_interval(
    samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> tuple[float | None, float | None, int]:
    """Percentile interval of a bootstrap, and the number of resamples left out as undefined.

    The percentiles lie further out the fewer units there are, as Student's quantiles do, since
    percentile intervals of small samples are too narrow (Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789).

    Args:
        samples: NaN where undefined.
        confidence: of the interval.
        units: independent units behind the samples, see `independent_units`.
    """
    known = samples[~np.isnan(samples)]
    left_out = len(samples) - len(known)
    if len(known) == 0:
        return None, None, left_out
    reach = np.sqrt(max(units, 2) / (max(units, 2) - 1)) * student_quantile(confidence, units)
    low, high = np.quantile(known, ndtr([-reach, reach]))
    return float(low), float(high), left_out


def student_quantile(confidence: float, units: int) -> float:
    """How many standard errors an interval reaches that were estimated from so many units."""
    return float(stdtrit(max(units, 2) - 1, (1 + confidence) / 2))


def skewed_interval(value: float, error: float, skew: float, reach: float) -> tuple[float, float]:
    """An interval of a skewed estimate: Hall's transformation makes it symmetric first.

    Where few malignant lesions decide, an estimate that is high by chance also has too small a
    standard error, and plain, logit and percentile intervals miss the truth below it far more often
    than above (Hall 1992, On the removal of skewness by transformation, J. R. Stat. Soc. B 54).

    Args:
        value: the estimate.
        error: its standard error.
        skew: of its sampling distribution, see `skewness`; counted up to 0.35, from where on a
            dozen lesions would widen the interval several times for hardly more coverage.
        reach: standard errors to either side where there is no skew.
    """
    if abs(skew) < _FLAT:
        return value - reach * error, value + reach * error
    skew = min(max(skew, -_STEEP), _STEEP)
    lean = skew / 6
    low, high = ((np.cbrt(1 + skew * (x - lean)) - 1) * 3 / skew for x in (reach, -reach))
    return value - float(low) * error, value - float(high) * error


def perfect_ranking_bound(positives: int, negatives: int, confidence: float) -> float:
    """The lower end of an AUROC's interval where a sample is ranked without a mistake.

    Resamples of such a sample are all perfect too, and its standard error is 0. Newcombe's method 5
    (2006, doi:10.1002/sim.2324) asks instead from which true AUROC on 1 is not surprising, with the
    variance that Hanley and McNeil gave it.

    Args:
        positives: patients with malignant lesions, at least one.
        negatives: patients with benign ones, at least one.
        confidence: of the interval, whose upper end is 1.
    """
    from scipy.optimize import brentq

    reach = ndtri((1 + confidence) / 2)

    def excess(auroc: float) -> float:
        spread = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
        pairs = 1 + ((positives + negatives) / 2 - 1) * spread
        return 1 - auroc - reach**2 * auroc * pairs / (positives * negatives)

    return float(brentq(excess, 0, 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


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
        ends = skewed_interval(value, spread, skew, student_quantile(confidence, units))
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


def delong_interval(
    scores: Float64[np.ndarray, " n"],
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"] | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """AUROC with its interval.

    DeLong et al. 1988 (doi:10.2307/2531595) with the ranks of Sun and Xu 2014; with `patients`,
    the clustered variance of Obuchowski 1997 (doi:10.2307/2533958), which is DeLong's where every
    patient has one row. Student's quantiles, for the patients of the rarer class, and the skewness
    of the patients' parts make it hold with a dozen malignant lesions (see `skewed_interval`).

    Returns:
        `value`, `standard_error`, `low`, `high`; None where undefined: one class only, or (but for
        the value) fewer than two patients with either class, or an AUROC of 0 or 1 (see
        `perfect_ranking_bound`).
    """
    empty: dict[str, float | None] = dict.fromkeys(("value", "standard_error", "low", "high"))
    if positives.all() or not positives.any():
        return empty
    parts = _placements(scores, positives)
    value = float(parts[positives].mean())
    spread = _spread(parts, positives, patients)
    if spread is None or not 0 < value < 1:
        return {**empty, "value": value, "standard_error": spread.error if spread else None}
    reach = student_quantile(confidence, spread.units)
    low, high = skewed_interval(value, spread.error, spread.skew, reach)
    return {
        "value": value,
        "standard_error": spread.error,
        "low": max(low, 0.0),
        "high": min(high, 1.0),
    }


def delong_test(
    a: Float64[np.ndarray, " n"],
    b: Float64[np.ndarray, " n"],
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"] | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """Difference of the AUROCs of two systems on the same rows, and its two-sided p-value.

    Student's distribution, for the patients of the rarer class, as in `delong_interval`.

    Args:
        a: scores of one system.
        b: scores of the other.
        positives: whether a row is malignant.
        patients: clusters, as in `delong_interval`.
        confidence: of the interval.

    Returns:
        `difference` (a - b), `low`, `high`, `p`; None where undefined.
    """
    empty: dict[str, float | None] = dict.fromkeys(("difference", "low", "high", "p"))
    if positives.all() or not positives.any():
        return empty
    parts = _placements(a, positives) - _placements(b, positives)
    difference = float(parts[positives].mean())
    spread = _spread(parts, positives, patients)
    if spread is None or spread.error == 0:
        return {**empty, "difference": difference}
    reach = student_quantile(confidence, spread.units) * spread.error
    return {
        "difference": difference,
        "low": difference - reach,
        "high": difference + reach,
        "p": float(2 * stdtr(spread.units - 1, -abs(difference) / spread.error)),
    }


def _placements(
    scores: Float64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Share of the other class that each row is on the right side of; a tie counts half."""
    from scipy.stats import rankdata  # takes a second to import; prediction does not need it

    ranks = rankdata(scores)
    result = np.empty(len(scores))
    result[positives] = ranks[positives] - rankdata(scores[positives])
    result[~positives] = positives.sum() - (ranks[~positives] - rankdata(scores[~positives]))
    return result / np.where(positives, (~positives).sum(), positives.sum())


class _Spread(NamedTuple):
    """Standard error and skewness of a mean of placements, and patients of the rarer class."""

    error: float
    skew: float
    units: int


def _spread(
    parts: Float64[np.ndarray, " n"],
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"] | None,
) -> _Spread | None:
    codes, count = patient_codes(np.arange(len(parts)) if patients is None else patients)
    excess = parts - parts[positives].mean()
    sums, clusters = [], []
    for rows in (positives, ~positives):
        held = np.bincount(codes[rows], minlength=count)
        sums.append(np.bincount(codes[rows], weights=excess[rows], minlength=count) / rows.sum())
        clusters.append(int((held > 0).sum()))
    if min(clusters) == 1:
        return None
    variance = sum(k / (k - 1) * (s @ s) for k, s in zip(clusters, sums, strict=True))
    both = 2 * count / (count - 1) * (sums[0] @ sums[1])
    error = float(np.sqrt(max(variance + both, 0)))
    influence = sums[0] + sums[1]
    square = float(influence @ influence)
    skew = float((influence**3).sum()) / square**1.5 if square > 0 else 0.0
    return _Spread(error, skew, min(clusters))
