"""The contract of every block that turns features into features, as checks that name what broke.

A block has `dim`; it is called with tensors, or None where it has no such input.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Block = Any  # a module with `dim`
Make = Callable[[], Block]
Inputs = Sequence[Tensor | None]

FAINT = 1e-3  # of the strongest input's slope: below it a gate is shut


class ContractError(AssertionError):
    """A block that does not keep the contract."""


def check_block(make: Make, inputs: Inputs) -> None:
    """Every check below.

    Args:
        make: a new block.
        inputs: a batch of rows, None where the block has no such input; integers are no features.
    """
    torch.manual_seed(0)
    block = make()
    check_width(block, inputs)
    check_gradients(block, inputs)
    check_open(block, inputs)
    check_rows(block, inputs)
    check_state(make, inputs)


def check_width(block: Block, inputs: Inputs) -> None:
    """The output is as wide as declared, a row for a row, and finite."""
    given, width = _rows(inputs), block.eval()(*inputs).shape
    if width != (given, block.dim):
        raise ContractError(f"width: {tuple(width)} for {given} rows of declared {block.dim}")
    if not block(*inputs).isfinite().all():
        raise ContractError("width: not finite")


def check_gradients(block: Block, inputs: Inputs) -> None:
    """In training the loss reaches every input and every parameter."""
    leaves = _slopes(block.train(), inputs)
    for place, slope in leaves.items():
        if slope == 0:
            raise ContractError(f"gradient: none reaches input {place}")
    for name, parameter in block.named_parameters():
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any()):
            raise ContractError(f"gradient: none reaches {name}")


def check_open(block: Block, inputs: Inputs) -> None:
    """At initialisation no input is all but shut out."""
    slopes = _slopes(block.eval(), inputs)
    for place, slope in slopes.items():
        if slope < FAINT * max(slopes.values()):
            raise ContractError(f"saturated: input {place} hardly moves the output ({slope:.1e})")


def check_rows(block: Block, inputs: Inputs) -> None:
    """In evaluation a row's output is a function of that row alone."""
    block.eval()
    with torch.no_grad():
        together = block(*inputs)
        for row in range(_rows(inputs)):
            alone = block(*(None if each is None else each[row : row + 1] for each in inputs))
            if not torch.allclose(alone[0], together[row], rtol=1e-3, atol=1e-4):
                raise ContractError(f"rows: row {row} depends on the others")


def check_state(make: Make, inputs: Inputs) -> None:
    """A new block with the old one's state gives the same output."""
    old, new = make().eval(), make().eval()
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        if not torch.equal(old(*inputs), new(*inputs)):
            raise ContractError("state: it does not hold all that the output depends on")


def _rows(inputs: Inputs) -> int:
    return len(next(each for each in inputs if each is not None))


def _slopes(block: nn.Module, inputs: Inputs) -> dict[int, float]:
    """The output's root mean square slope along every floating input."""
    leaves = [
        each.clone().requires_grad_() if each is not None and each.is_floating_point() else each
        for each in inputs
    ]
    block.zero_grad()
    output = block(*leaves)
    direction = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    if output.requires_grad:
        (output * direction).sum().backward()
    return {
        place: 0.0 if leaf.grad is None else float(leaf.grad.square().mean().sqrt())
        for place, leaf in enumerate(leaves)
        if leaf is not None and leaf.is_floating_point()
    }
