"""Decision rules: the threshold of a binary decision, and the limits of referral."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Shaped
from scipy.special import betaincinv, expit, logit

from skinmm.errors import InputError

RULES: Final = ("sensitivity", "youden", "cost")
_DIGITS: Final = 6
_Scores = Float64[np.ndarray, " n"]


@dataclass(frozen=True)
class Threshold:
    """Decision threshold: rows at or above `value` are called malignant.

    Attributes:
        value: probability of malignancy.
        rule: rule that chose it, one of `RULES`.
        guaranteed: true if the sensitivity exceeds its target with the stated confidence, and not
            only on the rows that chose the threshold.
        patients: patients with a malignant row, of rule `sensitivity`.
        found: number of them whose malignant rows all reach the threshold.
        bound: lower confidence bound of the sensitivity over patients.
    """

    value: float
    rule: str
    guaranteed: bool
    patients: int | None = None
    found: int | None = None
    bound: float | None = None


def choose_threshold(
    scores: _Scores,
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    *,
    rule: str = "sensitivity",
    sensitivity: float = 0.95,
    confidence: float = 0.95,
    cost_ratio: float | None = None,
) -> Threshold:
    """Choose the decision threshold on validation rows.

    `sensitivity` is the highest threshold whose sensitivity is at least the target with the stated
    confidence. Its unit is the patient, because lesions of one patient are not independent: a
    patient counts as found if all malignant lesions are, so the lowest of their scores represents
    the patient. For k patients below the threshold out of m, the lower confidence bound is exact
    (Clopper and Pearson 1934, doi:10.1093/biomet/26.4.404). It remains exact although the threshold
    was chosen on the same patients, as a tolerance limit (Wilks 1941): it assumes only that new
    patients have the same distribution. The sensitivity over lesions is not below it unless
    patients with more malignant lesions are harder. m patients can guarantee a target s only if
    s**m <= 1 - confidence (59 patients for 95 % with 95 % confidence). With fewer, the threshold is
    the highest that finds the target share of the given rows, and `guaranteed` is False.

    `youden` maximises sensitivity + specificity over the rows. `cost` is 1 / (1 + cost_ratio),
    optimal for calibrated probabilities (Elkan 2001), and needs no data.

    Args:
        scores: calibrated probability of malignancy.
        positives: mask of the malignant rows.
        patients: patient of each row.
        rule: one of `RULES`.
        sensitivity: target of the rule `sensitivity`, in (0, 1).
        confidence: confidence level of its bound, in (0, 1).
        cost_ratio: cost of a missed malignant lesion over that of a false alarm.
    """
    _check_rule(rule, sensitivity=sensitivity, confidence=confidence)
    if rule == "cost":
        if cost_ratio is None or not 0 < cost_ratio < math.inf:
            raise InputError("the threshold rule cost needs cost_ratio, a number above 0")
        return Threshold(1 / (1 + cost_ratio), rule, guaranteed=False)
    if not positives.any():
        raise InputError(f"none of {len(scores)} rows is malignant, so no threshold can be chosen")
    if rule == "youden":
        return Threshold(round_down(_choose_by_youden(scores, positives)), rule, guaranteed=False)
    malignant = scores[positives], patients[positives]
    value, guaranteed = _choose_by_sensitivity(*malignant, sensitivity, confidence)
    lowest = pd.Series(malignant[0]).groupby(malignant[1]).min()
    count, found = len(lowest), int((lowest >= value).sum())
    bound = sensitivity_bound(found, count, confidence)
    return Threshold(round_down(value), rule, guaranteed, count, found, bound)


def _check_rule(rule: str, **shares: float) -> None:
    if rule not in RULES:
        raise InputError(f"no threshold rule {rule!r}; choose from {', '.join(RULES)}")
    for name, value in shares.items():
        if not 0 < value < 1:
            raise InputError(f"{name} {value} of a threshold is not between 0 and 1")


def average_thresholds(thresholds: Sequence[Threshold]) -> Threshold:
    """Return the mean threshold on the logit scale; guaranteed only if all thresholds are."""
    value = _mean_probability([threshold.value for threshold in thresholds])
    guaranteed = all(threshold.guaranteed for threshold in thresholds)
    return Threshold(value, thresholds[0].rule, guaranteed)


@dataclass(frozen=True)
class RiskLimit:
    """Probability limit of one kind of decision, with its certified error rate.

    Attributes:
        value: probability of malignancy.
        target: highest expected risk that was asked for.
        certified: expected risk that validation certifies; above `target` if it is too small.
        patients: number of validation patients that certify it.
    """

    value: float
    target: float
    certified: float
    patients: int

    def upper_bound(self, confidence: float = 0.95) -> float:
        """Return the upper confidence bound of the error rate at this limit in new patients.

        `certified` is an average over sets of validation patients; the rate of one set varies. With
        one lesion a patient, it has the distribution Beta(k, m + 1 - k), k = certified * (m + 1)
        (Vovk 2012, arXiv:1209.2673); with several, it varies less.
        """
        if self.certified >= 1:
            return 1.0
        rank = self.certified * (self.patients + 1)
        return float(betaincinv(rank, self.patients + 1 - rank, confidence))


@dataclass(frozen=True)
class ReferralBand:
    """Range of probabilities around the threshold in which neither decision is safe.

    A row below the threshold is decided benign if it is below `low`; a row from the threshold on is
    decided malignant if it is not below `high`. All other rows are referred. If `low` exceeds
    `high`, both decisions are safe between them, and the threshold decides. See `fit_band`.

    Attributes:
        low: limit of the decision benign; its risk is the miss rate.
        high: limit of the decision malignant; its risk is the false alarm rate.
    """

    low: RiskLimit
    high: RiskLimit

    @classmethod
    def from_state(cls, state: dict[str, dict[str, Any]]) -> "ReferralBand":
        """Restore a band from the result of `asdict`."""
        return cls(**{name: RiskLimit(**limit) for name, limit in state.items()})

    def is_safe(
        self, called: Bool[np.ndarray, " n"], malignancy: _Scores
    ) -> Bool[np.ndarray, " n"]:
        """Return whether each row's decision by the threshold is safe."""
        return np.where(called, malignancy >= self.high.value, malignancy < self.low.value)


def fit_band(
    scores: _Scores,
    positives: Bool[np.ndarray, " n"],
    patients: Shaped[np.ndarray, " n"],
    *,
    miss_rate: float,
    false_alarm_rate: float,
) -> ReferralBand:
    """Fit the limits of both decisions by conformal risk control (Angelopoulos et al., ICLR 2024).

    The miss rate of a patient is the share of the patient's malignant lesions that are decided
    benign, the false alarm rate the share of the benign lesions that are decided malignant. Both
    grow as the band narrows. With the rates L_1 ... L_m of the validation patients who have such
    lesions, the band is as narrow as (sum(L) + 1) / (m + 1) <= target allows. Then the expected
    rate of a new patient is at most the target, without any assumption but that patients have the
    same distribution and that these rows did not choose the epoch. Both rates are within a class,
    so they do not depend on the prevalence; the predictive values among the decided lesions do.

    m patients certify no target below 1 / (m + 1). With a lower target, the limit is the narrowest
    without any error on validation, and `certified` is 1 / (m + 1).

    The scores are calibrated probabilities of malignancy; both targets are in (0, 1).
    """
    lows = np.unique(scores)  # at the first limit, no validation row is decided
    highs = np.unique(np.r_[lows, (1 + lows[-1]) / 2])[::-1]
    missed, malignant = _mean_share_below(scores[positives], patients[positives], lows)
    cleared, benign = _mean_share_below(scores[~positives], patients[~positives], highs)
    return ReferralBand(
        _control_risk(lows, missed, malignant, miss_rate),
        _control_risk(highs, 1 - cleared, benign, false_alarm_rate),
    )


def _mean_share_below(
    scores: _Scores, patients: Shaped[np.ndarray, " n"], limits: Float64[np.ndarray, " k"]
) -> tuple[Float64[np.ndarray, " k"], int]:
    """Return the share of scores below each limit, averaged over patients, and their number."""
    order = np.argsort(scores, kind="stable")
    codes, names = pd.factorize(patients[order])
    weights = 1 / np.bincount(codes, minlength=len(names))[codes] / len(names)
    return np.r_[0.0, np.cumsum(weights)][np.searchsorted(scores[order], limits)], len(names)


def _control_risk(
    limits: Float64[np.ndarray, " k"],
    rates: Float64[np.ndarray, " k"],
    patients: int,
    target: float,
) -> RiskLimit:
    """Return the limit with the highest rate that meets the target, or else the strictest limit.

    `limits` are in the order of ascending `rates`.
    """
    bounds = np.round((patients * rates + 1) / (patients + 1), 12)  # 0.01 of 99 patients
    certified = max(target, float(bounds[0]))
    last = np.searchsorted(bounds, certified + 1e-12, side="right") - 1 if patients else 0
    limit, riskier = float(limits[last]), limits[last + 1 :]
    is_crossed = ((round_down(limit) <= riskier) & (riskier < limit)).any()  # by the rounding
    return RiskLimit(limit if is_crossed else round_down(limit), target, certified, patients)


def average_bands(bands: Sequence[ReferralBand]) -> ReferralBand:
    """Return the mean band on the logit scale, with the highest target and highest certified rate.

    Where one band certifies nothing (rate 1), the limit is the strictest instead.
    """
    limits = {}
    for name, strictest in (("low", 0), ("high", -1)):
        parts: list[RiskLimit] = [getattr(band, name) for band in bands]
        values, certified = sorted(part.value for part in parts), max(p.certified for p in parts)
        limits[name] = RiskLimit(
            values[strictest] if certified >= 1 else _mean_probability(values),
            max(part.target for part in parts),
            certified,
            min(part.patients for part in parts),
        )
    return ReferralBand(**limits)


def _mean_probability(values: Sequence[float]) -> float:
    mean = float(expit(logit(np.clip(values, 1e-9, 1 - 1e-9)).mean()))
    # Equal values stay exact, because a score equal to the threshold would change sides.
    return mean if len(set(values)) > 1 else values[0]


def sensitivity_bound(hits: int, positives: int, confidence: float) -> float:
    """Return the exact one-sided lower confidence bound of a share (Clopper and Pearson 1934).

    The beta quantile that `scipy.stats.binomtest` finds by root search, 100 times faster.
    """
    return float(betaincinv(hits, positives - hits + 1, 1 - confidence)) if hits else 0.0


def _choose_by_sensitivity(
    scores: _Scores, patients: Shaped[np.ndarray, " n"], sensitivity: float, confidence: float
) -> tuple[float, bool]:
    """Return the threshold from the scores of malignant rows, and whether it is guaranteed."""
    lowest = np.sort(pd.Series(scores).groupby(patients).min().to_numpy())
    hits = len(lowest)
    while sensitivity_bound(hits, len(lowest), confidence) >= sensitivity:
        hits -= 1
    if hits < len(lowest):
        return lowest[len(lowest) - hits - 1], True
    needed = math.ceil(sensitivity * len(scores) - 1e-9)  # 19 for 0.95 * 20, despite rounding
    return np.sort(scores)[len(scores) - needed], False


def _choose_by_youden(scores: _Scores, positives: Bool[np.ndarray, " n"]) -> float:
    if positives.all():
        raise InputError("none of the rows is benign, so no threshold can be chosen")
    values, inverse = np.unique(scores, return_inverse=True)
    hits = np.bincount(inverse, weights=positives)
    false_alarms = np.bincount(inverse, weights=~positives)
    gain = hits / hits.sum() - false_alarms / false_alarms.sum()
    return values[np.argmax(np.cumsum(gain[::-1])[::-1])]


def round_down(value: float) -> float:
    """Round a threshold down to six significant digits.

    A score that is written to a file or computed in another batch then stays on its side.
    """
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    rounded = float(f"{value:.{_DIGITS}g}")
    return rounded if rounded <= value else float(f"{rounded - unit:.{_DIGITS}g}")
