"""Rules for the predicted class of several: fitting, cross-fitting over patients, evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation.curves import Samples, ratio

CALLS: Final = ("likeliest", "balanced", "f1", "cost")
FOLDS: Final = 5
FITTED: Final = ("f1", "cost")
"""Rules that a checkpoint stores; the others follow from its settings and its class shares."""
POWERS: Final = (0, 0.5, 1)
SHRINKAGE: Final = 10
"""Patients of a class whose own F1 threshold weighs as much as that of all classes together."""
_LEAST: Final = 1e-9  # threshold; a distance from the cut that nine digits show

_Probabilities = Float64[np.ndarray, "n c"]
_Rows = Int64[np.ndarray, " n"]
_Patients = Shaped[np.ndarray, " n"]


@dataclass(frozen=True)
class CallRule:
    """Rule for the predicted class: the highest of linear scores of the classes.

    Attributes:
        name: one of `CALLS`. `likeliest` makes the fewest errors. `balanced` is the Bayes rule for
            the mean recall: probability by class share (Menon et al. 2021, arXiv:2007.07314). `f1`
            is probability by the class's threshold of highest F1. `cost` has the lowest expected
            cost.
        divisors: of the probability of each class; a class with divisor 0 is never called.
        costs: cost of each call (second axis) for each true class, of `cost` only.
    """

    name: str
    divisors: Sequence[float]
    costs: Sequence[Sequence[float]] | None = None

    def score(self, probabilities: _Probabilities) -> _Probabilities:
        """Return non-negative scores of the classes; the class with the highest score is called."""
        if self.costs is not None:
            costs = np.array(self.costs, dtype=np.float64)
            return probabilities @ (costs.max(axis=1, keepdims=True) - costs)
        divisors = np.array(self.divisors, dtype=np.float64)
        return probabilities * np.divide(
            1, divisors, out=np.zeros_like(divisors), where=divisors > 0
        )

    def call(self, probabilities: _Probabilities) -> _Rows:
        """Return the index of the called class of each row."""
        return self.score(probabilities).argmax(axis=1)


def cut_at_half(scores: _Probabilities, called: _Rows) -> _Probabilities:
    """Map scores to [0, 1] such that only the called class of a row reaches 0.5.

    The value of a class is its score, divided by the sum of this score and the highest other
    score. It is meant for scorers that cut at 0.5, and is not a probability.
    """
    columns = np.arange(scores.shape[1])
    highest = np.stack(
        [np.where(columns != column, scores, -np.inf).max(axis=1) for column in columns], axis=1
    )
    totals = scores + highest
    halves = np.divide(scores, totals, out=np.zeros_like(scores), where=totals != 0)
    is_called = columns == called[:, None]
    return np.where(is_called, np.maximum(halves, 0.5), np.minimum(halves, 0.5 - _LEAST))


def threshold_scores(malignancy: Float64[np.ndarray, " n"], threshold: float) -> _Probabilities:
    """Return a score for benign and one for malignant; they are equal at the threshold."""
    return np.column_stack([(1 - malignancy) * threshold, malignancy * (1 - threshold)])


def fit_call_rule(
    name: str,
    probabilities: _Probabilities,
    targets: _Rows,
    patients: _Patients,
    *,
    shares: Sequence[float] | None = None,
    costs: Sequence[Sequence[float]] | None = None,
) -> CallRule:
    """Fit a rule to calibrated probabilities.

    `likeliest` and `cost` need no rows. `shares` are those where the rule is used, by default of
    the rows; `costs` are the result of `parse_costs`.
    """
    count = probabilities.shape[1]
    if name == "f1":
        return CallRule(name, fit_f1_thresholds(probabilities, targets, patients).tolist())
    if name == "balanced" and shares is None:
        shares = (np.bincount(targets, minlength=count) / len(targets)).tolist()
    divisors = shares if name == "balanced" and shares is not None else [1 / count] * count
    return CallRule(name, divisors, costs if name == "cost" else None)


def average_rules(rules: Sequence[CallRule]) -> CallRule:
    """Return a rule with the mean divisors of several rules, and the costs of the first."""
    divisors = np.mean([rule.divisors for rule in rules], axis=0).tolist()
    return CallRule(rules[0].name, divisors, rules[0].costs)


def fit_f1_thresholds(
    probabilities: _Probabilities, targets: _Rows, patients: _Patients
) -> Float64[np.ndarray, " c"]:
    """Return, for each class against the rest, the threshold with the highest F1.

    It is the geometric mean over fits that leave out one of `FOLDS` groups of patients each. A
    class of m patients is shrunk, on the log scale, towards its pooled threshold, see
    `fit_pooled_thresholds`: its own has the weight m / (m + SHRINKAGE). At the optimum a threshold
    is half of the F1 (Lipton et al. 2014, arXiv:1402.1892).
    """
    folds = assign_folds(targets, patients)
    truth = np.arange(probabilities.shape[1]) == targets[:, None]
    logs = []
    for fold in range(FOLDS):
        rows = (folds != fold) | (folds.max() == 0)
        columns = zip(probabilities[rows].T, truth[rows].T, strict=True)
        separate = [choose_f1_threshold(scores, positives) for scores, positives in columns]
        pooled = fit_pooled_thresholds(probabilities[rows], targets[rows])
        counts = np.array([len(pd.unique(patients[rows & of_class])) for of_class in truth.T])
        weights = counts / (counts + SHRINKAGE)
        logs.append(weights * np.log(separate) + (1 - weights) * np.log(pooled))
    return np.exp(np.mean(logs, axis=0))


def fit_pooled_thresholds(
    probabilities: _Probabilities, targets: _Rows
) -> Float64[np.ndarray, " c"]:
    """Return a threshold for each class: a common factor times a power of the class share.

    The power, of `POWERS`, is that with the highest macro F1: 0 calls the likeliest class, 1 is the
    rule `balanced`. The factor is that with the highest F1 over all pairs of row and class.
    """
    from sklearn.metrics import f1_score  # takes a second; prediction does not need it

    truth = np.arange(probabilities.shape[1]) == targets[:, None]
    shares = np.maximum(truth.mean(axis=0), _LEAST)
    scores = [probabilities / shares**power for power in POWERS]
    f1 = [f1_score(targets, s.argmax(axis=1), average="macro", zero_division=0) for s in scores]
    best = int(np.argmax(f1))
    return choose_f1_threshold(scores[best].ravel(), truth.ravel()) * shares ** POWERS[best]


def choose_f1_threshold(
    scores: Float64[np.ndarray, " n"], positives: Shaped[np.ndarray, " n"]
) -> float:
    """Return the threshold with the highest F1, in the middle between two scores."""
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(positives[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + hits[-1])
    lower = np.r_[scores[1:], 0]
    best = np.where(lower < scores, f1, -1).argmax()
    return max(float(scores[best] + lower[best]) / 2, _LEAST)


def cross_fit_calls(
    name: str,
    probabilities: _Probabilities,
    targets: _Rows,
    patients: _Patients,
    costs: Sequence[Sequence[float]] | None = None,
) -> _Rows:
    """Return the called class of each row, by a rule fitted to other patients."""
    folds = assign_folds(targets, patients)
    called = np.empty(len(targets), dtype=np.int64)
    for fold in np.unique(folds):
        rows, others = folds == fold, (folds != fold) | (folds.max() == 0)
        fit = probabilities[others], targets[others], patients[others]
        called[rows] = fit_call_rule(name, *fit, costs=costs).call(probabilities[rows])
    return called


def assign_folds(targets: _Rows, patients: _Patients, seed: int = 0) -> _Rows:
    """Assign rows to `FOLDS` groups by patient, stratified by the rarest class of each patient."""
    counts = np.bincount(targets)
    rarity = pd.Series(counts[targets] * len(counts) + targets)
    by_patient = rarity.groupby(patients).min()
    shuffled = by_patient.sample(frac=1, random_state=seed).sort_values(kind="stable")
    numbers = pd.Series(np.arange(len(shuffled)) % FOLDS, index=shuffled.index)
    return numbers.loc[patients].to_numpy(dtype=np.int64)


def parse_costs(costs: Any, classes: Sequence[str]) -> list[list[float]] | None:
    """Return the matrix of costs, (true class, predicted class); None without costs.

    `costs` has the costs of errors, {truth: {call: cost}}. Other errors cost 1, and a correct call
    costs 0.
    """
    if costs is None:
        return None
    if len(classes) < 3:  # noqa: PLR2004
        raise InputError(
            "evaluation.costs needs three classes or more; for two, set evaluation.cost_ratio"
        )
    matrix = 1 - np.eye(len(classes))
    for truth, row in (costs if isinstance(costs, Mapping) else {"": costs}).items():
        for call, cost in (row if isinstance(row, Mapping) else {"": row}).items():
            is_free = truth != call or cost == 0
            if not {truth, call} <= {*classes} or not is_cost(cost) or not is_free:
                raise InputError(
                    f"evaluation.costs={costs}: must be {{TRUTH: {{CALL: number}}}} with numbers "
                    f"from 0, 0 for correct calls, and classes of {', '.join(classes)}"
                )
            matrix[classes.index(truth), classes.index(call)] = cost
    return matrix.tolist()


def is_cost(value: Any) -> bool:
    """Return whether a value is a finite number and not negative."""
    return isinstance(value, int | float) and 0 <= value < np.inf


def restore_rule(state: Mapping[str, Any] | None, name: str, shares: Sequence[float]) -> CallRule:
    """Return the rule of a checkpoint, from its state or from its settings and class shares."""
    if state is not None:
        return CallRule(**state)
    is_balanced = name == "balanced"  # f1 has no state only if it was never calibrated
    return CallRule(name, shares if is_balanced else [1 / len(shares)] * len(shares))


class CallMetrics:
    """Metrics of called classes; macro averages as in `statistics.ClassMetrics`.

    `target` and `called` are indices of `classes`; `codes` number the patients of the rows.
    """

    def __init__(
        self,
        target: Int64[np.ndarray, " n"],
        called: Int64[np.ndarray, " n"],
        codes: Int64[np.ndarray, " n"],
        classes: Sequence[str],
    ) -> None:
        self.classes = classes
        self.present = np.bincount(target, minlength=len(classes)) > 0
        cells = target * len(classes) + called
        order = np.argsort(cells, kind="stable")
        self.codes = codes[order]
        self.cells, self.starts = np.unique(cells[order], return_index=True)

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Samples]:
        """Return the metrics of each resample."""
        # Rows of each true class (second axis) by predicted class (third axis).
        counts = np.zeros((len(draws), len(self.classes), len(self.classes)))
        weights = np.take(draws, self.codes, axis=1)
        counts.reshape(len(draws), -1)[:, self.cells] = np.add.reduceat(
            weights, self.starts, axis=1
        )
        hits = np.einsum("bcc->bc", counts)
        recall = ratio(hits, counts.sum(axis=2))
        precision = ratio(hits, counts.sum(axis=1))
        f1 = ratio(2 * hits, counts.sum(axis=1) + counts.sum(axis=2))
        result = {
            "class_accuracy": hits.sum(axis=1) / counts.sum(axis=(1, 2)),
            "class_balanced_accuracy": recall[:, self.present].mean(axis=1),
            "macro_f1": f1[:, self.present].mean(axis=1),
        }
        for name, values in {"recall": recall, "precision": precision, "f1": f1}.items():
            result |= {f"{name}_{label}": values[:, i] for i, label in enumerate(self.classes)}
        return result
