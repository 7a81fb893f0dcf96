"""Where the images of a table are, and what reading one gives."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import UInt8

from skinmm.data.dataset import View, picture
from skinmm.errors import InputError
from skinmm.images import shards
from skinmm.images.source import (
    FRAME,
    Source,
    may_be_dicom,
    read_header_record,
    read_source,
    split_frame,
)
from skinmm.models.lesion_finder import LesionFinder

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".dcm")
MIN_SIDE: Final = 16
"""Pixels of an image's shorter side: the smallest `model.image_size`, and `size` of a pack."""

Pictures = Mapping[View, UInt8[np.ndarray, "_ _ 3"]]


class LoadedRow(NamedTuple):
    """What reading one row's image gave: pictures, the DICOM header's record, or an error."""

    pictures: Pictures
    record: Mapping[str, Any]
    error: str


class Names:
    """Names of files, found with or without a suffix."""

    def __init__(self, names: Iterable[str]) -> None:
        """Takes plain names."""
        self._names = set(names)
        self._files: dict[str, str] = {}
        for name in sorted(self._names):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in SUFFIXES:
                self._files.setdefault(stem, name)

    def __iter__(self) -> Iterator[str]:
        """All of them, in order."""
        return iter(sorted(self._names))

    def find(self, name: str) -> str | None:
        """The file that is meant; the very name goes before another suffix."""
        if name in self._names:
            return name
        return self._files.get(name) or self._files.get(strip_image_suffix(name))


def strip_image_suffix(name: str) -> str:
    """A name without the suffix of an image."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in SUFFIXES else name


class ImageFolder:
    """Finds images by name, with or without a suffix; the folder is listed once.

    It may be a URL that fsspec knows (`s3://`, `gs://`, ...). The images of TFRecord files in it
    are found by their names.
    """

    def __init__(self, folder: str | Path) -> None:
        """Lists a folder.

        Raises:
            InputError: it does not exist, or cannot be reached.
        """
        self._remote: Any = None
        self._folder = str(folder)
        self._names = Names(self._list())
        self._records = {} if self._remote else self._recorded()

    def find(self, cell: str) -> str | None:
        """The path that a table's cell names, or None; the very name goes before another suffix.

        A cell may end in `#frame=N`, and so does its path then.
        """
        name, mark, frame = cell.partition(FRAME)
        found = self._names.find(name)
        if not found and strip_image_suffix(name) in self._records:
            return self._records[strip_image_suffix(name)]
        path = os.path.join(self._folder, found or name)  # noqa: PTH118  Path is slow, and no URL
        there = (found or self._remote.isfile(path)) if self._remote else Path(path).is_file()
        return f"{path}{mark}{frame}" if name and there else None

    def read(self, path: str) -> Source:
        """The bytes behind what `find` gave.

        Raises:
            OSError: they cannot be read.
            InputError: a damaged container.
        """
        if self._remote is None:
            return read_source(path)
        file, frame = split_frame(path)
        return Source(self._remote.cat_file(file), frame)

    def _list(self) -> list[str]:
        if "://" in self._folder:
            from skinmm.predict.remote_files import listed

            self._remote, self._folder, names = listed(self._folder)
            return names
        if not Path(self._folder).is_dir():
            raise InputError(f"images={self._folder}: no such folder")
        return os.listdir(self._folder)  # noqa: PTH208  a million entries

    def _recorded(self) -> dict[str, str]:
        files = [name for name in self._names if name.lower().endswith(shards.SUFFIXES)]
        containers = [shards.TFRecordFile(Path(self._folder, name)) for name in files]
        return {
            name: shards.format_location(file.path, name)
            for file in containers
            for name in file.names
        }


class InMemoryImages:
    """Images in memory, found as `ImageFolder` finds files."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        """Takes them by their plain names."""
        self._files, self._names = files, Names(files)

    def find(self, cell: str) -> str | None:
        """What `read` takes, or None."""
        name, mark, frame = cell.partition(FRAME)
        found = self._names.find(name)
        return f"{found}{mark}{frame}" if found else None

    def read(self, path: str) -> Source:
        """The bytes behind what `find` gave.

        Raises:
            InputError: a frame that is no number.
        """
        name, frame = split_frame(path)
        return Source(self._files[name], frame)


Images = ImageFolder | InMemoryImages


def look(
    name: str,
    wanted: bool,
    folder: Images | None,
    views: Collection[View],
    *,
    needs_image: bool,
    finder: LesionFinder | None = None,
) -> LoadedRow:
    """Reads one image once, or says why not; whatever is wrong with it, the other rows go on.

    Args:
        name: the table's cell.
        wanted: whether its header's record is, should it be a DICOM file.
        folder: where the images are.
        views: how the models want it; none: they look at no image.
        needs_image: whether a row without one cannot be predicted.
        finder: what its lesion is to be measured with; the record holds what was.
    """
    if not (views or wanted or finder):
        return LoadedRow({}, {}, "")
    try:
        path = folder.find(name) if folder else None
        if path is None:
            lost = f"image {name} not found" if views and name and folder else ""
            needed = "no image named, and this model needs one" if needs_image else ""
            return LoadedRow({}, {}, lost or needed)
        wanted = wanted and may_be_dicom(path)
        if folder is None or not (views or wanted or finder):
            return LoadedRow({}, {}, "")
        source = folder.read(path)
        record = read_header_record(path, BytesIO(source.data)) if wanted else {}
        if finder:
            record = {**record, **finder.measure(source)}
        return LoadedRow({view: _judged(source, view) for view in views}, record, "")
    except (OSError, InputError) as error:
        return LoadedRow({}, {}, " ".join(str(error).split()))
    except Exception as error:
        return LoadedRow({}, {}, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _judged(source: Source, view: View) -> UInt8[np.ndarray, "size size 3"]:
    """As `picture`, of an image on which there is something to judge.

    Raises:
        InputError: there is not: a few pixels, or a single colour.
    """
    pixels = picture(source, view, MIN_SIDE)
    if (pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        raise InputError("the image is of a single colour: there is nothing to judge")
    return pixels
