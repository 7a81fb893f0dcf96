"""Every fusion block against the contract, and the contract against planted faults."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS, Concat, CrossAttention, Fusion, Late, MetaBlock
from skinmm.testing import ContractError, check_block, check_fusion

WIDTHS = {"image": 12, "record": 5}
ROWS, PLACES, CLASSES = 6, 4, 3


def features(block: type[Fusion], inputs: frozenset[str]) -> list[Tensor | None]:
    torch.manual_seed(3)
    places = (PLACES,) if block.tokens else ()
    image, record = torch.randn(ROWS, *places, WIDTHS["image"]), torch.randn(ROWS, WIDTHS["record"])
    return [image if "image" in inputs else None, record if "record" in inputs else None]


def new(block: type[Fusion]) -> Fusion:
    widths = {name: width if name in block.inputs else 0 for name, width in WIDTHS.items()}
    build: Callable[..., Fusion] = block
    return build(image_dim=widths["image"], record_dim=widths["record"])


@pytest.mark.parametrize("name", FUSIONS)
def test_a_block_keeps_the_contract(name: str) -> None:
    check_fusion(FUSIONS[name])


def test_concatenation_keeps_both_vectors_as_they_are() -> None:
    image, record = features(Concat, Concat.inputs)
    fused = new(Concat).eval()(image, record)
    assert image is not None
    assert record is not None
    assert torch.equal(fused, torch.cat([image, record], dim=1))


def test_late_fusion_mixes_the_probabilities_of_two_heads() -> None:
    block = new(Late).eval()
    image, record = features(Late, Late.inputs)
    head: nn.Module = block.head(CLASSES)
    head.load_state_dict({**head.state_dict(), "balance": torch.tensor(1.0)})
    share = torch.sigmoid(torch.tensor(1.0))
    alone = [
        getattr(head, name)(each).softmax(dim=1)
        for name, each in (("image", image), ("record", record))
    ]
    mixed = head(block(image, record)).softmax(dim=1)
    torch.testing.assert_close(mixed, share * alone[0] + (1 - share) * alone[1])


def test_attention_does_not_hang_on_the_order_of_places() -> None:
    block = new(CrossAttention).eval()
    image, record = features(CrossAttention, CrossAttention.inputs)
    assert image is not None
    torch.testing.assert_close(block(image[:, [2, 0, 3, 1]], record), block(image, record))


class Undeclared(Concat):
    """A block that declares one input and uses both."""

    inputs = frozenset({"record"})

    def forward(self, image: Tensor | None, record: Tensor | None) -> Tensor:
        assert record is not None
        return record if image is None else record + image.mean()


class DeafHead(Concat):
    """A block whose head ignores the record."""

    def head(self, classes: int) -> nn.Module:
        layer: Any = nn.Linear(self.dim, classes)
        layer.weight.data[:, WIDTHS["image"] :] *= 1e-5
        return layer


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Undeclared, "inputs: image must be ignored"),
        (DeafHead, "saturated: input 1 hardly moves the output"),
    ],
)
def test_what_a_block_declares_and_its_head_are_checked(block: type[Fusion], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_fusion(block)


def test_metablock_is_the_published_formula_and_trains_on_one_row() -> None:
    block: Any = new(MetaBlock)
    block.dropout.p = 0.0
    image, record = features(MetaBlock, MetaBlock.inputs)
    assert image is not None
    assert record is not None

    def normalise(values: Tensor) -> Tensor:
        return (values - values.mean(dim=0)) / (values.var(dim=0, unbiased=False) + 1e-5).sqrt()

    scale, shift = (normalise(gate[0](record)) for gate in (block.scale, block.shift))
    gated = torch.sigmoid(torch.tanh(image * scale) + shift)
    expected = normalise(block.reduce[0](gated)).relu()
    torch.testing.assert_close(block(image, record), expected, rtol=1e-4, atol=1e-4)
    alone = block(image[:1], record[:1])  # the last batch of an epoch may have one row
    torch.testing.assert_close(alone, block.eval()(image[:1], record[:1]))


def test_a_width_that_the_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="width=10 must be a multiple of heads=4"):
        CrossAttention(image_dim=3, record_dim=3, width=10)


def wrong_width(block: Fusion) -> None:
    block.dim += 1


def detached(block: Fusion) -> None:
    block.register_forward_pre_hook(lambda _, args: (args[0], args[1].detach()))


def idle(block: Fusion) -> None:
    block.idle = nn.Linear(2, 2)


def mixed(block: Fusion) -> None:
    block.register_forward_hook(lambda _, __, fused: fused - fused.mean(dim=0))


def saturated(block: Fusion) -> None:
    block.register_forward_pre_hook(lambda _, args: (args[0], torch.sigmoid(args[1] + 10)))


def forgetful(block: Fusion) -> None:
    scale = torch.rand(())
    block.register_forward_hook(lambda _, __, fused: fused * scale)


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [
        (wrong_width, "width: .6, 17. for 6 rows of declared 18"),
        (detached, "gradient: none reaches input 1"),
        (idle, "gradient: none reaches idle.weight"),
        (mixed, "rows: row 0 depends on the others"),
        (saturated, "saturated: input 1 hardly moves the output"),
        (forgetful, "state: it lacks something"),
    ],
)
def test_the_contract_catches_a_planted_fault(
    fault: Callable[[Fusion], None], complaint: str
) -> None:
    def make() -> Fusion:
        block = new(Concat)
        fault(block)
        return block

    with pytest.raises(ContractError, match=complaint):
        check_block(make, features(Concat, Concat.inputs))
