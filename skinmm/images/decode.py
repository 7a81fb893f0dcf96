"""Decoding of image bytes to uint8 RGB, for training, prediction and serving alike.

The first bytes determine the format, not the name of the file. A JPEG file, a DICOM file and a
TFRecord with the same JPEG stream give the same pixels.
"""

import ctypes
import sys
from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from typing import Any, Final

import numpy as np
from jaxtyping import Bool
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

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

MAX_PIXELS: Final = 200_000_000
_BITS_PER_SAMPLE, _MAX_SAMPLE, _DEEP = 258, 281, 16  # tags of TIFF 6.0, and bits
_M_MMAP_MAX, _M_TRIM_THRESHOLD = -4, -1  # malloc.h


def decode(
    data: bytes,
    *,
    size: Size | int | None = None,
    frame: int | None = None,
    icc: Icc = "ignore",
    max_pixels: int = MAX_PIXELS,
    min_side: int = 1,
) -> Pixels:
    """Decode an image to RGB: JPEG, PNG, DICOM, BMP, TIFF, WebP, GIF or HEIC.

    Args:
        data: Bytes of the file.
        size: (height, width) of the result in pixels, or one number for a square: the whole image
            is resized to it without preserving the aspect ratio. None: full size.
        frame: Frame of a DICOM or TIFF file with several frames, from 1.
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
        DecodeError: the format is not one of `decode`, or the header is damaged.
    """
    kind = _detect_format(data)
    with report_damage(kind):
        return _PROBES[kind](data)


def _detect_format(data: bytes) -> str:
    """Return a key of `_READERS`."""
    if data[128:132] == b"DICM":  # before TIFF, whose header may precede
        return "DICOM"
    if data[4:8] == b"ftyp" and data[8:12] in _HEIC_BRANDS:
        return "HEIC"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    for kind, beginnings in _BEGINNINGS.items():
        if data.startswith(beginnings):
            return kind
    if not data:
        raise DecodeError("the file is empty: fetch it again")
    raise DecodeError(
        f"not an image of a supported format ({', '.join(_READERS)}): it starts with "
        f"{bytes(data[:16])!r}; convert it to JPEG or PNG"
    )


_HEIC_BRANDS: Final = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_BEGINNINGS: Final[dict[str, tuple[bytes, ...]]] = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": (b"BM",),
}


def _resize_upright(raster: Raster, size: Size | None) -> Pixels:
    """Resize to `size` (height, width as displayed), and undo the EXIF orientation."""
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
    """Set glibc to reuse up to 512 MB of freed memory.

    Otherwise the kernel takes the memory of every large image or tensor back, and zeroes its pages
    for the next one: up to half of the time of a network on a CPU, an eighth of that to decode a
    camera file.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):  # musl has none
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def release_freed_memory() -> None:
    """Return freed memory to the kernel, where the C library is glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _read_jpeg(data: bytes, request: Request) -> Raster:
    check_frame(request.frame, 1)
    header = read_jpeg_header(data)
    return read_jpeg_stream(data, header, request, header.profile, read_orientation(header.exif))


def _probe_jpeg(data: bytes) -> ImageInfo:
    header = read_jpeg_header(data)
    size = (header.height, header.width)
    height, width = to_displayed(size, read_orientation(header.exif))
    return ImageInfo("jpeg", width, height, icc=read_profile_name(header.profile))


def _open_picture(data: bytes, kind: str) -> Any:
    """Open an image by its class in Pillow, without the size limits of `Image.open`."""
    if kind != "HEIC":
        return _CLASSES[kind](BytesIO(data))
    try:
        from pi_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise DecodeError("HEIC images need pi-heif: pip install 'skinmm[heic]'") from error
    return HeifImageFile(BytesIO(data))


def _read_picture(data: bytes, request: Request, kind: str) -> Raster:
    """Decode to 8 bits without transparency; of 16 bits the upper eight are used."""
    limits = request.max_pixels, request.min_side
    if kind == "PNG":  # before Pillow reads the other chunks
        check_size(int.from_bytes(data[16:20]), int.from_bytes(data[20:24]), *limits)
    with _open_picture(data, kind) as image:
        check_size(image.width, image.height, *limits)
        if index := check_frame(request.frame, _count_frames(image, kind)):
            image.seek(index)
            check_size(image.width, image.height, *limits)
        profile, orientation = image.info.get("icc_profile"), _read_orientation(image, kind)
        image.load()
        is_deep = image.mode.startswith("I") and (kind == "PNG" or image.mode != "I")
        if is_deep:
            values = np.asarray(image) >> (_count_bits(image) - 8)
            opaque = Image.fromarray(values.clip(max=255).astype(np.uint8))
        elif image.mode in ("I", "F"):
            raise DecodeError("it has 32 bits per value: convert it to 8 or 16 bits")
        else:
            image.info.pop("transparency", None)
            grey, other = ("1", "L", "LA"), image.mode if image.mode == "CMYK" else "RGB"
            opaque = image.convert("L" if image.mode in grey else other)
        is_deep_png = kind == "PNG" and data[24] == _DEEP
        if is_deep or is_deep_png or (kind == "TIFF" and _count_bits(image) > 8):  # noqa: PLR2004
            _require_upper_bits(opaque)
        pixels = to_rgb(opaque, profile, request.icc)
    return Raster(pixels, pixels.shape[:2], orientation)


def _count_bits(image: Image.Image) -> int:
    """Return the number of bits in use of 16-bit values, such as 12, if a TIFF states it."""
    tags = getattr(image, "tag_v2", {})
    bits, highest = (np.ravel(tags.get(tag, 0)).max() for tag in (_BITS_PER_SAMPLE, _MAX_SAMPLE))
    return max(int(highest).bit_length() or int(bits) or _DEEP, 8)


def _require_upper_bits(image: Image.Image) -> None:
    """Raise DecodeError if 16-bit values use at most 12 bits: they would be almost black."""
    extrema: Any = image.getextrema()
    if 0 < int(np.max(extrema)) < 1 << 4:
        raise DecodeError(
            "its 16-bit values use at most 12 bits, so it would be almost black: convert it "
            "to 8 bits, or state the highest value (tag 281, MaxSampleValue) of a grey TIFF"
        )


def _probe_picture(data: bytes, kind: str) -> ImageInfo:
    with _open_picture(data, kind) as image:
        width, height = to_displayed(image.size, _read_orientation(image, kind))
        frames, profile = _count_frames(image, kind), image.info.get("icc_profile")
        return ImageInfo(kind.lower(), width, height, frames, read_profile_name(profile))


def _count_frames(image: Any, kind: str) -> int:
    """Return the number of pages of a TIFF, and 1 for other formats, even animated ones."""
    return int(image.n_frames) if kind == "TIFF" else 1


def _read_orientation(image: Image.Image, kind: str) -> int:
    """Return the EXIF orientation still to undo; decoders of TIFF and HEIC undo it themselves."""
    return 1 if kind in ("TIFF", "HEIC") else read_orientation(image.info.get("exif"))


def decode_mask(data: bytes) -> Bool[np.ndarray, "_ _"]:
    """Decode the mask of a lesion, True inside; undo the EXIF orientation.

    Inside are the pixels whose index is not 0, if the image has a palette of colours or numbers
    up to `MAX_INDEX`; else the pixels in the upper half of the range of the image's own values.
    An image of a single value is empty if that is 0, otherwise full.
    """
    kind = _detect_format(data)
    with report_damage(kind):
        if kind not in _CLASSES:
            raise DecodeError(f"a mask cannot be {kind}: convert it to PNG")
        with _open_picture(data, kind) as image:
            check_size(image.width, image.height, MAX_PIXELS)
            orientation = _read_orientation(image, kind)
            inside = _find_inside(image)
    pixels = inside[..., None].repeat(3, axis=2).view(np.uint8)
    return _resize_upright(Raster(pixels, inside.shape, orientation), None)[..., 0].view(np.bool_)


MAX_INDEX: Final = 31


def _find_inside(image: Image.Image) -> Bool[np.ndarray, "_ _"]:
    image.info.pop("transparency", None)
    if image.mode == "P":
        colours = np.asarray(image.convert("RGB"))
        if np.ptp(colours, axis=2).any():
            return np.asarray(image) != 0
        values = colours[..., 0]
    else:
        deep, grey = image.mode[0] in "IF", image.mode in ("1", "L", "LA")
        values = np.asarray(image if deep else image.convert("L" if grey else "RGB"))
        values = values.max(axis=2) if values.ndim > 2 else values  # noqa: PLR2004  channels
    low, high = float(values.min()), float(values.max())
    return values > (0 if high <= MAX_INDEX or low == high else (low + high) / 2)


_CLASSES: Final = {
    "PNG": PngImageFile,
    "BMP": BmpImageFile,
    "TIFF": TiffImageFile,
    "WebP": WebPImageFile,
    "GIF": GifImageFile,
}
_PICTURES: Final = (*_CLASSES, "HEIC")
_READERS: Final[dict[str, Callable[[bytes, Request], Raster]]] = {
    "JPEG": _read_jpeg,
    "DICOM": read_dicom,
    **{kind: partial(_read_picture, kind=kind) for kind in _PICTURES},
}
_PROBES: Final[dict[str, Callable[[bytes], ImageInfo]]] = {
    "JPEG": _probe_jpeg,
    "DICOM": probe_dicom,
    **{kind: partial(_probe_picture, kind=kind) for kind in _PICTURES},
}
