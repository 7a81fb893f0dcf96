"""Search for images by name, in folders and in containers."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from itertools import chain, islice, product
from pathlib import Path
from typing import Final
from unicodedata import normalize

from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES, OTHER_PICTURES
from skinmm.images import shards
from skinmm.images.source import FRAME, HDF5_SUFFIXES, list_hdf5_names

_SYSTEM_FILES: Final = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_-]+")  # a name without folder, suffix or frame
_ENTRY: Final = re.compile(
    rf".+?(?:{shards.ENDING}|\.hdf5|\.h5)(?:\?[^#]*)?#(?P<name>.+)", re.IGNORECASE | re.DOTALL
)
_LISTED: Final = 3
"""Candidates in a message."""
_LISTED_FOLDERS, _VISITED_FOLDERS = 8, 10_000
"""Folders in a message, and folders that are searched for it."""


def list_files(folders: Iterable[Path | str]) -> list[str]:
    """Return the visible files directly in some folders, sorted by folder."""
    files = []
    for folder in folders:
        with os.scandir(folder) as entries:
            files += sorted(e.path for e in entries if not is_system_file(e.name) and e.is_file())
    return files


def list_visible(folder: Path) -> Iterator[Path]:
    """Yield the files and folders under a folder, without hidden files and system files."""
    paths = folder.rglob("*")
    return (path for path in paths if not is_system_file(*path.relative_to(folder).parts))


def find_folders(root: Path, names: Iterable[str]) -> list[Path]:
    """Return the folders with these names under a root, also if nested in a folder of that name.

    The letter case is ignored if no folder has exactly this name; `images` also means
    `images/images`.
    """
    list_names = cache(os.listdir)
    folders: dict[Path, None] = {}
    for name in names:
        folder = _find_path(root / name, str.lower, list_names)
        doubled = _find_path(folder / folder.name, str.lower, list_names)
        folders |= dict.fromkeys(path for path in (folder, doubled) if path.is_dir())
    return [*folders]


def find_table(root: Path, name: str) -> Path:
    """Return the path of a table under a root, in any usual layout of an unpacked archive.

    `NAME.csv` also means `NAME.tab` and `NAME`, in any letter case, in the root or in a folder
    `NAME` or `NAME.csv`. Without such a file the result is `root / name`.
    """
    list_names = cache(os.listdir)
    stem = name.removesuffix(".csv")
    for folder, file in product(("", stem, name), (name, f"{stem}.tab", stem)):
        path = _find_path(root / folder / file, str.lower, list_names)
        if path.is_file():
            return path
    return root / name


def describe_folders(root: Path) -> str:
    """Describe the folders with images under a root, with the numbers of images."""
    counts = Counter[str]()
    for folder, folders, files in islice(os.walk(root), _VISITED_FOLDERS):
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        images = sum(_is_image_file(name) for name in files)
        counts.update({os.path.relpath(folder, root): images} if images else {})
    listed = [f"{folder} ({count:,})" for folder, count in counts.most_common(_LISTED_FOLDERS)]
    more = [f"{len(counts) - _LISTED_FOLDERS} more"] if len(counts) > _LISTED_FOLDERS else []
    return f"image files under {root}: {', '.join([*listed, *more]) or 'none'}"


def _is_image_file(name: str) -> bool:
    suffixes = (*IMAGE_SUFFIXES, *HDF5_SUFFIXES)
    is_image = name.lower().endswith(suffixes) or shards.is_tfrecord(name)
    return is_image and not is_system_file(name)


def is_system_file(*parts: str) -> bool:
    """Return whether a name in a path is hidden, or created by macOS, Windows or a file server."""
    return any(part.startswith(".") or part in _SYSTEM_FILES for part in parts)


def describe_other_pictures(files: Iterable[Path | str]) -> str:
    """Describe pictures of unsupported formats by number and names; "" if there are none."""
    names = [Path(file).name for file in files if str(file).lower().endswith(OTHER_PICTURES)]
    if not names:
        return ""
    listed = ", ".join([*names[:_LISTED], *["..."] * (len(names) > _LISTED)])
    problem = f"{len(names)} pictures of formats that cannot be read ({listed})"
    return f"{problem}: convert them to JPEG or PNG"


def strip_suffix(name: str) -> str:
    """Return a file name without the suffix of an image; other suffixes remain."""
    # os.path: pathlib is six times as slow, which matters for a million files.
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


class ImageFinder:
    """Index from image names in tables to locations (see `read_source`).

    A name with a folder is a path under one of `folders`, of which the first takes precedence.
    Other names are searched among `files`. A name is that of a file, with the letter case of its
    suffix ignored, or that of a file without its suffix. It is compared in composed form (NFC).
    Backslashes separate folders, unless a file has them in its name.

    Image files take precedence over entries of TFRecord and HDF5 files, whose names may lack the
    folder and the suffix that a table gives.

    Args:
        files: locations of files; containers are opened to read the names in them.
        folders: folders of names that contain a folder; they are listed on demand.
        suffixes: suffixes of the files to index, of images and of containers.
        schema: features of TFRecord files that contain the name and the image.
        list_folder: function that returns the locations of the files in a folder.
    """

    def __init__(
        self,
        files: Iterable[str],
        folders: Sequence[str | Path] = (),
        *,
        suffixes: Sequence[str] = (*IMAGE_SUFFIXES, *shards.SUFFIXES),
        schema: shards.Schema = shards.PLAIN,
        list_folder: Callable[[str], Iterable[str]] | None = None,
    ) -> None:
        files = list(files)
        list_folder = list_folder or _list_folder
        self._folders = [os.path.join(folder, "") for folder in folders]  # noqa: PTH118
        self._files = _Index(files, suffixes)
        entries = _list_entries(files, suffixes, schema)
        self._entries = _Index(entries, IMAGE_SUFFIXES, in_containers=True)
        self._index_folder = lru_cache(maxsize=1024)(
            lambda folder: _Index(list_folder(folder), suffixes)
        )

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """Return the location of each image; for missing images much faster than `find`."""
        indexed = self._files.paths.keys() | self._entries.paths.keys()
        if indexed.isdisjoint(names) and _PLAIN.fullmatch("".join(names)):
            return [None] * len(names)
        return [
            None if name not in indexed and _PLAIN.fullmatch(name) else self.find(name)
            for name in names
        ]

    def find(self, name: str) -> str | None:
        """Return the location of an image by its name, or None.

        Name and location end in `#frame=N` for one frame of a DICOM or TIFF file.
        """
        path, mark, frame = name.partition(FRAME)
        locations = self._list_candidates(path) if path else []
        if not locations and "\\" in path:  # a path of Windows
            locations = self._list_candidates(path.replace("\\", "/"))
        if len(locations) > 1 and len({os.path.realpath(path) for path in locations}) > 1:
            listed = [*locations[:_LISTED], *["..."] * (len(locations) > _LISTED)]
            raise InputError(
                f"image {name} can be {' or '.join(listed)}: write its folder and suffix into the "
                "table, or move the other files away"
            )
        return f"{locations[0]}{mark}{frame}" if locations else None

    def describe_missing(self, name: str) -> str:
        """Describe a missing image, with a similar file if there is one."""
        similar = self.find_similar(name)
        return f"image {name} not found{f' (there is {similar})' if similar else ''}"

    def find_similar(self, name: str) -> str | None:
        """Return a file with this name but another folder or suffix; None if there is none."""
        _, stem, suffix = _split(name.partition(FRAME)[0].replace("\\", "/"))
        return next(iter(self._files.paths.get(strip_suffix(stem + suffix), ())), None)

    def _list_candidates(self, path: str) -> list[str]:
        # Millions of names have no folder: do not split them.
        head, tail = os.path.split(path) if "/" in path else ("", path)
        tail = compose(tail)
        if not head:
            return self._files.match(tail) or self._entries.match(tail)
        folders = (os.path.join(folder, head) for folder in self._folders)  # noqa: PTH118
        matches = [self._index_folder(folder).match(tail) for folder in folders]
        very_path = matches[0] if matches else []
        return very_path or [*chain(*matches)] or self._entries.match(tail, head)


class _Index:
    """Locations by the name of a file or container entry, without folder and suffix."""

    def __init__(
        self, locations: Iterable[str], suffixes: Sequence[str], *, in_containers: bool = False
    ) -> None:
        self._in_containers = in_containers
        self.paths: dict[str, tuple[str, ...]] = {}
        for location in locations:
            _, stem, suffix = self._split(location)
            key = stem if suffix.lower() in suffixes else stem + suffix
            self.paths[key] = (*self.paths.get(key, ()), location)

    def match(self, name: str, head: str = "") -> list[str]:
        """Return the locations that match a name best; `head` is the folder that precedes it."""
        if not self.paths:
            return []
        stem = strip_suffix(name) if "." in name else name
        locations = self.paths.get(name, ())
        if stem != name:
            locations += self.paths.get(stem, ())
        if not locations:
            return []
        if len(locations) == 1 and not head and (stem == name or locations[0].endswith(name)):
            return [*locations]  # the usual case, in a third of the time
        ranks = {location: self._rank(location, name, head) for location in locations}
        best = max(ranks.values(), default=0)
        return [location for location, rank in ranks.items() if rank == best > 0]

    def _rank(self, location: str, name: str, head: str) -> int:
        """Return a number that is higher for a closer match, and 0 for none.

        4: the very path in a container; 3: the very name; 2: the suffix in another letter case;
        1: the name without suffix. Entries of containers may lack the folder or suffix of the name.
        """
        folder, stem, suffix = self._split(location)
        if self._in_containers:
            if (folder, stem + suffix) == (compose(head), name):
                return 4
            if head and folder and not f"/{compose(head)}".endswith(f"/{folder}"):
                return 0
        if stem + suffix == name:
            return 3
        _, named_stem, named_suffix = _split(name)
        if (stem, suffix.lower()) == (named_stem, named_suffix.lower()):
            return 2
        is_stem = stem == name or (self._in_containers and stem + suffix == strip_suffix(name))
        return int(is_stem)

    def _split(self, location: str) -> tuple[str, str, str]:
        entry = _ENTRY.fullmatch(location) if self._in_containers else None
        return _split(entry["name"] if entry else location)


def compose(name: str) -> str:
    """Return a name in composed form (NFC): macOS and Windows encode accents differently."""
    return name if name.isascii() else normalize("NFC", name)


def _split(path: str) -> tuple[str, str, str]:
    """Split a path, in Unicode's composed form, into folder, stem and suffix."""
    folder, name = os.path.split(compose(path))
    return folder, *os.path.splitext(name)  # noqa: PTH122  pathlib is slow


def _list_folder(folder: str) -> list[str]:
    path = _find_path(Path(folder), compose)
    return list_files([path]) if path.is_dir() else []


def _find_path(
    path: Path,
    fold: Callable[[str], str],
    list_names: Callable[[Path], Iterable[str]] = os.listdir,
) -> Path:
    """Return the existing path that equals `path` after `fold`, if there is exactly one."""
    if path.exists() or path.parent == path:
        return path
    parent = _find_path(path.parent, fold, list_names)
    names = list_names(parent) if parent.is_dir() else []
    same = [name for name in names if fold(name) == fold(path.name)]
    return parent / (same[0] if len(same) == 1 else path.name)


def _list_entries(
    files: Iterable[str], suffixes: Sequence[str], schema: shards.Schema
) -> Iterator[str]:
    """Yield the locations of the images in containers."""
    for file in files:
        suffix = os.path.splitext(file)[1].lower()  # noqa: PTH122
        if shards.is_tfrecord(file) and shards.SUFFIXES[0] in suffixes:
            records = shards.TFRecordFile(file, schema)
            yield from (shards.format_location(records.path, n, schema) for n in records.names)
        elif suffix in HDF5_SUFFIXES and suffix in suffixes:
            yield from (f"{file}#{name}" for name in list_hdf5_names(Path(file)))
