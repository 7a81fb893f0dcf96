"""What a lesion's picture and mask measure: numbers a dermatologist's ABCD rule asks for.

Asymmetry, border and colour after Stolz et al. 1994 (the ABCD rule), each as a plain number that
depends neither on the picture's size nor on where in it the lesion is.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8

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
    measured["skin_tone_angle"] = measure_skin_tone(pixels, mask)
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


TONES: Final[dict[str, float]] = {
    "very light": 55.0,
    "light": 41.0,
    "intermediate": 28.0,
    "tan": 10.0,
    "brown": -30.0,
    "dark": -90.0,
}
"""Names of the tones, and above which individual typology angle each lies, in degrees (Chardon et
al. 1991, doi:10.1111/j.1467-2494.1991.tb00561.x; Del Bino and Bernerd 2013)."""

_FRAME: Final = 8  # an eighth of each side is the picture's border
_DARKEST, _LIGHTEST = 15.0, 97.0  # lightness: below are the lens's corners, above is glare
_LEAST: Final = 0.1  # of the border must be skin
_LINEAR: Final = 0.04045  # sRGB below is a straight line
_TO_Y: Final = np.array([0.2126729, 0.7151522, 0.0721750])  # linear sRGB, D65
_TO_Z: Final = np.array([0.0193339, 0.1191920, 0.9503041]) / 1.08883


def name_skin_tone(angle: float) -> str | None:
    """The name of a typology angle's tone; None for NaN."""
    return next((name for name, above in TONES.items() if angle > above), None)


def measure_skin_tone(
    pixels: UInt8[np.ndarray, "h w 3"], lesion: Bool[np.ndarray, "h w"] | None = None
) -> float:
    """Individual typology angle of the skin around a lesion, in degrees.

    arctan((L - 50) / b) of CIELAB, as Kinyanjui et al. 2020 (arXiv:1910.13268) measure it on
    healthy skin; here that is the picture's border, without dark corners, glare and what is bluish,
    and the median over its pixels. A lesion that fills the picture is mistaken for skin.

    Args:
        pixels: sRGB, of any size; 64 pixels a side are enough.
        lesion: where it is known, all around it is measured in place of the border.

    Returns:
        Degrees, higher for lighter skin; NaN where less than a tenth of the border can be skin.
    """
    border = _border(pixels.shape[:2]) if lesion is None else ~lesion
    if not border.any():
        return float("nan")
    lightness, yellow = _lightness_and_yellow(pixels[border])
    skin = (lightness > _DARKEST) & (lightness < _LIGHTEST) & (yellow > 0)
    if skin.mean() < _LEAST:
        return float("nan")
    return float(np.median(np.degrees(np.arctan((lightness[skin] - 50) / yellow[skin]))))


def _border(shape: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    top, left = (max(1, side // _FRAME) for side in shape)
    border = np.ones(shape, dtype=bool)
    border[top:-top, left:-left] = False
    return border


def _lightness_and_yellow(
    pixels: UInt8[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """L and b of CIELAB (D65)."""
    share = pixels / 255
    linear = np.where(share <= _LINEAR, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y, z = (_cube_root(linear @ weights) for weights in (_TO_Y, _TO_Z))
    return 116 * y - 16, 200 * (y - z)


def _cube_root(t: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
