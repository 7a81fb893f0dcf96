"""A person's own cohort: any CSV with a row per image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog.folder import PARTS
from skinmm.data.catalog.images import root_of, with_paths
from skinmm.data.catalog.tables import canonical, choice, pairs, read_table, without_suffix
from skinmm.data.catalog.targets import LACKS
from skinmm.errors import InputError
from skinmm.images.shards import Schema
from skinmm.images.source import split_frame
from skinmm.vocabulary import rename_columns


def csv(
    data: DataConfig,
    *,
    table: str = "cohort.csv",
    columns: Any = None,
    images: Sequence[str] = ("", "images", "jpeg", "dicom", "tfrecords"),
    tfrecord: Any = None,
) -> pd.DataFrame:
    """Any table with a row per image.

    The image cell is a name, looked for in the folders `images`, or a path under the root. A column
    `part` (train, val, test) fixes the split.

    Args:
        data: root and format.
        table: the CSV, under the root.
        columns: canonical name -> the table's name for it; names that public datasets use are
            understood without.
        images: folders under the root, or one.
        tfrecord: features of TFRecord files that have others than the public ones, as `image` and
            `name`.
    """
    columns = pairs("columns", columns, "age: years")
    features = pairs("tfrecord", tfrecord, "image: image/encoded, name: image/id")
    for name in features:
        choice("tfrecord", name, ("image", "name"))
    root = root_of(data)
    file = root / table
    found = read_table(file)
    rows = _renamed(found, columns, file)
    if "part" in rows:
        rows["part"] = _parts(rows["part"], file)
    cells = rows["image_id"]
    rows["image_id"] = _unique_names(cells)
    unlabelled = [name for name in ("target", "diagnosis") if name not in rows]
    rows = canonical(rows, file, data.name, data.columns)
    folders = [images] if isinstance(images, str) else images
    rows = with_paths(rows, root, data.format, folders, Schema(**features))
    listed = cells.dropna()[cells.dropna().str.contains("/")]
    inside = listed[[(root / split_frame(cell)[0]).is_file() for cell in listed]]
    rows.loc[inside.index, "path"] = [str(root / cell) for cell in inside]
    rows.attrs[LACKS] = {name: f"{file}: it has {', '.join(found.columns)}" for name in unlabelled}
    return rows


def _renamed(table: pd.DataFrame, columns: Mapping[str, str], file: Path) -> pd.DataFrame:
    for name, theirs in columns.items():
        if theirs not in table:
            has = ", ".join(table.columns)
            raise InputError(f"+data.args.columns: {name}={theirs}, but {file} has {has}")
    shadowed = [name for name, theirs in columns.items() if name in table and name != theirs]
    back = {theirs: name for name, theirs in columns.items()}
    renamed = rename_columns(table.drop(columns=shadowed).rename(columns=back))
    if "image_id" not in renamed:
        has = ", ".join(table.columns)
        raise InputError(
            f"{file}: no image column; name it: +data.args.columns.image_id=... of {has}"
        )
    return renamed


def _unique_names(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """File names without folder and suffix; with their folder where they would repeat."""
    paths = without_suffix(cells)
    names = paths.str.rsplit("/", n=1).str[-1]
    return paths if names.nunique() < paths.nunique() else names


def _parts(cells: "pd.Series[Any]", file: Path) -> "pd.Series[Any]":
    words = cells.dropna().str.lower()
    unknown = words[~words.isin(PARTS)]
    if len(unknown):
        line = int(unknown.index[0]) + 2
        allowed = ", ".join(PARTS)
        raise InputError(f"{file}: row {line}: part '{unknown.iloc[0]}'; allowed: {allowed}")
    return words.map(PARTS).reindex(cells.index).astype(object)
