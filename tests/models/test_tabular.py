"""Every record encoder against the contract."""

import pytest
import torch

from skinmm.errors import InputError
from skinmm.models.tabular import MLP, TABULAR, Embedding, FTTransformer
from skinmm.testing import check_encoder

WIDTHS = [2, 3, 7]


@pytest.mark.parametrize("name", TABULAR)
def test_an_encoder_keeps_the_contract(name: str) -> None:
    check_encoder(TABULAR[name])


@pytest.mark.parametrize("hidden", [[5], [9, 4]])
def test_the_last_layer_is_the_feature_vector(hidden: list[int]) -> None:
    assert MLP(WIDTHS, hidden=hidden).dim == hidden[-1]


def test_a_category_s_vector_is_a_row_of_its_column_s_table() -> None:
    built = Embedding(WIDTHS, width=4, hidden=[3])
    third = torch.zeros(1, sum(WIDTHS))
    third[0, 2 + 1] = 1  # the second value of the second column
    weight, bias = built.columns.each[1].parameters()
    torch.testing.assert_close(built.columns(third)[0, 1], weight[:, 1] + bias)


@pytest.mark.parametrize("make", [MLP, Embedding])
def test_an_encoder_without_a_layer_is_refused(make: type[MLP] | type[Embedding]) -> None:
    with pytest.raises(InputError, match=r"hidden=\[\]: give the width of at least one layer"):
        make(WIDTHS, hidden=[])


@pytest.mark.parametrize("wrong", [{"width": 10}, {"heads": 0}, {"layers": 0}])
def test_a_transformer_that_cannot_be_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"ft_transformer: width=.* must be a multiple of heads"):
        FTTransformer(WIDTHS, **wrong)
