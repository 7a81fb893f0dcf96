"""Where each image's lesion mask is: a picture, white where the lesion is, named like the image."""

from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog.images import list_files, root_of
from skinmm.errors import InputError

FOLDER: Final = "masks"
FOLDERS: Final = (
    FOLDER,
    "HAM10000_segmentations_lesion_tschandl",
    *(f"ISIC2018_Task1_{part}_GroundTruth" for part in ("Training", "Validation", "Test")),
)
"""Where masks of any dataset may be under its root."""
ENDING: Final = "_segmentation"
"""What ISIC adds to an image's name; names without it are understood too."""


def with_masks(table: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
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
    table = with_masks(table, data)
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
        return [root_of(data) / name for name in FOLDERS] if data.root else []
    folder = Path(data.masks).expanduser()
    if not folder.is_dir():
        raise InputError(f"data.masks={data.masks}: no such folder")
    return [folder]
