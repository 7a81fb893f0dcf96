"""DeLong's interval and test of AUROCs, for several rows per patient."""

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from scipy.special import ndtri, stdtr

from skinmm.evaluation.intervals import (
    patient_codes,
    skewed_interval,
    skewness,
    student_quantile,
)

_Scores = Float64[np.ndarray, " n"]
_Mask = Bool[np.ndarray, " n"]
_Patients = Shaped[np.ndarray, " n"]


def delong_interval(
    scores: _Scores,
    positives: _Mask,
    patients: _Patients | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """Return the AUROC with its interval in closed form.

    DeLong et al. 1988 (doi:10.2307/2531595) with the ranks of Sun and Xu 2014; with `patients`,
    the clustered variance of Obuchowski 1997 (doi:10.2307/2533958), which is DeLong's where each
    patient has one row. Student's quantiles for the patients of the rarer class, and the skewness
    of the patients' contributions, make it valid with a dozen malignant lesions (see
    `skewed_interval`).

    Returns:
        `value`, `standard_error`, `low`, `high`. All are None with rows of one class only. All but
        the value are None with fewer than two patients of either class; `low` and `high` are None
        for an AUROC of 0 or 1 (see `perfect_ranking_bound`).
    """
    empty: dict[str, float | None] = dict.fromkeys(("value", "standard_error", "low", "high"))
    if positives.all() or not positives.any():
        return empty
    placements = _placements(scores, positives)
    value = float(placements[positives].mean())
    error, skew, units = _spread(placements, positives, patients)
    entry = {**empty, "value": value, "standard_error": error}
    if error is None or not 0 < value < 1:
        return entry
    low, high = skewed_interval(value, error, skew, student_quantile(confidence, units))
    return {**entry, "low": max(low, 0.0), "high": min(high, 1.0)}


def delong_test(
    a: _Scores,
    b: _Scores,
    positives: _Mask,
    patients: _Patients | None = None,
    *,
    confidence: float = 0.95,
) -> dict[str, float | None]:
    """Test the difference of the AUROCs of two systems on the same rows.

    The variance is that of `delong_interval`, for the paired differences a - b. The two-sided
    p-value is from Student's distribution, for the patients of the rarer class.

    Returns:
        `difference` (a - b), `low`, `high`, `p`; None where undefined.
    """
    empty: dict[str, float | None] = dict.fromkeys(("difference", "low", "high", "p"))
    if positives.all() or not positives.any():
        return empty
    placements = _placements(a, positives) - _placements(b, positives)
    difference = float(placements[positives].mean())
    error, _, units = _spread(placements, positives, patients)
    if not error:
        return {**empty, "difference": difference}
    reach = student_quantile(confidence, units) * error
    p = float(2 * stdtr(units - 1, -abs(difference) / error))
    low, high = difference - reach, difference + reach
    return {"difference": difference, "low": low, "high": high, "p": p}


def perfect_ranking_bound(positives: int, negatives: int, confidence: float) -> float:
    """Return the lower confidence bound of an observed AUROC of 1.

    All resamples of a perfect ranking are perfect too, and its standard error is 0. Method 5 of
    Newcombe (2006, doi:10.1002/sim.2324) finds instead the lowest true AUROC for which 1 is not
    surprising, with the variance of Hanley and McNeil.

    Both numbers are of patients, at least 1.
    """
    from scipy.optimize import brentq  # slow to import, and not needed for prediction

    reach = ndtri((1 + confidence) / 2)

    def excess(auroc: float) -> float:
        spread = (1 - auroc) / (2 - auroc) + auroc / (1 + auroc)
        pairs = 1 + ((positives + negatives) / 2 - 1) * spread
        return 1 - auroc - reach**2 * auroc * pairs / (positives * negatives)

    return float(brentq(excess, 0, 1))


def _placements(scores: _Scores, positives: _Mask) -> _Scores:
    """Return the share of the other class that each row outranks; a tie counts as 1/2."""
    from scipy.stats import rankdata  # slow to import, and not needed for prediction

    ranks = rankdata(scores)
    result = np.empty(len(scores))
    result[positives] = ranks[positives] - rankdata(scores[positives])
    result[~positives] = positives.sum() - (ranks[~positives] - rankdata(scores[~positives]))
    return result / np.where(positives, (~positives).sum(), positives.sum())


def _spread(
    placements: _Scores, positives: _Mask, patients: _Patients | None
) -> tuple[float | None, float, int]:
    """Return standard error and skewness of the mean, and the patient count of the rarer class."""
    codes, count = patient_codes(np.arange(len(placements)) if patients is None else patients)
    excess = placements - placements[positives].mean()
    sums, clusters = [], []
    for rows in (positives, ~positives):
        sums.append(np.bincount(codes[rows], weights=excess[rows], minlength=count) / rows.sum())
        clusters.append(len(np.unique(codes[rows])))
    if min(clusters) == 1:
        return None, 0.0, 1
    variance = sum(k / (k - 1) * (s @ s) for k, s in zip(clusters, sums, strict=True))
    covariance = 2 * count / (count - 1) * (sums[0] @ sums[1])
    error = float(np.sqrt(max(variance + covariance, 0)))
    return error, skewness(sums[0] + sums[1], 0.0), min(clusters)
