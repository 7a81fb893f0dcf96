"""Mixup and CutMix of batches."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from skinmm.config import Registry
from skinmm.errors import InputError

Batch = dict[str, Tensor]
Targets = Int[Tensor, " b"]


class Mixed(NamedTuple):
    """Mixed batch, targets of the rows mixed in, and the weight of the original targets."""

    batch: Batch
    partners: Targets
    share: float


class NoMix:
    """No mixing."""

    def __call__(self, batch: Batch) -> Mixed:
        """Return the batch unchanged."""
        return Mixed(batch, batch["target"], 1.0)


@dataclass(frozen=True)
class Mixup:
    """Weighted mean of two lesions (Zhang et al. 2018, arXiv:1710.09412).

    Attributes:
        alpha: the share of the original is drawn from Beta(alpha, alpha); above 0.
    """

    alpha: float = 0.2

    def __post_init__(self) -> None:
        """Check alpha."""
        if not self.alpha > 0:
            raise InputError(f"mix argument alpha={self.alpha}: must be above 0")

    def __call__(self, batch: Batch) -> Mixed:
        """Mix every row with another row of the batch."""
        share = self._draw_share()
        return _blend(batch, torch.randperm(len(batch["target"])), share)

    def _draw_share(self) -> float:
        # torch.distributions draws from the same generator, but only a Gamma of tensors.
        first, second = torch._standard_gamma(torch.tensor(2 * [self.alpha], dtype=torch.float64))
        return float(first / (first + second).clamp(min=torch.finfo(torch.float64).tiny))


@dataclass(frozen=True)
class CutMix(Mixup):
    """Rectangle of another image, and the mean record (Yun et al. 2019, arXiv:1905.04899)."""

    alpha: float = 1.0

    def __call__(self, batch: Batch) -> Mixed:
        """Paste the same rectangle of another image into every image of the batch."""
        order = torch.randperm(len(batch["target"]))
        share = self._draw_share()
        if "image" not in batch:
            return _blend(batch, order, share)
        image = batch["image"].clone()
        (top, bottom), (left, right) = (_draw_bounds(side, share) for side in image.shape[-2:])
        image[..., top:bottom, left:right] = batch["image"][order][..., top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / image[0, 0].numel()
        return _blend(batch, order, share, image=image)


def _blend(batch: Batch, order: Targets, share: float, **pasted: Tensor) -> Mixed:
    """Interpolate all inputs except those in `pasted`; keep their dtypes."""
    order = order.to(batch["target"].device)
    mixed = {**batch, **pasted}
    for name in batch.keys() - pasted.keys() - {"row", "target", "has_image"}:
        values = batch[name]
        if values.is_floating_point():
            mixed[name] = torch.lerp(values[order], values, share)
        else:  # images stay uint8
            mean = torch.lerp(values[order].float(), values.float(), share)
            mixed[name] = mean.round().to(values.dtype)
    if "has_image" in batch:  # an image is missing if it or its partner's is missing
        mixed["has_image"] = batch["has_image"] & batch["has_image"][order]
    return Mixed(mixed, batch["target"][order], share)


def _draw_bounds(side: int, share: float) -> tuple[int, int]:
    """Return the bounds of the rectangle along one side, around a random centre."""
    half = round(side * (1 - share) ** 0.5) // 2
    centre = int(torch.randint(side, ()))
    return max(centre - half, 0), min(centre + half, side)


MIXES: Final[Registry[Callable[..., Callable[[Batch], Mixed]]]] = Registry(
    "mix", none=NoMix, mixup=Mixup, cutmix=CutMix
)
"""Mixes of a batch, whose `row` is unchanged; random numbers come from torch's CPU generator."""
