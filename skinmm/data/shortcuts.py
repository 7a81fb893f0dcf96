"""Shortcuts: ranking of malignancy by the size or the source of an image alone."""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.tree import DecisionTreeRegressor

from skinmm.data.splits import deal_folds, find_components

FOLDS: Final = 5
LEAF: Final = 50  # minimum rows, so that no leaf is the camera of a single patient
MAX_SIZES: Final = 8


def is_malignant(table: pd.DataFrame, positive: Collection[str] = ()) -> Bool[np.ndarray, " n"]:
    """Return a mask of the malignant rows: target 1, or one of the classes `positive`."""
    return table["target"].isin([1, *positive]).to_numpy()


def compute_size_auroc(table: pd.DataFrame, positive: Collection[str] = ()) -> float | None:
    """Return the AUROC of width and height alone, pooled over patient-disjoint folds.

    The model is a regression tree, because an image size identifies a camera.

    Returns:
        None if all sizes are equal, or with too few patients or rows of either target.
    """
    rows = table[table["width"].notna() & table["height"].notna()]
    sizes = rows[["width", "height"]].to_numpy(np.float64)
    target = is_malignant(rows, positive)
    patients = len(np.unique(find_components(rows))) if len(rows) else 0
    if min(target.sum(), (~target).sum(), patients) < FOLDS or (sizes == sizes[0]).all():
        return None
    fold = deal_folds(rows, FOLDS, 0)
    tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0)
    score = cross_val_predict(tree, sizes, target, cv=PredefinedSplit(fold))
    return float(roc_auc_score(target, score))


def compute_source_auroc(table: pd.DataFrame, positive: Collection[str] = ()) -> float | None:
    """Return the AUROC of the source alone; the score is its share of malignant training rows.

    None if the training or the test rows have one source, or the test rows one target. Test rows
    of a source without training rows, or of an unknown one, have the share of all training rows.
    """
    target = pd.Series(is_malignant(table, positive), table.index)
    train, test = (table["part"] == part for part in ("train", "test"))
    sources = [table.loc[rows, "source"].nunique() for rows in (train, test)]
    if min(sources) <= 1 or target[test].nunique() <= 1:
        return None
    share = target[train].groupby(table.loc[train, "source"]).mean()
    score = table.loc[test, "source"].map(share).fillna(float(target[train].mean()))
    return float(roc_auc_score(target[test], score.astype(float)))


def compare_acquisition_groups(
    table: pd.DataFrame, positive: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Describe the most frequent image sizes and, if there are several, sources.

    Returns:
        For each `group`: `rows`, `malignant`, and `auroc` of membership as a score for malignancy
        (or of its negation, whichever is larger); None if all rows have the same target.
    """
    target = is_malignant(table, positive)
    sides = table[["width", "height"]].dropna().astype(int).astype(str)
    sizes = sides["width"] + "x" + sides["height"]
    frequent = sizes.value_counts().head(MAX_SIZES).index
    members = {size: (sizes == size).reindex(table.index, fill_value=False) for size in frequent}
    if table["source"].nunique() > 1:
        frequent = table["source"].value_counts().head(MAX_SIZES).index
        members |= {name: table["source"] == name for name in frequent}
    groups = []
    for name, mask in members.items():
        member, auroc = mask.to_numpy(bool), None
        if 0 < target.sum() < len(target):
            auroc = float(roc_auc_score(target, member))
            auroc = max(auroc, 1 - auroc)
        counts = {"rows": int(member.sum()), "malignant": int((member & target).sum())}
        groups.append({"group": str(name), **counts, "auroc": auroc})
    return groups
