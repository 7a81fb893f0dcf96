"""How well the camera alone tells malignant from benign: what is learned without medicine."""

from collections.abc import Collection
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeRegressor

from skinmm.data.splits import components, deal_folds

FOLDS: Final = 5
LEAF: Final = 50  # rows at least, so that no leaf is a single patient's camera
GROUPS_SHOWN: Final = 8


def malignant(table: pd.DataFrame, positive: Collection[str] = ()) -> Bool[np.ndarray, " n"]:
    """Which rows count as malignant: target 1, or one of the classes `positive`."""
    return table["target"].isin([1, *positive]).to_numpy()


def size_auroc(table: pd.DataFrame, positive: Collection[str] = ()) -> float | None:
    """AUROC of width and height alone, pooled over folds that keep patients whole.

    A regression tree, because the size stands for a camera rather than for a scale.

    Returns:
        None where there are no two sizes, or too few patients or malignant rows to say.
    """
    rows = table[table["width"].notna() & table["height"].notna()]
    sizes = rows[["width", "height"]].to_numpy(np.float64)
    target = malignant(rows, positive)
    independent = len(np.unique(components(rows))) if len(rows) else 0
    if min(target.sum(), (~target).sum(), independent) < FOLDS or (sizes == sizes[0]).all():
        return None
    fold = deal_folds(rows, FOLDS, 0)
    score = np.zeros(len(rows))
    for part in range(FOLDS):
        tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0)
        tree.fit(sizes[fold != part], target[fold != part])
        score[fold == part] = tree.predict(sizes[fold == part])
    return float(roc_auc_score(target, score))


def acquisition_groups(table: pd.DataFrame, positive: Collection[str] = ()) -> list[dict[str, Any]]:
    """The most frequent image sizes, and the sources where there are several.

    Returns:
        For each `group`: `rows`, `malignant`, and `auroc` of belonging to it or not, whichever of
        the two points to malignancy; None where a cohort of one kind leaves nothing to tell.
    """
    target = malignant(table, positive)
    known = table[["width", "height"]].dropna().astype(int).astype(str)
    sizes = known["width"] + "x" + known["height"]
    groups = sizes.value_counts().head(GROUPS_SHOWN).index
    members = {size: (sizes == size).reindex(table.index, fill_value=False) for size in groups}
    if table["source"].nunique() > 1:
        members |= {name: table["source"] == name for name in table["source"].unique()}
    return [_group(str(name), mask.to_numpy(bool), target) for name, mask in members.items()]


def _group(
    name: str, member: Bool[np.ndarray, " n"], target: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    auroc = None
    if 0 < target.sum() < len(target):
        inside = float(roc_auc_score(target, member))
        auroc = max(inside, 1 - inside)
    counts = {"rows": int(member.sum()), "malignant": int((member & target).sum())}
    return {"group": name, **counts, "auroc": auroc}
