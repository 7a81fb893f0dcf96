"""Encoder-decoders: uint8 RGB in, out comes every pixel's logit of being lesion."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from skinmm.config import Config, ModelConfig, build_component
from skinmm.errors import InputError
from skinmm.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone

DEPTH: Final = 5  # halvings of timm's encoders

Statistics = tuple[Tensor, Tensor]
"""Mean and standard deviation that pixels are normalised with, each (1, 3, 1, 1)."""


class Segmenter(nn.Module):
    """A network of masks that owns its normalisation, as the classifiers' image networks do.

    Attributes:
        origin: what its weights are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, statistics: Statistics, origin: str) -> None:
        """Takes the network, (b, 3, h, w) float to (b, 1, h, w)."""
        super().__init__()
        self.net, self.origin = net, origin
        self.register_buffer("mean", statistics[0].clone())
        self.register_buffer("std", statistics[1].clone())

    def forward(self, image: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b h w"]:
        """The logits of a batch of uint8 RGB images."""
        normalised = (image.to(self.mean.dtype) - self.mean) / self.std
        logits: Tensor = self.net(normalised).squeeze(1)
        return logits


def unet(
    model: ModelConfig, pretrained: bool, channels: Sequence[int] = (64, 48, 32, 24, 16)
) -> Segmenter:
    """U-Net (Ronneberger et al. 2015, arXiv:1505.04597) on any of timm's encoders.

    Args:
        model: names the encoder, which starts from the weights that a classifier would.
        pretrained: look for weights as `model.pretrained` says.
        channels: of the decoder's blocks, the coarsest first.

    Raises:
        InputError: not five blocks, an encoder that timm cannot take apart, or weights that do not
            fit.
    """
    if len(channels) != DEPTH:
        raise InputError(f"segmenter 'unet': channels={[*channels]}: must be {DEPTH} numbers")
    import segmentation_models_pytorch as smp  # a second that no classifier needs to wait

    whole = Backbone(model, pretrained=pretrained)
    net = smp.Unet(
        f"tu-{model.name}", encoder_weights=None, decoder_channels=tuple(channels), **model.args
    )
    if pretrained:
        _take_over(net.encoder.model, whole.net, model.name)
    return Segmenter(net, (whole.mean, whole.std), whole.origin)


def autoencoder(
    model: ModelConfig,  # noqa: ARG001  it has no encoder of timm's
    pretrained: bool,  # noqa: ARG001
    widths: Sequence[int] = (32, 64, 128),
) -> Segmenter:
    """The plain baseline: convolutions and pooling down, transposed convolutions up, no shortcuts.

    Args:
        model: not looked at.
        pretrained: not looked at: there are no weights to start from.
        widths: channels of each block; every block halves the picture.
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


SEGMENTERS: Final[dict[str, Callable[..., Segmenter]]] = {
    "unet": unet,
    "autoencoder": autoencoder,
}


def build_segmenter(config: Config, *, pretrained: bool) -> Segmenter:
    """The network of masks that a configuration names.

    Args:
        config: the whole configuration.
        pretrained: look for pretrained weights; False where a checkpoint follows.

    Raises:
        InputError: an unknown component or argument, a size that does not fit it, or weights that
            cannot be used.
    """
    net = build_component(
        SEGMENTERS, "segmenter", config.segmenter, model=config.model, pretrained=pretrained
    )
    side = config.model.image_size
    try:
        with torch.inference_mode():
            made = net.net.eval()(torch.zeros(1, 3, side, side)).shape
    except RuntimeError:
        made = None
    if made != (1, 1, side, side):
        raise InputError(
            f"model.image_size={side}: segmenter '{config.segmenter.name}' needs a multiple of 32"
        )
    return net.train()


def _block(convolution: nn.Module) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(int(convolution.out_channels)), nn.ReLU()]  # type: ignore[arg-type]


def _take_over(encoder: nn.Module, whole: nn.Module, name: str) -> None:
    """Copies the weights of a whole network to the one that timm made of its stages.

    timm's wrappers write the dots of some names as underscores.

    Raises:
        InputError: the encoder has a tensor that the network lacks.
    """
    given = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    wanted = encoder.state_dict()
    lost = [key for key in wanted if key.replace(".", "_") not in given]
    if lost:
        raise InputError(
            f"model.pretrained: the weights of {name} lack {lost[0]} of its encoder; "
            "set model.pretrained=false"
        )
    encoder.load_state_dict({key: given[key.replace(".", "_")] for key in wanted})
