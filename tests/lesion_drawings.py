"""A cohort whose lesions are drawn: dark ellipses on skin, and where they are."""

from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

SIDE: Final = 256
SKIN: Final = (200, 160, 140)
LESION: Final = (90, 50, 40)


def ellipse(
    height: float, width: float, middle: tuple[float, float], side: int = SIDE
) -> Bool[np.ndarray, "side side"]:
    """A mask; half axes and middle in pixels."""
    rows, columns = np.mgrid[:side, :side]
    down, across = (rows - middle[0]) / height, (columns - middle[1]) / width
    inside: Bool[np.ndarray, "side side"] = down**2 + across**2 <= 1
    return inside


def painted(mask: Bool[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of what a mask marks."""
    return np.where(mask[..., None], LESION, SKIN).astype(np.uint8)


def write_cohort(root: Path, count: int = 20) -> None:
    """A folder `nevi` of pictures and a folder `masks`, as `data=image_folder` reads them."""
    for folder in ("nevi", "masks"):
        (root / folder).mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        height, width, down, across = random.uniform((20, 20, 90, 90), (70, 70, 160, 160))
        mask = ellipse(height, width, (down, across))
        Image.fromarray(painted(mask)).save(root / "nevi" / f"L{number}.png")
        Image.fromarray(mask * np.uint8(255)).save(root / "masks" / f"L{number}_segmentation.png")
