"""Files and requests that are nearly right, or far too much."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dicom_files import dicom_from_jpeg
from served import jpeg_of


def png(width: int, height: int) -> bytes:
    """A PNG of that size whose pixels take a few bytes: a bomb, where it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(min(height * (3 * width + 1), 1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg_bomb(data: bytes) -> bytes:
    """A JPEG whose header says 60,000 pixels a side."""
    frame = data.index(b"\xff\xc0") + 5  # past marker, length and precision
    return data[:frame] + struct.pack(">HH", 60_000, 60_000) + data[frame + 4 :]


def malformed(pictures: Path, requests: int) -> Iterator[tuple[bytes, str]]:
    """Bodies and content types of requests that are nearly right."""
    rng = np.random.default_rng(0)
    images = [jpeg_of(pictures), png(8, 8), dicom_from_jpeg(jpeg_of(pictures))]
    boundary = "multipart/form-data; boundary=b"
    for number in range(requests):
        image = bytearray(images[number % 3])
        field = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        kind = number % 5
        if kind == 0:
            image = image[: rng.integers(0, len(image))]
        elif kind == 1:
            for place in rng.integers(0, min(len(image), 700), 20):
                image[place] = rng.integers(0, 256)
        body = bytearray(field + image + b"\r\n--b--\r\n")
        if kind == 2:
            for place in rng.integers(0, len(field), 4):
                body[place] = rng.integers(0, 256)
        elif kind == 3:
            body = body[: rng.integers(0, len(body))]
        yield bytes(body), boundary if kind < 4 else rng.bytes(30).decode("latin-1")
