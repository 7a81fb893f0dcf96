"""A folder of pictures per class, with or without a train/val/test folder on top."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.data.catalog import masks
from skinmm.data.catalog.images import root_of
from skinmm.data.catalog.tables import IMAGE_SUFFIXES, canonical
from skinmm.errors import InputError, is_utf8

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
    root = root_of(data)
    least = 1 if (root / masks.FOLDER).is_dir() else 2
    tops = [folder for folder in _folders(root) if folder.name.lower() in PARTS]
    found = [
        (file, folder.name, PARTS[top.name.lower()] if tops else None)
        for top in tops or [root]
        for folder in _folders(top)
        if folder != root / masks.FOLDER
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
