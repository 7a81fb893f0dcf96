"""Segmentation networks: uint8 RGB -> one logit of "lesion" per pixel."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from skinmm.config import Config, ModelConfig, Registry, build_component
from skinmm.errors import InputError, require_package
from skinmm.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone

DEPTH: Final = 5  # number of times that an encoder halves height and width


class Segmenter(nn.Module):
    """Segmentation network with its pixel normalisation.

    Args:
        net: network that maps normalised (b, 3, h, w) to (b, 1, h, w).
        statistics: mean and standard deviation of the pixels from 0 to 255, each (1, 3, 1, 1).

    Attributes:
        origin: description of the weights that the network started from.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, statistics: tuple[Tensor, Tensor], origin: str) -> None:
        super().__init__()
        self.net, self.origin = net, origin
        self.register_buffer("mean", statistics[0].clone())
        self.register_buffer("std", statistics[1].clone())

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """Return the logits of a batch of uint8 RGB images."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        return self.net(normalised).squeeze(1)


def build_unet(
    model: ModelConfig, pretrained: bool, channels: Sequence[int] = (64, 48, 32, 24, 16)
) -> Segmenter:
    """Build a U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with an encoder of timm.

    Args:
        model: encoder, with the pretrained weights that a classifier would start from.
        pretrained: load weights as `model.pretrained` states.
        channels: channels of the decoder's five blocks, the coarsest first.
    """
    if len(channels) != DEPTH:
        raise InputError(f"segmenter 'unet': channels={[*channels]}: must be {DEPTH} numbers")
    if ":" in model.name:
        raise InputError(f"segmenter 'unet' needs a name of timm, not model.name={model.name}")
    require_package("segmentation_models_pytorch", "segmenter 'unet'", "train")
    import segmentation_models_pytorch as smp  # takes a second, which classifiers do without

    backbone = Backbone(model, pretrained=pretrained)
    net = smp.Unet(
        f"tu-{model.name}", encoder_weights=None, decoder_channels=tuple(channels), **model.args
    )
    if pretrained:
        _copy_weights(backbone.net, net.encoder.model, model.name)
    return Segmenter(net, (backbone.mean, backbone.std), backbone.origin)


def build_autoencoder(
    model: ModelConfig,  # noqa: ARG001  has no encoder of timm
    pretrained: bool,  # noqa: ARG001
    widths: Sequence[int] = (32, 64, 128),
) -> Segmenter:
    """Build the baseline: convolutions and pooling, then transposed convolutions, without skips.

    `widths` are the channels of the blocks, each of which halves height and width.
    """
    layers: list[nn.Module] = []
    for before, after in pairwise((3, *widths)):
        layers += [*_block(nn.Conv2d(before, after, 3, padding=1)), nn.MaxPool2d(2)]
    layers += _block(nn.Conv2d(widths[-1], widths[-1], 3, padding=1))
    for before, after in pairwise((*widths[::-1], widths[0])):
        layers += _block(nn.ConvTranspose2d(before, after, 2, stride=2))
    layers.append(nn.Conv2d(widths[0], 1, 3, padding=1))
    mean, std = (255 * torch.tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return Segmenter(nn.Sequential(*layers), (mean, std), "from scratch")


SEGMENTERS: Final[Registry[Callable[..., Segmenter]]] = Registry(
    "segmenter", unet=build_unet, autoencoder=build_autoencoder
)
"""The segmentation networks by the name that `segmenter=` selects."""


def build_segmenter(config: Config, *, pretrained: bool) -> Segmenter:
    """Build the segmentation network of a configuration; a checkpoint needs no `pretrained`."""
    net = build_component(
        SEGMENTERS, "segmenter", config.segmenter, model=config.model, pretrained=pretrained
    )
    side = config.model.image_size
    try:
        with torch.inference_mode():
            shape = net.net.eval()(torch.zeros(1, 3, side, side)).shape
    except RuntimeError:
        shape = None
    if shape != (1, 1, side, side):
        raise InputError(
            f"model.image_size={side}: segmenter '{config.segmenter.name}' needs a multiple of 32"
        )
    return net.train()


def _block(convolution: nn.Module) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(int(convolution.out_channels)), nn.ReLU()]  # type: ignore[arg-type]


def _copy_weights(source: nn.Module, encoder: nn.Module, name: str) -> None:
    """Copy the weights of a network to an encoder built from its stages."""
    # timm's wrapper replaces the dots of some names by underscores.
    state = {key.replace(".", "_"): value for key, value in source.state_dict().items()}
    keys = list(encoder.state_dict())
    missing = [key for key in keys if key.replace(".", "_") not in state]
    if missing:
        raise InputError(
            f"model.pretrained: the weights of {name} lack {missing[0]} of its encoder; "
            "set model.pretrained=false"
        )
    encoder.load_state_dict({key: state[key.replace(".", "_")] for key in keys})
