"""Adapters of public datasets, which read the unpacked files of the official archives."""

from dataclasses import replace
from pathlib import Path
from typing import Final

import pandas as pd

import skinmm
from skinmm.config import DataConfig
from skinmm.data.cohorts.tables import (
    CohortTable,
    attach_images,
    merge_companion,
    read_table,
    require_choice,
    require_root,
    to_canonical,
)
from skinmm.data.cohorts.targets import decode_one_hot, name_iddx
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.finder import describe_folders, find_folders, find_table, list_files
from skinmm.vocabulary import PUBLIC_NAMES, map_unique, parse_diagnosis

ISIC_FOLDERS: Final = ("jpeg", "images", "dicom", "tfrecords", "")
"""Folders of images in any dataset, in addition to the folders of its archives."""
SIIM_FOLDERS: Final = (
    *("jpeg/train", "train", "jpeg", "dicom/train", "dicom", "tfrecords", "images", ""),
)
_PARTS: Final = {"Training": None, "Validation": "val", "Test": "test"}


def ham10000(data: DataConfig) -> CohortTable:
    """Read HAM10000 (Tschandl et al. 2018): seven classes; lesion ids, no patient ids.

    `source` is filled if the official table `HAM10000_metadata` is in the folder, whose column
    `dataset` names four sources; other forms of the table lack it.
    """
    root = require_root(data)
    file = find_table(root, "HAM10000_metadata.csv")
    table = read_table(file, ["lesion_id", "image_id", "dx"])
    table["dx"] = map_unique(table["dx"], parse_diagnosis)
    table = _add_ham_source(table, "image_id", root)
    unpacked = ("HAM10000_images_part_1", "HAM10000_images_part_2")
    rows = to_canonical(table, file, data)
    return attach_images(rows, root, data.format, (*unpacked, *ISIC_FOLDERS))


def _add_ham_source(table: pd.DataFrame, key: str, root: Path) -> pd.DataFrame:
    """Add `source`: the column `dataset` of the table, or of the official `HAM10000_metadata`."""
    if "dataset" not in table:
        official = find_table(root, "HAM10000_metadata")
        table = merge_companion(table, key, official, ["dataset"], "image_id")
    return table.rename(columns={"dataset": "source"})


def isic_2019(data: DataConfig) -> CohortTable:
    """Read the training set of ISIC 2019: eight classes.

    It contains HAM10000, BCN20000 and images of MSK. The prefix of the lesion's name states which,
    as in FLamby (Ogier du Terrail et al. 2022, arXiv:2210.04620), and `HAM10000_metadata` adds the
    four sources of HAM10000. An image named `..._downsampled` is linked to its original, so that no
    split separates the two.
    """
    root = require_root(data)
    file = find_table(root, "ISIC_2019_Training_GroundTruth.csv")
    table = read_table(file, ["image", "MEL"])
    table["diagnosis"] = decode_one_hot(table, file)
    metadata = ["age_approx", "anatom_site_general", "lesion_id", "sex"]
    companion = find_table(root, "ISIC_2019_Training_Metadata.csv")
    table = merge_companion(table, "image", companion, metadata)
    table = _add_ham_source(table, "image", root)
    if "lesion_id" in table:
        archive = table["lesion_id"].str.extract("^(BCN|HAM|MSK)", expand=False)
        table["source"] = table["source"].fillna(archive) if "source" in table else archive
    original = table["image"].str.removesuffix("_downsampled")
    table["duplicate_of"] = original.where(original != table["image"], None)
    folders = ("ISIC_2019_Training_Input", *ISIC_FOLDERS)
    return attach_images(to_canonical(table, file, data), root, data.format, folders)


def isic_2018(data: DataConfig, *, folds: str = "stratified", task: int = 3) -> CohortTable:
    """Read ISIC 2018 task 3: seven classes; age, sex and site from `HAM10000_metadata.csv`.

    Args:
        data: root and format.
        folds: `stratified` splits the training set; `public` adds the official validation and test
            sets as fixed parts.
        task: 3, or 1 for the images with lesion masks, without diagnosis.
    """
    root = require_root(data)
    require_choice("task", str(task), ("1", "3"))
    if task == 1:
        return _read_segmentation_task(root, data, folds)
    groups = find_table(root, "ISIC2018_Task3_Training_LesionGroupings.csv")
    ham = find_table(root, "HAM10000_metadata.csv")
    parts = []
    for part, fixed in _select_parts(folds).items():
        file = find_table(root, f"ISIC2018_Task3_{part}_GroundTruth.csv")
        table = read_table(file, ["image", "MEL"])
        table["diagnosis"] = decode_one_hot(table, file)
        table = merge_companion(table, "image", groups, ["lesion_id"])
        table = merge_companion(table, "image", ham, ["age", "sex", "localization"], "image_id")
        table = _add_ham_source(table, "image", root)
        parts.append(to_canonical(table, file, data).assign(part=fixed))
    unpacked = [f"ISIC2018_Task3_{part}_Input" for part in _PARTS]
    return attach_images(_concatenate(parts), root, data.format, (*unpacked, *ISIC_FOLDERS))


def isic_2017(data: DataConfig, *, folds: str = "stratified") -> CohortTable:
    """Read ISIC 2017 part 3: melanoma, seborrheic keratosis, nevus.

    Files are named as in the challenge, or `training.csv`, `validation.csv` and `test.csv` with
    folders of the same names. If a table has no column for keratosis, images without melanoma are
    `unknown`.

    Args:
        data: root and format.
        folds: `stratified` splits the training set; `public` adds the official validation and test
            sets, if present, as fixed parts.
    """
    root = require_root(data)
    parts = []
    for part, fixed in _select_parts(folds).items():
        official = part.replace("Test", "Test_v2")
        file = find_table(root, f"{part.lower()}.csv")
        if not file.is_file():
            file = find_table(root, f"ISIC-2017_{official}_Part3_GroundTruth.csv")
        if part == "Training" or file.is_file():
            table = _add_diagnosis(read_table(file, ["image_id", "melanoma"]))
            metadata = find_table(root, f"ISIC-2017_{official}_Data_metadata.csv")
            table = merge_companion(table, "image_id", metadata, ["age_approximate", "sex"])
            parts.append(to_canonical(table, file, data).assign(part=fixed))
    unpacked = [f"ISIC-2017_{part}_Data" for part in ("Training", "Validation", "Test_v2")]
    folders = (*unpacked, "training", "validation", "test", *ISIC_FOLDERS)
    return attach_images(_concatenate(parts), root, data.format, folders)


def isic_2024(data: DataConfig) -> CohortTable:
    """Read ISIC 2024 (SLICE-3D): `train-metadata.csv`, and `train-image.hdf5` or JPEG files.

    `data.columns` may name its measurements (`clin_size_long_diam_mm`, `tbp_lv_areaMM2`, ...) but
    not results of histology (`iddx_...`, `mel_...`).
    """
    root = require_root(data)
    file = find_table(root, "train-metadata.csv")
    columns = [*PUBLIC_NAMES, "iddx_full", *data.columns]
    table = read_table(file, ["isic_id", "target", "patient_id"], only=columns)
    if "iddx_full" in table:
        table["diagnosis"] = map_unique(table["iddx_full"].fillna("").str.lower(), name_iddx)
    folders = ("train-image", "train-image/image", *ISIC_FOLDERS)
    return attach_images(to_canonical(table, file, data), root, data.format, folders)


def _read_segmentation_task(root: Path, data: DataConfig, folds: str) -> CohortTable:
    folders, parts = [], []
    for part, fixed in _select_parts(folds).items():
        folder = f"ISIC2018_Task1-2_{part}_Input"
        files = map(Path, list_files(find_folders(root, [folder])))
        names = [file.stem for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if not names:
            raise InputError(f"{root}: no folder {folder} with images; {describe_folders(root)}")
        table = pd.DataFrame({"image_id": names})
        parts.append(to_canonical(table, root, data).assign(part=fixed))
        folders.append(folder)
    return attach_images(_concatenate(parts), root, data.format, folders)


def _add_diagnosis(table: pd.DataFrame) -> pd.DataFrame:
    names = ["melanoma", "seborrheic_keratosis"]
    marks = table.reindex(columns=names).apply(pd.to_numeric, errors="coerce") == 1
    neither = "nv" if "seborrheic_keratosis" in table else "unknown"
    diagnosis = pd.Series(neither, table.index).mask(marks["seborrheic_keratosis"], "bkl")
    return table.drop(columns="melanoma").assign(diagnosis=diagnosis.mask(marks["melanoma"], "mel"))


def _select_parts(folds: str) -> dict[str, str | None]:
    require_choice("folds", folds, ("stratified", "public"))
    return _PARTS if folds == "public" else {"Training": None}


def _concatenate(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate tables; drop the column `part` if no row has a fixed part."""
    table = pd.concat(parts, ignore_index=True)
    return table if table["part"].notna().any() else table.drop(columns="part")


def siim_isic(
    data: DataConfig, *, duplicates: str = "keep", folds: str = "stratified"
) -> CohortTable:
    """Read SIIM-ISIC 2020: `train.csv` or TFRecords, and images as JPEG, DICOM or TFRecord.

    `ISIC_2020_Training_GroundTruth_v2.csv` adds `lesion_id`, `image_size.csv` the original width
    and height and the public folds, `ISIC_2020_Training_Duplicates.csv` the official duplicates.

    Args:
        data: root and format.
        duplicates: `keep` official pairs, linked so that no split separates them, or `drop` the
            second image.
        folds: `stratified`, or `public` for the 15 folds of the public TFRecords, without the
            second image of a pair: from `image_size.csv`, otherwise from the numbers of the files
            that contain the images (`train00-2182.tfrec` to `train14-...`).
    """
    require_choice("duplicates", duplicates, ("keep", "drop"))
    require_choice("folds", folds, ("stratified", "public"))
    root = require_root(data)
    file = find_table(root, "train.csv")
    sizes = find_table(root, "image_size.csv")
    table = _read_siim_table(root, file)
    if "diagnosis" in table:
        table["diagnosis"] = map_unique(table["diagnosis"], parse_diagnosis)
    lesions = find_table(root, "ISIC_2020_Training_GroundTruth_v2.csv")
    table = merge_companion(table, "image_name", lesions, ["lesion_id"])
    table = merge_companion(table, "image_name", sizes, ["width", "height", "tfrecord"])
    pairs = find_table(root, "ISIC_2020_Training_Duplicates.csv")
    table = _link_duplicates(table, pairs, keep=duplicates == "keep")
    rows = to_canonical(table, file, data)
    cohort = attach_images(rows, root, data.format, SIIM_FOLDERS)
    if folds == "stratified":
        return cohort
    return replace(cohort, rows=_add_public_folds(cohort.rows, table, sizes))


def _read_siim_table(root: Path, file: Path) -> pd.DataFrame:
    if not file.is_file():
        files = list_files(find_folders(root, SIIM_FOLDERS))
        records = [name for name in files if shards.is_tfrecord(name)]
        if training := [name for name in records if not Path(name).name.startswith("test")]:
            return shards.read_records(training, shards.SIIM)
    return read_table(file, ["image_name", "patient_id", "target"])


def _add_public_folds(rows: pd.DataFrame, table: pd.DataFrame, file: Path) -> pd.DataFrame:
    files = rows["path"].astype(object).str.extract(r"/train(\d+)-[^/#]*#", expand=False)
    fold = pd.to_numeric(table.get("tfrecord", files))
    if fold.isna().all():
        raise InputError(
            f"+data.args.folds=public: {file} is missing or has no column 'tfrecord', and the "
            "images are not in files named train00-COUNT.tfrec to train14-COUNT.tfrec"
        )
    has_fold = fold >= 0
    return rows[has_fold].assign(public_fold=fold[has_fold].astype("int64"))


def _link_duplicates(table: pd.DataFrame, file: Path, *, keep: bool) -> pd.DataFrame:
    """Link the second image of an official pair to the first, or drop it."""
    if not file.is_file():
        return table
    pairs = read_table(file, ["image_name_1", "image_name_2"])
    if not keep:
        return table[~table["image_name"].isin(pairs["image_name_2"])]
    first = dict(zip(pairs["image_name_2"], pairs["image_name_1"], strict=True))
    return table.assign(duplicate_of=table["image_name"].map(first))


def pad_ufes_20(data: DataConfig) -> CohortTable:
    """Read PAD-UFES-20 (Pacheco et al. 2020): six classes.

    `data.columns` may name its clinical features (`itch`, `grew`, `bleed`, `diameter_1`,
    `fitspatrick`, ...) but not `biopsed`.
    """
    root = require_root(data)
    file = find_table(root, "metadata.csv")
    table = read_table(file, ["img_id", "patient_id", "lesion_id", "diagnostic"])
    table["diagnostic"] = map_unique(table["diagnostic"], parse_diagnosis)
    # Lesions are numbered, as they may be in other cohorts.
    table["lesion_id"] = "PAD_" + table["lesion_id"]
    parts = [f"{top}imgs_part_{number}" for number in (1, 2, 3) for top in ("images/", "")]
    folders = (*parts, "images", "")
    cohort = attach_images(to_canonical(table, file, data), root, data.format, folders)
    return replace(cohort, columns=tuple(map(str, table)))


def demo(data: DataConfig) -> CohortTable:
    """Read 700 CC0 images of ISIC 2017 with age, sex and site; see `demo/README.md`."""
    file = Path(skinmm.__file__).parent / "demo" / "cohort.csv"
    rows = to_canonical(read_table(file), file, data)
    return attach_images(rows, file.parent, "jpeg", ["images"])
