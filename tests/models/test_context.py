"""A lesion among others: what must not matter does not, and alone it is as it was."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skinmm.errors import InputError
from skinmm.models.fusion import PatientContext

ROWS, OTHERS, DIM, CLASSES = 5, 4, 7, 3


def sets() -> list[Tensor]:
    """Rows with 0 to 4 others."""
    torch.manual_seed(1)
    there = torch.arange(OTHERS)[None, :] < torch.arange(ROWS)[:, None]
    others = torch.randn(ROWS, OTHERS, DIM)
    return [torch.randn(ROWS, CLASSES), torch.randn(ROWS, DIM), others, there]


def context(**args: Any) -> PatientContext:
    torch.manual_seed(0)
    block = PatientContext(dim=DIM, classes=CLASSES, width=8, **args).eval()
    last = block.shift[-1].get_parameter("weight")
    assert not last.any()
    torch.nn.init.normal_(last)  # as if it had learned
    return block


def test_it_starts_as_the_plain_model() -> None:
    given = sets()
    assert torch.equal(PatientContext(dim=DIM, classes=CLASSES)(*given), given[0])


def test_without_others_it_stays_the_plain_model() -> None:
    given = sets()
    said = context()(*given)
    assert torch.equal(said[0], given[0][0])
    assert (said[1:] != given[0][1:]).all()


def test_neither_order_nor_padding_nor_number_of_others_counts() -> None:
    plain, own, others, there = sets()
    block = context()
    said = block(plain, own, others, there)
    torch.testing.assert_close(block(plain, own, others.flip(1), there.flip(1)), said)
    torch.testing.assert_close(block(plain, own, others.where(there[..., None], 9), there), said)
    twice = torch.cat([others, others], dim=1), torch.cat([there, there], dim=1)
    torch.testing.assert_close(block(plain, own, *twice), said)


def test_a_lesion_like_all_the_others_says_nothing_of_where_they_are() -> None:
    plain, own, _, there = sets()
    same = own[:, None].expand(-1, OTHERS, -1)
    shift = (context()(plain, own, same, there) - plain)[1:]
    torch.testing.assert_close(shift, shift[:1].expand_as(shift))


def test_every_parameter_learns_also_beside_rows_that_are_alone() -> None:
    given = sets()
    block = context()
    block(*given).square().sum().backward()
    slopes = {name: value.grad for name, value in block.named_parameters()}
    assert all(slope is not None and slope.isfinite().all() for slope in slopes.values())
    # A key's bias is the same for all others, and softmax does not see it.
    still = [name for name, slope in slopes.items() if slope is not None and not slope.any()]
    assert still == []


@pytest.mark.parametrize("args", [{"width": 9}, {"heads": 0}, {"others": 0}])
def test_what_cannot_be_built_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="fusion patient_context: width="):
        PatientContext(dim=DIM, classes=CLASSES, **args)
