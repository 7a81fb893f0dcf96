"""Pictures of every format for the tests of decoding."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps

RNG = np.random.default_rng(7)


def photograph(height: int = 211, width: int = 283) -> Image.Image:
    """A smooth picture with an edge and a corner mark, so that no orientation equals another."""
    y, x = np.mgrid[:height, :width]
    channels = [128 + 90 * np.sin(x / 17 + y / 29), x * 255 / width, y * 255 / height]
    pixels = np.stack(channels, axis=-1).astype(np.uint8)
    pixels[: height // 4, : width // 6] = (250, 20, 40)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, format_: str = "JPEG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def with_orientation(orientation: int, format_: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(photograph(), format_, exif=exif.tobytes())


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB"))


def distance(left: np.ndarray, right: np.ndarray) -> float:
    return float(np.abs(left.astype(int) - right).mean())


GREY16 = Image.fromarray(RNG.integers(0, 2**16, (40, 50), dtype=np.uint16))
