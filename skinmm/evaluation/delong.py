"""The AUROC's standard error in closed form, also where patients have several lesions."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from scipy.stats import rankdata, t

from skinmm.evaluation.intervals import (
    patient_codes,
    skewed_interval,
    students_reach,
)


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
    reach = students_reach(confidence, spread.units)
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
    reach = students_reach(confidence, spread.units) * spread.error
    return {
        "difference": difference,
        "low": difference - reach,
        "high": difference + reach,
        "p": float(2 * t.sf(abs(difference) / spread.error, spread.units - 1)),
    }


def _placements(
    scores: Float64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    """Share of the other class that each row is on the right side of; a tie counts half."""
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
