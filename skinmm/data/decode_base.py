"""What every picture format shares: the error, limits, colour, orientation and resizing."""

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageCms

from skinmm.data.decode_resize import Extent, resize
from skinmm.errors import InputError

Pixels: TypeAlias = UInt8[np.ndarray, "height width 3"]
Size: TypeAlias = tuple[int, int]
Icc: TypeAlias = Literal["ignore", "srgb"]

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h
_LYING: Final = 5  # EXIF orientations from here on swap rows and columns
_PROFILE_MODES: Final = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}


class DecodeError(InputError):
    """The bytes are no picture that can be used; one line says why and what to do."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller wants: `size` is (height, width) as displayed, `frame` counts from 1."""

    size: Size | None
    frame: int | None
    icc: Icc
    max_pixels: int
    least: int = 1


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What the header tells; sizes are those of the picture as displayed (EXIF applied)."""

    format: Literal["jpeg", "png", "dicom"]
    width: int
    height: int
    frames: int = 1
    icc: str | None = None


@dataclass(slots=True)
class Raster:
    """Decoded pixels as stored; `extent` is what they cover, `orientation` is EXIF's, 1 to 8."""

    pixels: Pixels
    extent: Extent
    orientation: int = 1

    def take(self) -> Pixels:
        """Hand the pixels over: their memory is free again before resizing asks for more."""
        pixels = self.pixels
        del self.pixels
        return pixels


def keep_freed_memory() -> None:
    """Have glibc keep up to 64 MB that were freed, in this process, for the next picture.

    Else it gives a raster's memory back to the kernel, which hands it out again page by page,
    zeroed: an eighth of the time to decode a camera file.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # musl has none
            libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def check_size(width: int, height: int, max_pixels: int, least: int = 1) -> None:
    """Refuse a picture without area or outside the limits, before memory is taken for it.

    Raises:
        DecodeError: says the size and the limit.
    """
    if width < 1 or height < 1:
        raise DecodeError(f"the header says {width}x{height} pixels: damaged, fetch the file again")
    if min(width, height) < least:
        raise DecodeError(f"{width}x{height} pixels are too few: it takes {least} on either side")
    if width * height > max_pixels:
        raise DecodeError(
            f"{width}x{height} is {width * height / 1e6:,.1f} megapixels, the limit is "
            f"{max_pixels / 1e6:,.1f}: raise max_pixels if the picture is really that large"
        )


def check_frame(frame: int | None, frames: int) -> int:
    """Return the index (from 0) of the frame asked for (from 1, as DICOM counts).

    Raises:
        DecodeError: there are several and none is named, or the one named is not there.
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
    """Swap height and width where the EXIF orientation lays the picture on its side."""
    return (size[1], size[0]) if orientation >= _LYING else size


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
    if orientation >= _LYING:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def exif_orientation(exif: bytes | None) -> int:
    """Return EXIF's orientation, 1 (upright) where there is none or it cannot be read."""
    if not exif:
        return 1
    tags = Image.Exif()
    try:
        tags.load(exif)
        orientation: Any = tags.get(0x0112)
    except Exception:  # whatever Pillow raises: a damaged block says nothing about the pixels
        return 1
    return int(orientation) if orientation in range(1, 9) else 1


def to_rgb(image: Image.Image, profile: bytes | None, icc: Icc) -> Pixels:
    """Turn a Pillow picture into RGB; with icc="srgb" through its ICC profile, where it has one.

    Raises:
        DecodeError: the profile cannot be read or is for another kind of picture.
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


def profile_name(profile: bytes | None) -> str | None:
    """Return the description inside an ICC profile, None where there is no profile."""
    if not profile:
        return None
    try:
        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(BytesIO(profile))).strip()
    except (ImageCms.PyCMSError, OSError):
        return "unreadable"
