"""Antialiased resizing of decoded pictures: bilinear over an output pixel's whole footprint.

The SIMD resizer computes in integers, so its result does not depend on the processor; it runs on
the calling thread. Where it has no wheel (Linux on ARM) Pillow computes the same filter, five times
slower and at most one level apart. Figures: benchmarks/results/decode.md.
"""

from typing import Final, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import cykooz_resizer as simd
except ImportError:
    simd = None
else:
    _RGB: Final = simd.PixelType.U8x3
    _BILINEAR: Final = simd.ResizeAlg.convolution(simd.FilterType.bilinear)

Extent: TypeAlias = tuple[float | int, float | int]
"""(height, width) in pixels that the picture covers; may end inside its last row and column."""


def resize_simd(
    pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], extent: Extent
) -> UInt8[np.ndarray, "height width 3"]:
    """Resize the top left `extent` of `pixels` to `size` (height, width)."""
    height, width, _ = pixels.shape
    encoded = pixels.tobytes()
    del pixels  # copies that outlive their use cost more, in page faults, than the resizing itself
    source = simd.ImageData(width, height, _RGB, encoded)
    del encoded
    target = simd.ImageData(size[1], size[0], _RGB)
    box = simd.CropBox(0, 0, extent[1], extent[0])
    simd.Resizer().resize(source, target, simd.ResizeOptions(_BILINEAR, crop_box=box))
    return np.frombuffer(bytearray(target.get_buffer()), np.uint8).reshape(*size, 3)


def resize_pillow(
    pixels: UInt8[np.ndarray, "h w 3"], size: tuple[int, int], extent: Extent
) -> UInt8[np.ndarray, "height width 3"]:
    """Like `resize_simd`."""
    box = (0, 0, extent[1], extent[0])
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BILINEAR, box))


resize: Final = resize_simd if simd else resize_pillow
