"""JPEG: the header, and pixels from libjpeg-turbo at the smallest scale that is large enough."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import simplejpeg
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from skinmm.images.base import (
    DecodeError,
    ImageInfo,
    Raster,
    Request,
    Size,
    check_frame,
    check_size,
    displayed,
    read_orientation,
    read_profile_name,
    to_rgb,
)

_APP1, _APP2, _APP14, _SOS, _EOI, _FILL = 0xE1, 0xE2, 0xEE, 0xDA, 0xD9, 0xFF
_BITS: Final = 8
_FRAME_BYTES: Final = 6  # precision, height, width, components
_ADOBE_BYTES: Final = 12  # libjpeg ignores shorter markers
# Start of frame: every coding of T.81 (C4, C8 and CC are other segments) and JPEG-LS (F7).
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
# libjpeg skips stray bytes before a marker without loss; all its other warnings mean damage.
_HARMLESS: Final = "extraneous bytes before marker"


@dataclass(frozen=True, slots=True)
class JpegHeader:
    """Contents of the segments before the first scan; `profile` is the assembled ICC profile."""

    width: int
    height: int
    precision: int
    components: int
    adobe: bool
    exif: bytes | None
    profile: bytes | None


def jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments before the first scan.

    Raises:
        DecodeError: the segments end or break before the first scan.
    """
    frame, adobe, exif, chunks = b"", False, None, {}
    for marker, start, stop in _segments(data):
        if marker in _FRAMES:
            frame = data[start:stop]
        elif marker == _APP1 and data.startswith(b"Exif\0\0", start):
            exif = exif or data[start:stop]
        elif marker == _APP2 and data.startswith(b"ICC_PROFILE\0", start):
            chunks[data[start + 12]] = data[start + 14 : stop]
        elif marker == _APP14:
            adobe |= data.startswith(b"Adobe", start) and stop - start >= _ADOBE_BYTES
    if len(frame) < _FRAME_BYTES:
        raise DecodeError("the JPEG ends before its pixels begin: fetch the file again")
    return JpegHeader(
        width=int.from_bytes(frame[3:5]),
        height=int.from_bytes(frame[1:3]),
        precision=frame[0],
        components=frame[5],
        adobe=adobe,
        exif=exif,
        profile=b"".join(chunks[number] for number in sorted(chunks)) or None,
    )


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of every segment before the first scan."""
    offset, end = 2, len(data)
    while offset + 4 <= end:
        marker = data[offset + 1]
        if data[offset] != _FILL or marker in (_SOS, _EOI):
            return
        if marker == _FILL:
            offset += 1
            continue
        length = data[offset + 2] << 8 | data[offset + 3]
        yield marker, offset + 4, offset + 2 + length
        offset += 2 + length


def read_jpeg(data: bytes, request: Request) -> Raster:
    """Decode a JPEG file at the smallest scale whose sides cover the requested size.

    Raises:
        DecodeError: too large, damaged, or with a coding that libjpeg-turbo does not support.
    """
    check_frame(request.frame, 1)
    header = jpeg_header(data)
    return read_stream(data, header, request, header.profile, read_orientation(header.exif))


def read_stream(
    data: bytes, header: JpegHeader, request: Request, profile: bytes | None, orientation: int = 1
) -> Raster:
    """Decode a JPEG stream with its header, from a JPEG or a DICOM file."""
    height, width = header.height, header.width
    check_size(width, height, request.max_pixels, request.min_side)
    if header.precision != _BITS:
        raise DecodeError(f"JPEG of {header.precision} bits: convert it to 8 bits first")
    if header.components not in (1, 3):
        return _read_whole(data, request, profile, orientation)
    eighths = 8
    if request.size is not None:
        eighths = _scale((height, width), displayed(request.size, orientation))
    covering = {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)}
    try:
        pixels = simplejpeg.decode_jpeg(data, **covering)
    except ValueError as error:
        if _HARMLESS in str(error):
            return _read_whole(data, request, profile, orientation)
        raise DecodeError(f"damaged JPEG ({error}): fetch the file again") from error
    if profile and request.icc == "srgb":
        image = Image.fromarray(pixels[:, :, 0] if header.components == 1 else pixels)
        pixels = to_rgb(image, profile, request.icc)
    return Raster(pixels, (height * eighths / 8, width * eighths / 8), orientation)


def _read_whole(data: bytes, request: Request, profile: bytes | None, orientation: int) -> Raster:
    """Decode CMYK, and streams with harmless stray bytes, with Pillow."""
    with JpegImageFile(BytesIO(data)) as image:
        pixels = to_rgb(image, profile, request.icc)
    return Raster(pixels, pixels.shape[:2], orientation)


def _scale(stored: Size, wanted: Size) -> int:
    """Return the smallest N, at most 8, at which N/8 of both stored sides covers the target."""
    needed = [(need - 1) * 8 // have + 1 for have, need in zip(stored, wanted, strict=True)]
    return min(8, max(needed))


def probe_jpeg(data: bytes) -> ImageInfo:
    """Read the header only; see `skinmm.images.decode.probe`."""
    header = jpeg_header(data)
    orientation = read_orientation(header.exif)
    height, width = displayed((header.height, header.width), orientation)
    return ImageInfo("jpeg", width, height, icc=read_profile_name(header.profile))
