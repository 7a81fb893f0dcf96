"""Adaptation of calibrated probabilities to the labelled lesions of a site."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Shaped

from skinmm.evaluation.calibration import (
    Probabilities,
    Targets,
    apply_scale,
    fit_parameters,
    group_folds,
    log_probabilities,
)

METHODS: Final = ("none", "intercept", "slope", "both")
NONE: Final = METHODS[0]
PRECISION: Final = (4.0, 0.5)
"""Inverse variances of the normal priors of the slope (around 1) and of each intercept (around 0),
with which a site without a malignant lesion has a finite fit."""
_LEAST_SCALE: Final = 0.05  # the order of the probabilities stays

_Patients = Shaped[np.ndarray, " n"]


def fit_map(
    probabilities: Probabilities,
    targets: Targets,
    method: str,
    precision: tuple[float, float] = PRECISION,
) -> dict[str, Any]:
    """Fit `scale` and `shifts` of softmax(scale * log p + shifts) by penalised maximum likelihood.

    Args:
        probabilities: calibrated, (n, classes).
        targets: index of the true class.
        method: `none`, `intercept` (a shift per class), `slope` (the scale), or `both`: for two
            classes the logistic regression on the log odds (Cox 1958).
        precision: of the priors, see `PRECISION`; (0, 0): none.
    """
    classes = probabilities.shape[1]
    fitted, shifts = np.eye(classes + 1)[0], np.arange(1, classes + 1)
    weights = np.r_[precision[0], np.full(classes, precision[1])]
    rows = log_probabilities(probabilities), np.eye(classes)[targets]
    free = {"intercept": shifts, "slope": np.arange(1), "both": np.arange(classes + 1)}
    if method != NONE:
        fitted = fit_parameters(*rows, fitted, weights, free[method])
    if fitted[0] < _LEAST_SCALE:
        fitted = _LEAST_SCALE * np.eye(classes + 1)[0]
        if method == "both":
            fitted = fit_parameters(*rows, fitted, weights, shifts)
    return {"scale": float(fitted[0]), "shifts": (fitted[1:] - fitted[1]).tolist()}


class Adaptation(NamedTuple):
    """Map of calibrated probabilities for a site, chosen by cross-validation over patients.

    Attributes:
        method: one of `METHODS`.
        state: `scale` and `shifts` of the map, see `fit_map`.
        losses: cross-validated log loss of each method.
        before: log loss without adaptation.
        after: log loss of the whole procedure, choice included, for patients outside of it.
        cross_fitted: probabilities of each row, adapted without the rows of its patient.
    """

    method: str
    state: dict[str, Any]
    losses: dict[str, float]
    before: float
    after: float
    cross_fitted: Probabilities


def fit_adaptation(
    probabilities: Probabilities, targets: Targets, patients: _Patients
) -> Adaptation:
    """Adapt probabilities to labelled rows; leave them unchanged without a cross-validated gain.

    The candidates are affine maps of the log probabilities, as in Godau et al. 2025
    (doi:10.1016/j.media.2025.103504). The method has the lowest log loss in cross-validation, which
    does not divide patients. A second, nested cross-validation repeats this choice; unless its log
    loss is below that of the unchanged probabilities, these stay as they are.
    """
    before, nested = log_loss(probabilities, targets), probabilities.copy()
    for part in _parts(probabilities, targets, patients):
        method, _ = _choose(*(rows[~part] for rows in (probabilities, targets, patients)))
        state = fit_map(probabilities[~part], targets[~part], method)
        nested[part] = apply_scale(state, probabilities[part])
    method, losses = _choose(probabilities, targets, patients)
    after = log_loss(nested, targets)
    if method == NONE or after >= before:
        method, nested, after = NONE, probabilities, before
    state = fit_map(probabilities, targets, method)
    return Adaptation(method, state, losses, before, after, nested)


class EnsembleAdaptation(NamedTuple):
    """Maps of several networks, whose probabilities are averaged.

    Attributes:
        fits: adaptation of each network, with the method `none` if it stays as it is.
        before: mean probabilities without adaptation.
        adapted: mean probabilities with it.
        cross_fitted: the same, each row adapted without the rows of its patient.
        losses: log loss of `before` and of `cross_fitted`.
    """

    fits: list[Adaptation]
    before: Probabilities
    adapted: Probabilities
    cross_fitted: Probabilities
    losses: tuple[float, float]


def fit_ensemble(
    members: Sequence[Probabilities], targets: Targets, patients: _Patients
) -> EnsembleAdaptation:
    """Adapt each network, or none if the mean of their probabilities does not improve."""
    fits = [fit_adaptation(member, targets, patients) for member in members]
    before, nested = (np.mean(p, axis=0) for p in (members, [fit.cross_fitted for fit in fits]))
    losses = log_loss(before, targets), log_loss(nested, targets)
    if losses[1] >= losses[0]:
        fits, nested, losses = [fit._replace(method=NONE) for fit in fits], before, losses[:1] * 2
    pairs = zip(fits, members, strict=True)
    adapted = np.mean(
        [p if f.method == NONE else apply_scale(f.state, p) for f, p in pairs], axis=0
    )
    return EnsembleAdaptation(fits, before, adapted, nested, losses)


def _choose(
    probabilities: Probabilities, targets: Targets, patients: _Patients
) -> tuple[str, dict[str, float]]:
    """Return the method with the lowest cross-validated log loss, and all losses."""
    losses = {NONE: log_loss(probabilities, targets)}
    if parts := _parts(probabilities, targets, patients):
        for method in METHODS[1:]:
            adapted = probabilities.copy()
            for part in parts:
                state = fit_map(probabilities[~part], targets[~part], method)
                adapted[part] = apply_scale(state, probabilities[part])
            losses[method] = log_loss(adapted, targets)
    return min(losses, key=losses.__getitem__), losses


def _parts(
    probabilities: Probabilities, targets: Targets, patients: _Patients
) -> list[Shaped[np.ndarray, " n"]]:
    """Return the masks of the folds; none if the rows cannot be divided."""
    folds = group_folds(targets, patients, probabilities.shape[1])
    return [folds == fold for fold in np.unique(folds)] if folds.max(initial=0) else []


def log_loss(probabilities: Probabilities, targets: Targets) -> float:
    """Return the mean log loss of the true classes."""
    return -float(log_probabilities(probabilities[np.arange(len(targets)), targets]).mean())
