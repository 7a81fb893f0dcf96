"""Decoding of image bytes to uint8 RGB, for training, prediction and serving alike.

The first bytes determine the format, not the name of the file. A JPEG file, a DICOM file and a
TFRecord with the same JPEG stream give the same pixels.
"""

import ctypes
import sys
from functools import cache
from io import BytesIO
from typing import Final, Literal

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from skinmm.images.base import (
    TRANSPOSED,
    DecodeError,
    Icc,
    ImageInfo,
    Pixels,
    Raster,
    Request,
    Size,
    check_frame,
    check_size,
    read_jpeg_header,
    read_jpeg_stream,
    read_orientation,
    read_profile_name,
    report_damage,
    resize,
    to_displayed,
    to_rgb,
)
from skinmm.images.dicom import probe_dicom, read_dicom

__all__ = ["DecodeError", "ImageInfo", "decode", "decode_within", "probe"]

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h


def decode(
    data: bytes,
    *,
    size: Size | int | None = None,
    frame: int | None = None,
    icc: Icc = "ignore",
    max_pixels: int = 200_000_000,
    min_side: int = 1,
) -> Pixels:
    """Decode a JPEG, PNG or DICOM image to RGB.

    Args:
        data: Bytes of the file.
        size: (height, width) of the result in pixels, or one number for a square: the whole image
            is resized to it without preserving the aspect ratio. None: full size.
        frame: Frame of a DICOM file with several frames, from 1.
        icc: "srgb" converts through the embedded ICC profile, "ignore" treats the pixels as sRGB.
        max_pixels: Images with more pixels are refused before memory is allocated.
        min_side: Images whose shorter side has fewer pixels are refused.

    Returns:
        uint8 (height, width, 3), contiguous and writable, upright according to EXIF.

    Raises:
        DecodeError: the bytes cannot be decoded; the caller adds the name of the image.
    """
    reuse_freed_memory()
    if isinstance(size, int):
        size = (size, size)
    if size is not None:
        if min(size) < 1:
            raise DecodeError(f"size={size}: each side must be at least one pixel")
        check_size(size[1], size[0], max_pixels)
    kind = _detect_format(data)
    with report_damage(kind):
        request = Request(size, frame, icc, max_pixels, min_side)
        return _resize_upright(_READERS[kind](data, request), size)


def decode_within(data: bytes, max_side: int, frame: int | None = None) -> Pixels:
    """Decode an image, reduced to at most `max_side` pixels on its longer side."""
    info = probe(data)
    scale = min(1.0, max_side / max(info.width, info.height))
    size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
    return decode(data, size=size, frame=frame)


def probe(data: bytes) -> ImageInfo:
    """Return format, displayed size, frames and ICC profile from the header alone.

    Raises:
        DecodeError: the format is not JPEG, PNG or DICOM, or the header is damaged.
    """
    kind = _detect_format(data)
    with report_damage(kind):
        return _PROBES[kind](data)


def _detect_format(data: bytes) -> Literal["JPEG", "PNG", "DICOM"]:
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data[128:132] == b"DICM":
        return "DICOM"
    if not data:
        raise DecodeError("the file is empty: fetch it again")
    raise DecodeError(
        f"neither JPEG, PNG nor DICOM, it begins with {bytes(data[:16])!r}: give the picture itself"
    )


def _resize_upright(raster: Raster, size: Size | None) -> Pixels:
    """Resize to `size` (height, width as displayed), and undo the EXIF orientation.

    The orientation is tag 0x0112 of CIPA DC-008.
    """
    orientation = raster.orientation
    if size is not None:
        size = to_displayed(size, orientation)
        if raster.pixels.shape[:2] != size or raster.extent != size:
            # Without another reference, resizing can reuse the memory of the pixels.
            raster.pixels = resize(vars(raster).pop("pixels"), size, raster.extent)
    pixels = raster.pixels
    if orientation >= TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


@cache
def reuse_freed_memory() -> None:
    """Make glibc reuse up to 64 MB of freed memory in this process.

    Otherwise the kernel takes the memory of every decoded image back, and zeroes its pages for the
    next one: an eighth of the time to decode a camera file.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _read_jpeg(data: bytes, request: Request) -> Raster:
    check_frame(request.frame, 1)
    header = read_jpeg_header(data)
    orientation = read_orientation(header.exif)
    return read_jpeg_stream(data, header, request, header.profile, orientation)


def _probe_jpeg(data: bytes) -> ImageInfo:
    header = read_jpeg_header(data)
    size = (header.height, header.width)
    height, width = to_displayed(size, read_orientation(header.exif))
    return ImageInfo("jpeg", width, height, icc=read_profile_name(header.profile))


def _read_png(data: bytes, request: Request) -> Raster:
    """Decode a PNG to 8 bits without its transparency; 16 bits give their upper eight."""
    check_frame(request.frame, 1)
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])  # IHDR is the first
    check_size(width, height, request.max_pixels, request.min_side)
    # The class and not Image.open: that one warns or fails above limits of its own.
    with PngImageFile(BytesIO(data)) as image:
        profile, exif = image.info.get("icc_profile"), image.info.get("exif")
        if image.mode.startswith("I"):
            opaque = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        else:
            image.load()
            image.info.pop("transparency", None)
            opaque = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        pixels = to_rgb(opaque, profile, request.icc)
    return Raster(pixels, (height, width), read_orientation(exif))


def _probe_png(data: bytes) -> ImageInfo:
    with PngImageFile(BytesIO(data)) as image:
        width, height = to_displayed(image.size, read_orientation(image.info.get("exif")))
        return ImageInfo("png", width, height, icc=read_profile_name(image.info.get("icc_profile")))


_READERS: Final = {"JPEG": _read_jpeg, "PNG": _read_png, "DICOM": read_dicom}
_PROBES: Final = {"JPEG": _probe_jpeg, "PNG": _probe_png, "DICOM": probe_dicom}
