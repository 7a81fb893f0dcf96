"""SIIM-ISIC 2020 as Kaggle hands it out, with what the ISIC archive adds where it is there."""

from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog.images import list_files, root_of, tfrecords_in, with_paths
from skinmm.data.catalog.tables import canonical, choice, joined, read_table
from skinmm.errors import InputError
from skinmm.images import shards
from skinmm.vocabulary import by_value, canonical_diagnosis, rename_columns

SIIM_FOLDERS: Final = (
    "jpeg/train",
    "train",
    "jpeg",
    "dicom/train",
    "dicom",
    "tfrecords",
    "images",
    "",
)
DUPLICATES: Final = "ISIC_2020_Training_Duplicates.csv"
LESIONS: Final = "ISIC_2020_Training_GroundTruth_v2.csv"
SIZES: Final = "image_size.csv"


def siim_isic(
    data: DataConfig, *, duplicates: str = "keep", folds: str = "stratified"
) -> pd.DataFrame:
    """`train.csv` (without it, what the TFRecords say), and images as JPEG, DICOM or TFRecord.

    `ISIC_2020_Training_GroundTruth_v2.csv` adds `lesion_id`, `image_size.csv` the original width
    and height and the public folds, `ISIC_2020_Training_Duplicates.csv` the official duplicates.

    Args:
        data: root and format.
        duplicates: `keep` official pairs, linked so that no split parts them, or `drop` the second.
        folds: `stratified`, or `public` for the 15-way folds of the public TFRecords, which leave
            the second of a pair out: from `image_size.csv`, else the numbers of the files that the
            images are in (`train00-2182.tfrec` to `train14-...`).
    """
    choice("duplicates", duplicates, ("keep", "drop"))
    choice("folds", folds, ("stratified", "public"))
    root = root_of(data)
    file = root / "train.csv"
    table = _table(root, file)
    if "diagnosis" in table:
        table["diagnosis"] = by_value(table["diagnosis"], canonical_diagnosis)
    table = joined(table, "image_name", root / LESIONS, ["lesion_id"])
    table = joined(table, "image_name", root / SIZES, ["width", "height", "tfrecord"])
    table = _paired(table, root / DUPLICATES, keep=duplicates == "keep")
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    rows = with_paths(rows, root, data.format, SIIM_FOLDERS)
    return rows if folds == "stratified" else _with_public_folds(rows, table, root / SIZES)


def _table(root: Path, file: Path) -> pd.DataFrame:
    if not file.is_file():
        folders = [root / folder for folder in SIIM_FOLDERS if (root / folder).is_dir()]
        records = tfrecords_in(list_files(folders))
        training = [name for name in records if not Path(name).name.startswith("test")]
        if training:
            return shards.read_table(training, shards.SIIM)
    return read_table(file, ["image_name", "patient_id", "target"])


def _with_public_folds(rows: pd.DataFrame, table: pd.DataFrame, file: Path) -> pd.DataFrame:
    files = rows["path"].astype(object).str.extract(r"/train(\d+)-[^/#]*#", expand=False)
    fold = pd.to_numeric(table.get("tfrecord", files))
    if fold.isna().all():
        raise InputError(
            f"+data.args.folds=public: {file} is not there or has no column 'tfrecord', and the "
            "images are not read from files named train00-COUNT.tfrec to train14-COUNT.tfrec"
        )
    kept = fold >= 0
    return rows[kept].assign(public_fold=fold[kept].astype("int64"))


def _paired(table: pd.DataFrame, file: Path, *, keep: bool) -> pd.DataFrame:
    """Links the second image of an official pair to the first, or takes it out."""
    if not file.is_file():
        return table
    pairs = read_table(file, ["image_name_1", "image_name_2"])
    if not keep:
        return table[~table["image_name"].isin(pairs["image_name_2"])]
    first = dict(zip(pairs["image_name_2"], pairs["image_name_1"], strict=True))
    return table.assign(duplicate_of=table["image_name"].map(first))
