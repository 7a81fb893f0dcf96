"""Heat maps: regions of an image that raise the probability of malignancy, drawn over the image."""

from collections.abc import Sequence
from io import BytesIO
from math import isqrt
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Int, UInt8
from PIL import Image
from torch import Tensor, nn

from skinmm.models.network import Network, Records, full_precision

HeatMap = Float32[np.ndarray, "down across"]
Pixels = UInt8[np.ndarray, "height width 3"]

# Viridis at a few points: brighter is more, also for readers with red-green colour blindness.
_COLOURS: Final = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)
_OPACITY: Final = 0.65  # of the colour at the maximum of the map
_MAP_NDIM: Final = 4


def compute_heat_map(
    network: Network,
    image: UInt8[Tensor, "1 *views 3 h w"],
    record: Records | None,
    *,
    positive: Sequence[int],
    types: Int[Tensor, "1 views"] | None = None,
) -> Float32[np.ndarray, "*views down across"]:
    """Compute a heat map (0 to 1) of the regions that raise the probability of malignancy.

    The maps of the images of a lesion have one scale: 1 is the maximum over all of them.

    Gradient times activation of the last spatial layer, summed over its channels, positive part
    (HiResCAM: Draelos and Carin 2020, arXiv:2011.08891). For a network that ends in average pooling
    this is Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391). For a transformer the layer is the
    input of its last attention block, without class and register tokens.

    Args:
        network: in evaluation mode, with an image branch.
        image: as the network takes it.
        record: its encoded record, if the network has a record branch.
        positive: indices of the malignant classes.
        types: type of each image of a lesion, all present; None: `image` is a single one.
    """
    net: Any = network.image.net  # type: ignore[union-attr]
    activations: list[Tensor] = []

    def store(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        activations.append(output.detach().requires_grad_())
        return activations[-1].clone()  # later layers may change it in place

    handle = _find_last_spatial_layer(network, image).register_forward_hook(store)
    try:
        with torch.enable_grad(), full_precision(network.device.type):
            logits = network(image, record, types).log_softmax(dim=1)
    finally:
        handle.remove()
    is_positive = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device)
    is_positive[list(positive)] = True
    odds = logits[:, is_positive].logsumexp(dim=1) - logits[:, ~is_positive].logsumexp(dim=1)
    (gradient,) = torch.autograd.grad(odds.sum(), activations[-1])
    heat = _to_grid(gradient * activations[-1].detach(), net).relu()
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    return (heat[0] if types is None else heat).cpu().numpy()


def _find_last_spatial_layer(network: Network, image: UInt8[Tensor, "1 *views 3 h w"]) -> nn.Module:
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


def _to_grid(values: Tensor, net: Any) -> Float32[Tensor, "n down across"]:
    """Sum a feature map, or the tokens of a transformer, over the channels."""
    if values.ndim == _MAP_NDIM:
        return values.sum(dim=-1 if _is_channels_last(net) else 1)
    tokens = values[:, getattr(net, "num_prefix_tokens", 0) :].sum(dim=-1)
    grid = getattr(getattr(net, "patch_embed", None), "grid_size", None)
    return tokens.reshape(len(tokens), grid[0] if grid else isqrt(tokens.shape[1]), -1)


def heat_map_to_png(heat: HeatMap) -> bytes:
    """Return a heat map as an 8-bit greyscale PNG with one pixel per cell, 255 at the maximum."""
    file = BytesIO()
    Image.fromarray(np.round(255 * heat).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def overlay(image: Pixels, heat: HeatMap) -> Pixels:
    """Draw a heat map over an image, transparent where the map is 0."""
    strength = enlarge(heat, image.shape[:2]).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strength, steps, part) for part in _COLOURS.T], axis=-1)
    weight = (_OPACITY * np.sqrt(strength))[..., None]
    return np.round((1 - weight) * image + weight * colour).astype(np.uint8)


def enlarge(heat: HeatMap, shape: tuple[int, ...]) -> Float32[np.ndarray, "_ _"]:
    """Enlarge a heat map to the shape of an image."""
    if heat.shape == shape:
        return heat
    batch = torch.from_numpy(heat)[None, None]
    return torch.nn.functional.interpolate(batch, shape, mode="bilinear")[0, 0].numpy()
