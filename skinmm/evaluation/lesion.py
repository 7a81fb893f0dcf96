"""What a lesion's picture and mask measure: numbers a dermatologist's ABCD rule asks for.

Asymmetry, border and colour after Stolz et al. 1994 (the ABCD rule), each as a plain number that
depends neither on the picture's size nor on where in it the lesion is.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8

from skinmm.evaluation.skin_tone import typology_angle

MEASUREMENTS: Final = (
    *("area_share", "asymmetry", "border_irregularity", "colour_variegation"),
    "skin_tone_angle",
)
"""What `measure` gives; columns of a record by these names."""

Mask = Bool[np.ndarray, "h w"]


def measure(pixels: UInt8[np.ndarray, "h w 3"], mask: Mask) -> dict[str, float]:
    """The measurements of a lesion; NaN where the mask is empty.

    `area_share` is of the picture. `asymmetry` is the share of the lesion whose mirror image lies
    outside of it, mean over its two principal axes: 0 is symmetric. `border_irregularity` is the
    squared perimeter over that of a circle of the same area: 1 is a circle. `colour_variegation` is
    the root mean square distance of the lesion's pixels from their mean colour, in RGB from 0 to 1.
    `skin_tone_angle` is the typology angle of what is not lesion, in degrees.

    Args:
        pixels: sRGB.
        mask: where the lesion is.
    """
    measured = dict.fromkeys(MEASUREMENTS, float("nan"))
    measured["skin_tone_angle"] = typology_angle(pixels, mask)
    if mask.any():
        measured |= {
            "area_share": float(mask.mean()),
            "asymmetry": asymmetry(mask),
            "border_irregularity": perimeter(mask) ** 2 / (4 * np.pi * float(mask.sum())),
            "colour_variegation": float(np.sqrt((pixels[mask] / 255).var(axis=0).sum())),
        }
    return measured


def asymmetry(mask: Mask) -> float:
    """Share of a shape that its mirror image misses, mean over its two principal axes."""
    places = np.argwhere(mask).astype(np.float64)
    places -= (middle := places.mean(axis=0))
    _, axes = np.linalg.eigh(places.T @ places)
    height, width = mask.shape
    missed = []
    for axis in axes.T:
        mirrored = places - 2 * np.outer(places @ axis, axis) + middle
        rows, columns = np.rint(mirrored).astype(int).T
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        met = mask[rows[inside], columns[inside]].sum()
        missed.append(1 - met / len(places))
    return float(np.mean(missed))


def perimeter(mask: Mask) -> float:
    """Length of a shape's border, pixels, by Crofton's formula over four directions of lines.

    A line's crossings, times the distance between lines, are added up; of a polygon the result is
    up to 6 % off, of round shapes less.
    """
    framed: Float64[np.ndarray, "h w"] = np.pad(mask, 1).astype(np.float64)
    straight = np.abs(np.diff(framed, axis=0)).sum() + np.abs(np.diff(framed, axis=1)).sum()
    down, up = framed[1:, 1:] - framed[:-1, :-1], framed[1:, :-1] - framed[:-1, 1:]
    slanted = (np.abs(down).sum() + np.abs(up).sum()) / np.sqrt(2)
    return float(np.pi / 8 * (straight + slanted))
