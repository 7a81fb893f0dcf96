"""Methods of calibration: each a fit to validation rows that gives plain data, and its use."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.special import softmax

from skinmm.errors import InputError
from skinmm.evaluation.intervals import patient_codes

TINY: Final = np.finfo(np.float64).eps
_SCALES: Final = (0.01, 100.0)
_LOOSE: Final = 0.5  # a handful of melanomas does not turn the log odds of a network upside down
_MOST_STEPS: Final = 100
_CONVERGED: Final = 1e-10


def _log(probabilities: Float64[np.ndarray, "..."]) -> Float64[np.ndarray, "..."]:
    return np.log(np.maximum(probabilities, TINY))


def _smoothed(targets: Int64[np.ndarray, " n"], classes: int) -> Float64[np.ndarray, "n c"]:
    """Platt's targets: a row of a class with k rows counts as (k + 1) / (k + 2) of it."""
    rest = 1 / (np.bincount(targets, minlength=classes)[targets] + 2)
    smooth = np.repeat(rest[:, None] / (classes - 1), classes, axis=1)
    smooth[np.arange(len(targets)), targets] = 1 - rest
    return smooth


def _fit_scale(
    probabilities: Float64[np.ndarray, "n c"],
    targets: Int64[np.ndarray, " n"],
    loose: float = np.inf,
) -> dict[str, Any]:
    """Scale of the log probabilities, and shifts of all classes but the first.

    Newton's method on a convex loss: a few steps, and none of the threads of a general optimiser.

    Args:
        probabilities: before.
        targets: index of the true class.
        loose: standard deviation of the scale about 1 before any row was seen.
    """
    rows, classes = probabilities.shape
    truth = _smoothed(targets, classes)
    features = np.zeros((rows, classes, classes))
    features[:, :, 0] = _log(probabilities)
    features[:, range(1, classes), range(1, classes)] = 1
    flat = features.reshape(rows * classes, -1)
    unit = np.eye(classes)[0]
    parameters = unit.copy()
    pull = 1 / (loose**2 * rows)
    for _ in range(_MOST_STEPS):
        chance = softmax(features @ parameters, axis=1)
        gradient = (chance - truth).ravel() @ flat / rows + pull * (parameters[0] - 1) * unit
        mean = np.einsum("nc,nck->nk", chance, features)
        curvature = ((chance.reshape(-1, 1) * flat).T @ flat - mean.T @ mean) / rows
        curvature += np.diag(pull * unit + 1e-9)
        step = np.linalg.solve(curvature, gradient)
        parameters -= step / max(1, np.abs(step).max())
        if np.abs(step).max() < _CONVERGED:
            break
    scale, shifts = float(np.clip(parameters[0], *_SCALES)), np.array([0.0, *parameters[1:]])
    if scale != parameters[0]:
        shifts += _fit_shifts(_log(probabilities) * scale + shifts, targets, np.inf)
    return {"scale": scale, "shifts": (shifts - shifts[0]).tolist()}


def _fit_temperature(
    probabilities: Float64[np.ndarray, "n c"], targets: Int64[np.ndarray, " n"]
) -> dict[str, Any]:
    """The scale that free shifts would have, and shifts held near those that keep the means."""
    scale = _fit_scale(probabilities, targets, loose=_LOOSE)["scale"]
    wanted = _log(probabilities.mean(axis=0))
    scaled, shifts = _log(probabilities) * scale, np.zeros(probabilities.shape[1])
    for _ in range(_MOST_STEPS):
        step = wanted - _log(softmax(scaled + shifts, axis=1).mean(axis=0))
        shifts += step
        if np.abs(step).max() < _CONVERGED:
            break
    shifts += _fit_shifts(scaled + shifts, targets, _LOOSE)
    return {"scale": scale, "shifts": (shifts - shifts[0]).tolist()}


def _fit_shifts(
    logits: Float64[np.ndarray, "n c"], targets: Int64[np.ndarray, " n"], loose: float
) -> Float64[np.ndarray, " c"]:
    """What is best added to each class's logit, with a prior of deviation `loose` about 0."""
    classes = logits.shape[1]
    counts = _smoothed(targets, classes).sum(axis=0)
    shifts = np.zeros(classes)
    for _ in range(_MOST_STEPS):
        chance = softmax(logits + shifts, axis=1)
        gradient = chance.sum(axis=0) - counts + shifts / loose**2
        curvature = np.diag(chance.sum(axis=0) + 1 / loose**2 + 1e-9) - chance.T @ chance
        step = np.linalg.solve(curvature, gradient)
        shifts -= step / max(1, np.abs(step).max())
        if np.abs(step).max() < _CONVERGED:
            break
    return shifts


def _apply_scale(
    state: dict[str, Any], probabilities: Float64[np.ndarray, "n c"]
) -> Float64[np.ndarray, "n c"]:
    return softmax(_log(probabilities) * state["scale"] + np.array(state["shifts"]), axis=1)


def _fit_isotonic(
    probabilities: Float64[np.ndarray, "n c"], targets: Int64[np.ndarray, " n"]
) -> dict[str, Any]:
    """Steps per class, kept from 0 and 1 by what one row more of either kind would leave open."""
    from sklearn.isotonic import IsotonicRegression  # a second, which a prediction need not wait

    rest = 1 / (len(targets) + 2)
    steps = []
    for column in range(probabilities.shape[1]):
        model = IsotonicRegression(y_min=rest, y_max=1 - rest, out_of_bounds="clip")
        model.fit(probabilities[:, column], (targets == column).astype(np.float64))
        steps.append({"x": model.X_thresholds_.tolist(), "y": model.y_thresholds_.tolist()})
    return {"steps": steps}


def _apply_isotonic(
    state: dict[str, Any], probabilities: Float64[np.ndarray, "n c"]
) -> Float64[np.ndarray, "n c"]:
    columns = [
        np.interp(probabilities[:, i], step["x"], step["y"])
        for i, step in enumerate(state["steps"])
    ]
    stepped = np.column_stack(columns)
    return stepped / stepped.sum(axis=1, keepdims=True)


_Fit = Callable[[Float64[np.ndarray, "n c"], Int64[np.ndarray, " n"]], dict[str, Any]]
_Apply = Callable[[dict[str, Any], Float64[np.ndarray, "n c"]], Float64[np.ndarray, "n c"]]

METHODS: Final[dict[str, tuple[_Fit, _Apply]]] = {
    "none": (lambda _probabilities, _targets: {}, lambda _state, probabilities: probabilities),
    "temperature": (_fit_temperature, _apply_scale),
    "platt": (_fit_scale, _apply_scale),
    "isotonic": (_fit_isotonic, _apply_isotonic),
}


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
