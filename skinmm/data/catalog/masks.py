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
    folders = [root_of(data) / name for name in FOLDERS] if data.masks is None else _named(data)
    files = map(Path, list_files(folder for folder in folders if folder.is_dir()))
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
    looked = data.masks or f"{data.root}, in {', '.join(FOLDERS)}"
    advice = "data.missing=drop leaves them out" if there.any() else "name their folder, data.masks"
    raise InputError(
        f"{int((~there).sum())} of {len(table)} images have no mask (NAME.png or "
        f"NAME{ENDING}.png), e.g. {names}; looked in {looked}; {advice}"
    )


def _named(data: DataConfig) -> list[Path]:
    folder = Path(data.masks or "").expanduser()
    if not folder.is_dir():
        raise InputError(f"data.masks={data.masks}: no such folder")
    return [folder]
