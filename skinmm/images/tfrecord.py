"""The TFRecord format without TensorFlow: framing, checksums, `tf.train.Example` and an index.

A file is a sequence of records: length (uint64, little endian), CRC of the length, payload, CRC of
the payload; both CRC-32C, masked as in TensorFlow's `lib/io/record_writer.h`.
"""

import hashlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import crc32c
import numpy as np
from jaxtyping import Int64

from skinmm.errors import InputError
from skinmm.files import atomic_write, user_cache

HEADER: Final = 12  # bytes before the payload: its length and the length's CRC
FOOTER: Final = 4  # bytes after it: its CRC
_LARGEST: Final = 2**31 - 2**16  # bytes: the limit of protobuf, and of one read call
_AGAIN: Final = "download or copy it again"
DAMAGED: Final = f"the file is damaged: {_AGAIN}"

_FIELDS: Final[dict[tuple[type, ...], str]] = {
    (bytes,): "bytes_list",
    (int, np.integer): "int64_list",
    (int, float, np.integer, np.floating): "float_list",
}

Values = list[bytes] | list[int] | list[float]


class TFRecordError(InputError):
    """Unusable TFRecord file; the message gives the file, the record and the remedy."""


def scan_records(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield offset and payload of each record, after a check of its checksums."""
    size, offset, number = path.stat().st_size, 0, 0
    with path.open("rb") as stream:
        while header := stream.read(HEADER):
            where = f"{path}: record {number} at byte {offset}"
            length = _check_length(header, size - offset - HEADER - FOOTER, where)
            body = stream.read(length + FOOTER)
            if not has_valid_crc(body):
                raise TFRecordError(f"{where}: wrong checksum: {DAMAGED}")
            yield offset, body[:length]
            offset += HEADER + length + FOOTER
            number += 1


def _check_length(header: bytes, left: int, where: str) -> int:
    """Return the length of a payload, after checks of its checksum and the file's size."""
    if len(header) < HEADER:
        raise TFRecordError(f"{where}: the file is truncated: {_AGAIN}")
    length = int.from_bytes(header[:8], "little")
    if _masked_crc(header[:8]) != header[8:]:
        if header[:2] == b"\x1f\x8b":
            raise TFRecordError(f"{where}: the file is compressed with gzip; decompress it first")
        raise TFRecordError(
            f"{where}: not a TFRecord file, or damaged (a length has a wrong checksum): {_AGAIN}"
        )
    if length > min(left, _LARGEST):
        raise TFRecordError(
            f"{where}: the record has {length} bytes but only {max(left, 0)} are left: the file"
            f" is truncated or damaged: {_AGAIN}"
        )
    return length


def has_valid_crc(body: bytes) -> bool:
    """Return whether a payload matches its CRC."""
    return _masked_crc(memoryview(body)[:-FOOTER]) == body[-FOOTER:]


def _masked_crc(data: bytes | memoryview) -> bytes:
    crc = crc32c.crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def parse_example(payload: memoryview | bytes, where: str) -> dict[str, Values]:
    """Return the features of a `tf.train.Example`, each a list of one type."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tfrecord import example_pb2  # imports torch, hence not at the top

    try:
        features = example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise TFRecordError(f"{where}: not a tf.train.Example: {error}") from error
    # One of the three lists is set; this is twice as fast as `WhichOneof`.
    return {
        key: (feature.bytes_list.value or feature.int64_list.value or feature.float_list.value)[:]
        for key, feature in features.items()
    }


def decode_text(value: bytes, where: str) -> str:
    """Decode a value as UTF-8, or raise `TFRecordError`."""
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TFRecordError(f"{where}: {value[:20]!r} is not UTF-8 text") from error


def write_tfrecord(path: Path, examples: Iterable[Mapping[str, Any]]) -> None:
    """Write a file with one `tf.train.Example` for each mapping, atomically.

    The same examples give the same bytes in every process.

    Args:
        path: file, replaced if it exists.
        examples: feature name -> bytes, str, int, float, a list of one of them, or None for empty.
    """
    from tfrecord.example_pb2 import Example, Feature

    with atomic_write(path) as partial, partial.open("wb") as stream:
        for example in examples:
            features = {key: Feature(**_to_message(key, item)) for key, item in example.items()}
            message = Example(features={"feature": features})
            payload = message.SerializeToString(deterministic=True)
            length = struct.pack("<Q", len(payload))
            stream.write(length + _masked_crc(length) + payload + _masked_crc(payload))


def _to_message(key: str, value: Any) -> dict[str, dict[str, list[Any]]]:
    """Return a value as the fields of a `Feature` message."""
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    values = [item.encode() if isinstance(item, str) else item for item in values]
    for kinds, field in _FIELDS.items():
        if all(isinstance(item, kinds) for item in values):
            return {field: {"value": values}}
    raise TFRecordError(
        f"feature {key!r} is {value!r}: bytes, text, integers or floats are allowed"
    )


_VERSION: Final = 1  # of the stored index


@dataclass(frozen=True)
class Index:
    """Positions of the records of one file, in the order of the file.

    Attributes:
        names: image name of each record, unique.
        spans: offset and length of each record including its framing, then of its image, in bytes.
        size: size of the file when it was indexed, in bytes.
        mtime_ns: its modification time then, in nanoseconds.
    """

    names: list[str]
    spans: Int64[np.ndarray, "n 4"]
    size: int
    mtime_ns: int

    def is_current(self, status: os.stat_result) -> bool:
        """Return whether a file has the size and the time recorded in its index."""
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def is_consistent(self) -> bool:
        """Return whether records are contiguous and each image lies within its record."""
        starts, ends = self.spans[:, 0], self.spans[:, :2].sum(axis=1)
        first, last = self.spans[:, 2], self.spans[:, 2:].sum(axis=1)
        return (
            len(set(self.names)) == len(self.names) == len(starts) > 0
            and np.array_equal(starts, [0, *ends[:-1]])
            and int(ends[-1]) == self.size
            and bool(np.all((starts + HEADER <= first) & (first <= last) & (last <= ends - FOOTER)))
        )


def load_index(path: Path, name_key: str, image_key: str) -> Index:
    """Load the stored index of a file; build and store a new one if it is missing or outdated.

    The keys are the features with the name of the image and with the encoded image.
    """
    keys = [name_key, image_key]
    try:
        status = path.stat()
        for base in _list_bases(path):
            if (index := load_stored_index(base, keys)) and index.is_current(status):
                return index
        index = _build_index(path, keys, status)
    except OSError as error:
        raise TFRecordError(f"{path}: cannot be read: {error.strerror or error}") from error
    for base in _list_bases(path):
        with suppress(OSError):
            _store_index(base, keys, index)
            break
    return index


def _build_index(path: Path, keys: list[str], status: os.stat_result) -> Index:
    """Build an index by reading the whole file once."""
    names: dict[str, int] = {}
    spans = []
    for number, (offset, payload) in enumerate(scan_records(path)):
        where = f"{path}: record {number} at byte {offset}"
        name, image = _read_name_and_image(payload, keys, where)
        if names.setdefault(name, number) != number:
            raise TFRecordError(f"{where}: record {names[name]} is also named {name!r}: rename one")
        start = payload.find(image[:64])  # faster than a search for the whole image
        if not payload.startswith(image, start):
            start = payload.find(image)
        size = HEADER + len(payload) + FOOTER
        spans.append((offset, size, offset + HEADER + start, len(image)))
    if not spans:
        raise TFRecordError(f"{path}: the file is empty: download or copy it again")
    table = np.array(spans, dtype=np.int64)
    return Index(list(names), table, status.st_size, status.st_mtime_ns)


def _read_name_and_image(payload: bytes, keys: list[str], where: str) -> tuple[str, bytes]:
    """Return the features with the name and the image of a record."""
    features = parse_example(payload, where)
    name, image = ([*features.get(key, []), None][0] for key in keys)
    for key, value, kinds in zip(keys, (name, image), (bytes | int, bytes), strict=True):
        if not isinstance(value, kinds) or value == b"":
            raise TFRecordError(
                f"{where}: feature {key!r} is missing, empty or of the wrong type (features here:"
                f" {', '.join(sorted(features)) or 'none'}): name the right one in the schema"
            )
    return str(name) if isinstance(name, int) else decode_text(name, where), image


def _list_bases(path: Path) -> tuple[Path, Path]:
    """Return the paths of an index without suffix: next to the file, then in the user's cache."""
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:16]
    return path, user_cache() / f"{digest}-{path.name}"


def load_stored_index(base: Path, keys: list[str]) -> Index | None:
    """Load the index `base.tfindex` and `base.names.json`; None if it is absent or invalid."""
    try:
        saved = json.loads(Path(f"{base}.names.json").read_text("utf-8"))
        words = [int(word) for word in Path(f"{base}.tfindex").read_text("utf-8").split()]
        if (saved["version"], saved["features"]) != (_VERSION, keys):
            return None
        parts = [np.array(part, np.int64).reshape(-1, 2) for part in (words, saved["images"])]
        names = [str(name) for name in saved["names"]]
        index = Index(names, np.hstack(parts), int(saved["size"]), int(saved["mtime_ns"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    return index if index.is_consistent() else None


def _store_index(base: Path, keys: list[str], index: Index) -> None:
    """Write the two files of an index."""
    saved = {"version": _VERSION, "features": keys, "size": index.size, "mtime_ns": index.mtime_ns}
    saved |= {"names": index.names, "images": index.spans[:, 2:].tolist()}
    lines = "".join(f"{offset} {length}\n" for offset, length in index.spans[:, :2].tolist())
    base.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".tfindex", lines), (".names.json", json.dumps(saved))):
        with atomic_write(Path(f"{base}{suffix}")) as partial:
            partial.write_text(content, "utf-8")
