"""Probabilities that mean what they say: correction for the sampling, then calibration.

The method is chosen and fitted on validation patients and kept as plain data.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation.calibrators import METHODS, TINY
from skinmm.evaluation.intervals import patient_codes

FOLDS: Final = 5
ISOTONIC_ROWS: Final = 1000
_STANDARD_ERRORS: Final = 2.0
_Prior = tuple[Float64[np.ndarray, " c"], Float64[np.ndarray, " c"]]


def correct_prior(
    probabilities: Float64[np.ndarray, "n c"],
    trained: Float64[np.ndarray, " c"],
    deployed: Float64[np.ndarray, " c"],
) -> Float64[np.ndarray, "n c"]:
    """Moves probabilities from the class shares of training to those of use, in closed form.

    Saerens et al. 2002, doi:10.1162/089976602753284446, equation 2.4.

    Args:
        probabilities: of a model that saw the classes in the shares `trained`.
        trained: class shares after sampler and class weights.
        deployed: class shares where the probabilities will be used; 0 where `trained` is.
    """
    for name, prior in (("trained", trained), ("deployed", deployed)):
        if not (np.all(prior >= 0) and np.isclose(prior.sum(), 1)):
            raise InputError(f"{name} prior {prior.tolist()} is not a distribution over classes")
    if np.any(deployed[trained == 0] > 0):
        raise InputError(
            f"trained prior {trained.tolist()} lacks a class that {deployed.tolist()} has"
        )
    factors = np.divide(deployed, trained, out=np.zeros(len(trained)), where=trained > 0)
    shifted = probabilities * factors
    total = shifted.sum(axis=1, keepdims=True)
    return np.divide(shifted, total, out=probabilities.copy(), where=total > 0)


@dataclass(frozen=True)
class Calibration:
    """A map from raw to calibrated probabilities.

    Attributes:
        method: one of `METHODS`.
        state: the method's numbers, plain.
        prior: class shares of training and of use, corrected for before the method; or None.
        losses: log loss of each method tried, cross-validated over validation patients.
    """

    method: str = "none"
    state: dict[str, Any] = field(default_factory=dict)
    prior: tuple[list[float], list[float]] | None = None
    losses: dict[str, float] = field(default_factory=dict)

    def apply(self, raw: Float64[np.ndarray, "n c"]) -> Float64[np.ndarray, "n c"]:
        """Calibrated probabilities of raw ones."""
        corrected = raw
        if self.prior is not None:
            trained, deployed = self.prior
            corrected = correct_prior(raw, np.array(trained), np.array(deployed))
        return (
            corrected if self.method == "none" else METHODS[self.method][1](self.state, corrected)
        )

    def to_state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        prior = None if self.prior is None else [list(part) for part in self.prior]
        return {
            "method": self.method,
            "state": self.state,
            "prior": prior,
            "losses": self.losses,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Calibration":
        """What `to_state` was called on."""
        prior = state["prior"]
        return cls(
            method=state["method"],
            state=state["state"],
            prior=None if prior is None else (list(prior[0]), list(prior[1])),
            losses=state["losses"],
        )


def fit_calibration(
    raw: Float64[np.ndarray, "n c"],
    targets: Int64[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    prior: _Prior | None = None,
    method: str = "auto",
) -> Calibration:
    """Fits a calibration on validation rows.

    `none` corrects the prior only. `temperature` divides the log odds (Guo et al. 2017) and shifts
    them, from where the classes' mean probabilities stay towards what the rows say, held back by a
    prior, so that few rows move little: dividing alone would move the mean of a rare class, and a
    network's own means are off more often than not. `platt` shifts them as the rows say (Platt
    1999, with his smoothed targets; two classes give his method exactly). `isotonic` is a monotone
    step function per class (Zadrozny and Elkan 2002).

    `auto` compares the log loss of the last three in cross-validation over groups, and takes the
    first of them, simplest first, that is within two standard errors (over groups) of the lowest.
    The lowest loss by itself follows noise where validation has a hundred melanomas. `none` does
    not compete: log loss hardly sees that a rare class's log odds are a fifth too far apart, which
    is what a balanced draw of few melanomas does to a network, and would leave them there.

    Nor does `isotonic`, which ties rows, below `ISOTONIC_ROWS` rows.

    Unless two classes have rows of two groups each, nothing can be compared or fitted: none.

    Args:
        raw: probabilities of the network.
        targets: index of the true class.
        groups: patients, kept together in cross-validation.
        prior: class shares of training (after sampler and class weights) and of use.
        method: auto, or one of `METHODS`.
    """
    if method not in ("auto", *METHODS):
        raise InputError(f"no calibration {method!r}; choose from auto, {', '.join(METHODS)}")
    plain = None if prior is None else (prior[0].tolist(), prior[1].tolist())
    corrected = Calibration(prior=plain).apply(raw)
    folds = group_folds(targets, groups, raw.shape[1])
    if method == "none" or folds.max(initial=0) == 0:
        return Calibration(prior=plain)
    names = _competing(len(targets)) if method == "auto" else [method]
    losses = {name: _validated_losses(name, corrected, targets, folds) for name in names}
    best = min(losses, key=lambda name: losses[name].mean())
    chosen = next(name for name in names if _as_good(losses[name] - losses[best], groups))
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    return Calibration(chosen, METHODS[chosen][0](corrected, targets), plain, means)


def _competing(rows: int) -> list[str]:
    left_out = {"none"} if rows >= ISOTONIC_ROWS else {"none", "isotonic"}
    return [name for name in METHODS if name not in left_out]


def group_folds(
    targets: Int64[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"], classes: int
) -> Int64[np.ndarray, " n"]:
    """Deals groups into at most `FOLDS` folds, each class as evenly as it can be.

    A group goes by its rarest class. As many folds as groups hold the second most frequent class;
    where that is one or none, all are in fold 0.
    """
    codes, count = patient_codes(groups)
    holds = np.zeros((count, classes), dtype=bool)
    holds[codes, targets] = True
    spread = holds.sum(axis=0)
    folds = min(FOLDS, int(np.sort(spread)[-2]))
    rarest = np.where(holds, spread, count + 1).argmin(axis=1)
    shuffled = np.random.default_rng(0).permutation(count)
    order = shuffled[np.argsort(rarest[shuffled], kind="stable")]
    fold = np.empty(count, dtype=np.int64)
    fold[order] = np.arange(count) % max(folds, 1)
    return fold[codes]


def _validated_losses(
    method: str,
    probabilities: Float64[np.ndarray, "n c"],
    targets: Int64[np.ndarray, " n"],
    folds: Int64[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
    fit, apply = METHODS[method]
    chance = np.empty(len(targets))
    for fold in np.unique(folds):
        held = folds == fold
        state = fit(probabilities[~held], targets[~held])
        chance[held] = apply(state, probabilities[held])[np.arange(held.sum()), targets[held]]
    return -np.log(np.maximum(chance, TINY))


def _as_good(excess: Float64[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]) -> bool:
    """Whether losses exceed the best ones by no more than chance explains."""
    mean = excess.mean()
    sums = np.bincount(patient_codes(groups)[0], weights=excess - mean)
    return bool(mean <= _STANDARD_ERRORS * np.sqrt(sums @ sums) / len(excess))
