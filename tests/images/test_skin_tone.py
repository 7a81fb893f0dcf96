"""Typology angles against published colours, and what is no skin."""

import numpy as np
import pytest

from skinmm.images.measure import TONES, _to_lightness_and_yellow, measure_skin_tone, name_skin_tone


@pytest.mark.parametrize(
    ("colour", "lightness", "yellow"),
    [
        ((255, 0, 0), 53.2408, 67.2032),
        ((0, 255, 0), 87.7347, 83.1793),
        ((0, 0, 255), 32.2970, -107.8602),
        ((255, 255, 0), 97.1393, 94.4780),
        ((0, 0, 0), 0, 0),
        ((255, 255, 255), 100, 0),
    ],
)
def test_lab_is_that_of_the_srgb_primaries(
    colour: tuple[int, int, int], lightness: float, yellow: float
) -> None:
    """Published values, D65, two degrees."""
    found = _to_lightness_and_yellow(np.array([colour], dtype=np.uint8))
    assert (found[0][0], found[1][0]) == pytest.approx((lightness, yellow), abs=0.02)


def picture(skin: tuple[int, int, int], lesion: tuple[int, int, int]) -> "np.ndarray":
    pixels = np.full((64, 64, 3), skin, dtype=np.uint8)
    pixels[8:-8, 8:-8] = lesion
    return pixels


def test_the_skin_around_the_lesion_is_what_counts() -> None:
    light, dark = (240, 210, 190), (90, 60, 45)
    bright, brown = (measure_skin_tone(picture(*pair)) for pair in ((light, dark), (dark, light)))
    assert name_skin_tone(bright) == "very light"
    assert name_skin_tone(brown) == "dark"
    assert measure_skin_tone(picture(light, light)) == bright


def test_dark_corners_hairs_and_glare_do_not_move_it() -> None:
    plain = picture((224, 180, 150), (90, 60, 45))
    spoilt = plain.copy()
    rows, columns = np.indices((64, 64)) - 31.5
    spoilt[np.hypot(rows, columns) > 36] = 5
    spoilt[:, 20:22] = (40, 25, 20)
    spoilt[0:4, 28:36] = 255
    assert measure_skin_tone(spoilt) == pytest.approx(measure_skin_tone(plain), abs=1e-9)


def test_a_border_without_skin_has_no_tone() -> None:
    for colour in ((0, 0, 0), (255, 255, 255), (60, 90, 200)):
        angle = measure_skin_tone(picture(colour, (90, 60, 45)))
        assert np.isnan(angle)
        assert name_skin_tone(angle) is None


def test_tones_follow_each_other() -> None:
    names = [name_skin_tone(angle) for angle in (60.0, 50.0, 30.0, 20.0, 0.0, -60.0)]
    assert names == list(TONES)
