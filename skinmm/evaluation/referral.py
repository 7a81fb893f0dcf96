"""Referral to a person: conformal prediction sets, and an out-of-distribution (OOD) score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.linalg import eigh
from scipy.special import betaincinv

from skinmm.errors import InputError
from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import patient_codes, sum_by_patient
from skinmm.evaluation.predictions import DECISIONS, REFER, Predictions
from skinmm.evaluation.thresholds import round_down

COMPONENTS: Final = 64
FOLDS: Final = 5
SHARE: Final = 0.95
"""Share of cross-validated validation rows whose OOD score is at most the limit 1."""
BLAS_ROWS: Final = 256
"""Number of rows from which scores are computed with BLAS."""
_MIN_VARIANCE: Final = 1e-6  # of the mean variance: avoids division by the 0 of constant features
_TINY: Final = float(np.finfo(np.float32).tiny)
_BLOCK: Final = 4096  # rows that are converted to 64 bit at a time


@dataclass(frozen=True)
class ConformalPredictor:
    """Prediction sets that contain the true class with a stated frequency, for every class.

    A set contains a class if its calibrated probability reaches the limit of the class. The
    frequency is the average over validation sets, for new rows from the distribution of the
    validation rows (`coverage_range` gives the variation between validation sets). It is not
    guaranteed within a subgroup, for another hospital, or after a change in how a class looks.
    Several rows of one patient increase the variation. `asdict` gives plain data for a checkpoint.

    Attributes:
        coverage: stated frequency.
        limits: probability limit of each class, in the order of the probabilities; 0 if validation
            has too few rows of the class to exclude it.
        rows: number of validation rows of each class.
    """

    coverage: float
    limits: dict[str, float]
    rows: dict[str, int]

    def predict_sets(self, probabilities: Float64[np.ndarray, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Return the mask of the classes in the set of each row."""
        return probabilities >= np.array(list(self.limits.values()))


def fit_conformal(predictions: Predictions, *, coverage: float = 0.9) -> ConformalPredictor:
    """Fit the limit of each class to validation rows.

    Class-conditional split conformal prediction (Vovk 2012, arXiv:1209.2673; Sadinle et al. 2019,
    doi:10.1080/01621459.2018.1395341): the limit is the k-th lowest probability of the true class
    among its n rows, k = floor((1 - coverage) * (n + 1)). Limits are rounded down to six digits, so
    that a probability computed in another batch stays on its side.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1")
    limits, rows = {}, {}
    for index, name in enumerate(predictions.classes):
        p = np.sort(predictions.probabilities[predictions.target == index, index])
        rank = _limit_rank(len(p), coverage)
        limits[name] = round_down(float(p[rank - 1])) if rank else 0.0
        rows[name] = len(p)
    return ConformalPredictor(coverage, limits, rows)


def coverage_range(
    rows: int, coverage: float, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Return the interval that contains a class's coverage for most validation sets.

    With n independent rows and limit rank k (see `fit_conformal`), the coverage is distributed as
    Beta(n + 1 - k, k) (Vovk 2012, arXiv:1209.2673). None if the rows are too few to exclude the
    class from any set.
    """
    rank = _limit_rank(rows, coverage)
    if rank == 0:
        return None
    tail = (1 - confidence) / 2
    low, high = betaincinv(rows + 1 - rank, rank, [tail, 1 - tail])
    return float(low), float(high)


def _limit_rank(rows: int, coverage: float) -> int:
    return int((1 - coverage) * (rows + 1) + 1e-9)  # 1 for (1 - 0.9) * 10, despite rounding


def add_decisions(
    predictions: Predictions,
    threshold: float,
    sets: Bool[np.ndarray, "n c"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Predictions:
    """Return the predictions with prediction sets, OOD scores and the resulting decisions."""
    called = predictions.malignancy >= threshold
    decision = decide(called, np.isin(predictions.classes, predictions.positive), sets, ood)
    return replace(predictions, decision=decision, sets=sets, ood=ood)


def decide(
    called: Bool[np.ndarray, " n"],
    positive: Bool[np.ndarray, " c"],
    sets: Bool[np.ndarray, "n c"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Shaped[np.ndarray, " n"]:
    """Return the decision for each row: `malignant`, `benign` or `refer`.

    Rows get `malignant` or `benign` by the threshold. They get `refer` if the prediction set is
    empty, contains both sides or contradicts the threshold, or if the OOD score is above 1. A row
    that reaches the threshold is therefore never decided to be benign.

    Args:
        called: malignant by the threshold.
        positive: classes that count as malignant.
        sets: prediction sets; None: no check.
        ood: OOD scores; None or NaN: no check.
    """
    decision = np.where(called, "malignant", "benign").astype(object)
    if sets is not None:
        malignant, benign = sets[:, positive].any(axis=1), sets[:, ~positive].any(axis=1)
        decision[~np.where(called, malignant & ~benign, benign & ~malignant)] = REFER
    if ood is not None:
        decision[ood > 1] = REFER
    return decision


class ReferralMetrics:
    """Metrics of decisions with referral, as functions of how often each patient is drawn.

    `referred` is a share of all rows; `decided_sensitivity` and `decided_specificity` are over the
    other rows; `found_or_referred` is the sensitivity if all referred malignant rows are found.
    `set_size` is the mean number of classes in a set, `coverage_<class>` the share of the rows of
    the class whose set contains it, and `unfamiliar` the share of rows with an OOD score above 1.
    Sets and OOD scores are optional. `codes` are the numbers of the rows' patients.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        decision, malignant = predictions.decision, predictions.malignant
        all_rows, decided = np.ones(len(predictions)), decision != REFER
        shares: dict[str, tuple[Any, Any]] = {
            "referred": (~decided, all_rows),
            "decided_sensitivity": (malignant & (decision == DECISIONS[1]), malignant & decided),
            "decided_specificity": (~malignant & (decision == DECISIONS[0]), ~malignant & decided),
            "found_or_referred": (malignant & (decision != DECISIONS[0]), malignant),
        }
        if predictions.ood is not None:
            shares["unfamiliar"] = (predictions.ood > 1, all_rows)
        if predictions.sets is not None:
            shares["set_size"] = (predictions.sets.sum(axis=1), all_rows)
            for index, name in enumerate(predictions.classes):
                rows = predictions.target == index
                shares[f"coverage_{name}"] = (rows & predictions.sets[:, index], rows)
        self.names = list(shares)
        self.sums = sum_by_patient(codes, chain.from_iterable(zip(*shares.values(), strict=True)))

    def __call__(self, draws: Int64[np.ndarray, "b p"]) -> dict[str, Float64[np.ndarray, " b"]]:
        """Return the metrics of each resample."""
        part, whole = np.split((draws @ self.sums).T, 2)
        return dict(zip(self.names, ratio(part, whole), strict=True))


_ARRAYS: Final = ("mean", "directions", "variances")


@dataclass(frozen=True)
class OODDetector:
    """Squared Mahalanobis distance of features to the validation features, over its limit.

    Attributes:
        mean: mean feature.
        directions: principal directions, unit length.
        variances: variance along each direction.
        rest: variance in every other direction.
        limit: quantile `SHARE` of the squared distances of cross-validated validation rows.
    """

    mean: Float32[np.ndarray, " d"]
    directions: Float32[np.ndarray, "k d"]
    variances: Float32[np.ndarray, " k"]
    rest: float
    limit: float = 1.0

    def score(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Return the OOD score of each row; above 1 it is unlike the validation rows."""
        directions = self.directions.astype(np.float64)
        distances = []
        for block in np.array_split(features, len(features) // _BLOCK + 1):
            centred = block.astype(np.float64) - self.mean
            # Small batches avoid BLAS, whose threads wait for each other and for the network's.
            multiply = np.matmul if len(block) >= BLAS_ROWS else partial(np.einsum, "ij,jk")
            along = multiply(centred, directions.T)
            residual = ((centred - multiply(along, directions)) ** 2).sum(axis=1) / self.rest
            distances.append((along**2 / self.variances).sum(axis=1) + residual)
        return np.concatenate(distances) / self.limit

    def to_state(self) -> dict[str, Any]:
        """Return plain data for a checkpoint."""
        return vars(self) | {name: getattr(self, name).tolist() for name in _ARRAYS}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "OODDetector":
        """Restore a detector from the result of `to_state`."""
        return cls(**state | {name: np.array(state[name], np.float32) for name in _ARRAYS})


def fit_ood_detector(
    features: Float32[np.ndarray, "n d"],
    patients: Shaped[np.ndarray, " n"],
    *,
    components: int = COMPONENTS,
) -> OODDetector | None:
    """Fit the distance to the fused features of validation rows, and its limit by cross-validation.

    Validation rows and not training rows, because the network has memorised the latter and new rows
    would all look unusual; these features also need no further pass. The covariance is that of
    probabilistic PCA (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196): exact along the first
    directions (at most a fifth of the rows), one variance for all others, so that it can be
    inverted for features of any width. One Gaussian for all classes, because the class of a new
    image is unknown. The result equals scikit-learn's PCA; sums of products per fold make the six
    fits more than three times faster. The folds do not divide patients.

    Returns:
        None if no comparison is possible: one patient, or constant features.
    """
    codes, count = patient_codes(patients)
    components = max(1, min(components, features.shape[1], len(features) // FOLDS))
    if count == 1 or len(features) <= FOLDS or not np.ptp(features, axis=0).any():
        return None
    centre = features.mean(axis=0, dtype=np.float64)
    fold = np.random.default_rng(0).permutation(count)[codes] % FOLDS
    parts = {number: _moments(features[fold == number], centre) for number in np.unique(fold)}
    distances = np.empty(len(features))
    for number in parts:
        others = [part for other, part in parts.items() if other != number]
        detector = _fit_gaussian(others, centre, components)
        distances[fold == number] = detector.score(features[fold == number])
    limit = float(np.quantile(distances, SHARE, method="higher"))
    detector = _fit_gaussian(list(parts.values()), centre, components)
    return replace(detector, limit=max(limit, _TINY))


_Moments = tuple[int, Float64[np.ndarray, " d"], Float64[np.ndarray, "d d"]]


def _moments(features: Float32[np.ndarray, "n d"], centre: Float64[np.ndarray, " d"]) -> _Moments:
    """Return count, sum and sum of outer products of the centred rows, in 64 bit."""
    width = features.shape[1]
    total, products = np.zeros(width), np.zeros((width, width))
    for block in np.array_split(features, len(features) // _BLOCK + 1):
        centred = block - centre
        total += centred.sum(axis=0)
        products += centred.T @ centred
    return len(features), total, products


def _fit_gaussian(
    parts: Sequence[_Moments], centre: Float64[np.ndarray, " d"], components: int
) -> OODDetector:
    rows = sum(part[0] for part in parts)
    mean = np.sum([part[1] for part in parts], axis=0) / rows
    products = np.sum([part[2] for part in parts], axis=0)
    covariance = (products - rows * np.outer(mean, mean)) / (rows - 1)
    width = len(mean)
    variances, directions = eigh(covariance, subset_by_index=[width - components, width - 1])
    total = float(np.trace(covariance))
    least = max(_MIN_VARIANCE * total / width, _TINY)
    variances = np.maximum(variances, least)
    rest = max(total - float(variances.sum()), 0) / max(width - components, 1)
    return OODDetector(
        mean=(centre + mean).astype(np.float32),
        directions=directions.T.astype(np.float32),
        variances=variances.astype(np.float32),
        rest=max(rest, least),
    )
