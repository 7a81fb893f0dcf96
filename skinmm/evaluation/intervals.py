"""Intervals and tests that know that rows of one patient are not independent."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped
from scipy.stats import norm, t

Statistic = Callable[[Int64[np.ndarray, "b p"]], dict[str, Float64[np.ndarray, " b"]]]
"""From how often each of b resamples drew each patient, to metrics; NaN where undefined."""

_BLOCK: Final = 2**20
_THREADS: Final = 2


def patient_codes(
    patients: Shaped[np.ndarray, " n"],
) -> tuple[Int64[np.ndarray, " n"], int]:
    """Numbers the patients in order of appearance: each row's number, and how many there are."""
    codes, names = pd.factorize(patients)
    return codes.astype(np.int64), len(names)


def bootstrap(
    statistic: Statistic, patients: int, rows: int, *, resamples: int, seed: int
) -> dict[str, Float64[np.ndarray, " r"]]:
    """Metrics of resamples that draw whole patients with replacement.

    Args:
        statistic: of a block of resamples; called from several threads.
        patients: how many there are to draw from.
        rows: how many there are.
        resamples: how many.
        seed: the same seed and sizes give the same draws, so that two statistics can be paired.
    """
    block = max(1, _BLOCK // max(rows, patients))

    def measure(start: int) -> dict[str, Float64[np.ndarray, " b"]]:
        size = min(block, resamples - start)
        drawn = np.random.default_rng([seed, start]).integers(patients, size=(size, patients))
        drawn += np.arange(size)[:, None] * patients
        counts = np.bincount(drawn.ravel(), minlength=size * patients)
        return statistic(counts.reshape(size, patients))

    with ThreadPoolExecutor(_THREADS) as pool:
        parts = list(pool.map(measure, range(0, resamples, block)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def independent_units(codes: Int64[np.ndarray, " n"], positives: Bool[np.ndarray, " n"]) -> int:
    """Patients of the rarer class; of the only one, where there is one."""
    counts = [len(np.unique(codes[rows])) for rows in (positives, ~positives) if rows.any()]
    return min(counts)


def percentile_interval(
    samples: Float64[np.ndarray, " r"], confidence: float, units: int
) -> tuple[float | None, float | None, int]:
    """Percentile interval of a bootstrap, and the number of resamples left out as undefined.

    The percentiles lie further out the fewer units there are, as Student's quantiles do, since
    percentile intervals of small samples are too narrow (Hesterberg 2015,
    doi:10.1080/00031305.2015.1089789).

    Args:
        samples: NaN where undefined.
        confidence: of the interval.
        units: independent units behind the samples, see `independent_units`.
    """
    known = samples[~np.isnan(samples)]
    left_out = len(samples) - len(known)
    if len(known) == 0:
        return None, None, left_out
    units = max(units, 2)
    reach = np.sqrt(units / (units - 1)) * t.ppf((1 + confidence) / 2, units - 1)
    low, high = np.quantile(known, norm.cdf([-reach, reach]))
    return float(low), float(high), left_out


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p-values (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    adjusted = np.maximum.accumulate(np.asarray(p_values)[order] * factors)
    result = np.empty(len(p_values))
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()
