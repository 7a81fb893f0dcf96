"""Base of the decoders: limits, orientation, colour profiles, antialiased resizing, JPEG streams.

The SIMD resizer computes in integers, so that its result does not depend on the processor; it runs
on the calling thread. Linux on ARM has no wheel of it: there Pillow computes the same filter, five
times slower and at most one grey level apart (benchmarks/results/decode.md).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from PIL import Image, ImageCms
from PIL.JpegImagePlugin import JpegImageFile

from skinmm.errors import InputError

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None
else:
    _RGB: Final = simd.PixelType.U8x3
    _BILINEAR: Final = simd.ResizeAlg.convolution(simd.FilterType.bilinear)

Pixels: TypeAlias = UInt8[np.ndarray, "_ _ 3"]
Size: TypeAlias = tuple[int, int]
Icc: TypeAlias = Literal["ignore", "srgb"]
Extent: TypeAlias = tuple[float | int, float | int]
"""(height, width) in pixels that the image covers; may end inside the last row and column."""

TRANSPOSED: Final = 5  # EXIF orientations from here on swap rows and columns
_PROFILE_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}

_APP1, _APP2, _APP14, _SOS, _EOI, _FILL = 0xE1, 0xE2, 0xEE, 0xDA, 0xD9, 0xFF
_BITS: Final = 8
_FRAME_BYTES: Final = 6  # precision, height, width, components
_ADOBE_BYTES: Final = 12  # libjpeg ignores shorter markers
# Start of frame: every coding of T.81 (C4, C8 and CC are other segments) and JPEG-LS (F7).
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}
# libjpeg skips stray bytes before a marker without loss; all its other warnings mean damage.
_HARMLESS: Final = "extraneous bytes before marker"


MIN_SIDE: Final = 16
"""Pixels of an image's shorter side: the smallest `model.image_size`, and `size` of a pack."""


class DecodeError(InputError):
    """Unusable image; the one-line message gives the reason and the remedy."""


class Request(NamedTuple):
    """Arguments of `decode`: `size` is (height, width) as displayed, `frame` counts from 1."""

    size: Size | None
    frame: int | None
    icc: Icc
    max_pixels: int
    min_side: int = 1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Contents of the header, with the size of the image as displayed (EXIF applied)."""

    format: str
    width: int
    height: int
    frames: int = 1
    icc: str | None = None


@dataclass
class Raster:
    """Decoded pixels as stored, the extent they cover, and the EXIF orientation, 1 to 8."""

    pixels: Pixels
    extent: Extent
    orientation: int = 1


def resize_simd(pixels: Pixels, size: Size, extent: Extent) -> Pixels:
    """Resize the top left `extent` of `pixels` to `size` (height, width)."""
    height, width, _ = pixels.shape
    encoded = pixels.tobytes()
    del pixels  # copies that live on cost more, in page faults, than the resizing
    source = simd.ImageData(width, height, _RGB, encoded)
    del encoded
    target = simd.ImageData(size[1], size[0], _RGB)
    box = simd.CropBox(0, 0, extent[1], extent[0])
    simd.Resizer().resize(source, target, simd.ResizeOptions(_BILINEAR, crop_box=box))
    return np.frombuffer(bytearray(target.get_buffer()), np.uint8).reshape(*size, 3)


def resize_pillow(pixels: Pixels, size: Size, extent: Extent) -> Pixels:
    """Resize as `resize_simd` does, with Pillow."""
    box = (0, 0, extent[1], extent[0])
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR, box))


resize: Final = resize_simd if simd else resize_pillow


@contextmanager
def report_damage(kind: str) -> Iterator[None]:
    """Convert all errors of a codec to `DecodeError`, with the kind of file."""
    try:
        yield
    except DecodeError:
        raise
    except Exception as error:
        has_ended = isinstance(error, StopIteration | EOFError)
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        reason = "it ends early" if has_ended else reason
        raise DecodeError(f"unreadable {kind} ({reason}): fetch the file again") from error


def require_colours(pixels: Pixels) -> None:
    """Raise DecodeError if an image has a single colour."""
    if (pixels[0] == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        raise DecodeError("the image has a single colour, so it shows no lesion")


def check_size(width: int, height: int, max_pixels: int, min_side: int = 1) -> None:
    """Raise DecodeError if an image is too small or too large, before memory is allocated."""
    if width < 1 or height < 1:
        raise DecodeError(f"the header has {width}x{height} pixels: damaged, fetch the file again")
    if min(width, height) < min_side:
        raise DecodeError(f"{width}x{height} pixels are too few: each side needs {min_side}")
    if width * height > max_pixels:
        raise DecodeError(
            f"{width}x{height} is {width * height / 1e6:,.1f} megapixels, the limit is "
            f"{max_pixels / 1e6:,.1f}: raise max_pixels if the image is really that large"
        )


def check_frame(frame: int | None, frames: int) -> int:
    """Convert a frame number (from 1) to an index (from 0); with several frames it is required."""
    if frame is None and frames > 1:
        raise DecodeError(
            f"it has {frames} frames: choose one, #frame=1 to #frame={frames} after the path"
        )
    if frame is not None and not 1 <= frame <= frames:
        allowed = "it has one frame, #frame=1" if frames == 1 else f"1 to {frames} exist"
        raise DecodeError(f"#frame={frame} does not exist: {allowed}")
    return 0 if frame is None else frame - 1


def to_displayed(size: Size, orientation: int) -> Size:
    """Swap height and width if the EXIF orientation swaps rows and columns."""
    return (size[1], size[0]) if orientation >= TRANSPOSED else size


def read_orientation(exif: bytes | None) -> int:
    """Return the EXIF orientation; 1 (upright) if it is missing or cannot be read."""
    tags = Image.Exif()
    try:
        tags.load(exif or b"")
        orientation: Any = tags.get(0x0112)
    except Exception:  # Pillow raises various errors; a damaged block does not affect the pixels
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def to_rgb(image: Image.Image, profile: bytes | None, icc: Icc) -> Pixels:
    """Convert a Pillow image to RGB; icc="srgb" applies its ICC profile if it has one."""
    if icc == "srgb" and profile:
        try:
            transform = _build_transform(profile, image.mode)
        except (ImageCms.PyCMSError, OSError) as error:
            raise DecodeError(f"its ICC profile is unusable ({error}): use icc=ignore") from error
        image = transform.apply(image)
    return np.array(image.convert("RGB"))


@lru_cache(maxsize=8)
def _build_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Build the transform to sRGB once per profile, usable from many threads."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if _PROFILE_MODES.get(space) != mode:
        raise DecodeError(f"its ICC profile is for {space}, its pixels are {mode}: use icc=ignore")
    target, intent = ImageCms.createProfile("sRGB"), ImageCms.getDefaultIntent(source)
    flags = ImageCms.Flags.NOCACHE
    return ImageCms.buildTransform(source, target, mode, "RGB", ImageCms.Intent(intent), flags)


def read_profile_name(profile: bytes | None) -> str | None:
    """Return the description in an ICC profile; None without a profile."""
    if not profile:
        return None
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return "unreadable"


class JpegHeader(NamedTuple):
    """Contents of the segments before the first scan; `profile` is the assembled ICC profile."""

    width: int
    height: int
    precision: int
    components: int
    adobe: bool
    exif: bytes | None
    profile: bytes | None


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Read the segments before the first scan."""
    frame, adobe, exif, chunks = b"", False, None, {}
    for marker, content in _iterate_segments(data):
        if marker in _FRAMES:
            frame = content
        elif marker == _APP1 and content.startswith(b"Exif\0\0"):
            exif = exif or content
        elif marker == _APP2 and content.startswith(b"ICC_PROFILE\0"):
            chunks[content[12:13]] = content[14:]
        elif marker == _APP14:
            adobe |= content.startswith(b"Adobe") and len(content) >= _ADOBE_BYTES
    if len(frame) < _FRAME_BYTES:
        raise DecodeError("the JPEG ends before its pixels begin: fetch the file again")
    width, height = int.from_bytes(frame[3:5]), int.from_bytes(frame[1:3])
    profile = b"".join(chunks[number] for number in sorted(chunks)) or None
    return JpegHeader(width, height, frame[0], frame[5], adobe, exif, profile)


def _iterate_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of every segment before the first scan."""
    offset, end = 2, len(data)
    while offset + 4 <= end:
        marker = data[offset + 1]
        if data[offset] != _FILL or marker in (_SOS, _EOI):
            return
        if marker == _FILL:
            offset += 1
            continue
        stop = offset + 2 + (data[offset + 2] << 8 | data[offset + 3])
        yield marker, data[offset + 4 : stop]
        offset = stop


def read_jpeg_stream(
    data: bytes, header: JpegHeader, request: Request, profile: bytes | None, orientation: int = 1
) -> Raster:
    """Decode a JPEG stream at the smallest scale (in eighths) that covers the requested size."""
    height, width = header.height, header.width
    check_size(width, height, request.max_pixels, request.min_side)
    if header.precision != _BITS:
        raise DecodeError(f"JPEG with {header.precision} bits: convert it to 8 bits first")
    if header.components not in (1, 3):
        return _read_whole_jpeg(data, profile, request.icc, orientation)
    eighths = 8
    if request.size is not None:
        sides = zip((height, width), to_displayed(request.size, orientation), strict=True)
        eighths = min(8, max((target - 1) * 8 // side + 1 for side, target in sides))
    covering = {"min_height": -(-height * eighths // 8), "min_width": -(-width * eighths // 8)}
    try:
        pixels = simplejpeg.decode_jpeg(data, **covering)
    except ValueError as error:
        if _HARMLESS in str(error):
            return _read_whole_jpeg(data, profile, request.icc, orientation)
        raise DecodeError(f"damaged JPEG ({error}): fetch the file again") from error
    if profile and request.icc == "srgb":
        image = Image.fromarray(pixels[:, :, 0] if header.components == 1 else pixels)
        pixels = to_rgb(image, profile, request.icc)
    return Raster(pixels, (height * eighths / 8, width * eighths / 8), orientation)


def _read_whole_jpeg(data: bytes, profile: bytes | None, icc: Icc, orientation: int) -> Raster:
    """Decode a CMYK stream, or one with harmless stray bytes, with Pillow."""
    with JpegImageFile(BytesIO(data)) as image:
        pixels = to_rgb(image, profile, icc)
    return Raster(pixels, pixels.shape[:2], orientation)
