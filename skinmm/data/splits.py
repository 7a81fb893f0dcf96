"""Patient-disjoint stratified folds: pure functions of the cohort table and a seed."""

import hashlib
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skinmm.errors import InputError

UNUSED: Final = "unused"
LINKS: Final = (("patient_id",), ("lesion_id",), ("image_id", "duplicate_of"))
"""Rows that hold the same value in any column of one of these groups belong together."""
BALANCED: Final = ("age", "sex", "site")


def find_components(table: pd.DataFrame) -> Int64[np.ndarray, " n"]:
    """Numbers the groups that no split may tear apart.

    Rows belong together when they share a patient or a lesion, when one is the other's
    `duplicate_of`, or through a chain of such links; columns that are not there link nothing.
    """
    n = nodes = len(table)
    rows, values = [], []
    for link in LINKS:
        present = [name for name in link if name in table.columns]
        if not present:
            continue
        cells = np.concatenate([table[name].to_numpy(object) for name in present])
        codes = pd.factorize(cells)[0]
        known = codes >= 0
        rows.append(np.tile(np.arange(n), len(present))[known])
        values.append(nodes + codes[known])
        nodes += int(codes.max(initial=-1)) + 1
    edges = (np.concatenate(rows), np.concatenate(values))
    graph = coo_array((np.ones(len(edges[0]), np.int8), edges), shape=(nodes, nodes))
    return connected_components(graph, directed=False)[1][:n].astype(np.int64)


def deal_folds(table: pd.DataFrame, folds: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Deals whole components into folds of like size, prevalence and missingness.

    Components are taken by size, largest first, ties by a hash of their first image's name; each
    goes to the fold that holds least of what it brings (images, patients, rows and patients of each
    target, rows with a missing age, sex or site, each as a share of its total). The order of the
    rows does not matter.

    Args:
        table: canonical rows with `image_id` and `target`.
        folds: number of folds, at least 2.
        seed: another seed, another deal.

    Returns:
        The fold of each row, 0 to folds - 1.

    Raises:
        InputError: fewer components than folds.
    """
    return _deal_equal(table, find_components(table), folds, seed)


def hold_out(table: pd.DataFrame, fraction: float, seed: int) -> pd.DataFrame:
    """Fixes about `fraction` of the free rows, patients whole, as the test part of every fold.

    Raises:
        InputError: a fraction outside 0.01 to 0.5, or a table that fixes a test part already.
    """
    low, high = 0.01, 0.5
    if not low <= fraction <= high:
        raise InputError(f"+data.args.test_fraction={fraction}: must be between {low} and {high}")
    part = _fixed(table)
    if (part == "test").any():
        raise InputError("+data.args.test_fraction: this cohort brings a test part of its own")
    free = np.flatnonzero(pd.isna(part))
    component = find_components(table)[free]
    held_out = _deal(table.iloc[free], component, np.array([1 - fraction, fraction]), seed) == 1
    part[free[held_out]] = "test"
    return table.assign(part=part)


def assign_parts(
    fold_of: Int64[np.ndarray, " n"],
    fold: int,
    folds: int,
    wanted: tuple[str, ...] = ("test", "val"),
) -> Shaped[np.ndarray, " n"]:
    """Names each row's part: test is part `fold`, validation the next (cyclic), training the rest.

    Where only one of them is wanted (the data fix the other), it is part `fold`.
    """
    part = np.full(len(fold_of), "train", dtype=object)
    for step, name in enumerate(wanted):
        part[fold_of == (fold + step) % folds] = name
    return part


def split(table: pd.DataFrame, folds: int, fold: int, seed: int) -> pd.DataFrame:
    """Gives every row its part of one run.

    A column `part` of the table fixes rows: `test` and `val` stay what they are, and the folds are
    dealt among the free rows only, for whichever of the two is not fixed. A row fixed as `train`
    (another cohort's, added to training) is never judged, and is `unused` when a row of its
    component is in validation or test. A column `public_fold` replaces the deal.

    Returns:
        The table with columns `part` (train, val, test, unused) and `fold` (-1 for fixed rows).

    Raises:
        InputError: too few patients, or folds that the public ones or fixed parts do not give.
    """
    fixed = _fixed(table)
    free = pd.isna(fixed)
    wanted = tuple(name for name in ("test", "val") if not (fixed == name).any())
    if not wanted and fold != 0:
        raise InputError(f"data.fold={fold}: the data fix every part, so there is only data.fold=0")
    component = find_components(
        table
    )  # of all rows: a fixed one may be all that links two free ones
    fold_of = np.full(len(table), -1, np.int64)
    fold_of[free] = _fold_of_free(table[free], component[free], folds, seed) if wanted else -1
    part = np.where(free, assign_parts(fold_of, fold, folds, wanted), fixed)
    judged = np.isin(component, component[np.isin(part, ("val", "test"))])
    part[(fixed == "train") & judged] = UNUSED
    return table.assign(part=part, fold=fold_of)


def _fixed(table: pd.DataFrame) -> Shaped[np.ndarray, " n"]:
    """The part that each row must have, None where it is free."""
    if "part" not in table.columns:
        return np.full(len(table), None, dtype=object)
    part = table["part"].astype(object)
    return part.where(part.notna(), None).to_numpy(object, copy=True)


def _fold_of_free(
    table: pd.DataFrame, component: Int64[np.ndarray, " n"], folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    if "public_fold" not in table.columns:
        return _deal_equal(table, component, folds, seed)
    public = table["public_fold"].to_numpy(np.int64)
    count = int(public.max()) + 1
    if count % folds:
        raise InputError(f"data.folds={folds}: the {count} public folds need a divisor of {count}")
    return public % folds


def _deal_equal(
    table: pd.DataFrame, component: Int64[np.ndarray, " n"], folds: int, seed: int
) -> Int64[np.ndarray, " n"]:
    dealt = _deal(table, component, np.full(folds, 1 / folds), seed)
    return np.random.default_rng(seed).permutation(folds)[dealt]


def _deal(
    table: pd.DataFrame,
    component: Int64[np.ndarray, " n"],
    shares: Float64[np.ndarray, " folds"],
    seed: int,
) -> Int64[np.ndarray, " n"]:
    """Greedy deal of components into folds that should hold the given shares of everything."""
    component = np.unique(component, return_inverse=True)[1]
    count = int(component.max(initial=-1)) + 1
    if count < len(shares):
        raise InputError(
            f"{count} independent patients cannot fill {len(shares)} parts; lower data.folds"
        )
    traits = _traits(table, component, count)
    first = table["image_id"].astype(str).groupby(component).min()
    digest = [hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in first]
    rank = np.argsort(np.argsort(np.array(digest, object)))
    held = np.zeros((len(shares), traits.shape[1]))
    fold_of = np.empty(count, np.int64)
    for index in np.lexsort((rank, -traits[:, 0])):
        brought = traits[index]
        fold = int(np.argmin(((held + brought) @ brought) / shares))
        fold_of[index] = fold
        held[fold] += brought
    return fold_of[component]


def _traits(
    table: pd.DataFrame, component: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "components traits"]:
    """What each component brings, as shares of the cohort's total: images first."""
    missing = [table[name].isna().to_numpy() for name in BALANCED if name in table.columns]
    targets = pd.get_dummies(table["target"]).to_numpy(bool).T
    marks = [np.ones(len(table), bool), *targets, *missing]
    sums = [np.bincount(component, weights=mark, minlength=count) for mark in marks]
    patients = [np.ones(count), *(total > 0 for total in sums[1 : 1 + len(targets)])]
    traits = np.stack([*sums, *patients], axis=1)
    return traits / np.maximum(traits.sum(axis=0), 1)
