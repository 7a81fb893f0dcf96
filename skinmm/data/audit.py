"""Leaks and shortcuts of a cohort and its split, found before training; the caller decides."""

from collections.abc import Collection, Sequence
from typing import Any, Final

import pandas as pd

from skinmm.data.audit_shortcuts import acquisition_groups, size_auroc
from skinmm.data.record import NOT_AT_BEDSIDE
from skinmm.data.splits import UNUSED, components

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
    size = size_auroc(used, positive)
    return {
        "rows": len(used),
        "parts": {str(part): int(n) for part, n in used["part"].value_counts().items()},
        "across_parts": {kind: len(names) for kind, names in across.items()},
        "duplicates": {str(kind): int(n) for kind, n in pairs["kind"].value_counts().items()},
        "pairs": torn.head(PAIRS_KEPT).to_dict("records"),
        "size_auroc": size,
        "acquisition": acquisition_groups(used, positive),
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
    group = pd.Series(components(table), index=table["image_id"])
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
