"""Where a cohort's `path` becomes bytes: a file, a DICOM frame, a TFRecord or an HDF5 entry."""

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from skinmm.errors import InputError
from skinmm.images import shards

HDF5_SUFFIXES: Final = (".hdf5", ".h5")
_HDF5: Final = re.compile(r"(?P<file>.+?\.(?:hdf5|h5))#(?P<entry>.+)", re.IGNORECASE | re.DOTALL)
FRAME: Final = "#frame="
"""What follows a DICOM file's path or name where it has several frames, then the number, from 1."""


class Source(NamedTuple):
    """Encoded bytes, and which frame of them is meant where that was said."""

    data: bytes
    frame: int | None = None


def read_source(location: str) -> Source:
    """The bytes at a path of the cohort table.

    Args:
        location: a file, `FILE#frame=N`, `FILE.hdf5#image_id`, or a TFRecord's `location`.

    Raises:
        OSError: the file cannot be read.
        InputError: the container has no such entry, or is damaged.
    """
    if shards.is_location(location):
        return Source(shards.read_image(location))
    if hdf5 := _HDF5.fullmatch(location):
        return Source(_hdf5_entry(hdf5["file"], hdf5["entry"]))
    file, frame = split_frame(location)
    return Source(Path(file).read_bytes(), frame)


def split_frame(location: str) -> tuple[str, int | None]:
    """A file, and which of its frames is meant where `#frame=N` says so.

    Raises:
        InputError: N is no number.
    """
    file, mark, frame = location.rpartition(FRAME)
    if not mark:
        return location, None
    if not frame.isdecimal():
        raise InputError(f"{location}: frame={frame} is not a number")
    return file, int(frame)


def hdf5_names(file: Path) -> list[str]:
    """The entries of an HDF5 file.

    Raises:
        InputError: it is no HDF5 file.
    """
    with _open_hdf5(str(file)) as opened:
        return list(opened)


def _hdf5_entry(file: str, entry: str) -> bytes:
    opened = _hdf5(file, os.getpid())
    if entry not in opened:
        raise InputError(f"{file}: no image '{entry}'")
    return bytes(opened[entry][()].tobytes())


@lru_cache(maxsize=8)
def _hdf5(file: str, _process: int) -> Any:
    """An open file that belongs to one process: h5py's do not survive a fork."""
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
