"""How a transform is applied; what it is made of need not be imported for that."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from skinmm.errors import InputError

Transform = Callable[[Any], Any]
"""Of a picture, or of a pair of tv_tensors, picture and mask, which are moved alike."""

T = TypeVar("T")


def apply_seeded(transform: Transform, image: T, seed: int) -> T:
    """Applies a random transform as a function of the seed alone, and leaves no trace of it.

    The CPU's generator is all that transforms draw from; `torch.manual_seed` would also reseed
    the GPU's, and with it the network's dropout.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented: T = transform(image)
    return augmented


Image = UInt8[Tensor, "3 h w"]

_MAGNITUDES: Final = 31  # bins of RandAugment


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
    _check_shares(zoom=zoom, brightness=brightness, contrast=contrast)
    steps: list[torch.nn.Module] = [
        _zoomed(size, zoom),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=brightness, contrast=contrast),
    ]
    if rotate:
        steps.append(v2.RandomApply([v2.Lambda(_transposed)], p=0.5))
    return v2.Compose(steps)


def strong(
    size: int,
    zoom: float = 0.6,
    degrees: float = 180.0,
    shift: float = 0.1,
    colour: float = 0.2,
    blur: float = 0.2,
    holes: float = 0.3,
) -> Transform:
    """The standard poses with any rotation and shift, hue, blur, and a hole (coarse dropout).

    Args:
        size: side of the square output, pixels.
        zoom: smallest share of the picture's area that is kept, above 0.
        degrees: largest rotation to either side; corners get the picture's mean colour.
        shift: largest shift, a share of the side.
        colour: largest change of brightness, contrast and saturation, and five times that of hue.
        blur: share of pictures that are blurred.
        holes: share of pictures with a hole of 2 to 20 % of their area.

    Raises:
        InputError: a share out of bounds.
    """
    _check_shares(zoom=zoom, shift=shift, colour=colour, blur=blur, holes=holes)
    gaussian = v2.GaussianBlur(kernel_size=2 * (size // 40) + 1, sigma=(0.1, max(size / 100, 0.2)))
    return v2.Compose(
        [
            _zoomed(size, zoom),
            v2.RandomHorizontalFlip(),
            _Turned(degrees, shift),
            v2.ColorJitter(colour, colour, colour, colour / 5),
            v2.RandomApply([gaussian], p=blur),
            _OfPictures(v2.RandomErasing(p=holes, scale=(0.02, 0.2))),
        ]
    )


def randaugment(size: int, operations: int = 2, magnitude: int = 9) -> Transform:
    """Flips, then operations drawn at random (Cubuk et al. 2020, arXiv:1909.13719).

    Args:
        size: side of the square output, pixels.
        operations: drawn for each picture.
        magnitude: of each, 0 to 30.

    Raises:
        InputError: an argument out of bounds.
    """
    if operations < 0 or not 0 <= magnitude < _MAGNITUDES:
        raise InputError(
            f"augment arguments operations={operations} magnitude={magnitude}: operations must not "
            f"be negative, magnitude must be between 0 and {_MAGNITUDES - 1}"
        )
    return v2.Compose(
        [
            _zoomed(size, 0.7),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandAugment(operations, magnitude, num_magnitude_bins=_MAGNITUDES),
        ]
    )


def none(size: int) -> Transform:  # noqa: ARG001  every entry is told the size
    """No augmentation; images arrive at their size already."""
    return torch.nn.Identity()


AUGMENTS: Final[dict[str, Callable[..., Transform]]] = {
    "standard": standard,
    "strong": strong,
    "randaugment": randaugment,
    "none": none,
}


class _OfPictures(torch.nn.Module):
    """A transform that leaves masks alone."""

    def __init__(self, transform: torch.nn.Module) -> None:
        super().__init__()
        self._transform = transform

    def forward(self, sample: Any) -> Any:
        if not isinstance(sample, tuple):
            return self._transform(sample)
        image, mask = sample
        return self._transform(image), mask


class _Turned(torch.nn.Module):
    """Rotates and shifts, and fills what comes into view with the picture's mean colour."""

    def __init__(self, degrees: float, shift: float) -> None:
        super().__init__()
        self._degrees, self._shift = degrees, shift

    def forward(self, sample: Any) -> Any:
        """Of a picture (3, height, width), or of picture and mask."""
        move = (2 * torch.rand(3) - 1).tolist()
        if isinstance(sample, tuple):
            return tuple(self._moved(each, *move) for each in sample)
        return self._moved(sample, *move)

    def _moved(self, image: Tensor, angle: float, right: float, down: float) -> Tensor:
        height, width = image.shape[-2:]
        masked = isinstance(image, Mask)  # nothing is lesion that comes into view
        turned: Tensor = v2.functional.affine(
            image,
            angle=angle * self._degrees,
            translate=[right * self._shift * width, down * self._shift * height],
            scale=1.0,
            shear=[0.0, 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=[0.0] if masked else image.float().mean(dim=(-2, -1)).tolist(),
        )
        return turned


def _zoomed(size: int, least: float) -> torch.nn.Module:
    """A crop of at least this share of the area, almost square, at the size."""
    return v2.RandomResizedCrop(size, scale=(least, 1.0), ratio=(0.9, 1.1), antialias=True)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1 or (name == "zoom" and share == 0):
            raise InputError(f"augment argument {name}={share}: must be a share between 0 and 1")


def _transposed(image: Tensor) -> Tensor:
    return image.transpose(-1, -2)
