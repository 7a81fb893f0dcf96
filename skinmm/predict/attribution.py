"""Attribution of a prediction to its inputs: Shapley values, and a heat map over the image."""

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
MAX_COLUMNS: Final = 10
"""Record columns with a contribution each, as every subset needs a prediction; more are one."""
_MAP_NDIM: Final = 4
_BATCH: Final = 256  # rows per forward pass

Malignancy = Callable[[Float64[np.ndarray, "n c"]], Float64[np.ndarray, " n"]]
"""Maps the network's class probabilities to the probability that is explained."""


@dataclass(frozen=True)
class Contributions:
    """Contributions to the probability of malignancy, which is `start` plus the sum of `added`.

    Attributes:
        start: mean probability of the background rows; without these, that of an empty input.
        added: Shapley value of each input that is present.
        is_average: whether `start` is the mean of background rows.
    """

    start: float
    added: dict[str, float]
    is_average: bool = False

    def share(self, name: str) -> float | None:
        """Return an input's share of the sum of absolute changes; None if nothing changed."""
        total = sum(map(abs, self.added.values()))
        return abs(self.added.get(name, 0.0)) / total if total else None


def mean_contributions(members: Sequence[Contributions]) -> Contributions:
    """Average the contributions of an ensemble: Shapley values are linear in the prediction."""
    names = dict.fromkeys(name for member in members for name in member.added)
    added = {
        name: float(np.mean([member.added.get(name, 0.0) for member in members])) for name in names
    }
    start = float(np.mean([member.start for member in members]))
    return Contributions(start, added, all(member.is_average for member in members))


def compute_contributions(  # noqa: PLR0913  (three repeat options of prediction)
    network: Network,
    encoder: RecordEncoder,
    malignancy: Malignancy,
    row: Mapping[str, Any],
    image: UInt8[Tensor, "1 3 h w"] | None,
    *,
    views: int = 1,
    has_image: bool = True,
    max_columns: int = 0,
    background: Mapping[str, Tensor] | None = None,
) -> Contributions:
    """Compute exact Shapley values of the image and of each record column.

    Every subset of the inputs is predicted (Shapley 1953; Lundberg and Lee 2017, arXiv:1705.07874)
    with the other inputs taken from each of the background rows in turn, and the probabilities are
    averaged (Janzing et al. 2020, arXiv:1910.13413). Inputs that the row lacks are missing from
    the background rows too, so they contribute nothing.

    Without background rows, a column outside the subset is missing, as in training, and an image
    is replaced by the features that the network learned for a missing image, or, without these, by
    an image of the mean colour.

    Args:
        network: in evaluation mode.
        encoder: encoder of its records.
        malignancy: maps the network's probabilities to the explained one.
        row: one canonical record, a cell by column.
        image: square uint8 RGB, if the network has an image branch.
        views: number of flips and transposes, as in prediction.
        has_image: False if `image` is blank because the row has none.
        max_columns: record columns of all models whose contributions are averaged, so that all
            have the same inputs.
        background: `image` features and encoded `record` of background rows; empty or None for
            checkpoints without them.
    """
    columns = [] if network.record is None else encoder.columns
    present = [name for name in columns if not is_missing(row[name])]
    groups = {name: [name] for name in present}
    # This depends on the model and not on the row, so that all rows have the same inputs.
    if present and max(max_columns, len(columns)) > MAX_COLUMNS:
        groups = {RECORD: present}
    subsets, background = _list_subsets(len(groups)), background or {}
    records = None
    if network.record is not None:
        rows = background.get("record", torch.from_numpy(encoder.blank)[None])
        records = _mix_records(encoder, row, groups, subsets, rows).to(network.device)
    features = _encode(network, image, views)
    stages = [(features, has_image)]
    if image is not None and has_image:
        stages.insert(0, _replace_image(network, image, features, views, background))
    count = len(next(iter(background.values()))) if background else 1
    outputs = [
        malignancy(_predict(network, stage, records, len(subsets) * count, has_image=has))
        .reshape(-1, count)
        .mean(axis=1)
        for stage, has in stages
    ]
    # The image is the last input, so the subsets with it are the second half.
    names = [*groups, *[IMAGE] * (len(stages) > 1)]
    added = compute_shapley_values(np.concatenate(outputs)).tolist()
    start = float(outputs[0][0])
    return Contributions(start, dict(zip(names, added, strict=True)), bool(background))


def _replace_image(
    network: Network,
    image: UInt8[Tensor, "1 3 h w"],
    features: list[Tensor | None],
    views: int,
    background: Mapping[str, Tensor],
) -> tuple[list[Tensor | None], bool]:
    """Return the features that stand for a missing image, and whether they are an image's."""
    if "image" in background:
        return [background["image"].to(network.device).float()], True
    if network.absent is not None:
        return features, False
    colour = image.double().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    return _encode(network, colour.expand_as(image), views), True


def _mix_records(
    encoder: RecordEncoder,
    row: Mapping[str, Any],
    groups: Mapping[str, Sequence[str]],
    subsets: Bool[np.ndarray, "subsets inputs"],
    background: Float32[Tensor, "k encoded"],
) -> Float32[Tensor, "rows encoded"]:
    """Set each subset's columns, and the missing ones, of all background records as in `row`."""
    cells = {name: np.array([row[name]], object) for name in encoder.columns}
    record = torch.from_numpy(encoder.transform(cells))
    is_of_row = torch.ones(len(subsets), record.shape[1], dtype=torch.bool)
    slices = dict(zip(encoder.columns, encoder.layout, strict=True))
    for group, is_member in zip(groups.values(), subsets.T, strict=True):
        for name in group:
            cut = slice(slices[name].start, slices[name].stop)
            is_of_row[:, cut] = torch.from_numpy(is_member.copy())[:, None]
    return torch.where(is_of_row[:, None], record[None], background.float()[None]).flatten(0, 1)


def compute_shapley_values(
    values: Float64[np.ndarray, " subsets"],
) -> Float64[np.ndarray, " inputs"]:
    """Compute Shapley values of a game with few players.

    Args:
        values: value of each of the 2^k subsets; bit i of its index: player i is a member.
    """
    index = np.arange(len(values))
    players = len(values).bit_length() - 1
    sizes = _list_subsets(players).sum(axis=1)
    weights = np.array([1 / (players * comb(players - 1, size)) for size in range(players)])
    added = np.zeros(players)
    for player in range(players):
        without = index[index >> player & 1 == 0]
        gain = values[without | 1 << player] - values[without]
        added[player] = weights[sizes[without]] @ gain
    return added


def compute_heat_map(
    network: Network,
    image: UInt8[Tensor, "1 3 h w"],
    record: Records | None,
    *,
    positive: Sequence[int],
) -> Float32[np.ndarray, "down across"]:
    """Compute a heat map, 0 to 1, of the regions that raise the malignancy, at network resolution.

    Gradient times activation of the last spatial layer, summed over its channels, positive part
    (HiResCAM: Draelos and Carin 2020, arXiv:2011.08891). For a network that ends in average pooling
    this is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391). For a transformer the layer is the
    input of its last attention block, without class and register tokens.

    Args:
        network: in evaluation mode, with an image branch.
        image: as the network takes it.
        record: its encoded record, if the network has a record branch.
        positive: indices of the malignant classes.
    """
    net: Any = network.image.net  # type: ignore[union-attr]
    activations: list[Tensor] = []

    def store(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        activations.append(output.detach().requires_grad_())
        return activations[-1].clone()  # later layers may change it in place

    handle = _find_last_spatial_layer(network, image).register_forward_hook(store)
    try:
        with torch.enable_grad(), full_precision(network.device.type):
            logits = network(image, record).log_softmax(dim=1)
    finally:
        handle.remove()
    is_positive = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    is_positive[list(positive)] = True
    odds = logits[:, is_positive].logsumexp(dim=1) - logits[:, ~is_positive].logsumexp(dim=1)
    (gradient,) = torch.autograd.grad(odds.sum(), activations[-1])
    heat = _to_grid(gradient * activations[-1].detach(), net)[0].relu()
    return (heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)).cpu().numpy()


def _find_last_spatial_layer(network: Network, image: UInt8[Tensor, "1 3 h w"]) -> nn.Module:
    net: Any = network.image.net  # type: ignore[union-attr]
    last: Any = list(net.blocks)[-1] if hasattr(net, "blocks") else None
    if hasattr(last, "norm1"):  # a transformer, whose later layers pass on the class token alone
        return last.norm1
    layers: list[nn.Module] = []

    def collect(module: nn.Module, _inputs: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == _MAP_NDIM
        height, width = (1, 2) if _is_channels_last(net) else (2, 3)
        if is_map and min(output.shape[height], output.shape[width]) > 1:
            layers.append(module)

    handles = [module.register_forward_hook(collect) for module in net.modules()]
    try:
        with torch.inference_mode():
            network.encode_image(image)
    finally:
        for handle in handles:
            handle.remove()
    return layers[-1]


def _is_channels_last(net: Any) -> bool:
    return getattr(net, "output_fmt", "NCHW") == "NHWC"


def _to_grid(values: Tensor, net: Any) -> Float32[Tensor, "1 down across"]:
    """Sum a map, or the tokens of a transformer, over its channels."""
    if values.ndim == _MAP_NDIM:
        return values.sum(dim=-1 if _is_channels_last(net) else 1)
    tokens = values[:, getattr(net, "num_prefix_tokens", 0) :].sum(dim=-1)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return tokens.reshape(1, grid[0] if grid else isqrt(tokens.shape[1]), -1)


def _list_subsets(inputs: int) -> Bool[np.ndarray, "subsets inputs"]:
    return (np.arange(2**inputs)[:, None] >> np.arange(inputs) & 1).astype(bool)


def _encode(
    network: Network, image: UInt8[Tensor, "1 3 h w"] | None, views: int
) -> list[Tensor | None]:
    """Return the image features of each view."""
    if image is None:
        return [None]
    with torch.inference_mode(), full_precision(network.device.type):
        return [network.encode_image(view) for view in islice(iterate_symmetries(image), views)]


def _predict(
    network: Network,
    features: Sequence[Tensor | None],
    records: Records | None,
    rows: int,
    *,
    has_image: bool,
) -> Float64[np.ndarray, "rows classes"]:
    """Predict rows with repeated image features; average the views."""
    outputs = []
    with torch.inference_mode():
        for start in range(0, rows, _BATCH):
            numbers = torch.arange(start, min(start + _BATCH, rows), device=network.device)
            size = len(numbers)
            record = None if records is None else records[start : start + size]
            mask = None if has_image else torch.zeros(size, dtype=torch.bool, device=network.device)
            views = [view if view is None else view[numbers % len(view)] for view in features]
            logits = [network.predict(view, record, has_image=mask)[0] for view in views]
            probabilities = [values.double().softmax(dim=1) for values in logits]
            outputs.append(torch.stack(probabilities).mean(dim=0))
    return torch.cat(outputs).cpu().numpy()
