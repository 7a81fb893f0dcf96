"""Adapters of files with many images each: packs, and TFRecord files of any schema."""

from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.bucket import (
    CACHE_GB,
    describe_cache,
    is_in_bucket,
    locate_images,
    locate_pack,
)
from skinmm.data.cohorts.tables import (
    CohortTable,
    attach_images,
    read_table,
    require_mapping,
    require_root,
    to_canonical,
)
from skinmm.data.columns import find_unit
from skinmm.errors import InputError
from skinmm.images.finder import find_folders, list_files
from skinmm.images.shards import PLAIN, Schema, is_tfrecord, read_records
from skinmm.vocabulary import rename_columns


def packed(data: DataConfig, *, cache: str = "", cache_gb: float = CACHE_GB) -> CohortTable:
    """Read a folder that `skinmm pack` wrote: `cohort.csv` in canonical columns, and shards.

    Args:
        data: root, a folder or a URL of object storage such as `s3://BUCKET/DIR`.
        cache: folder for shards of object storage; empty: one in the user's cache.
        cache_gb: gigabytes of shards in it.
    """
    is_url = is_in_bucket(data)
    root = locate_pack(str(data.root), cache, cache_gb) if is_url else require_root(data)
    file = root / "cohort.csv"
    table = read_table(file, ["image_id", "target", "source"])
    # Packs of earlier versions have the name of the cohort as the source.
    rows = to_canonical(table, file, data).assign(cohort=table.get("cohort", table["source"]))
    units = {name: find_unit(table[name]) for name in data.columns if name in table}
    if is_url:
        rows["path"] = locate_images(root, rows["image_id"])
        cohort = CohortTable(rows, notes=(describe_cache(root),))
    else:
        cohort = attach_images(rows, root, "tfrecord", [""])
    return replace(cohort, units={name: unit for name, unit in units.items() if unit})


def tfrecord(
    data: DataConfig,
    *,
    files: str = "*",
    image: str = PLAIN.image,
    name: str = PLAIN.name,
    columns: Any = None,
    codes: Any = None,
    missing: Any = None,
) -> CohortTable:
    """Read TFRecord files of any schema, in the root or its folder `tfrecords`.

    Args:
        data: root.
        files: pattern of file names, such as `train*`.
        image: feature with the encoded image.
        name: feature with the name of the image.
        columns: canonical name -> feature; not needed for names of public datasets.
        codes: canonical name -> words for the integers 0, 1, ...; other integers mean missing.
        missing: canonical name -> integers that mean missing.
    """
    columns = require_mapping("columns", columns, "age: patient_age", str)
    codes = _require_lists("codes", codes, "sex: [male, female]", str)
    missing = _require_lists("missing", missing, "age: [-1]", int)
    root = require_root(data)
    listed = list_files(find_folders(root, ["", "tfrecords"]))
    records = [file for file in listed if is_tfrecord(file)]
    chosen = [file for file in records if fnmatch(Path(file).name, files)]
    if not chosen:
        raise InputError(f"{root}: no TFRecord file named {files} in it or in tfrecords/")
    schema = Schema(
        image,
        name,
        columns={feature: column for column, feature in columns.items()},
        codes={columns.get(column, column): words for column, words in codes.items()},
        missing={columns.get(column, column): numbers for column, numbers in missing.items()},
    )
    table = read_records(chosen, schema, data.columns)
    for column in {*columns, *codes, *missing} - {*table.columns}:
        available = ", ".join(sorted({*map(str, table.columns)} - {"path"}))
        feature = columns.get(column, column)
        raise InputError(f"data.args: no feature '{feature}'; {root} has {available}")
    _require_words(rename_columns(table, data.columns), root)
    return CohortTable(to_canonical(table, root, data).assign(path=table["path"]))


def _require_words(table: pd.DataFrame, root: Path) -> None:
    """Raise InputError for integers as sex or site: the files do not state their meaning."""
    for column, example in {"sex": "male,female", "site": "torso,head/neck"}.items():
        cells = table[column].dropna().unique() if column in table else ()
        if numbers := sorted((cell for cell in cells if str(cell).isdecimal()), key=int):
            raise InputError(
                f"{root}: {column} is coded ({', '.join(map(str, numbers[:5]))}); name the words "
                f"of 0, 1, ... in this order, such as +data.args.codes.{column}=[{example}]"
            )


def _require_lists(key: str, value: Any, example: str, kind: type[str | int]) -> dict[str, Any]:
    """Parse an adapter option that maps names to lists of one type."""
    lists = require_mapping(key, value, example)
    for name, items in lists.items():
        if not isinstance(items, list) or not all(isinstance(item, kind) for item in items):
            raise InputError(f"+data.args.{key}.{name}={items}: must be a list, as in {example}")
    return {name: tuple(items) for name, items in lists.items()}
