"""When to hand over to a person: conformal sets, and features unlike those of validation."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.linalg import eigh
from scipy.special import betaincinv

from skinmm.errors import InputError
from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.predictions import DECISIONS, REFER, Predictions
from skinmm.evaluation.thresholds import round_down

COMPONENTS: Final = 64
FOLDS: Final = 5
SHARE: Final = 0.95
"""Of validation rows, held out in turn, that lie below the limit of familiarity."""
_LEAST: Final = 1e-6  # of the mean variance: what never varied is not divided by
_TINY: Final = float(np.finfo(np.float32).tiny)
MANY: Final = 256  # rows that BLAS multiplies
_BLOCK: Final = 4096  # rows held in 64 bit at a time


@dataclass(frozen=True)
class ConformalPredictor:
    """Sets of classes that hold the true one with a stated frequency, class by class.

    A class belongs to a row's set when its calibrated probability reaches the class's limit. The
    frequency holds for every class, on average over validation sets, on new rows that come as the
    validation rows came (`coverage_range` says how far one validation set may be off). It does not
    hold by itself within a subgroup, for another hospital, or after the classes' look has changed;
    and several rows of one patient make it vary more than their number suggests.

    Attributes:
        coverage: the stated frequency.
        limits: of each class, in the order of the probabilities; 0 where validation had too few
            rows of it to leave it out ever.
        rows: how many validation rows of each class the limit rests on.
    """

    coverage: float
    limits: dict[str, float]
    rows: dict[str, int]

    def predict_sets(self, probabilities: Float64[np.ndarray, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Which classes each row's set holds."""
        return probabilities >= np.array(list(self.limits.values()))

    def to_state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint; its items are the constructor's arguments."""
        return asdict(self)


def fit_conformal(predictions: Predictions, *, coverage: float = 0.9) -> ConformalPredictor:
    """Limits from validation rows: per class, the probability that enough of its rows reach.

    Class-conditional split conformal prediction (Vovk 2012, Sadinle et al. 2019,
    doi:10.1080/01621459.2018.1395341). Limits are rounded down to six digits, so that a probability
    that is computed in another batch stays on its side.

    Raises:
        InputError: a coverage outside (0, 1).
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1")
    limits, rows = {}, {}
    for index, name in enumerate(predictions.classes):
        own = np.sort(predictions.probabilities[predictions.target == index, index])
        missed = _missed(len(own), coverage)
        limits[name] = round_down(float(own[missed - 1])) if missed else 0.0
        rows[name] = len(own)
    return ConformalPredictor(coverage, limits, rows)


def coverage_range(
    rows: int, coverage: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Where the coverage of a class lies that had this many independent validation rows.

    It is a beta variable over validation sets (Vovk 2012, arXiv:1209.2673).

    Returns:
        The central interval; None where so few rows cannot leave the class out of any set.
    """
    missed = _missed(rows, coverage)
    if missed == 0:
        return None
    tail = (1 - confidence) / 2
    low, high = betaincinv(rows + 1 - missed, missed, [tail, 1 - tail])
    return float(low), float(high)


def _missed(rows: int, coverage: float) -> int:
    # The tolerance keeps (1 - 0.9) * 10 at 1.
    return int((1 - coverage) * (rows + 1) + 1e-9)


def add_decisions(
    predictions: Predictions,
    threshold: float,
    sets: Bool[np.ndarray, "n c"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Predictions:
    """The predictions with sets, unfamiliarity and the decisions that follow from them."""
    called = predictions.malignancy >= threshold
    decision = decide(called, np.isin(predictions.classes, predictions.positive), sets, ood)
    return replace(predictions, decision=decision, sets=sets, ood=ood)


def decide(
    called: Bool[np.ndarray, " n"],
    positive: Bool[np.ndarray, " c"],
    sets: Bool[np.ndarray, "n c"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Shaped[np.ndarray, " n"]:
    """`malignant` or `benign` as the threshold calls, unless something speaks against deciding.

    `refer` where the prediction set does not name classes of the called side alone (it is empty,
    holds both sides, or contradicts the threshold), and where the features are unlike those of
    validation. So nothing that reaches the threshold is ever decided to be benign.

    Args:
        called: malignant by the threshold.
        positive: the classes that count as malignant.
        sets: prediction sets; None: no check.
        ood: unfamiliarity, 1 is the limit; None or NaN: no check.
    """
    decision = np.where(called, "malignant", "benign").astype(object)
    if sets is not None:
        malignant, benign = sets[:, positive].any(axis=1), sets[:, ~positive].any(axis=1)
        decision[~np.where(called, malignant & ~benign, benign & ~malignant)] = REFER
    if ood is not None:
        decision[ood > 1] = REFER
    return decision


class ReferralMetrics:
    """What decisions with referral do, as a function of how often patients are drawn.

    `referred` is a share of all rows; `decided_sensitivity` and `decided_specificity` are over the
    rest; `found_or_referred` is the sensitivity if whoever is referred is found. `set_size` is the
    mean number of classes in a set, `coverage_<class>` the share of the class's sets that hold it,
    `unfamiliar` the share of rows above the limit.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        """Adds up per patient; `predictions` has decisions, and sets and unfamiliarity or not."""
        decision, malignant = predictions.decision, predictions.malignant
        every, decided = np.ones(len(predictions)), decision != REFER
        parts: dict[str, tuple[Any, Any]] = {
            "referred": (~decided, every),
            "decided_sensitivity": (malignant & (decision == DECISIONS[1]), malignant & decided),
            "decided_specificity": (~malignant & (decision == DECISIONS[0]), ~malignant & decided),
            "found_or_referred": (malignant & (decision != DECISIONS[0]), malignant),
        }
        if predictions.ood is not None:
            parts["unfamiliar"] = (predictions.ood > 1, every)
        if predictions.sets is not None:
            parts["set_size"] = (predictions.sets.sum(axis=1), every)
            for index, name in enumerate(predictions.classes):
                rows = predictions.target == index
                parts[f"coverage_{name}"] = (rows & predictions.sets[:, index], rows)
        self.names = list(parts)
        columns = [column for pair in zip(*parts.values(), strict=True) for column in pair]
        self.sums = np.column_stack([np.bincount(codes, weights=column) for column in columns])

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        """Metrics of each resample."""
        part, whole = np.split((draws @ self.sums).T, 2)
        return dict(zip(self.names, ratio(part, whole), strict=True))


@dataclass(frozen=True)
class OODDetector:
    """How far features lie from those of validation: a Mahalanobis distance.

    Attributes:
        mean: of the features.
        directions: in which they vary most, as rows of length 1.
        variances: along the directions.
        rest: variance in every other direction.
        limit: squared distance that the share `SHARE` of held-out validation rows stays below.
    """

    mean: Float32[np.ndarray, " d"]
    directions: Float32[np.ndarray, "k d"]
    variances: Float32[np.ndarray, " k"]
    rest: float
    limit: float = 1.0

    def score(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Squared distance over the limit: above 1 is unlike validation."""
        blocks = np.array_split(features, len(features) // _BLOCK + 1)
        return np.concatenate([self._squared(block) for block in blocks]) / self.limit

    def _squared(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        centred = features.astype(np.float64) - self.mean
        directions = self.directions.astype(np.float64)
        # A few rows not by BLAS: its threads wait for each other, and for those of the network.
        times = np.matmul if len(features) >= MANY else partial(np.einsum, "ij,jk")
        along = times(centred, directions.T)
        left = centred - times(along, directions)
        return (along**2 / self.variances).sum(axis=1) + (left**2).sum(axis=1) / self.rest

    def to_state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        arrays = {name: getattr(self, name).tolist() for name in _ARRAYS}
        return {**arrays, "rest": self.rest, "limit": self.limit}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "OODDetector":
        """What `to_state` was called on."""
        arrays = {name: np.array(state[name], dtype=np.float32) for name in _ARRAYS}
        return cls(**arrays, rest=state["rest"], limit=state["limit"])


_ARRAYS: Final = ("mean", "directions", "variances")


def fit_ood_detector(
    features: Float32[np.ndarray, "n d"],
    patients: Shaped[np.ndarray, " n"],
    *,
    components: int = COMPONENTS,
) -> OODDetector | None:
    """The distance to validation features, and the limit of what is usual.

    Validation rows, not training's: the network has learnt those by heart, so new skin would look
    strange beside them, and these come without a further pass. The limit is that of rows whose
    patients were held out of the fit in turn. The covariance is that of probabilistic principal
    components (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196): exact along the first
    directions, one variance for all others, so that it can be inverted and kept whatever the width
    of the features. One Gaussian for all classes, as a new image has no known class.

    Args:
        features: fused features of validation rows.
        patients: who each row belongs to.
        components: how many directions, at most a fifth of the rows.

    Returns:
        None where nothing can be compared: one patient, or features that never vary.
    """
    codes, count = patient_codes(patients)
    kept = max(1, min(components, features.shape[1], len(features) // FOLDS))
    if count == 1 or len(features) <= FOLDS or not np.ptp(features, axis=0).any():
        return None
    centre = features.mean(axis=0, dtype=np.float64)
    fold = np.random.default_rng(0).permutation(count)[codes] % FOLDS
    parts = {number: _moments(features[fold == number], centre) for number in np.unique(fold)}
    held = np.empty(len(features))
    for number in parts:
        others = [part for other, part in parts.items() if other != number]
        held[fold == number] = _gaussian(others, centre, kept).score(features[fold == number])
    limit = float(np.quantile(held, SHARE, method="higher"))
    return replace(_gaussian(list(parts.values()), centre, kept), limit=max(limit, _TINY))


_Moments = tuple[int, Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]


def _moments(features: Float32[np.ndarray, "n d"], centre: Float64[np.ndarray, " d"]) -> _Moments:
    """Number, sum and sum of products of the rows less the centre, in 64 bit block by block."""
    width = features.shape[1]
    total, products = np.zeros(width), np.zeros((width, width))
    for block in np.array_split(features, len(features) // _BLOCK + 1):
        centred = block - centre
        total += centred.sum(axis=0)
        products += centred.T @ centred
    return len(features), total, products


def _gaussian(
    parts: Sequence[_Moments], centre: Float64[np.ndarray, " d"], kept: int
) -> OODDetector:
    rows = sum(part[0] for part in parts)
    mean = np.sum([part[1] for part in parts], axis=0) / rows
    products = np.sum([part[2] for part in parts], axis=0)
    covariance = (products - rows * np.outer(mean, mean)) / (rows - 1)
    width = len(mean)
    variances, directions = eigh(covariance, subset_by_index=[width - kept, width - 1])
    total = float(np.trace(covariance))
    least = max(_LEAST * total / width, _TINY)
    variances = np.maximum(variances, least)
    left = max(total - float(variances.sum()), 0) / max(width - kept, 1)
    return OODDetector(
        mean=(centre + mean).astype(np.float32),
        directions=directions.T.astype(np.float32),
        variances=variances.astype(np.float32),
        rest=max(left, least),
    )
