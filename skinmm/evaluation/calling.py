"""Which of several classes is called."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64


def call_shares(rule: str, deployed: Sequence[float]) -> Float64[np.ndarray, " c"]:
    """What a rule divides each class's probability by before the largest is called.

    Args:
        rule: `likeliest` divides all alike, which calls the fewest rows wrongly; `balanced` by the
            class's share, the Bayes rule for the mean of the classes' recalls (Menon et al. 2021,
            "Long-tail learning via logit adjustment", arXiv:2007.07314).
        deployed: class shares where the model is used.
    """
    shares = np.array(deployed, dtype=np.float64)
    return shares if rule == "balanced" else np.full_like(shares, 1 / len(shares))


def call(
    probabilities: Float64[np.ndarray, "n c"], shares: Float64[np.ndarray, " c"]
) -> Int64[np.ndarray, " n"]:
    """Index of each row's called class; one whose share is 0 is never called.

    Args:
        probabilities: calibrated, for classes in the shares of use.
        shares: as `call_shares` gives them; of several models the mean.
    """
    weights = np.divide(1, shares, out=np.zeros_like(shares), where=shares > 0)
    return (probabilities * weights).argmax(axis=1)
