"""Decoding of image bytes to uint8 RGB, for training, prediction and serving alike.

The first bytes determine the format, not the name of the file. A JPEG file, a DICOM file and a
TFRecord with the same JPEG stream give the same pixels.
"""

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from skinmm.images.base import (
    DecodeError,
    Icc,
    ImageInfo,
    Pixels,
    Raster,
    Request,
    Size,
    check_size,
    finish,
    keep_freed_memory,
    probe_png,
    read_png,
)
from skinmm.images.dicom import File, probe_dicom, read_dicom, read_dicom_record
from skinmm.images.jpeg import probe_jpeg, read_jpeg

__all__ = ["DecodeError", "File", "ImageInfo", "decode", "probe", "read_dicom_record"]

keep_freed_memory()

Format = Literal["jpeg", "png", "dicom"]


class _Codec(NamedTuple):
    read: Callable[[bytes, Request], Raster]
    probe: Callable[[bytes], ImageInfo]


FORMATS: Final[dict[Format, _Codec]] = {
    "jpeg": _Codec(read_jpeg, probe_jpeg),
    "png": _Codec(read_png, probe_png),
    "dicom": _Codec(read_dicom, probe_dicom),
}


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
    if isinstance(size, int):
        size = (size, size)
    if size is not None:
        if min(size) < 1:
            raise DecodeError(f"size={size}: each side must be at least one pixel")
        check_size(size[1], size[0], max_pixels)
    format_ = _sniff(data)
    try:
        request = Request(size, frame, icc, max_pixels, min_side)
        return finish(FORMATS[format_].read(data, request), size)
    except DecodeError:
        raise
    except Exception as error:
        raise _unreadable(format_, error) from error


def probe(data: bytes) -> ImageInfo:
    """Return format, displayed size, frames and ICC profile from the header alone.

    Raises:
        DecodeError: the format is not JPEG, PNG or DICOM, or the header is damaged.
    """
    format_ = _sniff(data)
    try:
        return FORMATS[format_].probe(data)
    except DecodeError:
        raise
    except Exception as error:
        raise _unreadable(format_, error) from error


def _sniff(data: bytes) -> Format:
    if data.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data[128:132] == b"DICM":
        return "dicom"
    if not data:
        raise DecodeError("the file is empty: fetch it again")
    raise DecodeError(
        f"neither JPEG, PNG nor DICOM, it begins with {bytes(data[:16])!r}: give the picture itself"
    )


def _unreadable(format_: Format, error: Exception) -> DecodeError:
    """Return the documented error for any exception of a codec."""
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    return DecodeError(f"unreadable {format_.upper()} ({reason}): fetch the file again")
