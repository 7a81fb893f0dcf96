"""Decision rules: the threshold of a binary decision, and the predicted one of several classes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import betaincinv, expit, logit

from skinmm.errors import InputError

_DIGITS: Final = 6


def decision_priors(rule: str, deployed: Sequence[float]) -> Float64[np.ndarray, " c"]:
    """Return what a rule divides the probability of each class by before taking the largest.

    Args:
        rule: `likeliest` divides all alike, which minimises the number of errors; `balanced`
            divides by the share of the class, the Bayes rule for the mean recall (Menon et al.
            2021, "Long-tail learning via logit adjustment", arXiv:2007.07314).
        deployed: class shares where the model is used.
    """
    shares = np.array(deployed, dtype=np.float64)
    return shares if rule == "balanced" else np.full_like(shares, 1 / len(shares))


def predict_classes(
    probabilities: Float64[np.ndarray, "n c"], priors: Float64[np.ndarray, " c"]
) -> Int64[np.ndarray, " n"]:
    """Return the index of the predicted class of each row; never a class whose prior is 0.

    Args:
        probabilities: calibrated for deployment.
        priors: result of `decision_priors`; the mean over several models.
    """
    weights = np.divide(1, priors, out=np.zeros_like(priors), where=priors > 0)
    return (probabilities * weights).argmax(axis=1)


@dataclass(frozen=True)
class Threshold:
    """Decision threshold: rows at or above `value` are called malignant.

    Attributes:
        value: probability of malignancy.
        rule: rule that chose it, one of `RULES`.
        guaranteed: whether the sensitivity exceeds its target with the stated confidence, and not
            only on the rows that chose the threshold.
    """

    value: float
    rule: str
    guaranteed: bool


@dataclass(frozen=True)
class _Task:
    scores: Float64[np.ndarray, " n"]
    positives: Bool[np.ndarray, " n"]
    patients: Shaped[np.ndarray, " n"]
    sensitivity: float
    confidence: float
    cost_ratio: float | None


def choose_threshold(
    scores: Float64[np.ndarray, " n"],
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
        positives: whether a row is malignant.
        patients: patient of each row.
        rule: one of `RULES`.
        sensitivity: target of the rule `sensitivity`, in (0, 1).
        confidence: confidence level of its bound, in (0, 1).
        cost_ratio: cost of a missed malignant lesion over that of a false alarm.

    Returns:
        The threshold, rounded down to six significant digits, so that a score that is written to a
        file or computed in another batch stays on its side.

    Raises:
        InputError: the rule is unknown, a number is out of range, or no row is malignant.
    """
    if rule not in RULES:
        raise InputError(f"no threshold rule {rule!r}; choose from {', '.join(RULES)}")
    for name, value in (("sensitivity", sensitivity), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} {value} of a threshold is not between 0 and 1")
    return RULES[rule](_Task(scores, positives, patients, sensitivity, confidence, cost_ratio))


def average_thresholds(thresholds: Sequence[Threshold]) -> Threshold:
    """Return the mean threshold on the logit scale; it is guaranteed if all thresholds are."""
    values = [threshold.value for threshold in thresholds]
    mean = float(expit(logit(np.clip(values, 1e-9, 1 - 1e-9)).mean()))
    # Equal values stay exact, because a score equal to the threshold would change sides.
    value = mean if len(set(values)) > 1 else values[0]
    guaranteed = all(threshold.guaranteed for threshold in thresholds)
    return Threshold(value, thresholds[0].rule, guaranteed)


def sensitivity_bound(hits: int, positives: int, confidence: float) -> float:
    """Return the exact one-sided lower confidence bound of a share (Clopper and Pearson 1934).

    The beta quantile that `scipy.stats.binomtest` finds by root search, 100 times faster.
    """
    return float(betaincinv(hits, positives - hits + 1, 1 - confidence)) if hits else 0.0


def _choose_by_sensitivity(task: _Task) -> Threshold:
    _require_positives(task)
    scores = pd.Series(task.scores[task.positives])
    lowest = np.sort(scores.groupby(task.patients[task.positives]).min().to_numpy())
    misses = _allowed_misses(len(lowest), task.sensitivity, task.confidence)
    if misses is None:
        # The tolerance keeps 0.95 * 20 at 19.
        needed = math.ceil(task.sensitivity * len(scores) - 1e-9)
        value = np.sort(scores.to_numpy())[len(scores) - needed]
        return Threshold(round_down(value), "sensitivity", guaranteed=False)
    return Threshold(round_down(lowest[misses]), "sensitivity", guaranteed=True)


def _allowed_misses(patients: int, sensitivity: float, confidence: float) -> int | None:
    """Return the most patients below the threshold that the bound allows; None: not even 0."""
    misses = -1
    while sensitivity_bound(patients - misses - 1, patients, confidence) >= sensitivity:
        misses += 1
    return misses if misses >= 0 else None


def _choose_by_youden(task: _Task) -> Threshold:
    _require_positives(task)
    if task.positives.all():
        raise InputError("no benign row to choose a threshold with")
    values, inverse = np.unique(task.scores, return_inverse=True)
    positives = np.bincount(inverse, weights=task.positives)
    negatives = np.bincount(inverse, weights=~task.positives)
    gain = positives / positives.sum() - negatives / negatives.sum()
    best = int(np.argmax(np.cumsum(gain[::-1])[::-1]))
    return Threshold(round_down(values[best]), "youden", guaranteed=False)


def _choose_by_cost(task: _Task) -> Threshold:
    if task.cost_ratio is None or not 0 < task.cost_ratio < math.inf:
        raise InputError("the threshold rule cost needs cost_ratio, a number above 0")
    return Threshold(1 / (1 + task.cost_ratio), "cost", guaranteed=False)


RULES: Final[dict[str, Callable[[_Task], Threshold]]] = {
    "sensitivity": _choose_by_sensitivity,
    "youden": _choose_by_youden,
    "cost": _choose_by_cost,
}


def _require_positives(task: _Task) -> None:
    if not task.positives.any():
        raise InputError(f"no malignant row among {len(task.scores)} to choose a threshold with")


def round_down(value: float) -> float:
    """Round down to six significant digits."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    rounded = float(f"{value:.{_DIGITS}g}")
    return rounded if rounded <= value else float(f"{rounded - unit:.{_DIGITS}g}")
