"""Hair, colour and borders, on pictures whose truth is known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw

from skinmm.errors import InputError
from skinmm.images.decode import decode
from skinmm.images.preprocess import (
    MASK_STEPS,
    STEPS,
    Mask,
    Pixels,
    check_steps,
    crop_border,
    crop_lesion,
    find_hair,
    mask_background,
    preprocess,
    remove_colour_cast,
    remove_hair,
)

SIZE = 256


def lesions(folder: Path) -> list[Pixels]:
    files = sorted(folder.glob("*.jpg"))[::70]
    return [decode(file.read_bytes(), size=SIZE) for file in files]


def with_hairs(image: Pixels, seed: int) -> tuple[Pixels, Pixels]:
    """The picture under a dozen dark curves, one to three pixels wide, and where they are."""
    rng = np.random.default_rng(seed)
    canvas = Image.new("L", (4 * SIZE, 4 * SIZE))
    draw = ImageDraw.Draw(canvas)
    steps = np.linspace(0, 1, 60)[:, None]
    for _ in range(12):
        start, bend, end = rng.uniform(0, 4 * SIZE, (3, 2))
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
        draw.line([tuple(point) for point in curve], 255, width=int(rng.integers(4, 11)))
    share = np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX)) / 255
    hair = np.array([45, 32, 28]) + rng.uniform(-15, 25)
    covered = image * (1 - share[..., None]) + hair * share[..., None]
    return np.rint(covered).astype(np.uint8), share > 0.5


def test_drawn_hairs_are_removed_and_little_else(pictures: Path) -> None:
    pytest.importorskip("cv2")
    falls, changes = [], []
    for seed, lesion in enumerate(lesions(pictures)):
        hairy, inside = with_hairs(lesion, seed)
        before = np.abs(hairy.astype(float) - lesion)[inside].mean()
        after = np.abs(remove_hair(hairy).astype(float) - lesion)[inside].mean()
        falls.append(1 - after / before)
        if find_hair(lesion).mean() < 0.01:
            changes.append(np.abs(remove_hair(lesion).astype(float) - lesion).mean())
    assert np.mean(falls) > 0.6
    assert len(changes) >= 3
    assert max(changes) < 1


def test_a_spot_is_no_hair() -> None:
    pytest.importorskip("cv2")
    picture = np.full((SIZE, SIZE, 3), 200, np.uint8)
    picture[100:140, 90:150] = (90, 60, 50)
    picture[30:34, 30:34] = (90, 60, 50)
    assert not find_hair(picture).any()
    assert remove_hair(picture) is picture


@given(st.tuples(*[st.floats(0.5, 1.0)] * 3))
def test_the_light_s_colour_is_taken_out(light: tuple[float, float, float]) -> None:
    """The same scene under two lights looks the same (von Kries)."""
    rng = np.random.default_rng(0)
    scene = rng.uniform(20, 180, (16, 16, 3))
    white, tinted = (np.rint(scene * tint).astype(np.uint8) for tint in (1.0, np.array(light)))
    means = [remove_colour_cast(picture).reshape(-1, 3).mean(axis=0) for picture in (white, tinted)]
    balanced = [mean / mean.sum() for mean in means]
    np.testing.assert_allclose(balanced[0], balanced[1], atol=0.01)


def test_a_grey_picture_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (9, 9, 1), np.uint8).repeat(3, axis=2)
    np.testing.assert_array_equal(remove_colour_cast(picture), picture)
    black = np.zeros((9, 9, 3), np.uint8)
    assert remove_colour_cast(black) is black


def test_black_bars_and_dark_corners_are_cut_off() -> None:
    skin = np.full((200, 300, 3), 180, np.uint8)
    rows, columns = np.mgrid[:200, :300]
    round_view = skin.copy()
    round_view[(rows - 100) ** 2 / 1.1e4 + (columns - 150) ** 2 / 2.5e4 > 1] = 0
    barred = np.pad(skin, ((20, 10), (0, 40), (0, 0)))
    assert crop_border(skin).shape == skin.shape
    assert crop_border(barred).shape == skin.shape
    cut = crop_border(round_view)
    assert cut.min() == 180
    assert cut.shape[0] > 120
    assert cut.shape[1] > 180


def test_a_lesion_is_cut_out_square_with_a_margin() -> None:
    mask = np.zeros((100, 200), bool)
    mask[40:60, 90:130] = True  # 20 by 40: with 15 % to either side 52
    mask[5:8, 5:8] = True  # a smaller piece
    rows, columns = np.mgrid[:100, :200]
    picture = np.stack([rows, columns, 0 * rows], axis=2).astype(np.uint8)
    cut = crop_lesion(picture, mask)
    assert cut.shape == (52, 52, 3)
    assert (cut[0, 0, :2] == (24, 84)).all()
    at_the_edge = np.zeros_like(mask)
    at_the_edge[90:100, 190:200] = True
    assert crop_lesion(picture, at_the_edge)[-1, -1, :2].tolist() == [99, 199]
    assert crop_lesion(picture, np.ones_like(mask)).shape == picture.shape


def test_what_is_no_lesion_becomes_black() -> None:
    picture = np.full((8, 8, 3), 120, np.uint8)
    mask = np.zeros((8, 8), bool)
    mask[2:5, 3:7] = True
    masked = mask_background(picture, mask)
    assert (masked[mask] == 120).all()
    assert (masked[~mask] == 0).all()


@pytest.mark.parametrize("step", MASK_STEPS.values())
def test_without_a_lesion_a_picture_stays_as_it_is(step: Callable[..., Pixels]) -> None:
    picture = np.full((8, 9, 3), 120, np.uint8)
    assert step(picture, np.zeros((8, 9), bool)) is picture


def test_a_mask_is_drawn_on_what_the_step_before_made() -> None:
    seen = []

    def find(picture: Pixels) -> Mask:
        seen.append(picture.shape)
        mask = np.zeros(picture.shape[:2], bool)
        mask[10:20, 10:20] = True
        return mask

    picture = np.full((60, 60, 3), 90, np.uint8)
    made = preprocess(picture, ["crop_lesion", "mask_background"], find)
    assert seen == [(60, 60, 3), (13, 13, 3)]
    assert made.shape == (13, 13, 3)


@given(arrays(np.uint8, st.tuples(st.integers(1, 24), st.integers(1, 24), st.just(3))))
def test_steps_make_pictures_of_any_picture(picture: Pixels) -> None:
    pytest.importorskip("cv2")
    before = picture.copy()
    for step in STEPS.values():
        result = step(picture)
        assert result.dtype == np.uint8
        assert result.ndim == 3
        assert min(result.shape) >= 1
    np.testing.assert_array_equal(picture, before)
    assert preprocess(picture, []) is picture


@pytest.mark.parametrize(
    ("names", "message"),
    [(["shave"], "unknown step 'shave'; choose from"), (["colour"] * 2, "'colour' more than once")],
)
def test_a_wrong_list_of_steps_is_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_steps(names)
