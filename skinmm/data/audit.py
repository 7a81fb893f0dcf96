"""How well the camera alone tells malignant from benign: what is learned without medicine."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeRegressor

from skinmm.data.record import NOT_AT_BEDSIDE
from skinmm.data.splits import UNUSED, deal_folds, find_components

FOLDS: Final = 5
LEAF: Final = 50  # rows at least, so that no leaf is a single patient's camera
GROUPS_SHOWN: Final = 8


def is_malignant(table: pd.DataFrame, positive: Collection[str] = ()) -> Bool[np.ndarray, " n"]:
    """Which rows count as malignant: target 1, or one of the classes `positive`."""
    return table["target"].isin([1, *positive]).to_numpy()


def compute_size_auroc(table: pd.DataFrame, positive: Collection[str] = ()) -> float | None:
    """AUROC of width and height alone, pooled over folds that keep patients whole.

    A regression tree, because the size stands for a camera rather than for a scale.

    Returns:
        None where there are no two sizes, or too few patients or malignant rows to say.
    """
    rows = table[table["width"].notna() & table["height"].notna()]
    sizes = rows[["width", "height"]].to_numpy(np.float64)
    target = is_malignant(rows, positive)
    independent = len(np.unique(find_components(rows))) if len(rows) else 0
    if min(target.sum(), (~target).sum(), independent) < FOLDS or (sizes == sizes[0]).all():
        return None
    fold = deal_folds(rows, FOLDS, 0)
    score = np.zeros(len(rows))
    for part in range(FOLDS):
        tree = DecisionTreeRegressor(min_samples_leaf=LEAF, random_state=0)
        tree.fit(sizes[fold != part], target[fold != part])
        score[fold == part] = tree.predict(sizes[fold == part])
    return float(roc_auc_score(target, score))


def compare_acquisition_groups(
    table: pd.DataFrame, positive: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The most frequent image sizes, and the sources where there are several.

    Returns:
        For each `group`: `rows`, `malignant`, and `auroc` of belonging to it or not, whichever of
        the two points to malignancy; None where a cohort of one kind leaves nothing to tell.
    """
    target = is_malignant(table, positive)
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


SUSPICIOUS: Final = 0.65  # AUROC from which a shortcut earns a warning
PAIRS_KEPT: Final = 200
EXAMPLES: Final = 3


def audit(
    table: pd.DataFrame,
    *,
    positive: Collection[str] = (),
    columns: Sequence[str] = (),
    fitted_on: Collection[str] = (),
    near: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """Checks a cohort whose rows have been given their `part`.

    Args:
        table: canonical rows with `part`; unused rows do not count.
        positive: the classes that count as malignant, where the target names classes.
        columns: record columns that the model sees.
        fitted_on: names of the images on whose rows the record encoder was fitted.
        near: pairs of near duplicates with columns `first` and `second`, where pixels were
            compared (`audit_pixels.near_duplicates`).

    Returns:
        Plain data: `rows`; `parts`; `across_parts`, how many patients, lesions, official and near
        duplicates stand in two parts; `duplicates`, all such pairs; `pairs`, the first ones across
        parts by image and part; `size_auroc` and `acquisition`, see `audit_shortcuts`; `warnings`;
        and `leaks`, sentences: none when the split may be used.
    """
    used = table[table["part"] != UNUSED]
    pairs = pd.concat([_official(used), _near(used, near)], ignore_index=True)
    torn = pairs[pairs["first_part"] != pairs["second_part"]]
    across = _across(used, torn)
    size = compute_size_auroc(used, positive)
    return {
        "rows": len(used),
        "parts": {str(part): int(n) for part, n in used["part"].value_counts().items()},
        "across_parts": {kind: len(names) for kind, names in across.items()},
        "duplicates": {str(kind): int(n) for kind, n in pairs["kind"].value_counts().items()},
        "pairs": torn.head(PAIRS_KEPT).to_dict("records"),
        "size_auroc": size,
        "acquisition": compare_acquisition_groups(used, positive),
        "warnings": _warnings(size),
        "leaks": [
            *(f"{_some(kind, names)} in two parts" for kind, names in across.items() if names),
            *(
                f"column {each}: {NOT_AT_BEDSIDE[each]}"
                for each in columns
                if each in NOT_AT_BEDSIDE
            ),
            *_outside_training(table, fitted_on),
        ],
    }


def _across(table: pd.DataFrame, torn: pd.DataFrame) -> dict[str, list[str]]:
    """By kind, the names of what stands in two parts."""
    found = {name: _torn_groups(table, f"{name}_id") for name in ("patient", "lesion")}
    for kind in ("official duplicate", "near duplicate"):
        apart = torn[torn["kind"] == kind]
        found[kind] = (apart["first"] + " and " + apart["second"]).tolist()
    return found


def _torn_groups(table: pd.DataFrame, name: str) -> list[str]:
    parts = table.groupby(name)["part"].nunique()
    return [str(group) for group in parts.index[parts > 1]]


def _official(table: pd.DataFrame) -> pd.DataFrame:
    if "duplicate_of" not in table.columns:
        return _pairs(table, "official duplicate", pd.DataFrame(columns=["first", "second"]))
    linked = table[table["duplicate_of"].isin(table["image_id"])]
    named = linked[["duplicate_of", "image_id"]].set_axis(["first", "second"], axis=1)
    return _pairs(table, "official duplicate", named)


def _near(table: pd.DataFrame, near: pd.DataFrame | None) -> pd.DataFrame:
    """Near duplicates that no known link joins already."""
    near = pd.DataFrame(columns=["first", "second"]) if near is None else near
    group = pd.Series(find_components(table), index=table["image_id"])
    near = near[near["first"].isin(group.index) & near["second"].isin(group.index)]
    apart = group[near["first"]].to_numpy() != group[near["second"]].to_numpy()
    return _pairs(table, "near duplicate", near[apart])


def _pairs(table: pd.DataFrame, kind: str, pairs: pd.DataFrame) -> pd.DataFrame:
    part = table.set_index("image_id")["part"]
    return pd.DataFrame(
        {
            "kind": kind,
            "first": pairs["first"],
            "second": pairs["second"],
            "first_part": pairs["first"].map(part),
            "second_part": pairs["second"].map(part),
        }
    ).astype(object)


def _some(kind: str, names: Sequence[str]) -> str:
    plural = "s" if len(names) > 1 else ""
    return f"{len(names)} {kind}{plural} ({', '.join(names[:EXAMPLES])})"


def _outside_training(table: pd.DataFrame, fitted_on: Collection[str]) -> list[str]:
    """Every row that is not for training counts, the unused ones of a held-out patient too."""
    training = set(table.loc[table["part"] == "train", "image_id"])
    seen = [name for name in fitted_on if name not in training]
    where = f"the record encoder was fitted on {_some('row', seen)} outside the training part"
    return [where] if seen else []


def _warnings(size: float | None) -> list[str]:
    if size is None or size < SUSPICIOUS:
        return []
    return [
        f"the size of the image file alone reaches AUROC {size:.3f}: cameras differ between "
        "malignant and benign; compare every model with this, and look at single cameras"
    ]
