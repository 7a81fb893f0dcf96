"""Methods of calibration: each a fit to validation rows that gives plain data, and its use."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64
from scipy.special import softmax

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
