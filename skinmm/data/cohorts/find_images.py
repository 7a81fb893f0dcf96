"""Find the images and lesion masks of a cohort by name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.cohorts.tables import CohortTable
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.finder import ImageFinder, list_files
from skinmm.images.source import FRAME, HDF5_SUFFIXES

FORMATS: Final[dict[str, tuple[str, ...]]] = {
    "jpeg": tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".dcm"),
    "dicom": (".dcm",),
    "hdf5": HDF5_SUFFIXES,
    "tfrecord": shards.SUFFIXES,
}
"""`data.format` -> suffixes of its files."""
MASK_FOLDER: Final = "masks"
MASK_FOLDERS: Final = (
    MASK_FOLDER,
    "HAM10000_segmentations_lesion_tschandl",
    *(f"ISIC2018_Task1_{part}_GroundTruth" for part in ("Training", "Validation", "Test")),
)
"""Folders of masks, of any dataset, under its root."""
MASK_ENDING: Final = "_segmentation"
"""Optional ending of a mask's name after the name of its image, as in ISIC."""


def require_root(data: DataConfig) -> Path:
    """Return the folder of the cohort.

    Raises:
        InputError: `data.root` is not set, or not a folder.
    """
    if not data.root:
        raise InputError(f"data={data.name} needs data.root=DIR, the folder of the dataset")
    root = Path(data.root).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data.root={data.root}: no such folder")
    return root


def attach_images(
    rows: pd.DataFrame,
    root: Path,
    image_format: str,
    folders: Sequence[str],
    schema: shards.Schema = shards.PLAIN,
) -> CohortTable:
    """Fill the column `path` with the location of each image; None if it is not found.

    Args:
        rows: canonical rows.
        root: folder of the dataset.
        image_format: a key of `FORMATS`, or auto: the one with most of the images.
        folders: folders to search under the root; missing ones are skipped.
        schema: features of TFRecord files that contain the name and the image.
    """
    searched = tuple(root / folder for folder in folders if (root / folder).is_dir())
    files = list_files(searched)
    image_ids = {name.partition(FRAME)[0] for name in rows["image_id"]}
    finder, most = ImageFinder([]), 0
    for suffixes in FORMATS.values() if image_format == "auto" else [FORMATS[image_format]]:
        candidate = ImageFinder(files, suffixes=suffixes, schema=schema)
        if (count := len(image_ids & candidate.names)) > most:
            finder, most = candidate, count
        if most == len(image_ids):
            break
    paths = [finder.find(name) for name in rows["image_id"]]
    rows = rows.assign(path=pd.Series(paths, rows.index, dtype=object))
    return CohortTable(rows, searched or (root,))


def require_images(cohort: CohortTable, missing: str, *, needed: bool = True) -> pd.DataFrame:
    """Return the rows whose image was found.

    Args:
        cohort: as `load_cohort` returns it.
        missing: `drop` leaves out rows without an image, `error` refuses them.
        needed: whether images are used. If not, `drop` leaves out the same rows, so that models
            with and without images are comparable, unless no row has an image.

    Raises:
        InputError: images are missing and `missing` is `error`, or no image was found.
    """
    rows = cohort.rows
    has_image = rows["path"].notna()
    if not needed and (missing == "error" or not has_image.any()):
        return rows
    if has_image.all() or (missing == "drop" and has_image.any()):
        return rows[has_image].reset_index(drop=True)
    problem = describe_missing_images(rows, cohort.searched)
    advice = "; set data.missing=drop to leave them out" if has_image.any() else ""
    raise InputError(f"{problem}{advice}")


def describe_missing_images(rows: pd.DataFrame, searched: Iterable[Path]) -> str | None:
    """Describe how many images were not found, with examples; None if all were found."""
    missing = rows.loc[rows["path"].isna(), "image_id"]
    if missing.empty:
        return None
    return (
        f"{len(missing)} of {len(rows)} images are not on disk, e.g. {', '.join(missing[:3])}; "
        f"searched in {', '.join(map(str, searched))}"
    )


def filter_tfrecords(files: Iterable[str]) -> list[str]:
    """Return the TFRecord files among some files."""
    return [file for file in files if file.lower().endswith(shards.SUFFIXES)]


def attach_masks(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Add the column `mask` with the path of each mask; None if it is not found.

    Raises:
        InputError: the folder `data.masks` does not exist.
    """
    files = map(Path, list_files(folder for folder in _mask_folders(data) if folder.is_dir()))
    masks = {
        file.stem.removesuffix(MASK_ENDING): str(file)
        for file in files
        if file.suffix.lower() == ".png"
    }
    paths = [masks.get(name) for name in rows["image_id"]]
    return rows.assign(mask=pd.Series(paths, rows.index, dtype=object))


def require_masks(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Return the rows that have a mask; `data.missing=error` refuses the others.

    Raises:
        InputError: masks are missing and may not be, or no mask was found.
    """
    rows = attach_masks(rows, data)
    has_mask = rows["mask"].notna()
    if has_mask.all() or (data.missing == "drop" and has_mask.any()):
        return rows[has_mask].reset_index(drop=True)
    names = ", ".join(rows.loc[~has_mask, "image_id"].iloc[:3])
    folders = ", ".join(map(str, _mask_folders(data))) or "no folder"
    advice = "leave them out with data.missing=drop" if has_mask.any() else "set data.masks=DIR"
    raise InputError(
        f"{int((~has_mask).sum())} of {len(rows)} images have no mask (NAME.png or "
        f"NAME{MASK_ENDING}.png), e.g. {names}; searched in {folders}; {advice}"
    )


def _mask_folders(data: DataConfig) -> list[Path]:
    if data.masks is None:  # the demo cohort has no root
        return [require_root(data) / name for name in MASK_FOLDERS] if data.root else []
    folder = Path(data.masks).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.masks={data.masks}: no such folder")
    return [folder]
