"""Conformal prediction sets, and the range of their coverage."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Shaped
from scipy.special import betaincinv, stdtrit

from skinmm.errors import InputError
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.thresholds import round_down


@dataclass(frozen=True)
class ConformalPredictor:
    """Prediction sets that contain the true class with the stated coverage, for every class.

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
        effective_rows: number of independent rows that determine the coverage as precisely, see
            `count_effective_rows`; None: not known (earlier checkpoints).
    """

    coverage: float
    limits: dict[str, float]
    rows: dict[str, int]
    effective_rows: dict[str, float] | None = None

    def predict_sets(self, probabilities: Float64[np.ndarray, "n c"]) -> Bool[np.ndarray, "n c"]:
        """Return a mask of the classes in the prediction set of each row."""
        return probabilities >= np.array(list(self.limits.values()))

    def coverage_range(self, name: str) -> tuple[float, float] | None:
        """Return `coverage_range` of a class."""
        effective = (self.effective_rows or {}).get(name)
        return coverage_range(self.rows[name], self.coverage, effective_rows=effective)


def fit_conformal(predictions: Predictions, *, coverage: float = 0.9) -> ConformalPredictor:
    """Fit the limit of each class to validation rows.

    Class-conditional split conformal prediction (Vovk 2012, arXiv:1209.2673; Sadinle et al. 2019,
    doi:10.1080/01621459.2018.1395341): the limit is the k-th lowest probability of the true class
    among its n rows, k = floor((1 - coverage) * (n + 1)). Limits are rounded down to six digits, so
    that a probability computed in another batch stays on its side.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage {coverage} is not between 0 and 1")
    limits, rows, effective = {}, {}, {}
    for index, name in enumerate(predictions.classes):
        of_class = predictions.target == index
        p, patients = predictions.probabilities[of_class, index], predictions.patient_id[of_class]
        rank = _limit_rank(len(p), coverage)
        limits[name] = round_down(float(np.sort(p)[rank - 1])) if rank else 0.0
        rows[name] = len(p)
        effective[name] = count_effective_rows(p >= limits[name], patients)
    return ConformalPredictor(coverage, limits, rows, effective)


def count_effective_rows(
    covered: Bool[np.ndarray, " n"], patients: Shaped[np.ndarray, " n"]
) -> float:
    """Return the number of independent rows that would estimate a share with the same precision.

    The number of rows over the design effect (Kish 1965): the variance of the share with whole
    patients left out one by one (the jackknife), over that of independent rows. With few patients
    of unequal size the variance is itself uncertain: it is widened by Student's quantile for
    (sum n)**2 / sum n**2 patients of n rows.
    """
    codes, count = patient_codes(patients)
    rows = len(covered)
    share = covered.mean() if rows else 0.0
    if count == rows or share in (0, 1):
        return float(count)  # a patient whose rows agree counts as one row
    sizes = np.bincount(codes)
    left_out = np.bincount(codes, weights=covered - share) / (1 - sizes / (rows + 1))
    effect = max(1.0, float(left_out @ left_out) / (rows * share * (1 - share)))
    units = max(rows**2 / float(sizes @ sizes), 2)
    widening = stdtrit(units - 1, 0.975) / stdtrit(np.inf, 0.975)
    return float(rows / effect) / float(widening) ** 2  # a NumPy number is no plain data


def coverage_range(
    rows: int, coverage: float, *, effective_rows: float | None = None
) -> tuple[float, float] | None:
    """Return the 95 % range of a class's coverage over validation sets of this size.

    With n independent rows and limit rank k (see `fit_conformal`), the coverage is distributed as
    Beta(n + 1 - k, k) (Vovk 2012, arXiv:1209.2673). With several rows of a patient, n is the number
    of effective rows (`count_effective_rows`) and k = (1 - coverage) * (n + 1). None if the rows
    are too few to exclude the class from any set.
    """
    rank: float = _limit_rank(rows, coverage)
    if rank == 0:
        return None
    size: float = rows
    if effective_rows is not None and effective_rows < rows:
        size, rank = effective_rows, (1 - coverage) * (effective_rows + 1)
    low, high = betaincinv(size + 1 - rank, rank, [0.025, 0.975])
    return float(low), float(high)


def _limit_rank(rows: int, coverage: float) -> int:
    return int((1 - coverage) * (rows + 1) + 1e-9)  # 1 for (1 - 0.9) * 10, despite rounding


def sets_agree(
    called: Bool[np.ndarray, " n"],
    positive: Bool[np.ndarray, " c"],
    sets: Bool[np.ndarray, "n c"],
) -> Bool[np.ndarray, " n"]:
    """Return whether each row's set contains only classes that agree with its decision.

    The rule of earlier checkpoints, which have no `ReferralBand`. A class with too few validation
    rows is in every set, so that no row can be decided to be on the other side.
    """
    malignant, benign = sets[:, positive].any(axis=1), sets[:, ~positive].any(axis=1)
    return np.where(called, malignant & ~benign, benign & ~malignant)
