"""Patient-disjoint stratified folds, as pure functions of the cohort table and a seed."""

import hashlib
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Int64, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinmm.errors import InputError

UNUSED: Final = "unused"
CALIBRATION: Final = "calibration"
MALIGNANT_PATIENTS: Final = 60
"""Least number in either half: 59 can guarantee a sensitivity of 95 % with 95 % confidence."""
LINKS: Final = (("patient_id",), ("lesion_id",), ("image_id", "duplicate_of"))
"""Rows with the same value in any column of one of these groups belong together."""


def find_components(table: pd.DataFrame) -> Int64[np.ndarray, " n"]:
    """Return a component index per row; no split may separate rows with the same index.

    Rows belong together if they share a patient or a lesion, if one is the `duplicate_of` the
    other, or through a chain of such links.
    """
    n = nodes = len(table)
    rows, values = [], []
    for link in LINKS:
        present = [name for name in link if name in table.columns]
        if not present:
            continue
        cells = np.concatenate([table[name].to_numpy(object) for name in present])
        codes = pd.factorize(cells)[0]
        is_known = codes >= 0
        rows.append(np.tile(np.arange(n), len(present))[is_known])
        values.append(nodes + codes[is_known])
        nodes += int(codes.max(initial=-1)) + 1
    edges = (np.concatenate(rows), np.concatenate(values))
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


def deal_folds(
    table: pd.DataFrame, folds: int, seed: int, component: Int64[np.ndarray, " n"] | None = None
) -> Int64[np.ndarray, " n"]:
    """Divide whole components among folds of similar size, prevalence and missingness.

    Components are assigned by size, largest first, ties by a hash of the name of their first
    image. Each goes to the fold with the least of its traits: images, patients, rows and patients
    of each target, rows with a missing age, sex or site, each as a share of its total. The order of
    the rows has no influence.

    Args:
        table: canonical rows with `image_id` and `target`.
        folds: number of folds, at least 2.
        seed: seed of the assignment.
        component: component of each row; None: that of `find_components`.

    Returns:
        The fold of each row, 0 to folds - 1.
    """
    component = find_components(table) if component is None else component
    fold_of = _deal_shares(table, component, np.full(folds, 1 / folds), seed)
    return np.random.default_rng(seed).permutation(folds)[fold_of]


def hold_out(table: pd.DataFrame, fraction: Any, seed: int) -> pd.DataFrame:
    """Assign about `fraction` of the free rows, by patients, to one test part for all folds."""
    low, high = 0.01, 0.5
    if isinstance(fraction, bool) or not isinstance(fraction, int | float):
        raise InputError(f"+data.args.test_fraction={fraction}: must be a number")
    if not low <= fraction <= high:
        raise InputError(f"+data.args.test_fraction={fraction}: must be between {low} and {high}")
    part = get_fixed_parts(table)
    if (part == "test").any():
        raise InputError("+data.args.test_fraction: this cohort already has a test part")
    free = np.flatnonzero(pd.isna(part))
    component = find_components(table)[free]
    held_out = (
        _deal_shares(table.iloc[free], component, np.array([1 - fraction, fraction]), seed) == 1
    )
    part[free[held_out]] = "test"
    return table.assign(part=part)


def assign_parts(
    fold_of: Int64[np.ndarray, " n"],
    fold: int,
    folds: int,
    names: tuple[str, ...] = ("test", "val"),
) -> Shaped[np.ndarray, " n"]:
    """Return the part of each row: fold `fold` is test, the next one validation, the rest training.

    If `names` has only one of them (the data fix the other), it is `fold`.
    """
    part = np.full(len(fold_of), "train", dtype=object)
    for step, name in enumerate(names):
        part[fold_of == (fold + step) % folds] = name
    return part


def split(table: pd.DataFrame, folds: int, fold: int, seed: int) -> pd.DataFrame:
    """Assign every row to a part of one run.

    A column `part` of the table fixes rows: `test` and `val` remain, and only the free rows are
    divided into folds, for the parts that are not fixed. A row fixed as `train` (of a cohort added
    to training) is never evaluated, and is `unused` if a row of its component is in validation or
    test. A column `public_fold` replaces the assignment to folds.

    Returns:
        The table with columns `part` (train, val, test, unused) and `fold` (-1 for fixed rows).
    """
    fixed = get_fixed_parts(table)
    free = pd.isna(fixed)
    names = tuple(name for name in ("test", "val") if not (fixed == name).any())
    if not names and fold != 0:
        raise InputError(f"data.fold={fold}: the cohort fixes every part; set data.fold=0")
    component = find_components(table)  # of all rows: a fixed row may link two free ones
    fold_of = np.full(len(table), -1, np.int64)
    if names and "public_fold" in table:
        public_fold = table["public_fold"][free].to_numpy(np.int64)
        count = int(public_fold.max()) + 1
        if count % folds:
            raise InputError(f"data.folds={folds}: must be a divisor of the {count} public folds")
        fold_of[free] = public_fold % folds
    elif names:
        fold_of[free] = deal_folds(table[free], folds, seed, component[free])
    part = np.where(free, assign_parts(fold_of, fold, folds, names), fixed)
    is_evaluated = np.isin(component, component[np.isin(part, ("val", "test"))])
    part[(fixed == "train") & is_evaluated] = UNUSED
    return table.assign(part=part, fold=fold_of)


def cut_calibration(
    table: pd.DataFrame, share: int | float | str, malignant: Bool[np.ndarray, " n"], seed: int
) -> pd.DataFrame:
    """Move whole components of validation rows to the part `calibration`.

    Early stopping selects the epoch on the rows that remain, so that the rows of calibration are
    new to the network that calibration and threshold are fitted to.

    Args:
        table: rows with their `part`, as `split` returns them.
        share: share of the validation rows, 0 to 0.9; `auto`: half, if both halves then have
            `MALIGNANT_PATIENTS` patients with a malignant row, else none.
        malignant: mask of the malignant rows.
        seed: seed of the split.
    """
    part = table["part"].to_numpy(object, copy=True)
    val = np.flatnonzero(part == "val")
    patients = table["patient_id"].where(malignant).iloc[val]
    is_auto = share == "auto"
    if not share or not len(val) or (is_auto and patients.nunique() < 2 * MALIGNANT_PATIENTS):
        return table
    fraction = 0.5 if is_auto else float(share)
    component = find_components(table)[val]
    is_cut = _deal_shares(table.iloc[val], component, np.array([1 - fraction, fraction]), seed) == 1
    if is_auto and min(patients[is_cut].nunique(), patients[~is_cut].nunique()) < (
        MALIGNANT_PATIENTS
    ):
        return table
    part[val[is_cut]] = CALIBRATION
    return table.assign(part=part)


def get_fixed_parts(table: pd.DataFrame) -> Shaped[np.ndarray, " n"]:
    """Return the fixed part of each row, None if it is free."""
    if "part" not in table.columns:
        return np.full(len(table), None, dtype=object)
    part = table["part"].astype(object)
    return part.where(part.notna(), None).to_numpy(object, copy=True)


def _deal_shares(
    table: pd.DataFrame,
    component: Int64[np.ndarray, " n"],
    shares: Float64[np.ndarray, " folds"],
    seed: int,
) -> Int64[np.ndarray, " n"]:
    """Assign components greedily, so that each fold has its target share of every trait."""
    component = np.unique(component, return_inverse=True)[1]
    count = int(component.max(initial=-1)) + 1
    if count < len(shares):
        raise InputError(
            f"{count} independent patients cannot fill {len(shares)} parts; "
            f"{_describe_joined_patients(table) or 'lower data.folds'}"
        )
    traits = _compute_traits(table, component, count)
    first = table["image_id"].astype(str).groupby(component).min()
    digest = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in first]
    rank = np.argsort(np.argsort(np.array(digest, object)))
    totals = np.zeros((len(shares), traits.shape[1]))
    fold_of = np.empty(count, np.int64)
    for index in np.lexsort((rank, -traits[:, 0])):
        fold_of[index] = fold = int(np.argmin(((totals + traits[index]) @ traits[index]) / shares))
        totals[fold] += traits[index]
    return fold_of[component]


def _describe_joined_patients(table: pd.DataFrame) -> str:
    """Describe a lesion that several patients share, which joins them; "" if there is none."""
    if not {"patient_id", "lesion_id"} <= {*table}:
        return ""
    patients = table.groupby("lesion_id")["patient_id"].nunique()
    if len(patients) == 0 or patients.max() < 2:  # noqa: PLR2004
        return ""
    return (
        f"lesion {patients.idxmax()} occurs with {patients.max()} patients, which joins them: make "
        "the names of lesions unique, e.g. PATIENT-LESION"
    )


def _compute_traits(
    table: pd.DataFrame, component: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "components traits"]:
    """Return the traits of each component as shares of the cohort's totals; images come first."""
    balanced = ("age", "sex", "site")
    missing = [table[name].isna().to_numpy() for name in balanced if name in table.columns]
    targets = pd.get_dummies(table["target"]).to_numpy(bool).T
    masks = [np.ones(len(table), bool), *targets, *missing]
    sums = [np.bincount(component, weights=mask, minlength=count) for mask in masks]
    patients = [np.ones(count), *(total > 0 for total in sums[1 : 1 + len(targets)])]
    traits = np.stack([*sums, *patients], axis=1)
    return traits / np.maximum(traits.sum(axis=0), 1)


def class_indices(target: "pd.Series[Any]", classes: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Return class indices; numeric targets are class indices already."""
    if pd.api.types.is_integer_dtype(target):
        return target.to_numpy(dtype=np.int64)
    return pd.Categorical(target, categories=list(classes)).codes.astype(np.int64)


def limit_rows(
    rows: Int[np.ndarray, " n"], targets: Int[np.ndarray, " all"], limit: int | None, seed: int
) -> Int[np.ndarray, " k"]:
    """Return at most `limit` rows, with classes as equal as possible, in the original order."""
    if limit is None or limit >= len(rows):
        return rows
    classes = len(np.unique(targets[rows]))
    if limit < classes:
        raise InputError(f"data.limit={limit}: must be at least the number of classes ({classes})")
    shuffled = np.random.default_rng(seed).permutation(rows)
    # The n-th row of every class comes before the (n+1)-th row of any.
    rank = pd.Series(targets[shuffled]).groupby(targets[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(rank, kind="stable")[:limit]])


def shares_in_use(
    cohort: pd.DataFrame,
    rows: Int[np.ndarray, " n"],
    targets: Int[np.ndarray, " all"],
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """Return the class shares of the training rows, without cohorts that are for training only.

    A class that occurs only in another cohort counts as one row, because the model learns it.

    `rows` are the rows of the training part, before `data.limit` is applied.
    """
    evaluated = cohort.loc[cohort["part"].isin(("val", "test")), "cohort"].unique()
    native = rows[cohort["cohort"].iloc[rows].isin(evaluated).to_numpy()]
    occurs = np.bincount(targets[rows], minlength=classes) > 0
    counts = np.maximum(np.bincount(targets[native], minlength=classes), occurs)
    return counts / max(counts.sum(), 1)
