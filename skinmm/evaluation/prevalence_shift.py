"""Estimate of the class shares of unlabelled rows, and a test for other changes."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Shaped

from skinmm.evaluation.adaptation import fit_map
from skinmm.evaluation.calibration import Probabilities, Targets, apply_scale
from skinmm.evaluation.intervals import patient_codes

SIGNIFICANCE: Final = 0.05
_MAX_STEPS: Final = 2000
_CONVERGED: Final = 1e-7
_TINY: Final = 1e-12

_Patients = Shaped[np.ndarray, " n"]
_Shares = Float64[np.ndarray, " c"]
_Weights = Float64[np.ndarray, "b n"]
_Ood = Float64[np.ndarray, " n"]
_ReferenceOod = Float64[np.ndarray, " m"]
_Reference = tuple[Float64[np.ndarray, "m c"], Int64[np.ndarray, " m"], Shaped[np.ndarray, " m"]]


class PrevalenceShift(NamedTuple):
    """Class shares of a site without labels.

    Attributes:
        shares: estimated share of each class, with half a patient added to it.
        low: lower ends of their 95 % intervals, over patients of the site and of the reference.
        high: upper ends.
        is_changed: whether the interval of a class of the reference excludes the share before.
        p: of the test that only the shares differ from the reference.
        state: `scale` (1) and `shifts` of the map to the new shares, see `fit_map`.
    """

    shares: list[float]
    low: list[float]
    high: list[float]
    is_changed: bool
    p: float
    state: dict[str, Any]

    @property
    def is_plausible(self) -> bool:
        """Return whether the scores fit a change of the shares alone."""
        return self.p >= SIGNIFICANCE


def estimate_shift(
    probabilities: Probabilities,
    patients: _Patients,
    reference: _Reference,
    prior: Sequence[float],
    *,
    ood: tuple[_Ood, _ReferenceOod] | None = None,
    resamples: int = 200,
) -> PrevalenceShift:
    """Estimate the class shares of rows without labels, and test whether only they have changed.

    The shares are estimated by EM (`estimate_shares`). The percentile interval is over resampled
    patients of the site, with probabilities calibrated again on resampled patients of the
    reference. The test statistic is the largest Kolmogorov-Smirnov distance between the rows and
    the reference, weighted to the estimated shares: of the probability of each class, and of the
    OOD score, without which other images may pass for another share. Its distribution under the
    hypothesis is that of patients drawn from the reference in these shares, each time with new
    estimates and a resampled reference.

    Args:
        probabilities: calibrated probabilities of the site, (n, classes).
        patients: patient of each row.
        reference: calibrated probabilities, true classes and patients of validation rows.
        prior: class shares for which the probabilities were calibrated.
        ood: OOD scores of the site and of the reference.
        resamples: number of resamples of the interval and of the test.
    """
    old, rng = np.array(prior, dtype=np.float64), np.random.default_rng(0)
    codes, count = patient_codes(patients)
    groups, _ = patient_codes(reference[2])
    # With half a patient more in each class, so that no class becomes impossible.
    shares = estimate_shares(probabilities, old)[0] * count + np.where(old > 0, 0.5, 0)
    shares /= shares.sum()
    coded = reference[0], reference[1], groups
    drawn = [_resample_shares(probabilities, codes, coded, rng) for _ in range(resamples)]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    low, high = np.minimum(low, shares), np.maximum(high, shares)
    scores = np.vstack([probabilities, reference[0]])
    if ood is not None:
        scores = np.column_stack([scores, np.nan_to_num(np.concatenate(ood), nan=np.inf)])
    p = _test_shift(scores, count, reference, shares, old, resamples, rng)
    shifts = np.log(np.maximum(shares, _TINY)) - np.log(np.maximum(old, _TINY))
    state = {"scale": 1.0, "shifts": (shifts - shifts[0]).tolist()}
    is_known = np.bincount(reference[1], minlength=len(old)) > 0
    is_changed = bool(((old < low) | (high < old))[is_known].any())
    return PrevalenceShift(shares.tolist(), low.tolist(), high.tolist(), is_changed, p, state)


def _resample_shares(
    probabilities: Probabilities,
    codes: Int64[np.ndarray, " n"],
    reference: _Reference,
    rng: np.random.Generator,
) -> _Shares:
    """Estimate the class shares on one bootstrap resample of target and reference patients.

    Patients are codes from 0, see `patient_codes`.
    """
    known, targets, groups = reference
    rows = np.repeat(np.arange(len(targets)), _draw_rows(groups, rng))
    state = fit_map(known[rows], targets[rows], "both")
    prior = np.bincount(targets[rows], minlength=known.shape[1]) / len(rows)
    weights = _draw_rows(codes, rng)[None].astype(np.float64)
    shares: _Shares = estimate_shares(apply_scale(state, probabilities), prior, weights)[0]
    return shares


def _draw_rows(codes: Int64[np.ndarray, " n"], rng: np.random.Generator) -> Int64[np.ndarray, " n"]:
    """Return how often each row is drawn if as many patients are drawn with replacement."""
    count = int(codes.max()) + 1
    return np.asarray(rng.multinomial(count, np.full(count, 1 / count))[codes])


def _test_shift(
    scores: Float64[np.ndarray, "rows k"],
    patients: int,
    reference: _Reference,
    shares: _Shares,
    prior: _Shares,
    resamples: int,
    rng: np.random.Generator,
) -> float:
    """Return the p-value of `estimate_shift`; the rows of the site come first in `scores`."""
    targets = reference[1]
    site = len(scores) - len(targets)
    present = np.bincount(targets, minlength=len(prior)) > 0
    mixed = np.where(present, shares, 0) / shares[present].sum()
    expected = _mixture(targets, np.ones((1, len(targets))), mixed)
    observed = _distances(scores, np.hstack([np.full((1, site), 1 / site), -expected]))
    differences = _simulate(reference, mixed, prior, patients, resamples, rng)
    simulated = _distances(scores[site:], differences)
    return (1 + int((simulated >= observed - _TINY).sum())) / (resamples + 1)


def estimate_shares(
    probabilities: Probabilities, prior: _Shares, weights: _Weights | None = None
) -> Float64[np.ndarray, "b c"]:
    """Return the class shares by EM (Saerens et al. 2002, doi:10.1162/089976602753284446).

    They are valid only if the lesions of each class are those that calibrated the probabilities.

    Args:
        probabilities: calibrated for the class shares `prior`, (n, classes).
        prior: these class shares; a class with share 0 stays at 0.
        weights: b weightings of the rows, (b, n); None: ones.
    """
    weights = np.ones((1, len(probabilities))) if weights is None else weights
    weights = weights / weights.sum(axis=1, keepdims=True)
    ratios = np.divide(probabilities, prior, out=np.zeros_like(probabilities), where=prior > 0)
    shares = np.tile(prior, (len(weights), 1))
    for _ in range(_MAX_STEPS):
        totals = np.maximum(shares @ ratios.T, _TINY)
        updated = shares * ((weights / totals) @ ratios)  # the mean of the posteriors
        updated /= updated.sum(axis=1, keepdims=True)
        change, shares = np.abs(updated - shares).max(), updated
        if change < _CONVERGED:
            break
    return shares


def _mixture(targets: Targets, weights: _Weights, shares: Float64[np.ndarray, "... c"]) -> _Weights:
    """Return row weights that give each class its share."""
    totals = np.maximum(weights @ np.eye(shares.shape[-1])[targets], _TINY)
    mixed = weights * (shares / totals)[:, targets]
    return mixed / mixed.sum(axis=1, keepdims=True)


def _simulate(
    reference: _Reference,
    shares: _Shares,
    prior: _Shares,
    count: int,
    resamples: int,
    rng: np.random.Generator,
) -> _Weights:
    """Simulate how much row weights differ by chance if only the class shares have changed.

    `count` patients with the estimated shares are compared with a resampled reference.
    """
    probabilities, targets, patients = reference
    codes, total = patient_codes(patients)
    weights = _mixture(targets, np.ones((1, len(targets))), shares)[0]
    mean = np.bincount(codes, weights) / np.bincount(codes)
    draws = rng.multinomial(count, mean / mean.sum(), size=resamples)[:, codes]
    drawn = draws * (weights / np.maximum(mean[codes], _TINY))
    drawn /= drawn.sum(axis=1, keepdims=True)
    again = rng.multinomial(total, np.full(total, 1 / total), size=resamples)[:, codes]
    estimated = estimate_shares(probabilities, prior, drawn)
    expected = _mixture(targets, again.astype(np.float64), estimated)
    return np.asarray(drawn - expected)


def _distances(
    scores: Float64[np.ndarray, "n k"], differences: _Weights
) -> Float64[np.ndarray, " b"]:
    """Return the largest distance between two distribution functions over all columns.

    `differences` are the row weights of one distribution minus those of the other.
    """
    distances = np.zeros(len(differences))
    for column in scores.T:
        order = np.argsort(column, kind="stable")
        is_last = np.r_[np.diff(column[order]) > 0, True]  # of equal values
        gaps = np.abs(np.cumsum(differences[:, order], axis=1))[:, is_last]
        distances = np.maximum(distances, gaps.max(axis=1))
    return distances
