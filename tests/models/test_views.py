"""Every block of views against the contract, and what each of them computes."""

import pytest
import torch
from torch import Tensor

from skinmm.config import Component, Config, DataConfig, ModelConfig
from skinmm.models.network import Network, build_network
from skinmm.models.views import VIEWS, Attention, Views
from skinmm.testing import check_views
from skinmm.vocabulary import VIEW_TYPES

DIM, ROWS, COUNT = 12, 8, 3


def views(*tokens: int) -> tuple[Tensor, Tensor]:
    """Features and types of lesions, among them one with a view of each type, and one of one."""
    torch.manual_seed(3)
    types = torch.randint(0, len(VIEW_TYPES), (ROWS, COUNT))
    types[0], types[1] = torch.tensor([1, 2, 3]), torch.tensor([4, 0, 0])
    types[:, 0] = types[:, 0].clamp(min=1)
    return torch.randn(ROWS, COUNT, *tokens, DIM), types


def build(name: str) -> Views:
    torch.manual_seed(0)
    return VIEWS[name](image_dim=DIM)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", VIEWS)
def test_a_block_of_views_keeps_the_contract(name: str) -> None:
    check_views(VIEWS[name])


@pytest.mark.parametrize("name", ["mean", "max", "attention", "gated"])
def test_a_single_view_passes_unchanged(name: str) -> None:
    features, types = views()
    types[:, 1:] = 0
    torch.testing.assert_close(build(name).eval()(features, types), features[:, 0])


def test_attention_is_the_softmax_of_equation_8() -> None:
    block = build("attention").eval()
    assert isinstance(block, Attention)
    features = views()[0]
    types = torch.ones(ROWS, COUNT, dtype=torch.int64)
    normed = torch.nn.functional.layer_norm(features, (DIM,))
    linear = block.hidden[1]
    assert isinstance(linear, torch.nn.Linear)
    scores = (normed @ linear.weight.T + linear.bias).tanh() @ block.score.weight[0]
    expected = torch.einsum("bv,bvd->bd", scores.softmax(dim=1), features)
    torch.testing.assert_close(block(features, types), expected)


@pytest.mark.parametrize("name", ["gated", "typed"])
def test_the_type_of_a_view_matters(name: str) -> None:
    block, (features, types) = build(name).eval(), views()
    other = torch.where(types == 2, 3, torch.where(types == 3, 2, types))
    assert not torch.allclose(block(features, other), block(features, types))


def network(block: str, fusion: str = "image_only", **model: object) -> Network:
    torch.manual_seed(0)
    config = Config(
        data=DataConfig(unit="lesion"),
        model=ModelConfig("test_efficientnet", pretrained="false", image_size=32, **model),  # type: ignore[arg-type]
        views=Component(block),
        fusion=Component(fusion),
        tabular=Component("mlp"),
    )
    return build_network(config, [2], 3, pretrained=False).eval()


@pytest.mark.parametrize("fusion", ["image_only", "concat", "metablock", "cross_attention"])
@pytest.mark.parametrize("block", VIEWS)
def test_a_network_ignores_places_without_an_image(block: str, fusion: str) -> None:
    built = network(block, fusion)
    images = torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)
    types, record = torch.tensor([[2, 3], [3, 0]]), torch.randn(2, 2)
    with torch.no_grad():
        logits = built(images, record, types)
        images[1, 1] = 255
        torch.testing.assert_close(built(images, record, types), logits)
        alone = built(images[1:, :1], record[1:], types[1:, :1])
        torch.testing.assert_close(alone, logits[1:], atol=1e-5, rtol=1e-4)
        features = built.encode_image(images, types)
        torch.testing.assert_close(built(features, record), logits)


def test_learned_features_replace_those_of_a_lesion_without_images() -> None:
    built = network("typed", drop_image=0.5)
    images = torch.zeros(2, 2, 3, 32, 32, dtype=torch.uint8)
    features = built.encode_image(images, torch.tensor([[0, 0], [2, 0]]))
    assert built.absent is not None
    assert torch.equal(features[0], built.absent)
    assert not torch.equal(features[1], built.absent)


def test_a_network_of_single_images_has_no_views() -> None:
    config = Config(
        model=ModelConfig("test_efficientnet", pretrained="false", image_size=32),
        fusion=Component("image_only"),
    )
    assert build_network(config, [], 2, pretrained=False).views is None
