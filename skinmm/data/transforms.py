"""Augmentation: uint8 in, uint8 out, by torchvision's v2 transforms on CPU tensors."""

from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2

from skinmm.errors import InputError

Image = UInt8[Tensor, "3 h w"]
Transform = Callable[[Tensor], Tensor]


def standard(
    size: int,
    zoom: float = 0.7,
    rotate: bool = True,
    brightness: float = 0.2,
    contrast: float = 0.2,
) -> Transform:
    """Flips, quarter turns, zoom with shift, and mild colour: what a dermatoscope's pose changes.

    Args:
        size: side of the square output, pixels.
        zoom: smallest share of the picture's area that is kept, above 0.
        rotate: quarter turns (together with the flips: the eight symmetries of a square).
        brightness: largest relative change, 0 to 1.
        contrast: largest relative change, 0 to 1.

    Raises:
        InputError: a share out of bounds.
    """
    for name, share in (("zoom", zoom), ("brightness", brightness), ("contrast", contrast)):
        if not 0 <= share <= 1 or (name == "zoom" and share == 0):
            raise InputError(f"augment argument {name}={share}: must be a share between 0 and 1")
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(size, scale=(zoom, 1.0), ratio=(0.9, 1.1), antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=brightness, contrast=contrast),
    ]
    if rotate:
        steps.append(v2.RandomApply([v2.Lambda(_transposed)], p=0.5))
    return v2.Compose(steps)


def none(size: int) -> Transform:  # noqa: ARG001  every entry is told the size
    """No augmentation; images arrive at their size already."""
    return torch.nn.Identity()


AUGMENTS: Final[dict[str, Callable[..., Transform]]] = {"standard": standard, "none": none}


def seeded(transform: Transform, image: Image, seed: int) -> Image:
    """Applies a random transform as a function of the seed alone, and leaves no trace of it.

    The CPU's generator is all that transforms draw from; `torch.manual_seed` would also reseed
    the GPU's, and with it the network's dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return transform(image)


def _transposed(image: Tensor) -> Tensor:
    return image.transpose(-1, -2)
