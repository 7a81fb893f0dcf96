"""Calibration of probabilities: methods fitted to validation rows and stored as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Int64, Shaped
from scipy.special import softmax

from skinmm.errors import InputError
from skinmm.evaluation.correction import Inverse, correct_prior, invert_loss
from skinmm.evaluation.intervals import patient_codes

FOLDS: Final = 5
ISOTONIC_ROWS: Final = 1000
_COMPARED: Final = ("temperature", "platt", "isotonic")
_EPSILON: Final = np.finfo(np.float64).eps
_SCALES: Final = (0.01, 100.0)
_PRECISION: Final = 4.0  # of a prior of standard deviation 0.5, which few rows hardly overcome
_RIDGE: Final = 1e-9
_STANDARD_ERRORS: Final = 2.0

Probabilities = Float64[np.ndarray, "n c"]
Targets = Int64[np.ndarray, " n"]
Parameters = Float64[np.ndarray, " k"]
_Losses = Float64[np.ndarray, " n"]
_Groups = Shaped[np.ndarray, " n"]
_Free = Float64[np.ndarray, " f"]
_Shares = Float64[np.ndarray, " c"]


@dataclass(frozen=True)
class Calibration:
    """Map from raw to calibrated probabilities; `asdict` gives plain data for a checkpoint.

    Attributes:
        method: one of `METHODS`.
        state: fitted parameters of the method, plain data.
        prior: class shares of training and of deployment, corrected before the method; or None.
        losses: log loss of each compared method, cross-validated over validation patients.
        inverse: inverse of the training loss, applied before `prior`; None: the loss has none, or
            the checkpoint is older than this attribute.
        site: `scale` and `shifts` that adapt the probabilities to a site, applied last; None: not
            adapted (see `skinmm.evaluation.adaptation`).
    """

    method: str = "none"
    state: dict[str, Any] = field(default_factory=dict)
    prior: Sequence[Sequence[float]] | None = None
    losses: dict[str, float] = field(default_factory=dict)
    inverse: Inverse | None = None
    site: dict[str, Any] | None = None

    def apply(self, raw: Probabilities) -> Probabilities:
        """Return calibrated probabilities for raw ones."""
        raw = invert_loss(raw, self.inverse)
        if self.prior is not None:
            raw = correct_prior(raw, *map(np.array, self.prior))
        calibrated = METHODS[self.method][1](self.state, raw)
        return calibrated if self.site is None else apply_scale(self.site, calibrated)


def fit_calibration(
    raw: Probabilities,
    targets: Targets,
    groups: _Groups,
    *,
    prior: tuple[_Shares, _Shares] | None = None,
    inverse: Inverse | None = None,
    method: str = "auto",
) -> Calibration:
    """Fit a calibration to validation rows.

    - `none` only inverts the loss and corrects the prior.
    - `temperature` scales the log probabilities (Guo et al. 2017, arXiv:1706.04599) and shifts them
      per class. The shifts start where the mean probabilities of the classes are preserved; a prior
      limits how far few rows move them. Scaling alone would move the mean of a rare class, and the
      means of a network are often wrong.
    - `platt` fits scale and shifts freely; for two classes it is exactly the method of Platt 1999.
    - `isotonic` is a monotone step function per class (Zadrozny and Elkan 2002,
      doi:10.1145/775047.775151).
    - `auto` compares the cross-validated log loss of the last three, `isotonic` only from
      `ISOTONIC_ROWS` rows on because it ties rows. It takes the first in this order that is within
      two standard errors (over groups) of the lowest, which by itself follows noise with a hundred
      melanomas. `none` does not compete: log loss hardly detects that the log odds of a rare class
      are a fifth too far apart, which balanced sampling of few melanomas causes.

    The method is `none` unless two classes have rows of at least two groups each.

    `groups` are patients, which cross-validation does not divide. `prior` has the class shares of
    training (after sampling and class weights) and of deployment; `inverse` is that of the loss.
    """
    if method not in ("auto", *METHODS):
        raise InputError(f"no calibration {method!r}; choose from auto, {', '.join(METHODS)}")
    shares = None if prior is None else [part.tolist() for part in prior]
    closed_form = Calibration(prior=shares, inverse=inverse)
    corrected = closed_form.apply(raw)
    folds = group_folds(targets, groups, raw.shape[1])
    if method == "none" or folds.max(initial=0) == 0:
        return closed_form
    compared = _COMPARED if len(targets) >= ISOTONIC_ROWS else _COMPARED[:-1]
    names = [*compared] if method == "auto" else [method]
    losses = {name: _cross_validate(name, corrected, targets, folds) for name in names}
    best = min(losses, key=lambda name: losses[name].mean())
    chosen = next(name for name in names if _is_as_good(losses[name] - losses[best], groups))
    means = {name: float(loss.mean()) for name, loss in losses.items()}
    state = METHODS[chosen][0](corrected, targets)
    return replace(closed_form, method=chosen, state=state, losses=means)


def group_folds(targets: Targets, groups: _Groups, classes: int) -> Targets:
    """Return the fold of each row: groups stay together, classes are spread evenly.

    Each group counts for its rarest class. There are at most `FOLDS` folds, and not more than
    groups with the second most frequent class; with fewer than two, all rows are in fold 0.
    """
    codes, count = patient_codes(groups)
    has_class = np.zeros((count, classes), dtype=bool)
    has_class[codes, targets] = True
    group_counts = has_class.sum(axis=0)
    folds = min(FOLDS, int(np.sort(group_counts)[-2]))
    rarest = np.where(has_class, group_counts, count + 1).argmin(axis=1)
    shuffled = np.random.default_rng(0).permutation(count)
    order = shuffled[np.argsort(rarest[shuffled], kind="stable")]
    fold = np.empty(count, dtype=np.int64)
    fold[order] = np.arange(count) % max(folds, 1)
    return fold[codes]


def log_probabilities(
    probabilities: Float64[np.ndarray, "..."],
) -> Float64[np.ndarray, "..."]:
    """Return the logarithm of probabilities, which are clipped at the machine epsilon."""
    return np.log(np.maximum(probabilities, _EPSILON))


def _cross_validate(
    method: str, probabilities: Probabilities, targets: Targets, folds: Targets
) -> _Losses:
    """Return the log loss of each row, with a calibration fitted to the other folds."""
    fit, apply = METHODS[method]
    calibrated = np.empty_like(probabilities)
    for fold in np.unique(folds):
        test = folds == fold
        state = fit(probabilities[~test], targets[~test])
        calibrated[test] = apply(state, probabilities[test])
    return -log_probabilities(calibrated[np.arange(len(targets)), targets])


def _is_as_good(excess: _Losses, groups: _Groups) -> bool:
    mean = excess.mean()
    sums = np.bincount(patient_codes(groups)[0], weights=excess - mean)
    return bool(mean <= _STANDARD_ERRORS * np.sqrt(sums @ sums) / len(excess))


def _smooth_targets(targets: Targets, classes: int) -> Probabilities:
    """Return Platt's targets: (k + 1) / (k + 2) for the true class if it has k rows."""
    rest = 1 / (np.bincount(targets, minlength=classes)[targets] + 2)
    smooth = np.repeat(rest[:, None] / (classes - 1), classes, axis=1)
    smooth[np.arange(len(targets)), targets] = 1 - rest
    return smooth


def fit_parameters(
    logits: Probabilities,
    truth: Probabilities,
    start: Parameters,
    precision: Parameters,
    free: Int64[np.ndarray, " f"],
) -> Parameters:
    """Minimise the log loss of softmax(scale * logits + shifts), a convex problem.

    `start` has the scale and c shifts to start from, and is the mean of their normal prior with the
    inverse variances `precision`. `free` are the indices of the parameters to fit.
    """
    from scipy.optimize import minimize  # slow to import, and prediction does not fit

    rows, parameters = len(logits), start.copy()

    @lru_cache(1)  # loss and Hessian are evaluated at the same parameters
    def evaluate(*x: float) -> tuple[Any, Probabilities, Any]:
        parameters[free] = x
        scores = logits * parameters[0] + parameters[1:]
        scores -= scores.max(axis=1, keepdims=True)
        p = np.exp(scores)
        totals = p.sum(axis=1, keepdims=True)
        return parameters - start, p / totals, scores - np.log(totals)

    def loss(x: _Free) -> tuple[float, _Free]:
        moved, p, log_p = evaluate(*x)
        residual = p - truth
        gradient = np.r_[np.vdot(residual, logits), residual.sum(axis=0)] + precision * moved
        value = precision @ moved**2 / 2 - np.vdot(truth, log_p)
        return value / rows, gradient[free] / rows

    def hessian(x: _Free) -> Float64[np.ndarray, "f f"]:
        _, p, _ = evaluate(*x)
        spread = p * (logits - (p * logits).sum(axis=1, keepdims=True))
        result = np.diag(np.r_[np.vdot(spread, logits), p.sum(axis=0)] + precision + _RIDGE)
        result[0, 1:] = result[1:, 0] = spread.sum(axis=0)
        result[1:, 1:] -= p.T @ p
        return result[np.ix_(free, free)] / rows

    options = {"gtol": 1e-10}
    result = minimize(loss, start[free], (), "trust-exact", True, hessian, options=options)
    parameters[free] = result.x
    return parameters


def _fit_scale(
    probabilities: Probabilities, targets: Targets, precision: float = 0.0
) -> Parameters:
    """Fit a scale with a normal prior around 1, and shifts without a prior."""
    classes = probabilities.shape[1]
    logits, truth = log_probabilities(probabilities), _smooth_targets(targets, classes)
    start, shifts = np.eye(classes + 1)[0], np.arange(2, classes + 1)
    fitted = fit_parameters(logits, truth, start, precision * start, np.r_[0, shifts])
    scale = float(np.clip(fitted[0], *_SCALES))
    if scale != fitted[0]:
        fitted[0] = scale
        fitted = fit_parameters(logits, truth, fitted, np.zeros_like(start), shifts)
    return fitted


def _to_state(parameters: Parameters) -> dict[str, Any]:
    return {"scale": float(parameters[0]), "shifts": (parameters[1:] - parameters[1]).tolist()}


def _fit_temperature(probabilities: Probabilities, targets: Targets) -> dict[str, Any]:
    """Fit temperature scaling with shifts of the classes, which a prior regularises."""
    logits, classes = log_probabilities(probabilities), probabilities.shape[1]
    start = np.r_[_fit_scale(probabilities, targets, _PRECISION)[0], np.zeros(classes)]
    shifts, precision = np.arange(1, classes + 1), np.r_[0.0, np.full(classes, _PRECISION)]
    # The optimum for the probabilities as targets preserves their means.
    start = fit_parameters(logits, probabilities, start, 0 * precision, shifts[1:])
    truth = _smooth_targets(targets, classes)
    return _to_state(fit_parameters(logits, truth, start, precision, shifts))


def apply_scale(state: dict[str, Any], probabilities: Probabilities) -> Probabilities:
    """Return softmax(scale * log p + shifts)."""
    return softmax(
        log_probabilities(probabilities) * state["scale"] + np.array(state["shifts"]), axis=1
    )


def _fit_isotonic(probabilities: Probabilities, targets: Targets) -> dict[str, Any]:
    """Fit a step function per class, bounded by 1 / (n + 2) and 1 - 1 / (n + 2)."""
    from sklearn.isotonic import IsotonicRegression  # takes a second; prediction does not need it

    rest = 1 / (len(targets) + 2)
    steps = []
    for column in range(probabilities.shape[1]):
        model = IsotonicRegression(y_min=rest, y_max=1 - rest, out_of_bounds="clip")
        model.fit(probabilities[:, column], (targets == column).astype(np.float64))
        steps.append({"x": model.X_thresholds_.tolist(), "y": model.y_thresholds_.tolist()})
    return {"steps": steps}


def _apply_isotonic(state: dict[str, Any], probabilities: Probabilities) -> Probabilities:
    columns = zip(probabilities.T, state["steps"], strict=True)
    stepped = np.column_stack([np.interp(p, step["x"], step["y"]) for p, step in columns])
    return stepped / stepped.sum(axis=1, keepdims=True)


_Fit = Callable[[Probabilities, Targets], dict[str, Any]]
_Apply = Callable[[dict[str, Any], Probabilities], Probabilities]

METHODS: Final[dict[str, tuple[_Fit, _Apply]]] = {
    "none": (lambda _probabilities, _targets: {}, lambda _state, probabilities: probabilities),
    "temperature": (_fit_temperature, apply_scale),
    "platt": (lambda raw, targets: _to_state(_fit_scale(raw, targets)), apply_scale),
    "isotonic": (_fit_isotonic, _apply_isotonic),
}
