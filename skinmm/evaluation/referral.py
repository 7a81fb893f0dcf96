"""Decisions with referral to a person, and an out-of-distribution (OOD) score."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy.linalg import eigh

from skinmm.evaluation.curves import ratio
from skinmm.evaluation.intervals import patient_codes, sum_by_patient
from skinmm.evaluation.predictions import DECISIONS, REFER, Predictions
from skinmm.evaluation.thresholds import ReferralBand

COMPONENTS: Final = 64
FOLDS: Final = 5
SHARE: Final = 0.95
"""Share of cross-validated validation rows whose OOD score is at most the limit 1."""
BLAS_ROWS: Final = 256
"""Number of rows from which scores are computed with BLAS."""
_MIN_VARIANCE: Final = 1e-6  # of the mean variance: avoids division by the 0 of constant features
_TINY: Final = float(np.finfo(np.float32).tiny)
_BLOCK: Final = 4096  # rows that are converted to 64 bit at a time


def add_decisions(
    predictions: Predictions,
    threshold: float,
    band: ReferralBand | None,
    sets: Bool[np.ndarray, "n c"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Predictions:
    """Return the predictions with prediction sets, OOD scores and the resulting decisions."""
    malignancy = predictions.malignancy
    called = malignancy >= threshold
    is_safe = None if band is None else band.is_safe(called, malignancy)
    return replace(predictions, decision=decide(called, is_safe, ood), sets=sets, ood=ood)


def decide(
    called: Bool[np.ndarray, " n"],
    is_safe: Bool[np.ndarray, " n"] | None,
    ood: Float64[np.ndarray, " n"] | None,
) -> Shaped[np.ndarray, " n"]:
    """Return the decision for each row: `malignant`, `benign` or `refer`.

    Rows get `malignant` or `benign` by the threshold. They get `refer` if this is not safe, or if
    the OOD score is above 1. A row that reaches the threshold is therefore never decided to be
    benign.

    Args:
        called: malignant by the threshold.
        is_safe: result of `ReferralBand.is_safe`; None: no check.
        ood: OOD scores; None or NaN: no check.
    """
    decision = np.where(called, "malignant", "benign").astype(object)
    if is_safe is not None:
        decision[~is_safe] = REFER
    if ood is not None:
        decision[ood > 1] = REFER
    return decision


class ReferralMetrics:
    """Metrics of decisions with referral, as functions of the number of draws of each patient.

    `referred` is a share of all rows; `decided_sensitivity` and `decided_specificity` are over the
    other rows. `decided_ppv` is the share of malignant rows among those decided malignant,
    `decided_npv` that of benign rows among those decided benign. `found_or_referred` is the share
    of malignant rows that are not decided benign, `cleared_or_referred` that of benign rows that
    are not decided malignant.
    `set_size` is the mean number of classes in a set, `coverage_<class>` the share of the rows of
    the class whose set contains it, and `unfamiliar` the share of rows with an OOD score above 1.
    Sets and OOD scores are optional. `codes` are the numbers of the rows' patients.
    """

    def __init__(self, predictions: Predictions, codes: Int64[np.ndarray, " n"]) -> None:
        decision, malignant = predictions.decision, predictions.malignant
        all_rows, decided = np.ones(len(predictions)), decision != REFER
        is_benign, is_malignant = (decision == name for name in DECISIONS[:2])
        shares: dict[str, tuple[Any, Any]] = {
            "referred": (~decided, all_rows),
            "decided_sensitivity": (malignant & is_malignant, malignant & decided),
            "decided_specificity": (~malignant & is_benign, ~malignant & decided),
            "decided_ppv": (malignant & is_malignant, is_malignant),
            "decided_npv": (~malignant & is_benign, is_benign),
            "found_or_referred": (malignant & ~is_benign, malignant),
            "cleared_or_referred": (~malignant & ~is_malignant, ~malignant),
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
    """Squared Mahalanobis distance to the features of fitted rows, divided by its limit.

    Attributes:
        mean: mean feature.
        directions: principal directions, unit length.
        variances: variance along each direction.
        rest: variance in every other direction.
        limit: quantile `SHARE` of the squared distances of cross-validated fitted rows.
    """

    mean: Float32[np.ndarray, " d"]
    directions: Float32[np.ndarray, "k d"]
    variances: Float32[np.ndarray, " k"]
    rest: float
    limit: float = 1.0

    def score(self, features: Float[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
        """Return the OOD score of each row; rows above 1 are unlike the fitted rows."""
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


def cross_fit_ood(
    features: Float32[np.ndarray, "n d"],
    patients: Shaped[np.ndarray, " n"],
    *,
    components: int = COMPONENTS,
) -> tuple[OODDetector, Float64[np.ndarray, " n"]] | None:
    """Fit an OOD detector to the fused features of validation rows, with a cross-validated limit.

    Validation rows and not training rows, because the network has memorised the latter and new rows
    would all look unusual; these features also need no further pass. The covariance is that of
    probabilistic PCA (Tipping and Bishop 1999, doi:10.1111/1467-9868.00196): exact along the first
    directions (at most a fifth of the rows), one variance for all others, so that it can be
    inverted for features of any width. One Gaussian for all classes, because the class of a new
    image is unknown. The result equals scikit-learn's PCA; sums of products per fold make the six
    fits more than three times faster. The folds do not divide patients.

    Returns:
        The detector, and the cross-validated scores of its fitting rows: scored by the detector
        itself, these would look more familiar than new ones. None if no comparison is possible: one
        patient, or constant features.
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
    detector = replace(detector, limit=max(limit, _TINY))
    return detector, distances / detector.limit


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
