"""Contract tests for components of this package and of plug-ins: `check_fusion(MyBlock)`."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from skinmm.config import DataConfig
from skinmm.data.cohorts import Adapter
from skinmm.data.cohorts.tables import CANONICAL
from skinmm.data.cohorts.targets import add_targets
from skinmm.data.sampling import RowSampler
from skinmm.errors import InputError
from skinmm.models.fusion import Concat, Fusion
from skinmm.models.tabular import Tabular
from skinmm.models.views import Views

FAINT: Final = 1e-3  # share of the strongest input's slope, below which one has no effect
WIDTHS: Final = {"image": 12, "record": 5}
ROWS, TOKENS, CLASSES = 6, 4, 3
VIEW_CODES: Final = 5  # of types of views; 0: no image

Inputs = Sequence[Tensor | None]
Make = Callable[[], Any]  # builds a module with `dim`, the width of its output


class ContractError(AssertionError):
    """Violation of the contract of a component."""


def check_fusion(block: type[Fusion]) -> None:
    """Check a fusion block and its head, built with the defaults of its arguments."""
    used = block.inputs
    _require(used and used <= WIDTHS.keys(), f"inputs: {[*used]} are not of image and record")
    widths = {f"{name}_dim": width if name in used else 0 for name, width in WIDTHS.items()}
    make: Callable[[], Any] = partial(block, **widths)
    image = _random(ROWS, *((TOKENS,) if block.tokens else ()), WIDTHS["image"])
    tensors = {"image": image, "record": _random(ROWS, WIDTHS["record"], seed=1)}
    features = [value if name in used else None for name, value in tensors.items()]
    check_block(make, features)
    built, whole = make(), make()
    fused, head = _random(ROWS, built.dim), built.head(CLASSES)
    check_head(lambda *_: built.head(CLASSES), fused)
    stacked = head(torch.stack([fused, 2 * fused]))
    _require_close(stacked[0], head(fused), "head: the logits of stacked features differ")
    whole.register_forward_hook(lambda _, __, fused: head(fused))  # a head may ignore an input too
    check_open(whole, features)
    built.eval()
    for index, (name, value) in enumerate(tensors.items()):
        altered = [*features]
        altered[index] = None if name in used else value
        try:
            is_right = torch.equal(built(*altered), built(*features)) and name not in used
        except InputError as error:
            is_right = name in used and name in str(error)
        rule = "required by an InputError that names it" if name in used else "ignored"
        _require(is_right, f"inputs: {name} must be {rule}")


def check_views(block: Callable[..., Views]) -> None:
    """Check a block that combines the images of a lesion."""
    rows, count, dim = 8, 3, WIDTHS["image"]
    types = torch.arange(rows * count).reshape(rows, count) % VIEW_CODES
    types[0], types[1], types[5, 0] = torch.tensor([1, 2, 3]), torch.tensor([4, 0, 0]), 2
    features, order = _random(rows, count, dim), torch.tensor([2, 0, 1])
    check_block(partial(block, image_dim=dim), [features, types])
    built = block(image_dim=dim).eval()
    expected, turned = built(features, types), built(features[:, order], types[:, order])
    _require_close(turned, expected, "views: their order counts")
    more = torch.cat([torch.full_like(features[:, :1], 7.0), features], dim=1)
    padded = built(more, torch.cat([torch.zeros_like(types[:, :1]), types], dim=1))
    _require_close(padded, expected, "views: a place without an image counts")
    none = built(features, torch.zeros_like(types))
    _require(none.isfinite().all(), "views: not finite for a lesion without an image")
    tokens, order = _random(rows, count, 5, dim), torch.tensor([4, 2, 0, 1, 3])
    combined = built(tokens, types)
    _require(combined.shape == (rows, 5, built.dim), f"views: tokens are {combined.shape}")
    turned = built(tokens[:, :, order], types)
    _require_close(turned, combined[:, order], "views: tokens are mixed")


def check_encoder(encoder: type[Tabular]) -> None:
    """Check a record encoder on columns of several widths."""
    for widths in ([2, 3, 7], [2], [1, 1]):
        check_block(partial(encoder, widths=widths), [_random(ROWS, sum(widths))])


def check_backbone(network: Callable[..., nn.Module], size: int = 64) -> None:
    """Check an image network, (b, 3, size, size) -> (b, num_features), and its token features."""
    torch.manual_seed(0)
    net: Any = network()
    pixels, net.dim = _random(3, 3, size, size), net.num_features
    check_width(net, [pixels])
    check_rows(net, [pixels])
    check_state(network, [pixels])
    net.reset_classifier(0, "")
    shape = tuple(net(pixels).shape)
    _require(net.num_features in shape[1:] and len(shape) > 2, f"tokens: {shape}")  # noqa: PLR2004


def check_head(build: Callable[..., nn.Module], features: Tensor | None = None) -> None:
    """Check a head on the features of a fusion block, with gradients if it has trained weights."""
    fusion = Concat(WIDTHS["image"], WIDTHS["record"])
    features = _random(ROWS, fusion.dim) if features is None else features
    make = partial(build, fusion, CLASSES, WIDTHS["image"])
    torch.manual_seed(0)
    head = make()
    shape = tuple(head(features).shape)
    _require(shape == (ROWS, CLASSES), f"head: {shape} for {ROWS} rows of {CLASSES} classes")
    check_rows(head, [features])
    check_state(make, [features])
    if any(parameter.requires_grad for parameter in head.parameters()):
        check_gradients(head, [features])


def check_loss(loss: Callable[[Tensor], Any]) -> None:
    """Check a loss with three classes, also if some have no row."""
    logits, target = _random(12, CLASSES).requires_grad_(), torch.arange(12) % CLASSES
    built, order = loss(torch.tensor([60, 30, 10])), torch.arange(12).flip(0)
    value = built(logits, target)
    halves = [built(logits[part], target[part]) for part in (slice(0, 6), slice(6, 12))]
    _require_close(torch.stack(halves).mean(), value, "mean: not that of the batch's rows")
    _require_close(built(logits[order], target[order]), value, "mean: the order of rows counts")
    slope = torch.autograd.grad(value, logits)[0].gather(1, target[:, None])
    _require((slope <= 0).all() and slope.any(), "gradient: it lowers the logit of a row's class")
    for counts in ([5, 0, 2], [5, 0, 0]):
        built = loss(torch.tensor(counts))
        value = built(logits, torch.zeros(12, dtype=torch.long))
        is_finite = bool(built.weights.isfinite().all() and value.isfinite())
        _require(is_finite and len(built.weights) == CLASSES, f"weights: wrong for {counts} rows")


def check_sampler(sampler: Callable[[], RowSampler]) -> None:
    """Check the draws of a sampler, and that `prior` matches their class shares."""
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [150, 40, 10]))
    groups, keys = np.arange(200) // 2, [(seed, epoch) for seed in (0, 1) for epoch in range(40)]
    draws = [sampler().draw(labels, groups, *key) for key in keys]
    _require(len({*map(len, draws)}) == 1, "draw: the number of rows changes")
    _require(len({*map(tuple, draws)}) == len(draws), "draw: two epochs draw the same rows")
    again = sampler().draw(labels, groups, *keys[0])
    _require(np.array_equal(again, draws[0]), "draw: not a function of seed and epoch")
    drawn, prior = np.concatenate(draws), sampler().prior(labels)
    _require({*drawn} <= {*range(200)}, "draw: not numbers of rows")
    shares = np.bincount(labels[drawn], minlength=CLASSES) / len(drawn)
    limit = 5 * np.sqrt(prior * (1 - prior) / len(drawn)) + 1e-9
    _require((np.abs(shares - prior) <= limit).all(), f"prior: {prior}, the draws have {shares}")
    is_changed, stated = not np.allclose(prior, np.bincount(labels) / 200), sampler().corrects
    _require(is_changed == bool(stated), f"corrects: {stated!r} with the prior {prior}")


def check_adapter(adapter: Adapter, data: DataConfig | None = None, **args: Any) -> None:
    """Check an adapter with `args` on the cohort of `data`: complete and reproducible rows."""
    config = data or DataConfig()
    rows, again = (add_targets(adapter(config, **args), config) for _ in range(2))
    _require(not rows.empty and rows.equals(again), "rows: none, or others at the second call")
    absent = [name for name in CANONICAL if name not in rows]
    _require(not absent, f"rows: the columns {', '.join(absent)} are missing")
    is_known = rows[["image_id", "target"]].notna().all(axis=None)
    _require(is_known and rows["image_id"].is_unique, "rows: image_id or target is not complete")


def check_block(make: Make, inputs: Inputs) -> None:
    """Check a module that maps features to width `dim`; unused `inputs` are None."""
    torch.manual_seed(0)
    block = make()
    for check in (check_width, check_gradients, check_open, check_rows):
        check(block, inputs)
    check_state(make, inputs)


def check_width(block: Any, inputs: Inputs) -> None:
    """Check that the output has the declared width, one row per input row, and finite values."""
    output, rows = block.eval()(*inputs), max(len(x) for x in inputs if x is not None)
    shape = tuple(output.shape)
    _require(shape == (rows, block.dim), f"width: {shape} for {rows} rows of declared {block.dim}")
    _require(output.isfinite().all(), "width: not finite")


def check_gradients(block: Any, inputs: Inputs) -> None:
    """Check that gradients reach every input and every parameter in training."""
    for index, slope in _slopes(block.train(), inputs).items():
        _require(slope, f"gradient: none reaches input {index}")
    for name, parameter in block.named_parameters():
        is_reached = parameter.grad is not None and parameter.grad.any()
        _require(is_reached or not parameter.requires_grad, f"gradient: none reaches {name}")


def check_open(block: Any, inputs: Inputs) -> None:
    """Check that every input has an effect at initialisation."""
    slopes = _slopes(block.eval(), inputs)
    for index, slope in slopes.items():
        is_open = slope >= FAINT * max(slopes.values())
        _require(is_open, f"saturated: input {index} hardly moves the output ({slope:.1e})")


def check_rows(block: Any, inputs: Inputs) -> None:
    """Check that rows do not influence each other in evaluation."""
    block.eval()
    with torch.no_grad():
        together = block(*inputs)
        for row in range(len(together)):
            alone = block(*(None if x is None else x[row : row + 1] for x in inputs))
            is_close = torch.allclose(alone[0], together[row], rtol=1e-3, atol=1e-4)
            _require(is_close, f"rows: row {row} depends on the others")


def check_state(make: Make, inputs: Inputs) -> None:
    """Check that a new module with a saved state gives the same output."""
    old, new = make().eval(), make().eval()
    new.load_state_dict(old.state_dict())
    with torch.no_grad():
        is_equal = torch.equal(old(*inputs), new(*inputs))
    _require(is_equal, "state: it lacks something that the output depends on")


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise ContractError(message)


def _require_close(value: Tensor, expected: Tensor, message: str) -> None:
    _require(torch.allclose(value, expected, rtol=1e-4, atol=1e-5), message)


def _random(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _slopes(block: nn.Module, inputs: Inputs) -> dict[int, float]:
    """Return the root mean square slope of the output along each floating-point input."""
    leaves = [
        x.clone().requires_grad_() if x is not None and x.is_floating_point() else x for x in inputs
    ]
    block.zero_grad()
    output = block(*leaves)
    if output.requires_grad:
        (output * _random(*output.shape, seed=1)).sum().backward()
    return {
        index: 0.0 if leaf.grad is None else float(leaf.grad.square().mean().sqrt())
        for index, leaf in enumerate(leaves)
        if leaf is not None and leaf.is_floating_point()
    }
