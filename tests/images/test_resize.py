"""The SIMD resizer against Pillow's filter and against itself without SIMD."""

import cykooz_resizer
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from PIL import Image

from skinmm.images.base import resize, resize_pillow, resize_simd

SIDES = st.integers(1, 90)
PIXELS = st.tuples(SIDES, SIDES).flatmap(
    lambda shape: npst.arrays(np.uint8, (*shape, 3), elements=st.integers(0, 255))
)


@given(
    pixels=PIXELS, size=st.tuples(SIDES, SIDES), cut=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9))
)
def test_both_resizers_agree_within_one_level(
    pixels: np.ndarray, size: tuple[int, int], cut: tuple[float, float]
) -> None:
    extent = pixels.shape[0] - cut[0], pixels.shape[1] - cut[1]
    slow = resize_pillow(pixels, size, extent).astype(int)
    assert np.abs(resize_simd(pixels, size, extent) - slow).max() <= 1


@given(pixels=PIXELS, size=st.tuples(SIDES, SIDES))
def test_the_processor_does_not_change_the_result(
    pixels: np.ndarray, size: tuple[int, int]
) -> None:
    height, width, _ = pixels.shape
    resizer = cykooz_resizer.Resizer()
    resizer.cpu_extensions = cykooz_resizer.CpuExtensions.none
    target = cykooz_resizer.ImageData(size[1], size[0], cykooz_resizer.PixelType.U8x3)
    bilinear = cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear)
    resizer.resize(
        cykooz_resizer.ImageData(width, height, cykooz_resizer.PixelType.U8x3, pixels.tobytes()),
        target,
        cykooz_resizer.ResizeOptions(bilinear),
    )
    plain = np.frombuffer(target.get_buffer(), np.uint8).reshape(*size, 3)
    np.testing.assert_array_equal(resize(pixels, size, (height, width)), plain)


@pytest.mark.parametrize("side", [40, 137])
def test_a_constant_picture_stays_constant(side: int) -> None:
    pixels = np.full((71, 93, 3), (7, 130, 255), np.uint8)
    assert (resize(pixels, (side, side), (71, 93)) == (7, 130, 255)).all()


def test_what_lies_outside_the_extent_has_no_say_in_the_scale() -> None:
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, :, None], 3, axis=2)
    pixels = np.repeat(ramp, 8, axis=0)
    whole = Image.fromarray(pixels).resize((25, 8), Image.Resampling.BILINEAR, (0, 0, 50.5, 8))
    assert np.abs(resize(pixels, (8, 25), (8, 50.5)) - np.asarray(whole).astype(int)).max() <= 1
