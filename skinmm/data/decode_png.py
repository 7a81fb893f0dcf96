"""PNG through Pillow: grey, palette, alpha and 16 bits become 8-bit RGB."""

from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from skinmm.data.decode_base import (
    ImageInfo,
    Raster,
    Request,
    Size,
    check_frame,
    check_size,
    displayed,
    exif_orientation,
    profile_name,
    to_rgb,
)


def read_png(data: bytes, request: Request) -> Raster:
    """Decode a PNG: colours below transparency as stored, of 16 bits the upper eight.

    Raises:
        DecodeError: too large. Damage is reported by Pillow's errors.
    """
    check_frame(request.frame, 1)
    height, width = _size(data)
    check_size(width, height, request.max_pixels, request.least)
    # The class and not Image.open: that one warns or fails above limits of its own.
    with PngImageFile(BytesIO(data)) as image:
        profile, orientation = image.info.get("icc_profile"), _orientation(image)
        pixels = to_rgb(_opaque(image), profile, request.icc)
    return Raster(pixels, (height, width), orientation)


def _size(data: bytes) -> Size:
    """Return (height, width) from the IHDR chunk, which is always the first."""
    return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])


def _orientation(image: Image.Image) -> int:
    return exif_orientation(image.info.get("exif"))


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture as 8-bit grey or RGB without its transparency."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image.load()
    image.info.pop("transparency", None)
    return image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")


def probe_png(data: bytes) -> ImageInfo:
    """Read the header only; see `skinmm.data.decode.probe`."""
    with PngImageFile(BytesIO(data)) as image:
        height, width = displayed(_size(data), _orientation(image))
        return ImageInfo("png", width, height, icc=profile_name(image.info.get("icc_profile")))
