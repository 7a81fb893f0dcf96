"""Which of several classes is called."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.special import betaincinv, expit, logit

from skinmm.errors import InputError


def decision_priors(rule: str, deployed: Sequence[float]) -> Float64[np.ndarray, " c"]:
    """What a rule divides each class's probability by before the largest is called.

    Args:
        rule: `likeliest` divides all alike, which calls the fewest rows wrongly; `balanced` by the
            class's share, the Bayes rule for the mean of the classes' recalls (Menon et al. 2021,
            "Long-tail learning via logit adjustment", arXiv:2007.07314).
        deployed: class shares where the model is used.
    """
    shares = np.array(deployed, dtype=np.float64)
    return shares if rule == "balanced" else np.full_like(shares, 1 / len(shares))


def predict_classes(
    probabilities: Float64[np.ndarray, "n c"], shares: Float64[np.ndarray, " c"]
) -> Int64[np.ndarray, " n"]:
    """Index of each row's called class; one whose share is 0 is never called.

    Args:
        probabilities: calibrated, for classes in the shares of use.
        shares: as `decision_priors` gives them; of several models the mean.
    """
    weights = np.divide(1, shares, out=np.zeros_like(shares), where=shares > 0)
    return (probabilities * weights).argmax(axis=1)


_DIGITS: Final = 6


@dataclass(frozen=True)
class Threshold:
    """Rows at or above `value` are called malignant.

    Attributes:
        value: probability of malignancy.
        rule: what chose it, one of `RULES`.
        guaranteed: whether the sensitivity is above its target with the stated confidence, rather
            than just on the rows that chose it.
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
    """Chooses the decision threshold on validation rows.

    `sensitivity` is the highest threshold whose sensitivity is at least the target with the stated
    confidence. Its unit is the patient, as lesions of one patient are not independent: a patient
    with malignant lesions counts as found when all of them are, so the lowest of their scores
    stands for the patient. For k patients below the threshold out of m, the lower confidence bound
    is exact (Clopper and Pearson 1934), and it stays so though the threshold was chosen on the same
    patients, since it then is a tolerance limit (Wilks 1941): no assumption but that patients are
    drawn alike. The sensitivity over lesions is not below it unless patients with more malignant
    lesions are harder. m patients can guarantee a target s only if s**m <= 1 - confidence (95 %
    with 95 % confidence: 59); with fewer, the threshold is the highest that finds the target share
    of the rows at hand, and `guaranteed` is False: then say so.

    `youden` maximises sensitivity + specificity over the rows. `cost` is 1 / (1 + cost_ratio),
    optimal for calibrated probabilities (Elkan 2001), and needs no data.

    Args:
        scores: calibrated probability of malignancy.
        positives: whether a row is malignant.
        patients: who each row belongs to.
        rule: one of `RULES`.
        sensitivity: target of the rule of that name, in (0, 1).
        confidence: of its bound, in (0, 1).
        cost_ratio: cost of a miss over that of a false alarm.

    Returns:
        The threshold, rounded down to six significant digits so that a score which is written to a
        file, or computed in another batch, stays on its side.

    Raises:
        InputError: unknown rule, a number out of bounds, or no malignant row to choose with.
    """
    if rule not in RULES:
        raise InputError(f"no threshold rule {rule!r}; choose from {', '.join(RULES)}")
    for name, value in (("sensitivity", sensitivity), ("confidence", confidence)):
        if not 0 < value < 1:
            raise InputError(f"{name} {value} of a threshold is not between 0 and 1")
    return RULES[rule](_Task(scores, positives, patients, sensitivity, confidence, cost_ratio))


def average_thresholds(thresholds: Sequence[Threshold]) -> Threshold:
    """The threshold of averaged models: the mean on the logit scale, guaranteed where all are."""
    given = [threshold.value for threshold in thresholds]
    mean = float(expit(logit(np.clip(given, 1e-9, 1 - 1e-9)).mean()))
    return Threshold(
        # One value stays what it is: a score that is equal to it would change sides.
        value=mean if len(set(given)) > 1 else given[0],
        rule=thresholds[0].rule,
        guaranteed=all(threshold.guaranteed for threshold in thresholds),
    )


def sensitivity_bound(found: int, positives: int, confidence: float) -> float:
    """Exact one-sided lower bound of a proportion (Clopper and Pearson 1934)."""
    return float(betaincinv(found, positives - found + 1, 1 - confidence)) if found else 0.0


def _by_sensitivity(task: _Task) -> Threshold:
    _need_positives(task)
    rows = pd.Series(task.scores[task.positives])
    lowest = np.sort(rows.groupby(task.patients[task.positives]).min().to_numpy())
    misses = _allowed_misses(len(lowest), task.sensitivity, task.confidence)
    if misses is None:
        # The tolerance keeps 0.95 * 20 at 19.
        needed = math.ceil(task.sensitivity * len(rows) - 1e-9)
        value = np.sort(rows.to_numpy())[len(rows) - needed]
        return Threshold(round_down(value), "sensitivity", guaranteed=False)
    return Threshold(round_down(lowest[misses]), "sensitivity", guaranteed=True)


def _allowed_misses(patients: int, sensitivity: float, confidence: float) -> int | None:
    """Most patients below the threshold for which the bound still holds; None: not even with 0."""
    misses = -1
    while sensitivity_bound(patients - misses - 1, patients, confidence) >= sensitivity:
        misses += 1
    return misses if misses >= 0 else None


def _by_youden(task: _Task) -> Threshold:
    _need_positives(task)
    if task.positives.all():
        raise InputError("no benign row to choose a threshold with")
    values, inverse = np.unique(task.scores, return_inverse=True)
    positives = np.bincount(inverse, weights=task.positives)
    negatives = np.bincount(inverse, weights=~task.positives)
    gain = positives / positives.sum() - negatives / negatives.sum()
    best = int(np.argmax(np.cumsum(gain[::-1])[::-1]))
    return Threshold(round_down(values[best]), "youden", guaranteed=False)


def _by_cost(task: _Task) -> Threshold:
    if task.cost_ratio is None or not 0 < task.cost_ratio < math.inf:
        raise InputError("the threshold rule cost needs cost_ratio, a number above 0")
    return Threshold(1 / (1 + task.cost_ratio), "cost", guaranteed=False)


RULES: Final[dict[str, Callable[[_Task], Threshold]]] = {
    "sensitivity": _by_sensitivity,
    "youden": _by_youden,
    "cost": _by_cost,
}


def _need_positives(task: _Task) -> None:
    if not task.positives.any():
        raise InputError(f"no malignant row among {len(task.scores)} to choose a threshold with")


def round_down(value: float) -> float:
    """To six significant digits, never up."""
    if value <= 0:
        return 0.0
    unit = 10.0 ** (math.floor(math.log10(value)) + 1 - _DIGITS)
    rounded = float(f"{value:.{_DIGITS}g}")
    return rounded if rounded <= value else float(f"{rounded - unit:.{_DIGITS}g}")
