"""Common parts of the decoders: limits, orientation, colour profiles, PNG, antialiased resizing.

The SIMD resizer computes in integers, so that its result does not depend on the processor; it runs
on the calling thread. Linux on ARM has no wheel of it: there Pillow computes the same filter, five
times slower and at most one grey level apart (benchmarks/results/decode.md).
"""

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngImageFile

from skinmm.errors import InputError

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None
else:
    _RGB: Final = simd.PixelType.U8x3
    _BILINEAR: Final = simd.ResizeAlg.convolution(simd.FilterType.bilinear)

Extent: TypeAlias = tuple[float | int, float | int]
"""(height, width) in pixels that the image covers; may end inside the last row and column."""


def resize_simd(
    pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], extent: Extent
) -> UInt8[np.ndarray, "height width 3"]:
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


def resize_pillow(
    pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], extent: Extent
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize as `resize_simd` does, with Pillow."""
    box = (0, 0, extent[1], extent[0])
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR, box))


resize: Final = resize_simd if simd else resize_pillow


Pixels: TypeAlias = UInt8[np.ndarray, "height width 3"]
Size: TypeAlias = tuple[int, int]
Icc: TypeAlias = Literal["ignore", "srgb"]

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h
_TRANSPOSED: Final = 5  # EXIF orientations from here on swap rows and columns
_PROFILE_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class DecodeError(InputError):
    """An image cannot be used; the message has one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """Arguments of `decode`: `size` is (height, width) as displayed, `frame` counts from 1."""

    size: Size | None
    frame: int | None
    icc: Icc
    max_pixels: int
    min_side: int = 1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """Contents of the header; the size is that of the image as displayed (EXIF applied)."""

    format: Literal["jpeg", "png", "dicom"]
    width: int
    height: int
    frames: int = 1
    icc: str | None = None


@dataclass(slots=True)
class Raster:
    """Decoded pixels as stored, the extent they cover, and the EXIF orientation, 1 to 8."""

    pixels: Pixels
    extent: Extent
    orientation: int = 1

    def take(self) -> Pixels:
        """Return the pixels and drop the reference, so that resizing can reuse their memory."""
        pixels = self.pixels
        del self.pixels
        return pixels


def keep_freed_memory() -> None:
    """Make glibc reuse up to 64 MB of freed memory in this process.

    Otherwise the kernel takes the memory of every decoded image back, and zeroes its pages for the
    next one: an eighth of the time to decode a camera file.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def check_size(width: int, height: int, max_pixels: int, min_side: int = 1) -> None:
    """Raise `DecodeError` with size and limit for an image that is too small or too large.

    This happens before memory is allocated for the pixels.
    """
    if width < 1 or height < 1:
        raise DecodeError(f"the header says {width}x{height} pixels: damaged, fetch the file again")
    if min(width, height) < min_side:
        raise DecodeError(
            f"{width}x{height} pixels are too few: it takes {min_side} on either side"
        )
    if width * height > max_pixels:
        raise DecodeError(
            f"{width}x{height} is {width * height / 1e6:,.1f} megapixels, the limit is "
            f"{max_pixels / 1e6:,.1f}: raise max_pixels if the image is really that large"
        )


def check_frame(frame: int | None, frames: int) -> int:
    """Return the index (from 0) of a frame (from 1, as in DICOM).

    Raises:
        DecodeError: the frame does not exist, or there are several and none is requested.
    """
    if frame is None and frames > 1:
        raise DecodeError(
            f"it holds {frames} frames: name one, #frame=1 to #frame={frames} behind the path"
        )
    if frame is not None and not 1 <= frame <= frames:
        allowed = "it holds one frame, #frame=1" if frames == 1 else f"1 to {frames} exist"
        raise DecodeError(f"#frame={frame} does not exist: {allowed}")
    return 0 if frame is None else frame - 1


def displayed(size: Size, orientation: int) -> Size:
    """Swap height and width if the EXIF orientation swaps rows and columns."""
    return (size[1], size[0]) if orientation >= _TRANSPOSED else size


def finish(raster: Raster, size: Size | None) -> Pixels:
    """Resize to `size` (height, width as displayed) and turn upright."""
    if size is not None:
        size = displayed(size, raster.orientation)
        if raster.pixels.shape[:2] != size or raster.extent != size:
            raster.pixels = resize(raster.take(), size, raster.extent)
    return _upright(raster.pixels, raster.orientation)


def _upright(pixels: UInt8[np.ndarray, "rows columns 3"], orientation: int) -> Pixels:
    """Undo the EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation == 1:
        return pixels
    if orientation >= _TRANSPOSED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def read_orientation(exif: bytes | None) -> int:
    """Return the EXIF orientation; 1 (upright) if it is missing or cannot be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation: Any = tags.get(0x0112)
    except Exception:  # Pillow raises various errors; a damaged block does not affect the pixels
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def to_rgb(image: Image.Image, profile: bytes | None, icc: Icc) -> Pixels:
    """Convert a Pillow image to RGB, with icc="srgb" through its ICC profile if it has one.

    Raises:
        DecodeError: the profile cannot be read or is for another colour space.
    """
    if icc == "srgb" and profile:
        try:
            transform = _transform(profile, image.mode)
        except (ImageCms.PyCMSError, OSError) as error:
            raise DecodeError(f"its ICC profile is unusable ({error}): use icc=ignore") from error
        image = transform.apply(image)
    return np.array(image.convert("RGB"))


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform:
    """Build the transform to sRGB once per profile; NOCACHE makes it usable from many threads."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if _PROFILE_MODES.get(space) != mode:
        raise DecodeError(f"its ICC profile is for {space}, its pixels are {mode}: use icc=ignore")
    return ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        mode,
        "RGB",
        ImageCms.Intent(ImageCms.getDefaultIntent(source)),
        ImageCms.Flags.NOCACHE,
    )


def read_profile_name(profile: bytes | None) -> str | None:
    """Return the description in an ICC profile; None without a profile."""
    if not profile:
        return None
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return "unreadable"


def read_png(data: bytes, request: Request) -> Raster:
    """Decode a PNG without transparency; the upper eight bits of 16.

    Raises:
        DecodeError: too large. Damage is reported by Pillow's errors.
    """
    check_frame(request.frame, 1)
    height, width = _size(data)
    check_size(width, height, request.max_pixels, request.min_side)
    # The class and not Image.open: that one warns or fails above limits of its own.
    with PngImageFile(BytesIO(data)) as image:
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        pixels = to_rgb(_opaque(image), profile, request.icc)
    return Raster(pixels, (height, width), orientation)


def _size(data: bytes) -> Size:
    """Return (height, width) from the IHDR chunk, which is always the first."""
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])


def _orientation(image: Image.Image) -> int:
    return read_orientation(image.info.get("exif"))


def _opaque(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit grey or RGB without its transparency."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def probe_png(data: bytes) -> ImageInfo:
    """Read the header only; see `skinmm.images.decode.probe`."""
    with PngImageFile(BytesIO(data)) as image:
        height, width = displayed(_size(data), _orientation(image))
        return ImageInfo("png", width, height, icc=read_profile_name(image.info.get("icc_profile")))
