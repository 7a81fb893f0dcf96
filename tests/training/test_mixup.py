"""Lesions mixed in pairs: shares, partners and types, from torch's generator alone."""

import pytest
import torch
from torch import Tensor

from skinmm.errors import InputError
from skinmm.training.mixup import MIXES

SIDE = 40


def batch(rows: int = 6) -> dict[str, Tensor]:
    """Row k is a picture of one shade, 20 k, and a record of k."""
    place = torch.arange(rows)
    shade = (20 * place).to(torch.uint8)[:, None, None, None]
    return {
        "row": place,
        "target": place % 2,
        "image": shade.expand(-1, 3, SIDE, SIDE).clone(),
        "record": place[:, None].double(),
    }


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("seed", range(5))
def test_image_record_and_target_are_mixed_with_the_same_partner_in_the_same_share(
    name: str, seed: int
) -> None:
    given = batch()
    before = {key: value.clone() for key, value in given.items()}
    torch.manual_seed(seed)
    mixed, partners, share = MIXES[name]()(given)
    assert all(torch.equal(given[key], before[key]) for key in given)
    assert torch.equal(mixed["row"], given["row"])
    assert mixed["image"].dtype == torch.uint8
    assert 0 <= share <= 1
    if share == 1:
        return
    own = given["row"].double()
    other = (mixed["record"][:, 0] - share * own) / (1 - share)
    assert torch.allclose(other, other.round(), atol=1e-3)
    assert torch.equal(partners, given["target"][other.round().long()])
    # A blend's rounding, or a cut's pixels, which are counted exactly.
    seen = mixed["image"].double().mean(dim=(1, 2, 3))
    assert torch.allclose(seen, 20 * (share * own + (1 - share) * other), atol=0.51)


@pytest.mark.parametrize("name", MIXES)
def test_a_withheld_picture_is_never_mixed_in(name: str) -> None:
    given = {**batch(), "has_image": torch.tensor([True, False, True, True, False, True])}
    torch.manual_seed(0)
    mixed, _, share = MIXES[name]()(given)
    shown = mixed["has_image"]
    assert shown.dtype == torch.bool
    assert torch.equal(shown & given["has_image"], shown)
    if share < 1:
        own = given["row"].double()
        other = ((mixed["record"][:, 0] - share * own) / (1 - share)).round().long()
        assert torch.equal(shown, given["has_image"] & given["has_image"][other])


def test_mixes_follow_from_the_seed() -> None:
    for name in ("mixup", "cutmix"):
        torch.manual_seed(3)
        first = MIXES[name]()(batch())
        torch.manual_seed(3)
        again = MIXES[name]()(batch())
        assert torch.equal(first.batch["image"], again.batch["image"])
        assert first.share == again.share


def test_a_small_alpha_mixes_rarely_and_a_large_one_evenly() -> None:
    torch.manual_seed(0)
    extremes = [MIXES["mixup"](alpha=0.05)(batch()).share for _ in range(200)]
    even = [MIXES["mixup"](alpha=500.0)(batch()).share for _ in range(200)]
    assert sum(0.01 < share < 0.99 for share in extremes) < 60
    assert all(0.4 < share < 0.6 for share in even)


def test_a_model_without_images_is_mixed_too() -> None:
    record = {key: value for key, value in batch().items() if key != "image"}
    torch.manual_seed(1)
    mixed = MIXES["cutmix"]()(record)
    assert not torch.equal(mixed.batch["record"], record["record"])


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
def test_an_alpha_out_of_bounds_is_refused(alpha: float) -> None:
    with pytest.raises(InputError, match=r"mix argument alpha=.*above 0"):
        MIXES["mixup"](alpha=alpha)
