"""Metrics of subgroups of patients, and tests of the differences between them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from skinmm.evaluation.comparison import adjust_holm
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions

UNKNOWN: Final = "not known"
OTHER: Final = "other"
MIN_MALIGNANT: Final = 10
"""Malignant rows that a group needs for its sensitivity to be compared with that of others."""

_AGES: Final = (0, 40, 60, 80, np.inf)  # years
_AGE_NAMES: Final = ("under 40", "40 to 59", "60 to 79", "80 and over")
_MAX_VALUES: Final = 6


@dataclass(frozen=True)
class Group:
    """Mask of the rows that share a value of a column."""

    column: str
    name: str
    rows: Bool[np.ndarray, " n"]


def build_groups(records: pd.DataFrame) -> list[Group]:
    """Group rows by sex, age band, site, source, image size and skin tone.

    A column with one value gives no group. Values beyond the six most frequent are one group.
    Categorical columns give groups in the order of their categories.

    Args:
        records: canonical rows, in the order of the predictions; columns and cells may be missing.
    """
    columns = {name: records[name] for name in ("sex", "age", "site", "source") if name in records}
    numbers = records.filter(["age", "width", "height"]).apply(pd.to_numeric, errors="coerce")
    if "age" in columns:
        columns["age"] = pd.cut(numbers["age"], _AGES, right=False, labels=_AGE_NAMES)
    if {"width", "height"} <= set(records):
        sides = numbers[["width", "height"]]
        text = sides.fillna(0).astype(int).astype(str)
        sizes = text["width"].str.cat(text["height"], sep="x")
        columns["image size"] = sizes.where(sides.notna().all(axis=1))
    if "skin_tone" in records:
        columns["skin tone (estimated)"] = records["skin_tone"]
    return [group for name, values in columns.items() for group in _split(name, values)]


def _split(column: str, values: "pd.Series[Any]") -> list[Group]:
    words = values.astype(object).where(values.notna(), UNKNOWN).astype(str)
    frequent = [word for word in words.value_counts().index if word != UNKNOWN][:_MAX_VALUES]
    words = words.where(words.isin([*frequent, UNKNOWN]), OTHER)
    has_order = isinstance(values.dtype, pd.CategoricalDtype)
    order = [*(values.cat.categories if has_order else sorted(frequent)), OTHER, UNKNOWN]
    names = [name for name in dict.fromkeys(order) if (words == name).any()]
    if len(names) <= 1:
        return []
    return [Group(column, name, (words == name).to_numpy(bool)) for name in names]


def evaluate_subgroups(
    predictions: Predictions, groups: Sequence[Group], **settings: Any
) -> list[dict[str, Any]]:
    """Evaluate each group; the results also have the keys `column` and `group`."""
    return [
        {"column": group.column, "group": group.name}
        | evaluate(predictions.select(group.rows), **settings)
        for group in groups
    ]


def sensitivity_gaps(
    predictions: Predictions,
    groups: Sequence[Group],
    *,
    threshold: float,
    permutations: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the highest minus the lowest sensitivity by column, with a test.

    Only groups with a known value and at least `MIN_MALIGNANT` malignant rows are compared; columns
    with fewer than two are omitted. The interval is simultaneous over all pairs of the column's
    groups, so that it allows for the selection of two of them. The test is for any difference
    between the groups (`heterogeneity_p`), with Holm's adjustment over the columns.

    Returns:
        For each column `column`, the number of `groups`, the names `lowest` and `highest`, `value`,
        `low`, `high`, `p`, `p_holm`.
    """
    malignant = predictions.malignant
    hits = predictions.malignancy[malignant] >= threshold
    codes, _ = patient_codes(predictions.patient_id[malignant])
    gaps: list[dict[str, Any]] = []
    for column in dict.fromkeys(group.column for group in groups):
        members = {
            group.name: group.rows[malignant]
            for group in groups
            if group.column == column and group.name not in (UNKNOWN, OTHER)
        }
        names = [name for name, rows in members.items() if rows.sum() >= MIN_MALIGNANT]
        if len(names) > 1:
            masks = np.array([members[name] for name in names])
            rows = masks.any(axis=0)
            gap = _widest_gap(hits[rows], codes[rows], masks[:, rows], names, confidence)
            p = heterogeneity_p(hits[rows], codes[rows], masks[:, rows], permutations, seed)
            gaps.append({"column": column, "groups": len(names), **gap, "p": p})
    adjusted = adjust_holm([gap["p"] for gap in gaps])
    return [{**gap, "p_holm": p} for gap, p in zip(gaps, adjusted, strict=True)]


def heterogeneity_p(
    hits: Bool[np.ndarray, " n"],
    patients: Int64[np.ndarray, " n"],
    masks: Bool[np.ndarray, "g n"],
    permutations: int,
    seed: int,
) -> float:
    """Return the p-value of a permutation test for differences between hit rates.

    The statistic is Pearson's. Under the null hypothesis, patients with equal numbers of lesions
    can exchange their results, and the lesions of a patient theirs. So the test is exact for
    correlated lesions, few misses, and groups that divide a patient's lesions.

    Args:
        hits: result of each lesion.
        patients: number of each lesion's patient.
        masks: lesions of each group.
        permutations: number of permutations.
        seed: seed of the permutations.
    """
    rng = np.random.default_rng(seed)
    counts = masks.sum(axis=1)
    lesions = np.bincount(patients)[patients]
    sums = np.zeros((permutations, len(masks)))
    for size in np.unique(lesions).tolist():
        rows = np.flatnonzero(lesions == size)
        rows = rows[np.argsort(patients[rows], kind="stable")]
        results = hits[rows].reshape(-1, size)
        order = np.tile(np.arange(len(results), dtype=np.int32), (permutations, 1))
        drawn = rng.permuted(results[rng.permuted(order, axis=1)], axis=2)
        drawn = drawn.reshape(permutations, -1).astype(np.float32)
        sums += drawn @ masks[:, rows].T.astype(np.float32)
    # The total of hits is fixed, so that Pearson's statistic rises with this sum.
    observed = ((masks @ hits.astype(np.int64)) ** 2 / counts).sum()
    is_extreme = (sums**2 / counts).sum(axis=1) >= observed * (1 - 1e-9)
    return float((1 + is_extreme.sum()) / (permutations + 1))


def _widest_gap(
    hits: Bool[np.ndarray, " n"],
    patients: Int64[np.ndarray, " n"],
    masks: Bool[np.ndarray, "g n"],
    names: Sequence[str],
    confidence: float,
) -> dict[str, Any]:
    """Return the largest difference of hit rates, with an interval simultaneous over all pairs.

    Tukey and Kramer's critical value, for the interval of Agresti and Caffo (2000,
    doi:10.1080/00031305.2000.10474560): it adds pseudo-observations, because a share of 1 has no
    variance of its own. The number of lesions is divided by the design effect of their patients
    (Rao and Scott 1992, doi:10.2307/2532311).
    """
    from scipy.stats import studentized_range  # slow to import

    counts = masks.sum(axis=1)
    shares = masks @ hits.astype(np.int64) / counts
    excess = hits - shares @ masks / masks.sum(axis=0)
    by_patient = np.bincount(patients, weights=excess)
    effect = max(1.0, float(by_patient @ by_patient / max(excess @ excess, 1e-12)))
    reach = studentized_range.ppf(confidence, len(masks), np.inf) / np.sqrt(2)
    pseudo, lesions = reach**2 / 4, counts / effect
    centres = (shares * lesions + pseudo) / (lesions + 2 * pseudo)
    variances = centres * (1 - centres) / (lesions + 2 * pseudo)
    low, high = int(np.argmin(shares)), int(np.argmax(shares))
    value, centre = shares[high] - shares[low], centres[high] - centres[low]
    half = reach * np.sqrt(variances[high] + variances[low])
    return {
        "lowest": names[low],
        "highest": names[high],
        "value": float(value),
        "low": float(max(min(centre - half, value), -1.0)),
        "high": float(min(max(centre + half, value), 1.0)),
    }
