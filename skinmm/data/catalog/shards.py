"""Cohorts that are TFRecord files: any, by a mapping of their features, or a pack of ours."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog.images import list_files, root_of, tfrecords_in, with_paths
from skinmm.data.catalog.tables import canonical, pairs, read_table
from skinmm.errors import InputError
from skinmm.images.shards import PLAIN, Schema
from skinmm.images.shards import read_table as read_records
from skinmm.vocabulary import rename_columns


def packed(data: DataConfig) -> pd.DataFrame:
    """A folder that `skinmm pack` wrote: `cohort.csv` in canonical columns beside its shards."""
    root = root_of(data)
    file = root / "cohort.csv"
    table = read_table(file, ["image_id", "target", "source"])
    rows = canonical(table, file, data.name, data.columns).assign(source=table["source"])
    return with_paths(rows, root, "tfrecord", [""])


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
    root = root_of(data)
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
