"""Every fusion block against the contract, and the contract against planted faults."""

from collections.abc import Callable

import pytest
import torch
from block_contract import ContractError, check_block
from torch import Tensor, nn

from skinmm.errors import InputError
from skinmm.models.fusion import FUSIONS, Concat, Fusion

WIDTHS = {"image": 12, "record": 5}
ROWS = 6


def features(inputs: frozenset[str]) -> list[Tensor | None]:
    torch.manual_seed(3)
    made = {name: torch.randn(ROWS, width) for name, width in WIDTHS.items()}
    return [made[name] if name in inputs else None for name in WIDTHS]


def new(block: type[Fusion]) -> Fusion:
    widths = {name: width if name in block.inputs else 0 for name, width in WIDTHS.items()}
    return block(image_dim=widths["image"], record_dim=widths["record"])


@pytest.mark.parametrize("name", FUSIONS)
def test_a_block_keeps_the_contract(name: str) -> None:
    block = FUSIONS[name]
    check_block(lambda: new(block), features(block.inputs))


@pytest.mark.parametrize("name", FUSIONS)
def test_a_block_uses_what_it_declares_and_nothing_else(name: str) -> None:
    block = new(FUSIONS[name]).eval()
    assert block.inputs
    assert block.inputs <= WIDTHS.keys()
    given = features(frozenset(WIDTHS))
    for place, what in enumerate(WIDTHS):
        without = [None if here == place else each for here, each in enumerate(given)]
        if what in block.inputs:
            with pytest.raises(InputError, match=f"this model needs an? {what}"):
                block(*without)
        else:
            assert torch.equal(block(*without), block(*given))


def test_concatenation_keeps_both_vectors_as_they_are() -> None:
    image, record = features(Concat.inputs)
    fused = new(Concat).eval()(image, record)
    assert image is not None
    assert record is not None
    assert torch.equal(fused, torch.cat([image, record], dim=1))


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
        (forgetful, "state: it does not hold all"),
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
        check_block(make, features(Concat.inputs))
