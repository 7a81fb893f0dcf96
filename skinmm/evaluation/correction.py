"""Closed-form corrections of probabilities for the training loss and the class shares."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import Float64

from skinmm.errors import InputError

Probabilities = Float64[np.ndarray, "n c"]
_Shares = Float64[np.ndarray, " c"]
Inverse = dict[str, Any]
"""Name of a function of `INVERSES` under `kind`, and its arguments; empty: nothing to invert."""

_TINY: Final = 1e-300
_FLOOR: Final = 1e-3  # slope where a loss has no value: rows stay in order, at almost 0


def invert_loss(probabilities: Any, inverse: Mapping[str, Any] | None, xp: Any = np) -> Any:
    """Convert the minimiser of a training loss to class probabilities.

    Losses other than cross-entropy are minimised by probabilities that are not the shares of the
    classes, however many rows there are. The inverse applies to the classes as drawn and weighted,
    so `correct_prior` comes after it.

    Args:
        probabilities: outputs of a trained network, (n, classes), float64.
        inverse: `inverse` of the loss; empty or None: the probabilities are returned unchanged.
        xp: `numpy`, or `torch` for tensors.
    """
    if not inverse:
        return probabilities
    arguments = {
        name: xp.asarray(value, dtype=xp.float64)
        for name, value in inverse.items()
        if name != "kind"
    }
    values = INVERSES[inverse["kind"]](probabilities, xp, **arguments)
    return values / values.sum(axis=1, keepdims=True)


def _invert_smoothing(p: Any, xp: Any, smoothing: Any) -> Any:
    """Invert p = (1 - smoothing) share + smoothing / classes."""
    return xp.maximum((p - smoothing / p.shape[1]) / (1 - smoothing), _FLOOR * p)


def _invert_focus(p: Any, xp: Any, gammas: Any, margins: Any) -> Any:
    """Invert -(1 - q)^gamma log q with q = min(p + margin, 1), where p is for the true class.

    At the minimum the share of a class is proportional to -1 / (derivative of its loss); for equal
    gammas without margins, theorem 11 of Charoenphakdee et al. 2021 (arXiv:2011.09172). The
    minimum is at probability 0 for a small share of a class with a margin (below about 4 % with the
    default arguments of the asymmetric loss); the inverse then returns the largest of these shares.
    """
    rest = p @ (1 - xp.eye(p.shape[1], dtype=xp.float64))  # 1 - p, precise near p = 1
    rest = xp.clip(xp.maximum(rest - margins, _FLOOR * rest), _TINY, 1)
    log_q = xp.where(
        rest < 1 / 2, xp.log1p(-xp.clip(rest, 0, 1 / 2)), xp.log(xp.clip(p + margins, _TINY, 1))
    )
    slope = rest - gammas * xp.exp(log_q) * log_q
    log_share = log_q - (gammas - 1) * xp.log(rest) - xp.log(slope)
    return xp.exp(log_share - xp.amax(log_share, 1, keepdims=True))


def _invert_margins(p: Any, xp: Any, scale: Any, margins: Any) -> Any:
    """Invert cross-entropy of scaled logits with a margin for the true class.

    At the minimum, the share of a class is proportional to a (1 - a + a exp(-scale * margin)), for
    a = softmax(scale * logits).
    """
    scaled = scale * xp.log(xp.clip(p, _TINY, 1))
    a = xp.exp(scaled - xp.amax(scaled, 1, keepdims=True))
    a = a / a.sum(axis=1, keepdims=True)
    return a * (1 - a + a * xp.exp(-scale * margins))


INVERSES: Final[dict[str, Callable[..., Any]]] = {
    "smoothing": _invert_smoothing,
    "focus": _invert_focus,
    "margins": _invert_margins,
}


def correct_prior(
    probabilities: Probabilities, trained: _Shares, deployed: _Shares
) -> Probabilities:
    """Correct probabilities for class shares that differ between training and deployment.

    p_k * deployed_k / trained_k, normalised (Saerens et al. 2002, doi:10.1162/089976602753284446,
    equation 2.4).

    Args:
        probabilities: of a model that was trained with the class shares `trained`.
        trained: class shares after sampling and class weights.
        deployed: class shares where the model will be used; 0 where `trained` is 0.
    """
    for name, prior in (("trained", trained), ("deployed", deployed)):
        if not (np.all(prior >= 0) and np.isclose(prior.sum(), 1)):
            raise InputError(f"{name} prior {prior.tolist()} is not a distribution over classes")
    if np.any(deployed[trained == 0] > 0):
        raise InputError(
            f"deployed prior {deployed.tolist()} has a class with share 0 in training (trained "
            f"prior {trained.tolist()})"
        )
    factors = np.divide(deployed, trained, out=np.zeros(len(trained)), where=trained > 0)
    shifted = probabilities * factors
    total = shifted.sum(axis=1, keepdims=True)
    return np.divide(shifted, total, out=probabilities.copy(), where=total > 0)
