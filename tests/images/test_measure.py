"""Measurements of drawn shapes, whose values geometry knows."""

import numpy as np
import pytest
from jaxtyping import Bool
from lesion_drawings import LESION, SKIN, ellipse, painted

from skinmm.images.measure import (
    MEASUREMENTS,
    measure,
    measure_asymmetry,
    measure_perimeter,
    measure_skin_tone,
)

SIDE = 400
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]
SHIFTED = (170.0, 230.0)
Mask = Bool[np.ndarray, "h w"]


def turned_ellipse(degrees: float) -> Mask:
    angle = np.radians(degrees)
    down, across = ROWS - SHIFTED[0], COLUMNS - SHIFTED[1]
    one = down * np.cos(angle) + across * np.sin(angle)
    other = across * np.cos(angle) - down * np.sin(angle)
    inside: Mask = (one / 60) ** 2 + (other / 120) ** 2 <= 1
    return inside


def triangle(height: int, half: int) -> Mask:
    """Isosceles, its tip up."""
    down = ROWS - 60
    inside: Mask = (down > 0) & (down <= height) & (abs(COLUMNS - 200) <= down * half / height)
    return inside


def compactness(mask: Mask) -> float:
    return measure(painted(mask), mask)["border_irregularity"]


@pytest.mark.parametrize("degrees", [0, 20, 45, 77, 90])
def test_an_ellipse_is_symmetric_however_it_is_turned(degrees: float) -> None:
    assert measure_asymmetry(turned_ellipse(degrees)) < 0.01


@pytest.mark.parametrize(("height", "half"), [(240, 60), (90, 140)])
def test_a_triangle_misses_a_third_about_one_of_its_axes(height: int, half: int) -> None:
    # About the axis through the centroid, parallel to the base, two thirds of it meet themselves.
    assert measure_asymmetry(triangle(height, half)) == pytest.approx(1 / 6, abs=0.01)


def test_border_irregularity_is_that_of_geometry() -> None:
    assert compactness(ellipse(90, 90, SHIFTED, SIDE)) == pytest.approx(1, abs=0.01)
    one, other = 60, 120
    # Ramanujan's second approximation of an ellipse's perimeter.
    h = ((one - other) / (one + other)) ** 2
    around = np.pi * (one + other) * (1 + 3 * h / (10 + np.sqrt(4 - 3 * h)))
    known = around**2 / (4 * np.pi * np.pi * one * other)
    for degrees in (0, 30):
        assert compactness(turned_ellipse(degrees)) == pytest.approx(known, rel=0.02)
    square: Mask = (abs(ROWS - 200) < 80) & (abs(COLUMNS - 200) < 80)
    assert measure_perimeter(square) == pytest.approx(4 * 159, rel=0.06)
    star: Mask = np.hypot(ROWS - 200, COLUMNS - 200) < 90 + 30 * np.sin(
        8 * np.arctan2(ROWS - 200, COLUMNS - 200)
    )
    assert compactness(star) > 1.8


def test_size_and_place_change_only_the_share() -> None:
    small, large = ellipse(30, 45, (60, 80), 200), ellipse(60, 90, (200, 190), 400)
    one, other = measure(painted(small), small), measure(painted(large), large)
    assert one == pytest.approx(other, rel=0.02, abs=0.01)
    assert other["area_share"] == pytest.approx(np.pi * 60 * 90 / 400**2, rel=0.01)


def test_colours_are_those_of_the_lesion_alone() -> None:
    mask = ellipse(60, 90, (200, 200), SIDE)
    picture = painted(mask)
    assert measure(picture, mask)["colour_variegation"] == pytest.approx(0, abs=1e-12)
    upper = mask & (ROWS < 200)
    two = picture.copy()
    two[upper] = np.array(LESION) + 50
    share = upper.sum() / mask.sum()
    spread = np.sqrt(3 * share * (1 - share)) * 50 / 255
    assert measure(two, mask)["colour_variegation"] == pytest.approx(spread)
    angle = measure_skin_tone(np.full((8, 8, 3), SKIN, np.uint8))
    assert measure(two, mask)["skin_tone_angle"] == pytest.approx(angle)


def test_without_a_lesion_or_without_skin_nothing_is_made_up() -> None:
    empty, full = np.zeros((40, 40), bool), np.ones((40, 40), bool)
    found = measure(painted(empty), empty)
    assert tuple(found) == MEASUREMENTS
    assert [name for name, value in found.items() if not np.isnan(value)] == ["skin_tone_angle"]
    assert np.isnan(measure(painted(full), full)["skin_tone_angle"])
    assert measure(painted(full), full)["area_share"] == 1
