"""Skin tone from a picture's pixels: an estimate, as light and camera were not measured."""

from typing import Final

import numpy as np
from jaxtyping import Bool, Float64, UInt8

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


def tone_of(angle: float) -> str | None:
    """The name of a typology angle's tone; None for NaN."""
    return next((name for name, above in TONES.items() if angle > above), None)


def typology_angle(
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
