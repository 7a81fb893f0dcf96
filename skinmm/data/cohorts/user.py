"""Adapters of a user's data: a CSV, or class folders."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.cohorts.tables import (
    CANONICAL,
    IN_YEARS,
    MASK_FOLDER,
    OPTIONAL,
    CohortTable,
    attach_images,
    read_table,
    require_choice,
    require_mapping,
    require_root,
    strip_suffixes,
    to_canonical,
)
from skinmm.data.cohorts.targets import (
    decode_one_hot,
    find_one_hot,
    merge_spellings,
    require_consistent_targets,
)
from skinmm.data.columns import find_unit
from skinmm.data.lesions import (
    find_view_column,
    require_different_images,
    split_image_columns,
)
from skinmm.errors import InputError, is_utf8
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images.finder import (
    describe_other_pictures,
    find_folders,
    find_table,
    is_system_file,
    list_visible,
)
from skinmm.images.shards import Schema
from skinmm.vocabulary import (
    COLUMN_NAMES,
    CONVERTERS,
    is_in_months,
    map_unique,
    match_columns,
    rename_columns,
)


def csv(
    data: DataConfig,
    *,
    table: str = "cohort.csv",
    columns: Any = None,
    images: Sequence[str] = ("", "images", "jpeg", "dicom", "tfrecords"),
    tfrecord: Any = None,
) -> CohortTable:
    """Read a CSV with a row per image.

    An image cell is a name, which is searched in the folders `images`, or a path under the root.
    A column `part` (train, val, test) fixes the split.

    Args:
        data: root and format.
        table: path of the CSV under the root.
        columns: canonical name -> name in the table; not needed for names of public datasets.
        images: one or more folders under the root.
        tfrecord: features of TFRecord files that differ from the public ones: `image`, `name`.
    """
    columns = require_mapping("columns", columns, "age: years", str)
    features = require_mapping("tfrecord", tfrecord, "image: image/encoded, name: image/id")
    for name in features:
        require_choice("tfrecord", name, ("image", "name"))
    root = require_root(data)
    file = find_table(root, table)
    original = read_table(file)
    if data.unit == "lesion":
        original = split_image_columns(original)
        require_different_images(original, str(file))
        original = original.reset_index(drop=True)
    rows = _rename(original, columns, file, data.columns)
    marks = _parse_labels(rows, original, columns, data.columns, file)
    cells = rows["image_id"].tolist()
    rows["image_id"] = _shorten_names(rows["image_id"])
    canonical = to_canonical(rows, file, data)
    if not data.positive:  # which decides by the diagnosis alone
        require_consistent_targets(canonical, file)
    folders = [images] if isinstance(images, str) else images
    cohort = attach_images(canonical, root, data.format, folders, Schema(**features), cells)
    extra = [name for name in data.columns if name in rows and name not in CANONICAL]
    return replace(
        cohort,
        unlabelled=tuple(name for name in ("target", "diagnosis") if name not in rows),
        description=f"{file}: it has {', '.join(original.columns)}",
        notes=_describe_mapping(original, rows, columns, data.columns),
        columns=tuple(map(str, original)),
        unused=_list_unused(original, rows, data, {*columns.values(), *marks}),
        units={name: unit for name in extra if (unit := find_unit(rows[name]))},
    )


def _parse_labels(
    rows: pd.DataFrame,
    original: pd.DataFrame,
    columns: Mapping[str, str],
    further: Sequence[str],
    file: Path,
) -> list[str]:
    """Parse part and diagnosis in place; return the columns of a one-hot diagnosis."""
    marks: list[str] = []
    if not ("diagnosis" in rows or "target" in columns):
        used = [*columns.values(), *further]
        marks = find_one_hot(original.drop(columns=used, errors="ignore"))
    if marks:
        rows["diagnosis"] = decode_one_hot(original[marks], file)
    if "diagnosis" in rows:
        rows["diagnosis"] = merge_spellings(rows["diagnosis"])
    if "part" in rows:
        rows["part"] = _parse_parts(rows["part"], file)
    return marks


def _list_unused(
    original: pd.DataFrame, rows: pd.DataFrame, data: DataConfig, used: set[str]
) -> tuple[str, ...]:
    used = {*used, *CANONICAL, *OPTIONAL, *data.columns}
    if data.unit == "lesion":
        used |= {find_view_column(rows), *(name.rpartition("_")[0] for name in data.columns)}
    return tuple(str(name) for name in original if name in rows and name not in used)


def _shorten_names(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return image names without suffix, and without folder if they remain unique."""
    paths = strip_suffixes(map_unique(cells, lambda cell: cell.replace("\\", "/")))
    names = paths.str.rsplit("/", n=1).str[-1]
    return paths if names.nunique() < paths.nunique() else names


def _rename(
    table: pd.DataFrame, columns: Mapping[str, str], file: Path, further: Sequence[str]
) -> pd.DataFrame:
    available = ", ".join(table.columns)
    for name, column in columns.items():
        if column not in table:
            raise InputError(f"+data.args.columns: {name}={column}, but {file} has {available}")
        if name == "age" and is_in_months(column):
            raise InputError(f"{file}: column '{column}': {IN_YEARS}")
        if name == "target" and column.strip().lower() in ("benign", "normal", "healthy"):
            raise InputError(
                f"+data.args.columns.target={column}: in a target, 1 means malignant; add a column "
                "of malignancy to the table"
            )
    shadowed = [name for name, column in columns.items() if name in table and name != column]
    canonical_names = {column: name for name, column in columns.items()}
    renamed = table.drop(columns=shadowed).rename(columns=canonical_names)
    renamed = rename_columns(renamed, further)
    for name in {*columns} - {*COLUMN_NAMES, *CANONICAL, *OPTIONAL, *further}:
        nearest = get_close_matches(name, {*COLUMN_NAMES} - {*renamed}, n=1, cutoff=0.85)
        if nearest:
            raise InputError(
                f"+data.args.columns: {name}={columns[name]}; did you mean {nearest[0]}? If not, "
                f"add {name} to data.columns"
            )
    if "image_id" not in renamed:
        raise InputError(
            f"{file}: no image column; name it: +data.args.columns.image_id=COLUMN, one of "
            f"{available}"
        )
    return renamed


def _describe_mapping(
    table: pd.DataFrame, rows: pd.DataFrame, columns: Mapping[str, str], further: Sequence[str]
) -> tuple[str, ...]:
    """Describe the canonical meaning of the columns in use, and the missing columns."""
    others = [name for name in table.columns if name not in columns.values()]
    inferred = {canonical: name for name, canonical in match_columns(others, further).items()}
    mapping = {key: name for key, name in {**inferred, **columns}.items() if key in rows}
    inputs = [key for key in mapping if key in CONVERTERS or key not in COLUMN_NAMES]
    others = [key for key in inputs if key not in (*further, "part", "duplicate_of")]
    notes = (f"not an input of the model: {', '.join(others)}; see data.columns",) if others else ()
    if all(name == key for key, name in mapping.items() if key != "image_id"):
        return notes
    absent = {key: "(a column per class)" if key in rows else "(none)" for key in COLUMN_NAMES}
    pairs = [f"{key} <- {mapping.get(key, absent[key])}" for key in COLUMN_NAMES]
    return (f"columns: {', '.join(pairs)}", *notes)


def _parse_parts(cells: "pd.Series[Any]", file: Path) -> "pd.Series[Any]":
    words = cells.dropna().str.lower()
    unknown = words[~words.isin(PARTS)]
    if len(unknown):
        line = int(unknown.index[0]) + 2
        allowed = ", ".join(PARTS)
        raise InputError(f"{file}: row {line}: part '{unknown.iloc[0]}'; allowed: {allowed}")
    return words.map(PARTS).reindex(cells.index).astype(object)


PARTS: Final[dict[str, str | None]] = {
    **dict.fromkeys(("train", "training")),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder name in lower case -> fixed part. Training rows are not fixed, so that validation or test
rows can be taken from them if there is no such folder."""


def image_folder(data: DataConfig) -> CohortTable:
    """Read folders of images, one per class, with any subfolders; there are no record columns.

    The name of an image is its file name without suffix, or its path under the root if two files
    have the same name. If folders of parts exist, only they are read. A folder `masks` is not a
    class; with it a single class folder suffices, for learning masks.
    """
    root = require_root(data)
    masks = find_folders(root, [MASK_FOLDER])
    tops = [folder for folder in _list_folders(root) if folder.name.lower() in PARTS]
    images = [
        (file, folder.name, PARTS[top.name.lower()] if tops else None)
        for top in tops or [root]
        for folder in _list_folders(top)
        if folder not in masks
        for file in _list_images(folder)
    ]
    classes = sorted({name for _, name, _ in images})
    if len(classes) < 2 - bool(masks):
        has = f"only '{classes[0]}'" if classes else "none"
        raise InputError(f"{root}: two or more folders, one per class, are needed; it has {has}")
    files, diagnosis, part = zip(*images, strict=True)
    names = pd.Series([file.stem for file in files], dtype=object)
    if names.duplicated().any():
        names = pd.Series([file.relative_to(root).as_posix() for file in files], dtype=object)
    table = pd.DataFrame({"image_id": names, "diagnosis": diagnosis})
    if tops:
        table["part"] = pd.Series(part, dtype=object)
    rows = to_canonical(table, root, data).assign(path=[str(file) for file in files])
    others = describe_other_pictures(list_visible(root))
    return CohortTable(rows, notes=(others,) if others else ())


def _list_folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not is_system_file(f.name))


def _list_images(folder: Path) -> list[Path]:
    listed = sorted(list_visible(folder))
    files = [file for file in listed if file.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        advice = describe_other_pictures(listed) or "add images or remove the folder"
        raise InputError(f"{folder}: no image in this class folder; {advice}")
    for file in files:
        if not is_utf8(str(file)):
            raise InputError(f"{str(file)!r}: the file name is not UTF-8; rename the file")
    return files
