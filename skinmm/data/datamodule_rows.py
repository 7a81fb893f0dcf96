"""Which rows a fold trains on, their classes as numbers, and how frequent those are."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from skinmm.errors import InputError


def codes(target: "pd.Series[Any]", classes: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Class indices; a target of numbers holds them already."""
    if pd.api.types.is_integer_dtype(target):
        return target.to_numpy(dtype=np.int64)
    return pd.Categorical(target, categories=list(classes)).codes.astype(np.int64)


def limited(
    rows: Int[np.ndarray, " n"], targets: Int[np.ndarray, " all"], limit: int | None, seed: int
) -> Int[np.ndarray, " k"]:
    """At most `limit` rows, as equal in classes as the rows allow, in their order.

    Raises:
        InputError: fewer rows than there are classes.
    """
    if limit is None or limit >= len(rows):
        return rows
    classes = len(np.unique(targets[rows]))
    if limit < classes:
        raise InputError(f"data.limit={limit}: {classes} classes need {classes} rows at least")
    shuffled = np.random.default_rng(seed).permutation(rows)
    # A row's place within its class: taking the lowest places takes from every class in turn.
    place = pd.Series(targets[shuffled]).groupby(targets[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(place, kind="stable")[:limit]])


def shares_in_use(
    cohort: pd.DataFrame,
    rows: Int[np.ndarray, " n"],
    targets: Int[np.ndarray, " all"],
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """Class shares of the training rows from the sources that are judged.

    A class that only another cohort brought counts one row: it is learned, so it may come.

    Args:
        cohort: canonical rows with their `part`.
        rows: places of the training rows.
        targets: class index of every row.
        classes: how many there are.
    """
    judged = cohort.loc[cohort["part"].isin(("val", "test")), "source"].unique()
    native = rows[cohort["source"].iloc[rows].isin(judged).to_numpy()]
    known = np.bincount(targets[rows], minlength=classes) > 0
    counts = np.maximum(np.bincount(targets[native], minlength=classes), known)
    return counts / max(counts.sum(), 1)
