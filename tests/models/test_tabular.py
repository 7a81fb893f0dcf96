"""Every record encoder against the contract."""

import pytest
import torch
from block_contract import check_block

from skinmm.errors import InputError
from skinmm.models.tabular import MLP, TABULAR

WIDTHS = [2, 3, 7]


@pytest.mark.parametrize("name", TABULAR)
@pytest.mark.parametrize("widths", [WIDTHS, [2], [1, 1]])
def test_an_encoder_keeps_the_contract(name: str, widths: list[int]) -> None:
    records = torch.randn(6, sum(widths), generator=torch.Generator().manual_seed(0))
    check_block(lambda: TABULAR[name](widths=widths), [records])


@pytest.mark.parametrize("hidden", [[5], [9, 4]])
def test_the_last_layer_is_the_feature_vector(hidden: list[int]) -> None:
    assert MLP(WIDTHS, hidden=hidden).dim == hidden[-1]


def test_an_encoder_without_a_layer_is_refused() -> None:
    with pytest.raises(InputError, match=r"hidden=\[\]: give the width of one layer"):
        MLP(WIDTHS, hidden=[])
