"""Heat maps as pictures."""

from io import BytesIO
from typing import Final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from skinmm.predict.reasons import enlarged

# Viridis at a few points: lighter is more, also for who cannot tell red from green.
_COLOURS: Final = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)
_STRENGTH: Final = 0.65  # of the colour where the map is strongest


def heat_png(heat: Float32[np.ndarray, "down across"]) -> bytes:
    """The map itself as an 8-bit grey PNG: a pixel a place of the network, 255 where strongest."""
    file = BytesIO()
    Image.fromarray(np.round(255 * heat).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], heat: Float32[np.ndarray, "down across"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The map over the picture: clear where nothing speaks for malignancy."""
    strong = enlarged(heat, picture.shape[:2]).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strong, steps, part) for part in _COLOURS.T], axis=-1)
    weight = (_STRENGTH * np.sqrt(strong))[..., None]
    return np.round((1 - weight) * picture + weight * colour).astype(np.uint8)
