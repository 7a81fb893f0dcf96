"""Where the records of a TFRecord file lie: found in one checked pass, remembered beside the file.

Two files remember the pass: `NAME.tfindex`, in the tfrecord package's format (`offset length` a
line, framing included), and `NAME.names.json` with the image names, where each image lies, and the
file's size and time: an index of another size or time is built again. Where the folder cannot be
written they go to the user's cache folder (`$XDG_CACHE_HOME/skinmm`, `~/.cache/skinmm`); where that
fails too they stay in memory.
"""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Int64

from skinmm.data.tfrecord_format import FOOTER, HEADER, TFRecordError, parse, scan, text
from skinmm.files import whole

_VERSION: Final = 1


@dataclass(frozen=True)
class Index:
    """Where the records of one file are, in file order.

    Attributes:
        names: the image name of each record, unique.
        places: of each record and of its image, offset in the file and length, bytes; the record's
            include its framing.
        size: of the file when it was indexed, bytes.
        mtime_ns: its modification time then, nanoseconds.
    """

    names: list[str]
    places: Int64[np.ndarray, "n 4"]
    size: int
    mtime_ns: int

    def describes(self, status: os.stat_result) -> bool:
        """Whether a file still has the size and time it was indexed with."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def fills_file(self) -> bool:
        """Whether the records leave no gap and each image lies within its record."""
        starts, ends = self.places[:, 0], self.places[:, :2].sum(axis=1)
        first, last = self.places[:, 2], self.places[:, 2:].sum(axis=1)
        return (
            len(set(self.names)) == len(self.names) == len(starts) > 0
            and np.array_equal(starts, [0, *ends[:-1]])
            and int(ends[-1]) == self.size
            and bool(np.all((starts + HEADER <= first) & (first <= last) & (last <= ends - FOOTER)))
        )


def load_index(path: Path, name_key: str, image_key: str) -> Index:
    """The remembered index of a file where it is current, else a new one, remembered if possible.

    Args:
        path: the TFRecord file.
        name_key: the feature that holds an image's name.
        image_key: the feature that holds the encoded image.

    Raises:
        TFRecordError: the file is missing, empty, truncated or damaged, or lacks these features.
    """
    keys = [name_key, image_key]
    try:
        status = path.stat()
        for base in _bases(path):
            if (index := _remembered(base, keys)) and index.describes(status):
                return index
        index = _build(path, keys, status)
    except OSError as error:
        raise TFRecordError(f"{path}: cannot be read: {error.strerror or error}") from error
    for base in _bases(path):
        with suppress(OSError):
            _remember(base, keys, index)
            break
    return index


def _build(path: Path, keys: list[str], status: os.stat_result) -> Index:
    """Read the whole file once."""
    names: dict[str, int] = {}
    places = []
    for number, (offset, payload) in enumerate(scan(path)):
        where = f"{path}: record {number} at byte {offset}"
        name, image = _name_and_image(payload, keys, where)
        if names.setdefault(name, number) != number:
            raise TFRecordError(f"{where}: named {name!r} like record {names[name]}: rename one")
        start = offset + HEADER + _position(payload, image)
        places.append((offset, HEADER + len(payload) + FOOTER, start, len(image)))
    if not places:
        raise TFRecordError(f"{path}: the file is empty: download or copy it again")
    table = np.array(places, dtype=np.int64)
    return Index(list(names), table, status.st_size, status.st_mtime_ns)


def _name_and_image(payload: bytes, keys: list[str], where: str) -> tuple[str, bytes]:
    """The two features that random access needs."""
    features = parse(payload, where)
    name, image = ([*features.get(key, []), None][0] for key in keys)
    for key, value, kinds in zip(keys, (name, image), (bytes | int, bytes), strict=True):
        if not isinstance(value, kinds) or value == b"":
            raise TFRecordError(
                f"{where}: feature {key!r} is missing, empty or of the wrong type (features here:"
                f" {', '.join(sorted(features)) or 'none'}): say in the schema which one it is"
            )
    return str(name) if isinstance(name, int) else text(name, where), image


def _position(payload: bytes, image: bytes) -> int:
    """Where the image's bytes are; its first bytes almost always settle it, and fast."""
    start = payload.find(image[:64])
    return start if payload.startswith(image, start) else payload.find(image)


def _bases(path: Path) -> tuple[Path, Path]:
    """What the two files are called, less their suffix: beside the file, then in the cache."""
    home = Path(os.environ.get("HOME", "/"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return path, cache / "skinmm" / f"{digest}-{path.name}"


def _remembered(base: Path, keys: list[str]) -> Index | None:
    """An index read back, or None where there is none or it is not a whole one of ours."""
    try:
        saved = json.loads(Path(f"{base}.names.json").read_text("utf-8"))
        words = [int(word) for word in Path(f"{base}.tfindex").read_text("utf-8").split()]
        if (saved["version"], saved["features"]) != (_VERSION, keys):
            return None
        index = Index(
            names=[str(name) for name in saved["names"]],
            places=np.hstack(
                [np.array(part, dtype=np.int64).reshape(-1, 2) for part in (words, saved["images"])]
            ),
            size=int(saved["size"]),
            mtime_ns=int(saved["mtime_ns"]),
        )
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return index if index.fills_file() else None


def _remember(base: Path, keys: list[str], index: Index) -> None:
    """Write both files."""
    saved = {
        "version": _VERSION,
        "features": keys,
        "size": index.size,
        "mtime_ns": index.mtime_ns,
        "names": index.names,
        "images": index.places[:, 2:].tolist(),
    }
    lines = "".join(f"{offset} {length}\n" for offset, length in index.places[:, :2].tolist())
    base.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".tfindex", lines), (".names.json", json.dumps(saved))):
        with whole(Path(f"{base}{suffix}")) as partial:
            partial.write_text(content, "utf-8")
