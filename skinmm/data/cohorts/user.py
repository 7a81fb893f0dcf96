"""A person's own cohort: any CSV with a row per image."""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.cohorts import find_images
from skinmm.data.cohorts.find_images import attach_images, require_root, tfrecords_in
from skinmm.data.cohorts.tables import (
    canonical,
    choice,
    pairs,
    read_table,
    without_suffix,
)
from skinmm.data.cohorts.targets import LACKS
from skinmm.errors import InputError, is_utf8
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images.finder import list_files
from skinmm.images.shards import PLAIN, Schema
from skinmm.images.shards import read_table as read_records
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
    root = require_root(data)
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
    rows = attach_images(rows, root, data.format, folders, Schema(**features))
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


PARTS: Final[dict[str, str | None]] = {
    **dict.fromkeys(("train", "training")),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Folder (case does not matter) -> the part it fixes; training rows stay free, so that validation
or test can be taken from them where their folder is missing."""


def image_folder(data: DataConfig) -> pd.DataFrame:
    """Class folders of any name; pictures may lie deeper. There is no record beside the image.

    The image's name is the file's without suffix, or its path under the root where two files share
    a name. Where there are part folders, only they are read. A folder `masks` is no class; beside
    it one class folder is enough to learn masks from.

    Raises:
        InputError: fewer than two class folders, or one without a picture.
    """
    root = require_root(data)
    least = 1 if (root / find_images.FOLDER).is_dir() else 2
    tops = [folder for folder in _folders(root) if folder.name.lower() in PARTS]
    found = [
        (file, folder.name, PARTS[top.name.lower()] if tops else None)
        for top in tops or [root]
        for folder in _folders(top)
        if folder != root / find_images.FOLDER
        for file in _pictures(folder)
    ]
    classes = sorted({name for _, name, _ in found})
    if len(classes) < least:
        has = f"only '{classes[0]}'" if classes else "none"
        raise InputError(f"{root}: two or more folders, one per class, are needed; it has {has}")
    files, diagnosis, part = zip(*found, strict=True)
    names = pd.Series([file.stem for file in files], dtype=object)
    if names.duplicated().any():
        names = pd.Series([file.relative_to(root).as_posix() for file in files], dtype=object)
    table = pd.DataFrame({"image_id": names, "diagnosis": diagnosis})
    if tops:
        table["part"] = pd.Series(part, dtype=object)
    rows = canonical(table, root, data.name, data.columns)
    return rows.assign(path=[str(file) for file in files])


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _pictures(folder: Path) -> Iterator[Path]:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InputError(f"{folder}: no picture in this class folder; fill it or take it away")
    for file in files:
        if not is_utf8(str(file)):
            raise InputError(f"{str(file)!r}: a file name that is not UTF-8; rename it")
    yield from files


def packed(data: DataConfig) -> pd.DataFrame:
    """A folder that `skinmm pack` wrote: `cohort.csv` in canonical columns beside its shards."""
    root = require_root(data)
    file = root / "cohort.csv"
    table = read_table(file, ["image_id", "target", "source"])
    rows = canonical(table, file, data.name, data.columns).assign(source=table["source"])
    return attach_images(rows, root, "tfrecord", [""])


def tfrecord(
    data: DataConfig,
    *,
    files: str = "*",
    image: str = PLAIN.image,
    name: str = PLAIN.name,
    columns: Any = None,
    codes: Any = None,
    missing: Any = None,
) -> pd.DataFrame:
    """TFRecord files of any schema, under the root or its folder `tfrecords`.

    Args:
        data: root.
        files: pattern of the names of those to read, such as `train*`.
        image: the feature that holds the encoded image.
        name: the feature that holds its name.
        columns: canonical name -> feature; those that public datasets use are understood without.
        codes: canonical name -> the words that integers 0, 1, ... stand for; others are missing.
        missing: canonical name -> the integers that stand for a missing value.

    Raises:
        InputError: no such file, or a feature that is not there.
    """
    columns = pairs("columns", columns, "age: patient_age")
    codes = _lists("codes", codes, "sex: [male, female]", str)
    missing = _lists("missing", missing, "age: [-1]", int)
    root = require_root(data)
    found = list_files(folder for folder in (root, root / "tfrecords") if folder.is_dir())
    chosen = [file for file in tfrecords_in(found) if fnmatch(Path(file).name, files)]
    if not chosen:
        raise InputError(f"{root}: no TFRecord file named {files} there or in tfrecords/")
    schema = Schema(
        image,
        name,
        columns={feature: ours for ours, feature in columns.items()},
        codes={columns.get(ours, ours): words for ours, words in codes.items()},
        missing={columns.get(ours, ours): numbers for ours, numbers in missing.items()},
    )
    table = read_records(chosen, schema)
    for ours in {*columns, *codes, *missing} - {*table.columns}:
        has = ", ".join(sorted({*map(str, table.columns)} - {"path"}))
        raise InputError(f"data.args: no feature '{columns.get(ours, ours)}'; {root} has {has}")
    rows = canonical(rename_columns(table), root, data.name, data.columns)
    return rows.assign(path=table["path"])


def _lists(key: str, value: Any, example: str, kind: type[str | int]) -> dict[str, Any]:
    """A mapping of names to lists of one type, as an option of an adapter gives it."""
    found = pairs(key, value, example)
    for name, items in found.items():
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise InputError(f"+data.args.{key}.{name}={items}: must be a list, as in {example}")
    return {name: tuple(items) for name, items in found.items()}
