"""Is a picture sharp enough to be judged?"""

from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image

SHORTEST: Final = 224  # pixels that the shorter side is brought to
BLURRED: Final = 5.0
"""Below, a picture is called blurred. Of 350 pictures of the embedded cohort and 22 camera files
none is (the least are 7.5 and 10.5), of 400 of HAM10000 fewer than 1 in 100; blurred with a
standard deviation of 2 pixels, more than 90 in 100 of the first are."""


def sharpness(pixels: UInt8[np.ndarray, "_ _ 3"]) -> float:
    """The variance of the Laplacian (Pech-Pacheco et al. 2000, doi:10.1109/ICPR.2000.903548)."""
    grey = Image.fromarray(pixels).convert("L")
    scale = min(1.0, SHORTEST / min(grey.size))
    size = (max(3, round(scale * grey.width)), max(3, round(scale * grey.height)))
    light = np.asarray(grey.resize(size, Image.Resampling.BILINEAR), np.float64)
    around = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:]
    return float((around - 4 * light[1:-1, 1:-1]).var())
