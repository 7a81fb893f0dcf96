"""Reader of the predictions and labels of any system, as text in canonical columns."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from skinmm import files
from skinmm.errors import InputError, format_count, warn
from skinmm.evaluation.other_formats import (
    TableFormat,
    convert_labels,
    convert_predictions,
    group_systems,
    suggest_columns,
)
from skinmm.files import IMAGE_SUFFIXES
from skinmm.vocabulary import (
    is_missing,
    map_unique,
    normalise_name,
    parse_diagnosis,
    parse_target,
    rename_columns,
)

ARCHIVE: Final = ".npz"
IMAGE_EXTENSIONS: Final = rf"(?i)(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})$"
TRUTH: Final = ("target", "diagnosis")


def read_tables(
    path: Path | str, labels: Path | str | None = None, form: TableFormat | None = None
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Read predictions and labels as text, in the columns of a prediction file.

    Empty cells of `image_id` are filled; without this column, lesions count as images.
    """
    form, has_setting = form or TableFormat(), form is not None
    table, truth = _read_raw(path), None if labels is None else _read_raw(labels)
    columns = {*table, *(() if truth is None else truth)}
    if unknown := [name for name in form.columns.values() if name not in columns]:
        raise InputError(
            f"columns={{...: {unknown[0]}}}: {path} has no such column; it has "
            f"{', '.join(table.columns)}"
        )
    converted = convert_predictions(table, path, form, truth)
    table = _to_canonical(converted, path, labels is not None, has_setting)
    if labels is None or truth is None:
        return table, None
    return table, _to_canonical(convert_labels(truth, labels, form), labels, False, has_setting)


def _to_canonical(
    table: pd.DataFrame, path: Path | str, has_labels: bool, has_setting: bool
) -> pd.DataFrame:
    table = rename_columns(table.mask(table == ""))
    if "image_id" not in table and "lesion_id" in table:
        table = table.assign(image_id=table["lesion_id"])
    if "image_id" not in table:
        advice = suggest_columns(table, has_labels=has_labels, has_setting=has_setting)
        columns = ", ".join(table.columns)
        raise InputError(f"{path} has no column image_id; it has {columns}{advice}")
    names = pd.Series([f"row {row + 2}" for row in range(len(table))], dtype=object)
    ids = {
        name: map_unique(
            table[name], lambda cell: None if is_missing(cell) else normalise_name(cell)
        )
        for name in ("patient_id", "lesion_id")
        if name in table
    }
    return table.assign(image_id=table["image_id"].fillna(names), **ids)


def read_threshold(table: pd.DataFrame, path: Path | str) -> float | None:
    """Return the threshold that the column `threshold` states, or None without one value."""
    cells = table.get("threshold", pd.Series(dtype=object)).dropna()
    numbers = pd.to_numeric(cells, errors="coerce")
    if not numbers.between(0, 1).all():
        bad = cells[~numbers.between(0, 1)].iloc[0]
        raise InputError(f"{path}: threshold {bad!r} is not a number from 0 to 1, such as 0.3")
    return float(numbers.iloc[0]) if numbers.nunique() == 1 else None


def join_labels(
    table: pd.DataFrame, labels: pd.DataFrame, path: Path | str, labels_path: Path | str
) -> pd.DataFrame:
    """Join labels by image, and patients, lesions and sources where the table has none."""
    labels, image_ids = (
        part.assign(image_id=part["image_id"].str.replace(IMAGE_EXTENSIONS, "", regex=True))
        for part in (labels, table[["image_id"]])
    )
    truth = [name for name in TRUTH if name in labels]
    if not truth:
        raise InputError(
            f"{labels_path} has neither a column target nor a column diagnosis; it has "
            f"{', '.join(labels.columns)}; name one: 'columns={{target: COLUMN}}'"
        )
    labels = labels.drop_duplicates(["image_id", *truth])
    repeated = labels["image_id"].duplicated()
    if repeated.any():
        name = labels["image_id"][repeated].iloc[0]
        raise InputError(f"{labels_path} gives image {name} two different labels")
    columns = [*truth, *({"patient_id", "lesion_id", "source"} & set(labels))]
    joined = labels.set_index("image_id")[columns].reindex(image_ids["image_id"])
    if truth[0] in table:
        theirs = joined[truth[0]].set_axis(table.index)
        _require_same_truth(table["image_id"], table[truth[0]], theirs, (path, labels_path))
    table = table.drop(columns=[name for name in TRUTH if name in table])
    if joined[truth].isna().all(axis=None):
        names = f"{table['image_id'].iloc[0]!r} and {labels['image_id'].iloc[0]!r}"
        raise InputError(
            f"{labels_path} has no label for any image of {path}: their first images are {names}"
        )
    if unused := len(labels) - int(labels["image_id"].isin(image_ids["image_id"]).sum()):
        _warn_of_unused(format_count(unused, "image"), labels_path, path)
    absent = ~image_ids["image_id"].isin(labels["image_id"])
    if "error" in table:  # rows without a prediction need no label
        absent &= table["error"].isna()
    if absent.any():
        count = format_count(int(absent.sum()), "image")
        raise InputError(
            f"{labels_path} has no row for {count} of {path}, e.g. "
            f"{table['image_id'][absent].iloc[0]}; add them, or leave them out of {path}"
        )
    added = {name: pd.Series(joined[name].to_numpy(dtype=object), table.index) for name in columns}
    return _fill_empty(table, added)


def _fill_empty(table: pd.DataFrame, added: Mapping[str, "pd.Series[Any]"]) -> pd.DataFrame:
    """Add columns to a table, and fill the empty cells of those that it has."""
    kept = {name: table[name].astype(object) for name in added if name in table}
    if "patient_id" in kept:  # earlier versions of predict.py wrote the lesion there
        lesions = (part["lesion_id"] for part in (table, added) if "lesion_id" in part)
        for ids in (table["image_id"], *lesions):
            kept["patient_id"] = kept["patient_id"].mask(kept["patient_id"] == ids)
    return table.assign(
        **{
            name: kept[name].where(kept[name].notna(), c) if name in kept else c
            for name, c in added.items()
        }
    )


@cache  # once for a file of several systems
def _warn_of_unused(images: str, labels_path: Path | str, path: Path | str) -> None:
    warn(f"{images} of {labels_path} have no row in {path} and are not evaluated")


def _require_same_truth(
    image_ids: "pd.Series[str]",
    ours: "pd.Series[Any]",
    theirs: "pd.Series[Any]",
    paths: tuple[Path | str, Path | str],
) -> None:
    """Raise InputError if a truth in a prediction file contradicts the labels."""
    words, others = (cells.map(_simplify, na_action="ignore") for cells in (ours, theirs))
    differs = words.notna() & others.notna() & (words != others)
    # Other words, such as scores, are no statement of the truth.
    if differs.any() and words.dropna().isin(others.dropna().unique()).all():
        row, count = differs.argmax(), format_count(int(differs.sum()), "such row")
        stated, true = ours.iloc[row], theirs.iloc[row]
        raise InputError(
            f"image {image_ids.iloc[row]}: {ours.name} is {stated} in {paths[0]}, but {true} in "
            f"{paths[1]} ({count}); correct it, or leave the column out of {paths[0]}"
        )


def _simplify(cell: Any) -> str:
    target = parse_target(cell)
    return parse_diagnosis(cell) or str(cell).strip().lower() if target is None else str(target)


def match_names(files: Iterable[Iterable[Any]]) -> list[list[str]]:
    """Return the images of each file without suffixes; with them if two of a file then agree."""
    names = [pd.Series([*image_ids], dtype=object).astype(str) for image_ids in files]
    stems = [part.str.replace(IMAGE_EXTENSIONS, "", regex=True) for part in names]
    return [[*part] for part in (stems if all(part.is_unique for part in stems) else names)]


def list_systems(path: Path | str) -> list[str]:
    """Return the systems of a file with columns `SYSTEM:CLASS`; empty for any other file."""
    return [*group_systems(_read_raw(path).columns)]


def _read_raw(path: Path | str) -> pd.DataFrame:
    """Read a table as text, or the test labels of a MedMNIST archive (.npz).

    A CSV without a header, as MedMNIST's evaluator writes it, has a row number and one column of
    probabilities per class.
    """
    if not str(path).lower().endswith(ARCHIVE):
        table = files.read_table(path)
        header = pd.to_numeric(pd.Series(table.columns), errors="coerce")
        if header.isna().any() or (header % 1 == 0).all():
            return table
        names = ["image_id", *map(str, range(len(header) - 1))]
        rows = [list(table.columns), *table.to_numpy().tolist()]
        return pd.DataFrame(rows, columns=names, dtype=str)
    try:
        with np.load(path, allow_pickle=False) as archive:
            labels = np.asarray(archive["test_labels"]).reshape(-1)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: not a MedMNIST archive with test_labels ({error})") from error
    return pd.DataFrame({"image_id": range(len(labels)), "target": labels}).astype(str)
