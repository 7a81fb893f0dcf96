"""Why a probability is what it is: where in the image, and what each input added."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from math import comb, isqrt
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, UInt8
from torch import Tensor, nn

from skinmm.data.record import RecordEncoder
from skinmm.models.network import Network, Records, full_precision, iterate_symmetries
from skinmm.vocabulary import is_missing

IMAGE: Final = "image"
RECORD: Final = "record"
MOST_COLUMNS: Final = 10
"""Of a record, that are told apart: every subset of them is a prediction. More are one input."""
_MAP_NDIM: Final = 4
_ROWS: Final = 64  # in a pass

Malignancy = Callable[[Float64[np.ndarray, "n c"]], Float64[np.ndarray, " n"]]
"""The network's own probabilities of the classes to the one that is explained."""


@dataclass(frozen=True)
class Contributions:
    """What moved the probability of malignancy, in probability: `start` and `added` sum up to it.

    Attributes:
        start: of a lesion of which nothing is known.
        added: by input that is there: its Shapley value.
    """

    start: float
    added: dict[str, float]

    def share(self, name: str) -> float | None:
        """An input's part of all that moved the probability, up or down; None: nothing did."""
        total = sum(map(abs, self.added.values()))
        return abs(self.added.get(name, 0.0)) / total if total else None


def mean_contributions(members: Sequence[Contributions]) -> Contributions:
    """Of models whose probabilities are averaged: Shapley values are linear in the prediction."""
    names = dict.fromkeys(name for member in members for name in member.added)
    added = {
        name: float(np.mean([member.added.get(name, 0.0) for member in members])) for name in names
    }
    return Contributions(float(np.mean([member.start for member in members])), added)


def contributions(  # noqa: PLR0913  (three say what prediction does)
    network: Network,
    encoder: RecordEncoder,
    malignancy: Malignancy,
    row: Mapping[str, Any],
    image: UInt8[Tensor, "1 3 h w"] | None,
    *,
    views: int = 1,
    shown: bool = True,
    among: int = 0,
) -> Contributions:
    """Exact Shapley values of the image and of each column of the record.

    Every subset of the inputs is predicted (Shapley 1953; Lundberg and Lee 2017, arXiv:1705.07874).
    A column that is left out is missing, as the model knows it from training. An image that is left
    out is what the network learned to put in its place; where it did not learn that, a plain
    picture of the image's mean colour.

    Args:
        network: in evaluation mode.
        encoder: of its records.
        malignancy: what is explained, from the network's own probabilities.
        row: one canonical record, a cell by column.
        image: square uint8 RGB, where the network looks at images.
        views: as in prediction.
        shown: whether the image is one at all.
        among: record columns of all the models whose contributions are averaged, so that each
            names the same inputs.
    """
    groups: dict[str, list[str]] = {}
    if network.record is not None:
        groups = _grouped(encoder.columns, row, among)
    subsets = _subsets(len(groups))
    records = None
    if network.record is not None:
        cells = _blanked({name: row[name] for name in encoder.columns}, [*groups.values()], subsets)
        records = torch.from_numpy(encoder.transform(cells)).to(network.device)
    looks = [(image, shown)]
    if image is not None and shown:
        learned = network.absent is not None
        looks = [(image, False) if learned else (_plain(image), True), (image, True)]
    values = []
    for look, there in looks:
        raw = _probabilities(network, look, records, len(subsets), views=views, shown=there)
        values.append(malignancy(raw))
    # The image is the last input, so the subsets with it are the second half.
    names = [*groups, *[IMAGE] * (len(looks) > 1)]
    added = shapley(np.concatenate(values))
    return Contributions(float(values[0][0]), dict(zip(names, added.tolist(), strict=True)))


def _grouped(columns: Sequence[str], row: Mapping[str, Any], among: int) -> dict[str, list[str]]:
    """The columns that a row has, each an input, or all of them one where there are many."""
    there = [name for name in columns if not is_missing(row[name])]
    # By what the model has, not by what the row holds: every row names the same inputs.
    if there and max(among, len(columns)) > MOST_COLUMNS:
        return {RECORD: there}
    return {name: [name] for name in there}


def shapley(values: Float64[np.ndarray, " subsets"]) -> Float64[np.ndarray, " inputs"]:
    """Shapley values of a game with few players.

    Args:
        values: of each of the 2^k subsets; the bits of its index say who is in it.
    """
    index = np.arange(len(values))
    players = len(values).bit_length() - 1
    sizes = _subsets(players).sum(axis=1)
    weights = np.array([1 / (players * comb(players - 1, size)) for size in range(players)])
    added = np.zeros(players)
    for player in range(players):
        without = index[index >> player & 1 == 0]
        gain = values[without | 1 << player] - values[without]
        added[player] = weights[sizes[without]] @ gain
    return added


def heat_map(
    network: Network,
    image: UInt8[Tensor, "1 3 h w"],
    record: Records | None,
    *,
    positive: Sequence[int],
) -> Float32[np.ndarray, "down across"]:
    """Where the image speaks for malignancy: 1 where most, 0 where not; as coarse as the network.

    Gradient times activation of the last layer with places, summed over its channels, the positive
    part (HiResCAM: Draelos and Carin 2020, arXiv:2011.08891). For a network that ends in average
    pooling this is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391); for a transformer the layer
    is what its last attention reads, and tokens without a place are left out.

    Args:
        network: in evaluation mode, with an image branch.
        image: as the network takes it.
        record: its encoded record, if the network looks at one.
        positive: indices of the classes that count as malignant.
    """
    net: Any = network.image.net  # type: ignore[union-attr]
    held: list[Tensor] = []

    def hold(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[-1].clone()  # what follows may work in place

    layer = _last_layer_with_places(network, image)
    handle = layer.register_forward_hook(hold)
    try:
        with torch.enable_grad(), full_precision(network.device.type):
            logits = network(image, record).log_softmax(dim=1)
    finally:
        handle.remove()
    chosen = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    chosen[list(positive)] = True
    odds = logits[:, chosen].logsumexp(dim=1) - logits[:, ~chosen].logsumexp(dim=1)
    (slope,) = torch.autograd.grad(odds.sum(), held[-1])
    seen = _grid(slope * held[-1].detach(), net)[0].relu()
    return (seen / seen.max().clamp(min=torch.finfo(seen.dtype).tiny)).cpu().numpy()


def _last_layer_with_places(network: Network, image: UInt8[Tensor, "1 3 h w"]) -> nn.Module:
    net: Any = network.image.net  # type: ignore[union-attr]
    last: Any = list(net.blocks)[-1] if hasattr(net, "blocks") else None
    if hasattr(last, "norm1"):  # later layers pass on the class token alone
        return last.norm1
    found: list[nn.Module] = []

    def look(module: nn.Module, _inputs: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == _MAP_NDIM
        if is_map and min(_places(output.shape, net)) > 1:
            found.append(module)

    handles = [module.register_forward_hook(look) for module in net.modules()]
    try:
        with torch.inference_mode():
            network.encode_image(image)
    finally:
        for handle in handles:
            handle.remove()
    return found[-1]


def _places(shape: Sequence[int], net: Any) -> tuple[int, int]:
    height, width = (1, 2) if _channels_last(net) else (2, 3)
    return shape[height], shape[width]


def _channels_last(net: Any) -> bool:
    return getattr(net, "output_fmt", "NCHW") == "NHWC"


def _grid(values: Tensor, net: Any) -> Float32[Tensor, "1 down across"]:
    """The sum over channels of a map, or of a transformer's tokens."""
    if values.ndim == _MAP_NDIM:
        return values.sum(dim=-1 if _channels_last(net) else 1)
    tokens = values[:, getattr(net, "num_prefix_tokens", 0) :].sum(dim=-1)
    rows = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return tokens.reshape(1, rows[0] if rows else isqrt(tokens.shape[1]), -1)


def _subsets(inputs: int) -> Bool[np.ndarray, "subsets inputs"]:
    return (np.arange(2**inputs)[:, None] >> np.arange(inputs) & 1).astype(bool)


def _blanked(
    row: Mapping[str, Any],
    groups: Sequence[Sequence[str]],
    subsets: Bool[np.ndarray, "subsets inputs"],
) -> dict[str, np.ndarray]:
    """The record once for each subset of the groups of columns, the others missing."""
    cells = {name: np.full(len(subsets), cell, object) for name, cell in row.items()}
    for group, there in zip(groups, subsets.T, strict=True):
        for name in group:
            cells[name][~there] = None
    return cells


def _plain(image: UInt8[Tensor, "1 3 h w"]) -> UInt8[Tensor, "1 3 h w"]:
    """A picture of the mean colour, without anything to see."""
    colour = image.double().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    return colour.expand_as(image)


def _probabilities(
    network: Network,
    image: UInt8[Tensor, "1 3 h w"] | None,
    records: Records | None,
    rows: int,
    *,
    views: int,
    shown: bool,
) -> Float64[np.ndarray, "rows classes"]:
    """What the network says of one image and several records; it looks at the image once."""
    seen: list[Tensor | None] = [None]
    with torch.inference_mode():
        if image is not None:
            with full_precision(network.device.type):
                seen = [
                    network.encode_image(each) for each in islice(iterate_symmetries(image), views)
                ]
        passes = [_passes(network, each, records, rows, shown=shown) for each in seen]
    return torch.stack(passes).mean(dim=0).cpu().numpy()


def _passes(
    network: Network, seen: Tensor | None, records: Records | None, rows: int, *, shown: bool
) -> Tensor:
    """The probabilities that follow from the features of one view, a few rows at a time."""
    outcomes = []
    for start in range(0, rows, _ROWS):
        size = min(_ROWS, rows - start)
        part = None if records is None else records[start : start + size]
        view = None if seen is None else seen.expand(size, *seen.shape[1:])
        hidden = None if shown else torch.zeros(size, dtype=torch.bool, device=network.device)
        outcomes.append(network.predict(view, part, has_image=hidden)[0].double().softmax(dim=1))
    return torch.cat(outcomes)
