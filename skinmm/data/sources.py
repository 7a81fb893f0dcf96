"""Splits by source (centre): each fold is tested on one source and trained on the others."""

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.config import DataConfig
from skinmm.data.splits import UNUSED, deal_folds, find_components, get_fixed_parts, split
from skinmm.errors import InputError


def split_by_config(table: pd.DataFrame, data: DataConfig, fold: int) -> pd.DataFrame:
    """Assign every row to a part of one fold, by patients or by source (`data.split`)."""
    if data.split == "source":
        return leave_one_source_out(table, data.folds, fold, data.split_seed)
    return split(table, data.folds, fold, data.split_seed)


def list_sources(table: pd.DataFrame) -> list[str]:
    """Return the sorted sources of rows without a fixed part: one for each fold."""
    fixed = get_fixed_parts(table)
    names = table["source"][pd.isna(fixed)]
    sources = sorted(map(str, names.dropna().unique()))
    problem = ""
    if np.isin(fixed, ("val", "test")).any() or "public_fold" in table:
        problem = "the cohort fixes its parts or folds, which a source cannot replace"
    elif names.isna().any():
        problem = f"{int(names.isna().sum())} of {len(names)} rows have no source; fill the column"
    elif len(sources) < 2:  # noqa: PLR2004 - one to train on, one to test
        problem = f"all rows are of the source {', '.join(sources)}; two or more are needed"
    if problem:
        raise InputError(f"data.split=source: {problem}, or set data.split=patients")
    return sources


def require_both_targets(table: pd.DataFrame, malignant: Bool[np.ndarray, " n"]) -> None:
    """Raise InputError if a source of a split by source lacks malignant or benign rows."""
    for name, indices in table[table["fold"] >= 0].groupby("source").indices.items():
        rows = malignant[(table["fold"] >= 0).to_numpy(bool)][indices]
        if rows.all() or not rows.any():
            kind = "benign" if rows.all() else "malignant"
            raise InputError(
                f"data.split=source: none of the {len(rows)} rows of source {name} is {kind}, so "
                "it cannot be a test part; leave its rows out, or add them by data.extra"
            )


def leave_one_source_out(table: pd.DataFrame, folds: int, fold: int, seed: int) -> pd.DataFrame:
    """Assign every row to a part: one source to test, the others to training and validation.

    Validation is one of `folds` parts of the other sources, by patients. Rows of other sources that
    share a patient, a lesion or a duplicate with the test part are `unused`, and so are those that
    the cohort fixes as `train` (of a cohort added to training) if they are of the source.

    Returns:
        The table with columns `part` (train, val, test, unused) and `fold`, the number of the
        source in the order of `list_sources`; -1 for fixed rows.
    """
    sources, free = list_sources(table), pd.isna(get_fixed_parts(table))
    if fold >= len(sources):
        raise InputError(
            f"data.fold={fold}: must be 0 to {len(sources) - 1}; data.split=source has a fold for "
            f"each of {', '.join(sources)}"
        )
    is_source = (table["source"] == sources[fold]).to_numpy(bool)
    component = find_components(table)
    others = free & ~is_source & ~np.isin(component, component[is_source])
    part = np.where(free & is_source, "test", UNUSED).astype(object)
    dealt = deal_folds(table[others], folds, seed, component[others])
    part[others] = np.where(dealt == 0, "val", "train")
    is_evaluated = np.isin(component, component[np.isin(part, ("val", "test"))])
    part[~free & ~is_source & ~is_evaluated] = "train"  # of cohorts added to the training rows
    number = pd.Categorical(table["source"], categories=sources).codes.astype(np.int64)
    return table.assign(part=part, fold=np.where(free, number, -1))
