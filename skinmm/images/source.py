"""The images of a cohort: from a name to a location, and from a location to encoded bytes."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES, OTHER_PICTURES
from skinmm.images import shards
from skinmm.images.dicom import File, read_dicom_record
from skinmm.vocabulary import CONVERTERS, Table

HDF5_SUFFIXES: Final = (".hdf5", ".h5")
_HDF5: Final = re.compile(r"(?P<file>.+?\.(?:hdf5|h5))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)
FRAME: Final = "#frame="  # ends the location of a DICOM file, before the frame's number from 1


class Source(NamedTuple):
    """Bytes of an image file, and the number of the frame to decode."""

    data: bytes
    frame: int | None = None


Read = Callable[[str], tuple[bytes, int | None]]
"""Function such as `read_source`, from a location to bytes and the number of the frame."""


def read_source(location: str) -> Source:
    """Read the bytes of an image.

    Args:
        location: a file, `FILE#frame=N`, `FILE.hdf5#NAME`, or a location in a TFRecord file (see
            `shards.format_location`).

    Raises:
        OSError: the file cannot be read.
        InputError: the container has no such image, or is damaged.
    """
    if shards.is_tfrecord_location(location):
        return Source(shards.read_tfrecord_image(location))
    if hdf5 := _HDF5.fullmatch(location):
        images = _open_hdf5_once(hdf5["file"], os.getpid())
        if hdf5["entry"] not in images:
            raise InputError(f"{hdf5['file']}: no image '{hdf5['entry']}'")
        return Source(bytes(images[hdf5["entry"]][()].tobytes()))
    file, frame = split_frame(location)
    return Source(Path(file).read_bytes(), frame)


def split_frame(location: str) -> tuple[str, int | None]:
    """Split `FILE#frame=N` into file and frame, which is None without the suffix."""
    file, mark, frame = location.rpartition(FRAME)
    if not mark:
        return location, None
    if not frame.isdecimal():
        raise InputError(f"{location}: frame={frame} is not a number")
    return file, int(frame)


def list_hdf5_names(file: Path) -> list[str]:
    """Return the names of the images in an HDF5 file; raise `InputError` for other files."""
    with _open_hdf5(str(file)) as images:
        return list(images)


@lru_cache(maxsize=8)
def _open_hdf5_once(file: str, _process: int) -> Any:
    """Open a file once for each process, as files of h5py do not survive a fork."""
    return _open_hdf5(file)


def _open_hdf5(file: str) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{file}: needs h5py: pip install 'skinmm[hdf5]'") from error
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise InputError(f"{file}: not a readable HDF5 file: {error}") from error


COLUMNS: Final = ("age", "sex", "site", "patient_id")
_OTHERS: Final = re.compile(
    rf"(?:{'|'.join(map(re.escape, {*IMAGE_SUFFIXES, *OTHER_PICTURES} - {'.dcm'}))})$"
    r"|\.(?:tfrec|tfrecords?|hdf5|h5)(?:-\d+-of-\d+)?(?:\?[^#]*)?#",
    re.IGNORECASE,
)
"""Paths of other files; a name without suffix, as archives use them, may be a DICOM file."""


def fill_from_headers(table: pd.DataFrame) -> pd.DataFrame:
    """Fill empty cells of `COLUMNS` from DICOM headers; files of complete rows are not opened."""
    is_read = table["path"].map(may_be_dicom, na_action="ignore").eq(True) & has_empty_cell(
        table, COLUMNS
    )
    if not is_read.any():
        return table
    records: list[Mapping[str, Any]] = [{}] * len(table)
    for row in np.flatnonzero(is_read):
        path, image_id = table["path"].iloc[row], table["image_id"].iloc[row]
        try:
            with Path(split_frame(path)[0]).open("rb") as file:
                records[row] = read_header_record(path, file)
        except (OSError, InputError) as error:
            raise InputError(f"image {image_id} ({path}): {error}") from error
    filled: dict[str, Any] = fill_empty_cells(table, records)
    for name, cells in filled.items():
        filled[name] = pd.Series(cells, table.index, float if name == "age" else object)
    return table.assign(**filled)


def has_empty_cell(table: Table, names: Sequence[str]) -> Bool[np.ndarray, " n"]:
    """Return which rows have an empty cell in any of these columns; absent columns are ignored."""
    empty = [pd.isna(np.asarray(table[name])) for name in names if name in table]
    return np.logical_or.reduce(empty) if empty else np.zeros(0, np.bool_)


def may_be_dicom(path: str) -> bool:
    """Return whether a location may be a DICOM file by its name."""
    return not _OTHERS.search(path)


def read_header_record(path: str, file: File) -> dict[str, Any]:
    """Read `COLUMNS` from a DICOM header, in the words of the vocabulary; None where missing.

    Args:
        path: location of the image; a name without `.dcm` may be that of another format.
        file: file that is read up to the pixels.

    Returns:
        The record; empty for a file of another format.
    """
    if file.read(132)[128:] != b"DICM" and not split_frame(path)[0].lower().endswith(".dcm"):
        return {}
    record = read_dicom_record(file)
    values = {name: convert(record[name]) for name, convert in CONVERTERS.items()}
    patient = record["patient_id"]
    return {**values, "patient_id": str(patient) if patient else None}


def fill_empty_cells(
    table: Table, records: Sequence[Mapping[str, Any]], further: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Return columns of a table with empty cells filled from one record for each row.

    Args:
        table: canonical rows; columns that it lacks are not added.
        records: results of `read_header_record`.
        further: columns to fill besides `COLUMNS`.
    """
    filled = {}
    for name in (*COLUMNS, *further):
        if name in table:
            cells = np.asarray(table[name], object)
            values = np.array([record.get(name) for record in records], object)
            filled[name] = np.where(pd.isna(cells), values, cells)
    return filled


def list_files(folders: Iterable[Path]) -> list[str]:
    """Return the absolute paths of the files directly in some folders, sorted by folder.

    Hidden files and other litter are left out.
    """
    files = []
    for folder in folders:
        with os.scandir(folder) as entries:
            files += sorted(entry.path for entry in entries if not is_litter(entry.name))
    return files


def list_visible(folder: Path) -> Iterator[Path]:
    """Yield the files and folders under a folder, without hidden files and system files."""
    paths = folder.rglob("*")
    return (path for path in paths if not is_litter(*path.relative_to(folder).parts))


def is_litter(*parts: str) -> bool:
    """Return whether a part of a path is hidden, or made by macOS, Windows or a file server."""
    return any(part.startswith(".") or part in _LITTER for part in parts)


_LITTER: Final = ("__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir")


def describe_other_pictures(files: Iterable[Path | str]) -> str:
    """Describe pictures of unsupported formats: their number and names; empty if there are none."""
    names = [Path(file).name for file in files if str(file).lower().endswith(OTHER_PICTURES)]
    if not names:
        return ""
    listed = ", ".join([*names[:3], *["..."] * (len(names) > 3)])  # noqa: PLR2004  examples
    problem = f"{len(names)} pictures of formats that cannot be read ({listed})"
    return f"{problem}: convert them to JPEG or PNG"


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
            is_tfrecord = shards.is_tfrecord(suffix)
            suffix = shards.SUFFIXES[0] if is_tfrecord else suffix.lower()
            if suffix not in suffixes or is_litter(os.path.basename(file)):  # noqa: PTH119
                continue
            if is_tfrecord:
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
