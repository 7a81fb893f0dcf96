"""Augmentations: uint8 pictures of the same size, as a function of a seed alone."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.tv_tensors import Image, Mask

from skinmm.data.augment import AUGMENTS, standard
from skinmm.data.dataset import apply_seeded
from skinmm.errors import InputError

SIZE = 24
PICTURE = torch.randint(0, 256, (3, SIZE, SIZE), dtype=torch.uint8)
each_augment = pytest.mark.parametrize("name", AUGMENTS)


@each_augment
@given(st.integers(0, 2**63 - 1))
@settings(max_examples=20)
def test_a_picture_stays_a_picture_and_follows_from_its_seed(name: str, seed: int) -> None:
    transform = AUGMENTS[name](size=SIZE)
    augmented = apply_seeded(transform, PICTURE, seed)
    assert augmented.dtype == torch.uint8
    assert augmented.shape == PICTURE.shape
    torch.rand(3)  # what the process draws in between
    assert torch.equal(apply_seeded(transform, PICTURE, seed), augmented)


@each_augment
def test_augmenting_leaves_the_process_s_random_numbers_alone(name: str) -> None:
    before = torch.get_rng_state()
    apply_seeded(AUGMENTS[name](size=SIZE), PICTURE, 5)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_augmenting_leaves_the_gpu_s_random_numbers_alone() -> None:
    before = torch.cuda.get_rng_state()
    apply_seeded(standard(SIZE), PICTURE, 5)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "args"),
    [("standard", {"brightness": 0.0, "contrast": 0.0}), ("strong", {"colour": 0.0, "blur": 0.0}),
     ("none", {})],
)  # fmt: skip
@pytest.mark.parametrize("seed", range(6))
def test_a_mask_is_moved_with_its_picture(name: str, args: dict[str, float], seed: int) -> None:
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 20:60, 30:80] = 1
    picture = Image(mask.repeat(3, 1, 1) * 200)
    transform = AUGMENTS[name](size=96, **args, **({"holes": 0.0} if name == "strong" else {}))
    shown, moved = apply_seeded(transform, (picture, Mask(mask)), seed)
    assert moved.shape == mask.shape
    assert set(moved.unique().tolist()) <= {0, 1}
    assert (moved == 1).any()
    # What comes into view is filled with the mean colour, below half the lesion's.
    differ = ((shown[:1] > 100) != (moved == 1)).float().mean()
    assert differ < 0.02


def test_a_hole_is_in_the_picture_alone() -> None:
    mask = Mask(torch.ones(1, 96, 96, dtype=torch.uint8))
    picture = Image(torch.full((3, 96, 96), 200, dtype=torch.uint8))
    transform = AUGMENTS["strong"](
        size=96, zoom=1.0, degrees=0.0, shift=0.0, colour=0.0, blur=0.0, holes=1.0
    )
    shown, moved = apply_seeded(transform, (picture, mask), 0)
    assert (shown == 0).any()
    assert (moved == 1).all()


def test_seeds_differ_and_none_changes_nothing() -> None:
    seen = {apply_seeded(standard(SIZE), PICTURE, seed).numpy().tobytes() for seed in range(20)}
    assert len(seen) == 20
    assert torch.equal(apply_seeded(AUGMENTS["none"](size=SIZE), PICTURE, 0), PICTURE)


def quadrants(picture: Tensor) -> tuple[int, ...]:
    """The shades at the four corners."""
    return tuple(int(picture[0, y, x]) for y, x in product((0, -1), repeat=2))


@pytest.mark.parametrize(("rotate", "poses"), [(True, 8), (False, 4)])
def test_poses_are_the_symmetries_of_a_square(rotate: bool, poses: int) -> None:
    quarters = torch.tensor([[0, 80], [160, 240]], dtype=torch.uint8)
    picture = quarters.repeat_interleave(12, 0).repeat_interleave(12, 1).expand(3, -1, -1)
    transform = standard(SIZE, zoom=1.0, rotate=rotate, brightness=0.0, contrast=0.0)
    seen = {quadrants(apply_seeded(transform, picture, seed)) for seed in range(150)}
    by_hand = {
        quadrants(turned.flip(flips))
        for turned in ((picture, picture.transpose(-1, -2)) if rotate else (picture,))
        for flips in ((), (-1,), (-2,), (-1, -2))
    }
    assert len(by_hand) == poses
    assert seen == by_hand


@pytest.mark.parametrize(
    "wrong", [{"zoom": 0.0}, {"zoom": 1.5}, {"brightness": -0.1}, {"contrast": float("nan")}]
)
def test_a_share_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"augment argument {name}=.*between 0 and 1"):
        standard(SIZE, **wrong)  # type: ignore[arg-type]
