"""Image augmentations, made reproducible by `skinmm.data.dataset.apply_seeded`."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torchvision.transforms import v2
from torchvision.tv_tensors import Mask

from skinmm.config import Registry
from skinmm.data.dataset import Transform
from skinmm.errors import InputError

_MAGNITUDES: Final = 31  # bins of RandAugment


def standard(
    size: int,
    zoom: float = 0.7,
    rotate: bool = True,
    brightness: float = 0.2,
    contrast: float = 0.2,
) -> Transform:
    """Build flips, quarter turns, zoom with shift, and mild changes of brightness and contrast.

    Args:
        size: side of the square output, pixels.
        zoom: minimum share of the image area in a crop, above 0.
        rotate: quarter turns (with the flips: the eight symmetries of a square).
        brightness: maximum relative change, 0 to 1.
        contrast: maximum relative change, 0 to 1.
    """
    _check_shares(zoom=zoom, brightness=brightness, contrast=contrast)
    steps: list[torch.nn.Module] = [
        _crop(size, zoom),
        v2.RandomHorizontalFlip(),
        v2.RandomVerticalFlip(),
        v2.ColorJitter(brightness=brightness, contrast=contrast),
    ]
    if rotate:
        transpose = v2.Lambda(partial(torch.transpose, dim0=-1, dim1=-2))
        steps.append(v2.RandomApply([transpose], p=0.5))
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
    """Build flips, zoom, rotation and shift, changes of colour, blur, and an erased rectangle.

    Args:
        size: side of the square output, pixels.
        zoom: minimum share of the image area in a crop, above 0.
        degrees: maximum rotation to either side; corners get the mean colour of the image.
        shift: maximum shift, as a share of the side.
        colour: maximum change of brightness, contrast and saturation, and five times that of hue.
        blur: share of images that are blurred.
        holes: share of images with a hole of 2 to 20 % of their area (coarse dropout).
    """
    _check_shares(zoom=zoom, shift=shift, colour=colour, blur=blur, holes=holes)
    gaussian = v2.GaussianBlur(kernel_size=2 * (size // 40) + 1, sigma=(0.1, max(size / 100, 0.2)))
    return v2.Compose(
        [
            _crop(size, zoom),
            v2.RandomHorizontalFlip(),
            _RotateAndShift(degrees, shift),
            v2.ColorJitter(colour, colour, colour, colour / 5),
            v2.RandomApply([gaussian], p=blur),
            _Erase(p=holes, scale=(0.02, 0.2)),
        ]
    )


def randaugment(size: int, operations: int = 2, magnitude: int = 9) -> Transform:
    """Build flips and random operations, RandAugment (Cubuk et al. 2020, arXiv:1909.13719).

    Args:
        size: side of the square output, pixels.
        operations: number of operations per image.
        magnitude: strength of each operation, 0 to 30.
    """
    if operations < 0 or not 0 <= magnitude < _MAGNITUDES:
        raise InputError(
            f"augment arguments operations={operations} magnitude={magnitude}: operations must not "
            f"be negative, magnitude must be between 0 and {_MAGNITUDES - 1}"
        )
    return v2.Compose(
        [
            _crop(size, 0.7),
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandAugment(operations, magnitude, num_magnitude_bins=_MAGNITUDES),
        ]
    )


def none(size: int) -> Transform:  # noqa: ARG001  the contract of AUGMENTS
    """Build the identity."""
    return torch.nn.Identity()


AUGMENTS: Final[Registry[Callable[..., Transform]]] = Registry(
    "augment", standard=standard, strong=strong, randaugment=randaugment, none=none
)


class _Erase(v2.RandomErasing):  # type: ignore[misc]  # torchvision has no types
    """Erasing of a rectangle of an image; masks are unchanged."""

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt if isinstance(inpt, Mask) else super().transform(inpt, params)


class _RotateAndShift(v2.Transform):  # type: ignore[misc]
    """Rotation and shift of images (3, height, width); new corners get the mean colour."""

    def __init__(self, degrees: float, shift: float) -> None:
        super().__init__()
        self._degrees, self._shift = degrees, shift

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:  # noqa: ARG002
        return dict(zip(("angle", "right", "down"), (2 * torch.rand(3) - 1).tolist(), strict=True))

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = inpt.shape[-2:]
        is_mask = isinstance(inpt, Mask)  # new corners are not lesion
        shift = [params["right"] * self._shift * width, params["down"] * self._shift * height]
        return v2.functional.affine(
            inpt,
            angle=params["angle"] * self._degrees,
            translate=shift,
            scale=1.0,
            shear=[0.0, 0.0],
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=[0.0] if is_mask else inpt.float().mean(dim=(-2, -1)).tolist(),
        )


def _crop(size: int, minimum: float) -> torch.nn.Module:
    """Build a random, nearly square crop of at least `minimum` of the area, resized to `size`."""
    return v2.RandomResizedCrop(size, scale=(minimum, 1.0), ratio=(0.9, 1.1), antialias=True)


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1 or (name == "zoom" and share == 0):
            raise InputError(f"augment argument {name}={share}: must be a share between 0 and 1")
