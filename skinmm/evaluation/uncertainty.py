"""When to hand over to a person: conformal sets, and images unlike those of training."""

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped
from sklearn.decomposition import PCA

from skinmm.errors import InputError
from skinmm.evaluation.predictions import Predictions

DECISIONS: Final = ("benign", "malignant", "refer")
COMPONENTS: Final = 64
_LEAST: Final = 1e-6  # of the mean variance: what never varied in training is not divided by


@dataclass(frozen=True)
class Conformal:
    """Sets of classes that hold the true one with a stated frequency, class by class.

    A class belongs to a row's set when its probability reaches the class's limit. The frequency
    holds for every class, on new rows that come as the validation rows came. It does not hold by
    itself within a subgroup, for another hospital, or after the classes' look has changed; and
    several rows of one patient make it vary more than their number suggests.

    Attributes:
        classes: names, in the order of the probabilities.
        positive: those that count as malignant.
        coverage: the stated frequency.
        limits: one per class; 0 where validation had too few rows of it to leave it out ever.
    """

    classes: tuple[str, ...]
    positive: tuple[str, ...]
    coverage: float
    limits: tuple[float, ...]

    def sets(self, probabilities: Float64[np.ndarray, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Which classes each row's set holds."""
        return probabilities >= np.array(self.limits)

    def decide(self, probabilities: Float64[np.ndarray, "n c"]) -> Shaped[np.ndarray, " n"]:
        """`benign` or `malignant` where the set holds classes of that side only, else `refer`."""
        sets = self.sets(probabilities)
        malignant = np.isin(self.classes, self.positive)
        some = sets[:, malignant].any(axis=1), sets[:, ~malignant].any(axis=1)
        return np.select([some[1] & ~some[0], some[0] & ~some[1]], DECISIONS[:2], DECISIONS[2])

    def to_state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "classes": list(self.classes),
            "positive": list(self.positive),
            "coverage": self.coverage,
            "limits": list(self.limits),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Conformal":
        """What `to_state` was called on."""
        return cls(
            tuple(state["classes"]),
            tuple(state["positive"]),
            state["coverage"],
            tuple(state["limits"]),
        )


def fit_conformal(predictions: Predictions, *, coverage: float = 0.9) -> Conformal:
    """Limits from validation rows: per class, the probability that enough of its rows reach.

    Class-conditional split conformal prediction (Vovk 2012, Sadinle et al. 2019,
    doi:10.1080/01621459.2018.1395341).

    Raises:
        InputError: a coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1")
    limits = []
    for index in range(len(predictions.classes)):
        own = np.sort(predictions.probabilities[predictions.target == index, index])
        # The tolerance keeps (1 - 0.9) * 10 at 1.
        missed = int((1 - coverage) * (len(own) + 1) + 1e-9)
        limits.append(float(own[missed - 1]) if missed else 0.0)
    return Conformal(predictions.classes, predictions.positive, coverage, tuple(limits))


def describe_sets(conformal: Conformal, predictions: Predictions) -> dict[str, Any]:
    """What the sets do on labelled rows: coverage of each class, and what is referred.

    Returns:
        Plain data: `coverage` (class -> `n` and `value`), `referred` (share of rows), and the
        `sensitivity` and `specificity` of the rest; None where no row says.
    """
    held = conformal.sets(predictions.probabilities)[
        np.arange(len(predictions)), predictions.target
    ]
    decisions = conformal.decide(predictions.probabilities)
    malignant = predictions.malignant
    coverage = {}
    for index, name in enumerate(predictions.classes):
        rows = predictions.target == index
        coverage[name] = {"n": int(rows.sum()), "value": _share(held, rows)}
    decided = decisions != DECISIONS[2]
    return {
        "coverage": coverage,
        "referred": _share(~decided, np.ones_like(decided)),
        "sensitivity": _share(decisions == DECISIONS[1], malignant & decided),
        "specificity": _share(decisions == DECISIONS[0], ~malignant & decided),
    }


def _share(hits: Bool[np.ndarray, " n"], among: Bool[np.ndarray, " n"]) -> float | None:
    return float(hits[among].mean()) if among.any() else None


@dataclass(frozen=True)
class Familiarity:
    """How far features lie from those of training: a Mahalanobis distance.

    Attributes:
        mean: of the training features.
        directions: in which they vary most, as rows of length 1.
        variances: along the directions.
        rest: variance in every other direction.
        limit: score that a stated share of validation rows stays below.
    """

    mean: Float64[np.ndarray, " d"]
    directions: Float64[np.ndarray, "k d"]
    variances: Float64[np.ndarray, " k"]
    rest: float
    limit: float

    def score(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Squared distance over the number of features: 1 on average in training."""
        centred = features.astype(np.float64) - self.mean
        along = centred @ self.directions.T
        left = np.maximum((centred**2).sum(axis=1) - (along**2).sum(axis=1), 0)
        return ((along**2 / self.variances).sum(axis=1) + left / self.rest) / len(self.mean)

    def to_state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "mean": self.mean.tolist(),
            "directions": self.directions.tolist(),
            "variances": self.variances.tolist(),
            "rest": self.rest,
            "limit": self.limit,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Familiarity":
        """What `to_state` was called on."""
        arrays = {key: np.array(state[key]) for key in ("mean", "directions", "variances")}
        return cls(**arrays, rest=state["rest"], limit=state["limit"])


def fit_familiarity(
    training: Float[np.ndarray, "n d"],
    validation: Float[np.ndarray, "m d"],
    *,
    components: int = COMPONENTS,
    share: float = 0.99,
) -> Familiarity:
    """Distance to the training features, and the limit that a share of validation stays below.

    The covariance is that of probabilistic principal components (Tipping and Bishop 1999,
    doi:10.1111/1467-9868.00196): exact along the first directions, one variance for all others, so
    that it can be inverted and kept whatever the width of the features. One Gaussian for all
    classes, as a new image has no known class.

    Args:
        training: fused features of training rows, two at least.
        validation: of rows that training did not see; only they tell what is usual.
        components: how many directions.
        share: of validation rows below the limit.

    Raises:
        InputError: too few rows, or features that never vary.
    """
    rows, width = training.shape
    if rows <= 1 or len(validation) == 0:
        raise InputError(f"{rows} training and {len(validation)} validation rows are too few")
    features = training.astype(np.float64)
    total = float(features.var(axis=0, ddof=1).sum())
    if total == 0:
        raise InputError("the features are the same in all training rows")
    kept = min(components, width, rows - 1)
    model = PCA(kept, random_state=0).fit(features)
    least = _LEAST * total / width
    variances = np.maximum(model.explained_variance_, least)
    left = max(total - float(variances.sum()), 0) / max(width - kept, 1)
    fitted = Familiarity(
        mean=model.mean_,
        directions=model.components_,
        variances=variances,
        rest=max(left, least),
        limit=np.inf,
    )
    return replace(fitted, limit=float(np.quantile(fitted.score(validation), share)))
