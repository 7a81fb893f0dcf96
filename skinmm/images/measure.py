"""Measurements of lesion and skin from an image and a mask.

Asymmetry, border and colour follow the ABCD rule of Stolz et al. 1994. They depend neither on the
size of the image nor on the position of the lesion in it.
"""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

MEASUREMENTS: Final = (
    *("area_share", "asymmetry", "border_irregularity", "colour_variegation"),
    "skin_tone_angle",
)
"""Names of the measurements, which records may have as columns."""

SHARPNESS_SIDE: Final = 224
"""Pixels to which the shorter side is reduced before the sharpness is measured."""

Mask = Bool[np.ndarray, "h w"]


def measure(pixels: UInt8[np.ndarray, "h w 3"], mask: Mask) -> dict[str, float]:
    """Measure a lesion in an sRGB image; NaN for an empty mask.

    - `area_share`: share of the image that the lesion covers.
    - `asymmetry`: share of the lesion whose mirror image lies outside the lesion, mean over its two
      principal axes; 0 is symmetric.
    - `border_irregularity`: squared perimeter over that of a circle of equal area; 1 is a circle.
    - `colour_variegation`: root mean square distance of the lesion's pixels from their mean colour,
      in RGB from 0 to 1.
    - `skin_tone_angle`: typology angle of the skin outside the lesion, in degrees.
    """
    values = dict.fromkeys(MEASUREMENTS, float("nan"))
    values["skin_tone_angle"] = measure_skin_tone(pixels, mask)
    if mask.any():
        values |= {
            "area_share": float(mask.mean()),
            "asymmetry": measure_asymmetry(mask),
            "border_irregularity": measure_perimeter(mask) ** 2 / (4 * np.pi * float(mask.sum())),
            "colour_variegation": float(np.sqrt((pixels[mask] / 255).var(axis=0).sum())),
        }
    return values


def measure_asymmetry(mask: Mask) -> float:
    """Return the share of a shape outside its mirror image, averaged over both principal axes."""
    points = np.argwhere(mask).astype(np.float64)
    points -= (centre := points.mean(axis=0))
    _, axes = np.linalg.eigh(points.T @ points)
    height, width = mask.shape
    shares = []
    for axis in axes.T:
        mirrored = points - 2 * np.outer(points @ axis, axis) + centre
        rows, columns = np.rint(mirrored).astype(int).T
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        shares.append(1 - mask[rows[inside], columns[inside]].sum() / len(points))
    return float(np.mean(shares))


def measure_perimeter(mask: Mask) -> float:
    """Return a perimeter in pixels by Crofton's formula (error up to 6 % for polygons)."""
    framed: Float64[np.ndarray, "h w"] = np.pad(mask, 1).astype(np.float64)
    straight = np.abs(np.diff(framed, axis=0)).sum() + np.abs(np.diff(framed, axis=1)).sum()
    down, up = framed[1:, 1:] - framed[:-1, :-1], framed[1:, :-1] - framed[:-1, 1:]
    diagonal = (np.abs(down).sum() + np.abs(up).sum()) / np.sqrt(2)
    return float(np.pi / 8 * (straight + diagonal))


TONES: Final[dict[str, float]] = {
    "very light": 55.0,
    "light": 41.0,
    "intermediate": 28.0,
    "tan": 10.0,
    "brown": -30.0,
    "dark": -90.0,
}
"""Skin tones and the individual typology angle above which each begins, in degrees (Chardon et al.
1991, doi:10.1111/j.1467-2494.1991.tb00561.x; Del Bino and Bernerd 2013)."""

_FRAME: Final = 8  # an eighth of each side counts as the border of the image
_DARKEST, _LIGHTEST = 15.0, 97.0  # lightness; darker: corners of the lens, lighter: glare
_MIN_SKIN: Final = 0.1  # share of the border that must be skin
_LINEAR: Final = 0.04045  # below, sRGB is linear
_TO_Y: Final = np.array([0.2126729, 0.7151522, 0.0721750])  # linear sRGB, D65
_TO_Z: Final = np.array([0.0193339, 0.1191920, 0.9503041]) / 1.08883


def name_skin_tone(angle: float) -> str | None:
    """Return the skin tone of a typology angle; None for NaN."""
    return next((name for name, above in TONES.items() if angle > above), None)


def measure_skin_tone(pixels: UInt8[np.ndarray, "h w 3"], lesion: Mask | None = None) -> float:
    """Measure the individual typology angle of the skin around a lesion, in degrees.

    The angle is arctan((L - 50) / b) in CIELAB, as in Kinyanjui et al. 2020 (arXiv:1910.13268), as
    the median over the border of the image without dark corners, glare and bluish pixels. A lesion
    that fills the image is mistaken for skin.

    Args:
        pixels: image in sRGB of any size; 64 pixels a side are enough.
        lesion: mask of the lesion, if known: all pixels outside it replace the border.

    Returns:
        Degrees, higher for lighter skin; NaN if less than a tenth of the border can be skin.
    """
    border = np.ones(pixels.shape[:2], dtype=bool) if lesion is None else ~lesion
    if lesion is None:
        top, left = (max(1, side // _FRAME) for side in border.shape)
        border[top:-top, left:-left] = False
    if not border.any():
        return float("nan")
    lightness, yellow = _to_lightness_and_yellow(pixels[border])
    skin = (lightness > _DARKEST) & (lightness < _LIGHTEST) & (yellow > 0)
    if skin.mean() < _MIN_SKIN:
        return float("nan")
    return float(np.median(np.degrees(np.arctan((lightness[skin] - 50) / yellow[skin]))))


def _to_lightness_and_yellow(
    pixels: UInt8[np.ndarray, "n 3"],
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return L and b of CIELAB (D65)."""
    share = pixels / 255
    linear = np.where(share <= _LINEAR, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    y, z = (
        np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
        for t in (linear @ _TO_Y, linear @ _TO_Z)
    )
    return 116 * y - 16, 200 * (y - z)


def measure_sharpness(pixels: UInt8[np.ndarray, "_ _ 3"]) -> float:
    """Return the variance of the Laplacian (Pech-Pacheco 2000, doi:10.1109/ICPR.2000.903548)."""
    grey = Image.fromarray(pixels).convert("L")
    scale = min(1.0, SHARPNESS_SIDE / min(grey.size))
    size = (max(3, round(scale * grey.width)), max(3, round(scale * grey.height)))
    light = np.asarray(grey.resize(size, Image.Resampling.BILINEAR), np.float64)
    neighbours = light[:-2, 1:-1] + light[2:, 1:-1] + light[1:-1, :-2] + light[1:-1, 2:]
    return float((neighbours - 4 * light[1:-1, 1:-1]).var())
