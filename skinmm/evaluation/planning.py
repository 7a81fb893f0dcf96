"""Sample sizes: how many malignant lesions an evaluation or a threshold needs."""

import math
from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Float64
from scipy.special import expit, logit, ndtri
from scipy.stats import binom

from skinmm.errors import InputError
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import MalignancyMetrics
from skinmm.evaluation.thresholds import sensitivity_bound

MAX_MALIGNANT: Final = 100_000
_STABLE: Final = 100  # numbers of lesions with enough power in a row
_QUANTILES: Final = 2000
_LogOdds = Float64[np.ndarray, " n"]


def malignant_for_guarantee(sensitivity: float, confidence: float = 0.95) -> int:
    """Return the least number of malignant lesions that can guarantee a sensitivity.

    With n lesions, none below the threshold, the exact lower bound is (1 - confidence)**(1 / n)
    (Clopper and Pearson 1934). `choose_threshold` finds a guaranteed threshold from n on.
    """
    return math.ceil(math.log(1 - confidence) / math.log(sensitivity) - 1e-9)


def malignant_for_sensitivity(
    sensitivity: float, expected: float, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Return the number of malignant lesions that show a sensitivity of a given threshold.

    The exact lower bound reaches `sensitivity` with probability `power` if the true sensitivity is
    `expected`, also for greater numbers, although the power falls at each further error allowed.
    """
    if not sensitivity < expected < 1:
        raise InputError(
            f"expected={expected}: a sensitivity that shows {sensitivity} must be between it and 1"
        )
    hits, count = 0, malignant_for_guarantee(sensitivity, confidence)
    last = count - 1
    while count - last < _STABLE:
        while sensitivity_bound(hits, count, confidence) < sensitivity:
            hits += 1  # the least that show it
        if binom.sf(hits - 1, count, expected) < power:
            last = count
        count += 1
        if count > MAX_MALIGNANT:
            raise InputError(f"expected={expected}: too near to {sensitivity} to be shown")
    return last + 1


def auroc_error(auroc: float, malignant: int | float, benign: int | float) -> float:
    """Return the standard error of an AUROC.

    Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747.
    """
    first, second = _pair_variances(auroc)
    variance = auroc * (1 - auroc) + (malignant - 1) * first + (benign - 1) * second
    return math.sqrt(variance / (malignant * benign))


def auroc_width(
    auroc: float, malignant: int | float, benign: int | float, confidence: float = 0.95
) -> float:
    """Return the width of the interval of an AUROC."""
    return 2 * _reach(confidence) * auroc_error(auroc, malignant, benign)


def _pair_variances(auroc: float) -> tuple[float, float]:
    """Return Q1 - A**2 and Q2 - A**2 of Hanley and McNeil."""
    return auroc / (2 - auroc) - auroc**2, 2 * auroc**2 / (1 + auroc) - auroc**2


def malignant_for_auroc(
    auroc: float, width: float, prevalence: float, confidence: float = 0.95
) -> int:
    """Return the number of malignant lesions for an interval of the AUROC of a given width."""
    odds = (1 - prevalence) / prevalence
    return _find_least(lambda n: auroc_width(auroc, n, n * odds, confidence) <= width)


def malignant_for_difference(
    auroc: float,
    difference: float,
    prevalence: float,
    *,
    correlation: float = 0.5,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int:
    """Return the number of malignant lesions that show a difference of two AUROCs.

    The formula of Hanley and McNeil 1982 for a two-sided test, with the correlation of the two
    AUROCs on the same lesions (Hanley and McNeil 1983, doi:10.1148/radiology.148.3.6878708).

    Args:
        auroc: the lower one.
        difference: to the higher one.
        prevalence: share of malignant lesions.
        correlation: of the two AUROCs; 0: on different lesions.
        confidence: one minus the level of the test.
        power: probability of a significant difference.
    """
    if not auroc + difference < 1:
        raise InputError(
            f"difference={difference}: an AUROC of {auroc + difference:g} is not below 1; ask for "
            f"less than {1 - auroc:.2g}"
        )
    odds = (1 - prevalence) / prevalence
    lower, higher = (
        first / odds + second for first, second in map(_pair_variances, (auroc, auroc + difference))
    )
    null = 2 * lower * (1 - correlation)
    variance = lower + higher - 2 * correlation * math.sqrt(lower * higher)
    reach = _reach(confidence) * math.sqrt(null) + ndtri(power) * math.sqrt(variance)
    return math.ceil((reach / difference) ** 2)


def expected_log_odds(auroc: float, prevalence: float) -> tuple[_LogOdds, _LogOdds]:
    """Return log odds and weights of a calibrated model with normal log odds in both classes.

    The log likelihood ratio has the variance d**2 and the means -d**2 / 2 and d**2 / 2, where d is
    sqrt(2) times the normal quantile of the AUROC.
    """
    spread = math.sqrt(2) * ndtri(auroc)
    quantiles = spread * ndtri((np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    ratios = np.r_[quantiles - spread**2 / 2, quantiles + spread**2 / 2]
    return ratios + logit(prevalence), np.repeat([1 - prevalence, prevalence], _QUANTILES)


def rows_for_slope(
    log_odds: _LogOdds, weights: _LogOdds, width: float, confidence: float = 0.95
) -> int:
    """Return the number of rows for an interval of the calibration slope of a given width.

    Riley et al. 2021 (doi:10.1002/sim.9025) for a calibrated model: the variance of the slope is
    the inverse of the mean Fisher information over the weighted log odds.
    """
    p = expit(log_odds)
    a, b, c = (np.average(p * (1 - p) * log_odds**k, weights=weights) for k in range(3))
    error = width / (2 * _reach(confidence))
    return math.ceil(a / (error**2 * (a * c - b**2)))


def simulate_widths(
    predictions: Predictions,
    malignant: int,
    *,
    confidence: float = 0.95,
    repeats: int = 300,
    seed: int = 0,
) -> dict[str, float]:
    """Return the widths of intervals in cohorts of so many patients with malignant lesions.

    Patients of the file are drawn with replacement, so that lesions of one patient stay together,
    and others in proportion. A width is the distance of two quantiles over the repeats.

    Returns:
        Metric -> width, for `auroc` and `calibration_slope`.
    """
    codes, count = patient_codes(predictions.patient_id)
    has_malignant = np.zeros(count, dtype=bool)
    has_malignant[codes[predictions.malignant]] = True
    statistic = MalignancyMetrics(predictions.malignancy, predictions.malignant, codes)
    rng, draws = np.random.default_rng(seed), np.zeros((repeats, count), dtype=np.int64)
    sizes = malignant, round(malignant * (~has_malignant).sum() / has_malignant.sum())
    for group, size in zip((has_malignant, ~has_malignant), sizes, strict=True):
        shares = np.full(int(group.sum()), 1 / max(group.sum(), 1))
        draws[:, group] = rng.multinomial(size, shares, size=repeats)
    samples = [statistic(block) for block in np.array_split(draws, max(1, repeats // 20))]
    widths = {}
    for name in ("auroc", "calibration_slope"):
        values = np.concatenate([block[name] for block in samples])
        if np.isnan(values).all():
            raise InputError(f"{name} is undefined for these predictions: leave them out")
        ends = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        widths[name] = float(ends[1] - ends[0])
    return widths


def malignant_by_simulation(
    predictions: Predictions, metric: str, width: float, confidence: float = 0.95
) -> int:
    """Return the number of patients with malignant lesions at which a simulated width is reached.

    The width falls as one over the square root of the number; two steps from the present number
    correct for what differs from that.
    """
    malignant = len(np.unique(predictions.patient_id[predictions.malignant].astype(str)))
    for _ in range(2):
        present = simulate_widths(predictions, malignant, confidence=confidence)[metric]
        malignant = max(2, math.ceil(malignant * (present / width) ** 2))
    return malignant


def _reach(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))


def _find_least(is_enough: Callable[[int], bool]) -> int:
    """Return the least number that is enough, if all greater ones are."""
    high = 2
    while not is_enough(high):
        high *= 2
        if high > MAX_MALIGNANT:
            raise InputError(f"more than {MAX_MALIGNANT:,} malignant lesions; ask for less")
    low = high // 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return high
