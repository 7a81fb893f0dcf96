"""From the name of an image to its location: a file, or an entry of a TFRecord or HDF5 file."""

import os
from collections.abc import Iterable, Iterator, KeysView, Sequence
from pathlib import Path

from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.source import FRAME, HDF5_SUFFIXES, list_hdf5_names


def list_files(folders: Iterable[Path]) -> list[str]:
    """Return the absolute paths of the visible files directly in some folders, sorted by folder."""
    files = []
    for folder in folders:
        with os.scandir(folder) as entries:
            files += sorted(entry.path for entry in entries if not entry.name.startswith("."))
    return files


def is_litter(*parts: str) -> bool:
    """Return whether a path is hidden, or a copy that macOS makes in archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def strip_suffix(name: str) -> str:
    """Return a file name without its suffix, if that is one of an image."""
    # os.path: pathlib is six times as slow, which matters for a million files.
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


class ImageFinder:
    """Index from image names to locations (see `source.read_source`), built from a list of files.

    The name of an image is its file name without folder and suffix, or its name in a TFRecord or
    HDF5 file. Of several image files with one name the first is used; image files take precedence
    over entries of containers, which are opened to read the names in them.

    Args:
        files: paths, or names of files in `folder`, in order of precedence.
        folder: folder or URL that precedes every file in a location.
        suffixes: suffixes of the files to index, of images and of containers.
        schema: features of TFRecord files that contain the name and the image.
    """

    def __init__(
        self,
        files: Iterable[str],
        folder: str = "",
        *,
        suffixes: Sequence[str] = (*IMAGE_SUFFIXES, *shards.SUFFIXES),
        schema: shards.Schema = shards.PLAIN,
    ) -> None:
        self._folder = folder
        self._files = dict.fromkeys(files)
        self._by_name: dict[str, str] = {}
        self._entries: dict[str, str] = {}
        for file in self._files:
            stem, suffix = os.path.splitext(os.path.basename(file))  # noqa: PTH119, PTH122
            suffix = suffix.lower()
            if suffix not in suffixes:
                continue
            if suffix in shards.SUFFIXES:
                records = shards.TFRecordFile(self._locate(file), schema)
                locate = shards.format_location
                self._entries |= {n: locate(records.path, n, schema) for n in records.names}
            elif suffix in HDF5_SUFFIXES:
                path = self._locate(file)
                self._entries |= {name: f"{path}#{name}" for name in list_hdf5_names(Path(path))}
            else:
                self._by_name.setdefault(stem, file)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the files in the order given."""
        return iter(self._files)

    @property
    def names(self) -> KeysView[str]:
        """Names of the images that were found."""
        return (self._entries | self._by_name).keys()

    def find(self, name: str) -> str | None:
        """Return the location of an image by its name without suffix, or None.

        Name and location end in `#frame=N` for one frame of a DICOM file.
        """
        name, mark, frame = name.partition(FRAME)
        file = self._by_name.get(name)
        location = self._entries.get(name) if file is None else self._locate(file)
        return None if location is None else f"{location}{mark}{frame}"

    def find_cell(self, cell: str) -> str | None:
        """Return the location of an image named as in a user's table, or None.

        The cell is a name as for `find`, or a file name with any suffix, which takes precedence.
        """
        name, mark, frame = cell.partition(FRAME)
        file = name if name in self._files else self._by_name.get(name)
        file = file or self._by_name.get(strip_suffix(name))
        if file is None:
            return self._entries.get(strip_suffix(name))
        return f"{self._locate(file)}{mark}{frame}"

    def _locate(self, file: str) -> str:
        return os.path.join(self._folder, file)  # noqa: PTH118  pathlib is slow, and no URL
