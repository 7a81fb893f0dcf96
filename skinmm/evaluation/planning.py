"""Sample sizes: how many malignant lesions an evaluation or a threshold needs."""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit, logit, ndtr, ndtri, owens_t
from scipy.stats import binom

from skinmm.errors import InputError
from skinmm.evaluation import curves
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.intervals import Statistic, patient_codes, student_quantile
from skinmm.evaluation.metrics import estimate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import MalignancyMetrics
from skinmm.evaluation.thresholds import sensitivity_bound

MAX_MALIGNANT: Final = 100_000
_STABLE: Final = 100  # numbers of lesions with enough power in a row
_QUANTILES: Final = 2000
_COHORTS, _RESAMPLES = 40, 100  # of the simulated width of a slope's interval
_LARGE: Final = 1000  # malignant lesions with which it is that of the formula
_MAX_ROWS: Final = 10_000  # of a simulated cohort
_LogOdds = Float64[np.ndarray, " n"]


def malignant_for_guarantee(sensitivity: float, confidence: float = 0.95) -> int:
    """Return the smallest number of malignant lesions that can guarantee a sensitivity.

    With n lesions, none below the threshold, the exact lower bound is (1 - confidence)**(1 / n)
    (Clopper and Pearson 1934). `choose_threshold` finds a guaranteed threshold from n on.
    """
    return math.ceil(math.log(1 - confidence) / math.log(sensitivity) - 1e-9)


def malignant_for_sensitivity(
    sensitivity: float, expected: float, confidence: float = 0.95, power: float = 0.8
) -> int:
    """Return the number of malignant lesions needed to show the sensitivity of a given threshold.

    The exact lower bound reaches `sensitivity` with probability `power` if the true sensitivity is
    `expected`, also for greater numbers, although the power falls at each further error allowed.
    """
    if not sensitivity < expected < 1:
        raise InputError(
            f"expected={expected}: must be above sensitivity={sensitivity} and below 1"
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
            raise InputError(f"expected={expected}: too close to {sensitivity}; give a higher one")
    return last + 1


def auroc_error(auroc: float, malignant: int | float, benign: int | float) -> float:
    """Return the standard error of an AUROC.

    Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747, for normal scores.
    """
    shared = (malignant + benign - 2) * _pair_variance(auroc)
    return math.sqrt((auroc * (1 - auroc) + shared) / (malignant * benign))


def auroc_width(
    auroc: float, malignant: int | float, benign: int | float, confidence: float = 0.95
) -> float:
    """Return the width of the interval of an AUROC, with Student's quantile."""
    reach = student_quantile(confidence, min(malignant, benign))
    return 2 * reach * auroc_error(auroc, malignant, benign)


def _pair_variance(auroc: float) -> float:
    """Return Q - A**2 (Q: chance that two pairs with a common lesion are both ranked correctly).

    For normal scores of one variance it is the same with a common malignant and a common benign
    lesion (Q1 and Q2 of Hanley and McNeil): two normal variables of correlation 0.5 are both below
    the quantile of A. The authors' exponential scores have another variance in each class, which
    asks for half as many lesions more where malignant ones are rare.
    """
    quantile = ndtri(auroc)
    return float(ndtr(quantile) - 2 * owens_t(quantile, 1 / math.sqrt(3))) - auroc**2


def malignant_for_auroc(
    auroc: float, width: float, prevalence: float, confidence: float = 0.95
) -> int:
    """Return the number of malignant lesions needed for a given width of the AUROC's interval."""
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
    """Return the number of malignant lesions needed to show a difference of two AUROCs.

    The formula of Hanley and McNeil 1982 for a two-sided test and normal scores, with the
    correlation of the two AUROCs on the same lesions (Hanley and McNeil 1983,
    doi:10.1148/radiology.148.3.6878708).

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
    lower, higher = (_pair_variance(a) / (1 - prevalence) for a in (auroc, auroc + difference))
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
    """Return the number of rows needed for a given width of the calibration slope's interval.

    Riley et al. 2021 (doi:10.1002/sim.9025) for a calibrated model: the variance of the slope is
    the inverse of the mean Fisher information over the weighted log odds.
    """
    p = expit(log_odds)
    a, b, c = (np.average(p * (1 - p) * log_odds**k, weights=weights) for k in range(3))
    error = width / (2 * _reach(confidence))
    return math.ceil(a / (error**2 * (a * c - b**2)))


def malignant_for_slope(
    auroc: float, width: float, prevalence: float, confidence: float = 0.95
) -> int:
    """Return the number of malignant lesions for a given width of the calibration slope's interval.

    The number of `rows_for_slope` is for a normal interval with the true variance. That of a report
    is wider, which is measured in simulated cohorts of this number, with fewer benign lesions if
    they are very rare.
    """
    log_odds = expected_log_odds(auroc, prevalence)
    malignant = math.ceil(prevalence * rows_for_slope(*log_odds, width, confidence))
    if malignant > _LARGE:
        return malignant
    share = max(prevalence, malignant / _MAX_ROWS)
    expected = rows_for_slope(*expected_log_odds(auroc, share), 1.0, confidence)
    excess = _simulate_slopes(auroc, share, malignant, confidence) ** 2 * malignant / share
    return math.ceil(malignant * max(1.0, excess / expected))


def _simulate_slopes(auroc: float, share: float, malignant: int, confidence: float) -> float:
    """Return the mean width of the slope's interval in simulated cohorts of this size."""
    rng, spread, widths = np.random.default_rng(0), math.sqrt(2) * ndtri(auroc), []
    truth = np.arange(round(malignant / share)) < malignant
    units = min(malignant, len(truth) - malignant)
    for _ in range(_COHORTS):
        ratios = rng.normal(np.where(truth, 0.5, -0.5) * spread**2, spread)
        statistic = _build_slope(ratios + logit(share), truth)
        settings = (np.arange(len(truth)), units, _RESAMPLES, confidence, 0)
        entry = estimate(statistic, statistic, *settings)["calibration_slope"]
        widths.append((entry["high"] or 0) - (entry["low"] or 0))
    return float(np.mean(widths))


def _build_slope(log_odds: _LogOdds, truth: Bool[np.ndarray, " n"]) -> Statistic:
    """Return the statistic of the calibration slope, for one row per patient."""
    order = np.argsort(log_odds, kind="stable")
    starts, centres = curves.group_log_odds(log_odds[order], curves.GRID)

    def statistic(draws: Int64[np.ndarray, "b p"]) -> dict[str, curves.Samples]:
        weights = curves.CumulativeWeights.from_weights(draws[:, order], truth[order])
        line = curves.calibration_line(*weights.between(starts), centres, free=True)
        return {"calibration_slope": line[1]}

    return statistic


def simulate_widths(
    predictions: Predictions, malignant: int, *, confidence: float = 0.95, repeats: int = 300
) -> dict[str, float]:
    """Simulate the widths of intervals for a number of patients with malignant lesions.

    Patients of the file are drawn with replacement, so that lesions of one patient stay together,
    and others in proportion. A width is the distance of two quantiles over the repeats.

    Returns:
        Metric -> width, for `auroc` and `calibration_slope`.
    """
    codes, count = patient_codes(predictions.patient_id)
    has_malignant = np.zeros(count, dtype=bool)
    has_malignant[codes[predictions.malignant]] = True
    statistic = MalignancyMetrics(predictions.malignancy, predictions.malignant, codes)
    rng, draws = np.random.default_rng(0), np.zeros((repeats, count), dtype=np.int64)
    sizes = malignant, round(malignant * (~has_malignant).sum() / has_malignant.sum())
    for group, size in zip((has_malignant, ~has_malignant), sizes, strict=True):
        shares = np.full(int(group.sum()), 1 / max(group.sum(), 1))
        draws[:, group] = rng.multinomial(size, shares, size=repeats)
    samples = [statistic(block) for block in np.array_split(draws, max(1, repeats // 20))]
    widths = {}
    for name in ("auroc", "calibration_slope"):
        values = np.concatenate([block[name] for block in samples])
        if np.isnan(values).all():
            raise InputError(f"{name} is undefined for these predictions; plan without them")
        ends = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
        widths[name] = float(ends[1] - ends[0])
    return widths


def malignant_by_simulation(
    predictions: Predictions, metric: str, width: float, confidence: float = 0.95
) -> int:
    """Estimate by simulation how many malignant patients give an interval of a given width.

    The width is about inversely proportional to the square root of the number; a second step
    corrects the first.
    """
    malignant = len(np.unique(predictions.patient_id[predictions.malignant].astype(str)))
    for _ in range(2):
        present = simulate_widths(predictions, malignant, confidence=confidence)[metric]
        malignant = max(2, math.ceil(malignant * (present / width) ** 2))
    return malignant


def malignant_by_pairs(
    first: Predictions,
    second: Predictions,
    difference: float,
    confidence: float = 0.95,
    power: float = 0.8,
) -> int:
    """Return the number of patients with malignant lesions needed to show a difference.

    Two systems predict the same lesions. The standard error of the difference of their AUROCs comes
    from resampled patients (see `compare`), and falls as one over the square root of their number.
    """
    result = compare({"first": first, "second": second}, resamples=500)
    entry = result["pairs"][0]["metrics"]["auroc"]
    if not entry["standard_error"]:
        raise InputError(
            "the difference of the AUROCs is the same in every resample, so that no number of "
            "lesions can be planned; give two systems with different scores"
        )
    malignant = len(np.unique(first.patient_id[first.malignant].astype(str)))
    reach = _reach(confidence) + float(ndtri(power))
    return math.ceil(malignant * (reach * entry["standard_error"] / difference) ** 2)


def _reach(confidence: float) -> float:
    return float(ndtri((1 + confidence) / 2))


def _find_least(is_enough: Callable[[int], bool]) -> int:
    """Return the smallest number that is enough; every larger number must be enough too."""
    least = bisect_left(range(MAX_MALIGNANT + 1), x=True, lo=2, key=is_enough)
    if least > MAX_MALIGNANT:
        raise InputError(f"this needs over {MAX_MALIGNANT:,} malignant lesions; ask for less")
    return least
