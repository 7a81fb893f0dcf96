"""Where each image's bytes are: folders are listed once, files are matched by name."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.finder import ImageFinder, list_files
from skinmm.images.source import FRAME, HDF5_SUFFIXES


def require_root(data: DataConfig) -> Path:
    """The cohort's folder.

    Raises:
        InputError: it is not set, or no folder.
    """
    if not data.root:
        raise InputError(f"data={data.name} needs data.root=DIR, the folder of the dataset")
    root = Path(data.root).expanduser().absolute()
    if not root.is_dir():
        raise InputError(f"data.root={data.root}: no such folder")
    return root


def attach_images(
    table: pd.DataFrame,
    root: Path,
    image_format: str,
    folders: Sequence[str],
    schema: shards.Schema = shards.PLAIN,
) -> pd.DataFrame:
    """Fills `path`: None where no file has the image's name.

    Args:
        table: canonical rows.
        root: folder of the dataset.
        image_format: a key of `FORMATS`, or auto: the one that holds most of the images.
        folders: where to look under the root; those that are not there are skipped.
        schema: which features of a TFRecord hold the name and the image.
    """
    there = [root / folder for folder in folders if (root / folder).is_dir()]
    files = list_files(there)
    image_ids = {name.partition(FRAME)[0] for name in table["image_id"]}
    finder, most = ImageFinder([]), 0
    for suffixes in FORMATS.values() if image_format == "auto" else [FORMATS[image_format]]:
        candidate = ImageFinder(files, suffixes=suffixes, schema=schema)
        if (count := len(image_ids & candidate.names)) > most:
            finder, most = candidate, count
        if most == len(image_ids):
            break
    paths = [finder.find(name) for name in table["image_id"]]
    filled = table.assign(path=pd.Series(paths, table.index, dtype=object))
    filled.attrs["looked_in"] = ", ".join(map(str, there)) or str(root)
    return filled


def require_images(table: pd.DataFrame, missing: str, *, needed: bool = True) -> pd.DataFrame:
    """The rows whose image is on disk.

    Args:
        table: canonical rows.
        missing: `drop` leaves the others out, `error` refuses them.
        needed: whether images are looked at; if not, `drop` leaves out the rows that a model of
            both would lack, unless no row has an image.

    Raises:
        InputError: images are missing and may not be, or every image is.
    """
    there, said = table["path"].notna(), absent(table)
    if not needed and (missing == "error" or not there.any()):
        return table
    if said is None or (missing == "drop" and there.any()):
        return table[there].reset_index(drop=True)
    raise InputError(f"{said}; data.missing=drop leaves them out" if there.any() else said)


def absent(table: pd.DataFrame) -> str | None:
    """How many images are not on disk, three of them, and where they were looked for."""
    gone = table.loc[table["path"].isna(), "image_id"]
    looked = table.attrs.get("looked_in", "the data's folder")
    said = f"{len(gone)} of {len(table)} images are not on disk, e.g. {', '.join(gone[:3])}"
    return f"{said}; looked in {looked}" if len(gone) else None


def tfrecords_in(files: Iterable[str]) -> list[str]:
    """The TFRecord files among some."""
    return [file for file in files if file.lower().endswith(shards.SUFFIXES)]


FORMATS: Final[dict[str, tuple[str, ...]]] = {
    "jpeg": tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".dcm"),
    "dicom": (".dcm",),
    "hdf5": HDF5_SUFFIXES,
    "tfrecord": shards.SUFFIXES,
}
"""`data.format` -> suffixes of its files."""


FOLDER: Final = "masks"
FOLDERS: Final = (
    FOLDER,
    "HAM10000_segmentations_lesion_tschandl",
    *(f"ISIC2018_Task1_{part}_GroundTruth" for part in ("Training", "Validation", "Test")),
)
"""Where masks of any dataset may be under its root."""
ENDING: Final = "_segmentation"
"""What ISIC adds to an image's name; names without it are understood too."""


def attach_masks(table: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Adds the column `mask`, a path; None where no file has the image's name.

    Raises:
        InputError: a folder that was named is not there.
    """
    files = map(Path, list_files(folder for folder in _folders(data) if folder.is_dir()))
    found = {
        file.stem.removesuffix(ENDING): str(file) for file in files if file.suffix.lower() == ".png"
    }
    masks = [found.get(name) for name in table["image_id"]]
    return table.assign(mask=pd.Series(masks, table.index, dtype=object))


def require_masks(table: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """The rows that have a mask; `data.missing` says whether others are refused.

    Raises:
        InputError: masks are missing and may not be, or every mask is.
    """
    table = attach_masks(table, data)
    there = table["mask"].notna()
    if there.all() or (data.missing == "drop" and there.any()):
        return table[there].reset_index(drop=True)
    names = ", ".join(table.loc[~there, "image_id"].iloc[:3])
    looked = ", ".join(map(str, _folders(data))) or "no folder"
    advice = "data.missing=drop leaves them out" if there.any() else "name their folder, data.masks"
    raise InputError(
        f"{int((~there).sum())} of {len(table)} images have no mask (NAME.png or "
        f"NAME{ENDING}.png), e.g. {names}; looked in {looked}; {advice}"
    )


def _folders(data: DataConfig) -> list[Path]:
    if data.masks is None:  # the demo brings images and no masks
        return [require_root(data) / name for name in FOLDERS] if data.root else []
    folder = Path(data.masks).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.masks={data.masks}: no such folder")
    return [folder]
