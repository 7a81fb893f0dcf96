"""The ISIC challenges beside SIIM-ISIC 2020, as their zip files unpack; the official ISIC names."""

from pathlib import Path
from typing import Final

import pandas as pd

import skinmm
from skinmm.config import DataConfig
from skinmm.data.cohorts.find_images import attach_images, require_root, tfrecords_in
from skinmm.data.cohorts.tables import canonical, choice, joined, read_table
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.finder import list_files
from skinmm.vocabulary import COLUMN_NAMES, map_unique, parse_diagnosis, rename_columns

ISIC_FOLDERS: Final = ("jpeg", "images", "dicom", "tfrecords", "")
"""Where images of any dataset may be, beside the folders that its zip files make."""
_DOWNSAMPLED: Final = "_downsampled"
_PARTS: Final = {"Training": None, "Validation": "val", "Test": "test"}
_IDDX: Final = (
    *(("melanoma", "mel"), ("basal cell", "bcc"), ("squamous cell", "scc")),
    *(("actinic keratosis", "akiec"), ("keratosis", "bkl"), ("lentigo", "bkl")),
    *(("dermatofibroma", "df"), ("nevus", "nv"), ("angioma", "vasc"), ("vascular", "vasc")),
)
"""Words of ISIC's diagnosis path (`iddx_full`), the first that occurs counts."""


def ham10000(data: DataConfig) -> pd.DataFrame:
    """HAM10000 (Tschandl et al. 2018), seven classes; the lesion stands in for the patient."""
    root = require_root(data)
    file = root / "HAM10000_metadata.csv"
    table = read_table(file, ["lesion_id", "image_id", "dx"])
    table["dx"] = map_unique(table["dx"], parse_diagnosis)
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    unpacked = ("HAM10000_images_part_1", "HAM10000_images_part_2")
    return attach_images(rows, root, data.format, (*unpacked, *ISIC_FOLDERS))


def isic_2019(data: DataConfig) -> pd.DataFrame:
    """ISIC 2019, eight classes: ground truth and metadata of the training set.

    HAM10000 is part of it, and so are older ISIC images: those named `..._downsampled` are linked
    to the image they were made from, so that no split parts the two.
    """
    root = require_root(data)
    file = root / "ISIC_2019_Training_GroundTruth.csv"
    table = read_table(file, ["image", "MEL"])
    table["diagnosis"] = _hot(table, file)
    metadata = ["age_approx", "anatom_site_general", "lesion_id", "sex"]
    table = joined(table, "image", root / "ISIC_2019_Training_Metadata.csv", metadata)
    original = table["image"].str.removesuffix(_DOWNSAMPLED)
    table["duplicate_of"] = original.where(original != table["image"], None)
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    unpacked = "ISIC_2019_Training_Input"
    return attach_images(
        rows, root, data.format, (unpacked, f"{unpacked}/{unpacked}", *ISIC_FOLDERS)
    )


def isic_2018(data: DataConfig, *, folds: str = "stratified", task: int = 3) -> pd.DataFrame:
    """ISIC 2018 task 3, seven classes; age, sex and site from `HAM10000_metadata.csv` if there.

    Args:
        data: root and format.
        folds: `stratified` deals the training set; `public` adds the official validation and test
            sets as the fixed parts.
        task: 1 is the images that have masks of their lesions, and no diagnosis.
    """
    root = require_root(data)
    choice("task", str(task), ("1", "3"))
    if task == 1:
        return _with_lesions_drawn(root, data, folds)
    groups = root / "ISIC2018_Task3_Training_LesionGroupings.csv"
    ham = root / "HAM10000_metadata.csv"
    parts = []
    for part, fixed in _official(folds).items():
        file = _unpacked(root, f"ISIC2018_Task3_{part}_GroundTruth.csv")
        table = read_table(file, ["image", "MEL"])
        table["diagnosis"] = _hot(table, file)
        table = joined(table, "image", groups, ["lesion_id"])
        table = joined(table, "image", ham, ["age", "sex", "localization"], "image_id")
        rows = canonical(rename_columns(table), file, data.name, data.columns)
        parts.append(rows.assign(part=fixed))
    rows = _stacked(parts)
    unpacked = [f"ISIC2018_Task3_{part}_Input" for part in _PARTS]
    return attach_images(rows, root, data.format, (*unpacked, *ISIC_FOLDERS))


def isic_2017(data: DataConfig, *, folds: str = "stratified") -> pd.DataFrame:
    """ISIC 2017 part 3: melanoma, seborrheic keratosis, nevus.

    Either as the challenge unpacks, or as one table a part (`training.csv`, `validation.csv`,
    `test.csv`, with the folders of the same names). Where a table does not tell keratosis from
    nevus, what is no melanoma is `unknown`.

    Args:
        data: root and format.
        folds: `stratified` deals the training set; `public` adds the official validation and test
            sets, as far as they are there, as the fixed parts.
    """
    root = require_root(data)
    parts = []
    for part, fixed in _official(folds).items():
        official = part.replace("Test", "Test_v2")
        file = root / f"{part.lower()}.csv"
        if not file.is_file():
            file = root / f"ISIC-2017_{official}_Part3_GroundTruth.csv"
        if part == "Training" or file.is_file():
            table = _three_way(read_table(file, ["image_id", "melanoma"]))
            metadata = root / f"ISIC-2017_{official}_Data_metadata.csv"
            table = joined(table, "image_id", metadata, ["age_approximate", "sex"])
            rows = canonical(rename_columns(table), file, data.name, data.columns)
            parts.append(rows.assign(part=fixed))
    rows = _stacked(parts)
    unpacked = [f"ISIC-2017_{part}_Data" for part in ("Training", "Validation", "Test_v2")]
    folders = (*unpacked, "training", "validation", "test", *ISIC_FOLDERS)
    return attach_images(rows, root, data.format, folders)


def isic_2024(data: DataConfig) -> pd.DataFrame:
    """ISIC 2024 (SLICE-3D): `train-metadata.csv`, and images in `train-image.hdf5` or as JPEG.

    Any of its measurements (`clin_size_long_diam_mm`, `tbp_lv_areaMM2`, ...) may be named in
    `data.columns`; what histology told (`iddx_...`, `mel_...`) may not.
    """
    root = require_root(data)
    file = root / "train-metadata.csv"
    known = [name for names in COLUMN_NAMES.values() for name in names]
    wanted = [*known, "iddx_full", *data.columns]
    table = read_table(file, ["isic_id", "target", "patient_id"], only=wanted)
    if "iddx_full" in table:
        paths = table["iddx_full"].fillna("").str.lower()
        table["diagnosis"] = map_unique(paths, _from_iddx)
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    folders = ("train-image", "train-image/image", *ISIC_FOLDERS)
    return attach_images(rows, root, data.format, folders)


def _with_lesions_drawn(root: Path, data: DataConfig, folds: str) -> pd.DataFrame:
    folders = {f"ISIC2018_Task1-2_{part}_Input": fixed for part, fixed in _official(folds).items()}
    parts = []
    for name, fixed in folders.items():
        files = map(Path, list_files([root / name]) if (root / name).is_dir() else [])
        names = [file.stem for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
        if not names:
            raise InputError(f"{root / name}: no such folder, or no picture in it")
        rows = canonical(pd.DataFrame({"image_id": names}), root, data.name, data.columns)
        parts.append(rows.assign(part=fixed))
    return attach_images(_stacked(parts), root, data.format, list(folders))


def _three_way(table: pd.DataFrame) -> pd.DataFrame:
    melanoma = pd.to_numeric(table["melanoma"], errors="coerce") == 1
    diagnosis = pd.Series("unknown", table.index)
    if "seborrheic_keratosis" in table:
        keratosis = pd.to_numeric(table["seborrheic_keratosis"], errors="coerce") == 1
        diagnosis = pd.Series("nv", table.index).mask(keratosis, "bkl")
    return table.drop(columns="melanoma").assign(diagnosis=diagnosis.mask(melanoma, "mel"))


def _from_iddx(path: str) -> str:
    return next((name for word, name in _IDDX if word in path), "unknown")


def _hot(table: pd.DataFrame, file: Path) -> "pd.Series[str]":
    """The class of each row of a one-hot ground truth.

    Raises:
        InputError: a row that does not mark exactly one class.
    """
    classes = {name: parse_diagnosis(name) for name in table.columns}
    names = [name for name, known in classes.items() if known]
    marks = table[names].apply(pd.to_numeric, errors="coerce") == 1
    wrong = marks.sum(axis=1) != 1
    if wrong.any():
        line = int(wrong.to_numpy().argmax()) + 2
        raise InputError(f"{file}: row {line}: exactly one class must be 1 ({', '.join(names)})")
    return marks.idxmax(axis=1).map(classes)


def _official(folds: str) -> dict[str, str | None]:
    choice("folds", folds, ("stratified", "public"))
    return _PARTS if folds == "public" else {"Training": None}


def _stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """One table; without a fixed part no column `part`."""
    table = pd.concat(parts, ignore_index=True)
    return table if table["part"].notna().any() else table.drop(columns="part")


def _unpacked(root: Path, name: str) -> Path:
    """A file in the root or in the folder that its zip file makes."""
    inside = root / Path(name).stem / name
    return inside if inside.is_file() else root / name


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
    root = require_root(data)
    file = root / "train.csv"
    table = _table(root, file)
    if "diagnosis" in table:
        table["diagnosis"] = map_unique(table["diagnosis"], parse_diagnosis)
    table = joined(table, "image_name", root / LESIONS, ["lesion_id"])
    table = joined(table, "image_name", root / SIZES, ["width", "height", "tfrecord"])
    table = _paired(table, root / DUPLICATES, keep=duplicates == "keep")
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    rows = attach_images(rows, root, data.format, SIIM_FOLDERS)
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


PAD_UFES_FOLDERS: Final = (
    *(
        f"{top}imgs_part_{n}{below}"
        for n in (1, 2, 3)
        for top, below in (("images/", ""), ("", ""))
    ),
    *("images", ""),
)


def pad_ufes_20(data: DataConfig) -> pd.DataFrame:
    """PAD-UFES-20 (Pacheco et al. 2020), six classes.

    Its clinical features (`itch`, `grew`, `bleed`, `diameter_1`, `fitspatrick`, ...) may be named
    in `data.columns`; `biopsed` may not.
    """
    root = require_root(data)
    file = root / "metadata.csv"
    table = read_table(file, ["img_id", "patient_id", "lesion_id", "diagnostic"])
    table["diagnostic"] = map_unique(table["diagnostic"], parse_diagnosis)
    # Lesions are bare numbers here; other cohorts' may be too.
    table["lesion_id"] = "PAD_" + table["lesion_id"]
    rows = canonical(rename_columns(table), file, data.name, data.columns)
    return attach_images(rows, root, data.format, PAD_UFES_FOLDERS)


FOLDER: Final = Path(skinmm.__file__).parent / "demo"


def demo(data: DataConfig) -> pd.DataFrame:
    """700 CC0 images of ISIC 2017 with age, sex and site; see `demo/README.md`."""
    file = FOLDER / "cohort.csv"
    rows = canonical(read_table(file), file, data.name, data.columns)
    return attach_images(rows, FOLDER, "jpeg", ["images"])
