"""The TFRecord format: framing, checksums and `tf.train.Example`, without TensorFlow.

A file is a sequence of records: length (uint64, little endian), CRC of the length, payload, CRC of
the payload; both CRC-32C, masked as in TensorFlow's `lib/io/record_writer.h`.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import crc32c
import numpy as np

from skinmm.errors import InputError
from skinmm.files import whole

HEADER: Final = 12  # bytes before the payload: its length and the length's CRC
FOOTER: Final = 4  # bytes after it: its CRC
_LARGEST: Final = 2**31 - 2**16  # bytes: protobuf's limit, less what one read call leaves out
_AGAIN: Final = "download or copy it again"
DAMAGED: Final = f"the file is damaged: {_AGAIN}"

_FIELDS: Final[dict[tuple[type, ...], str]] = {
    (bytes,): "bytes_list",
    (int, np.integer): "int64_list",
    (int, float, np.integer, np.floating): "float_list",
}

Values = list[bytes] | list[int] | list[float]


class TFRecordError(InputError):
    """A TFRecord file cannot be used; the message names the file, the record and what to do."""


def scan(path: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and payload of each record, checked, one in memory at a time.

    Raises:
        TFRecordError: a length or a checksum is wrong, or the file ends within a record.
        OSError: the file cannot be read.
    """
    size, offset, number = path.stat().st_size, 0, 0
    with path.open("rb") as stream:
        while header := stream.read(HEADER):
            where = f"{path}: record {number} at byte {offset}"
            length = _length(header, size - offset - HEADER - FOOTER, where)
            body = stream.read(length + FOOTER)
            if not intact(body):
                raise TFRecordError(f"{where}: wrong checksum: {DAMAGED}")
            yield offset, body[:length]
            offset += HEADER + length + FOOTER
            number += 1


def _length(header: bytes, left: int, where: str) -> int:
    """The payload's length, believed only when its checksum is right and the file is that long."""
    if len(header) < HEADER:
        raise TFRecordError(f"{where}: the file is truncated: {_AGAIN}")
    length, crc = struct.unpack("<QI", header)
    if _masked_crc(header[:8]) != crc:
        reason = "compressed with gzip: unpack it" if header[:2] == b"\x1f\x8b" else _AGAIN
        raise TFRecordError(
            f"{where}: wrong checksum of the length: not a TFRecord file, or damaged: {reason}"
        )
    if length > min(left, _LARGEST):
        raise TFRecordError(
            f"{where}: {length} bytes announced where {max(left, 0)} are left: the file is"
            f" truncated or damaged: {_AGAIN}"
        )
    return int(length)


def intact(body: bytes) -> bool:
    """Whether a payload agrees with the CRC that follows it."""
    return _masked_crc(memoryview(body)[:-FOOTER]) == int.from_bytes(body[-FOOTER:], "little")


def _masked_crc(data: bytes | memoryview) -> int:
    crc = crc32c.crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse(payload: memoryview | bytes, where: str) -> dict[str, Values]:
    """The features of a `tf.train.Example`, each a list of one type.

    Raises:
        TFRecordError: the payload is something else.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tfrecord import example_pb2  # imports torch: not at the top

    try:
        features = example_pb2.Example.FromString(payload).features.feature
    except DecodeError as error:
        raise TFRecordError(f"{where}: not a tf.train.Example: {error}") from error
    return {key: _values(feature) for key, feature in features.items()}


def _values(feature: Any) -> Values:
    """The one list that is set; twice as fast as asking which."""
    return (feature.bytes_list.value or feature.int64_list.value or feature.float_list.value)[:]


def text(value: bytes, where: str) -> str:
    """A bytes value as text.

    Raises:
        TFRecordError: it is not UTF-8.
    """
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TFRecordError(f"{where}: {value[:20]!r} is not UTF-8 text") from error


def write_tfrecord(path: Path, examples: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of one `tf.train.Example` per mapping; it appears only when it is whole.

    The same examples give the same bytes, in any process.

    Args:
        path: the file, replaced if it exists.
        examples: feature name to bytes, str, int, float or a list of one of them; None is nothing.

    Raises:
        TFRecordError: a value has another type.
        OSError: the file cannot be written.
    """
    from tfrecord import example_pb2

    with whole(path) as partial, partial.open("wb") as stream:
        for example in examples:
            features = {key: _message(key, value) for key, value in example.items()}
            message = example_pb2.Example(features={"feature": features})
            payload = message.SerializeToString(deterministic=True)  # the package's writer is not
            length = struct.pack("<Q", len(payload))
            stream.write(length + _footer(length) + payload + _footer(payload))


def _message(key: str, value: Any) -> dict[str, dict[str, list[Any]]]:
    """A value as the fields of a `Feature` message."""
    values = [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
    values = [item.encode() if isinstance(item, str) else item for item in values]
    for kinds, field in _FIELDS.items():
        if all(isinstance(item, kinds) for item in values):
            return {field: {"value": values}}
    raise TFRecordError(
        f"feature {key!r} is {value!r}: bytes, text, integers or floats are allowed"
    )


def _footer(data: bytes) -> bytes:
    return struct.pack("<I", _masked_crc(data))
