"""Mixup and CutMix of images and records."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from skinmm.errors import InputError

Batch = dict[str, Tensor]


class Mixed(NamedTuple):
    """Mixed batch, targets of the partners, and the share of the original targets."""

    batch: Batch
    partners: Int[Tensor, " b"]
    share: float


class Mix(Protocol):
    """Interface of the entries of `MIXES`; random numbers come from torch's CPU generator."""

    def __call__(self, batch: Batch) -> Mixed:
        """Mix a batch; `row` and `target` are unchanged."""


@dataclass(frozen=True)
class NoMix:
    """No mixing."""

    def __call__(self, batch: Batch) -> Mixed:
        """Return the batch unchanged."""
        return Mixed(batch, batch["target"], 1.0)


@dataclass(frozen=True)
class _BetaMix:
    """Mix whose share is drawn from Beta(alpha, alpha)."""

    alpha: float

    def __post_init__(self) -> None:
        """Check alpha."""
        if not self.alpha > 0:
            raise InputError(f"mix argument alpha={self.alpha}: must be above 0")


@dataclass(frozen=True)
class Mixup(_BetaMix):
    """Weighted mean of two lesions (Zhang et al. 2018, arXiv:1710.09412).

    Attributes:
        alpha: parameter of Beta(alpha, alpha), above 0.
    """

    alpha: float = 0.2

    def __call__(self, batch: Batch) -> Mixed:
        """Mix every row with another row of the batch."""
        share, order = _beta(self.alpha), _order(batch)
        blended = {name: _blend(batch[name], order, share) for name in _inputs(batch)}
        return Mixed({**batch, **_shown(batch, order), **blended}, batch["target"][order], share)


@dataclass(frozen=True)
class CutMix(_BetaMix):
    """Rectangle of another image, record in proportion (Yun et al. 2019, arXiv:1905.04899).

    Attributes:
        alpha: parameter of Beta(alpha, alpha), above 0.
    """

    alpha: float = 1.0

    def __call__(self, batch: Batch) -> Mixed:
        """Paste the same rectangle of another image into every image of the batch."""
        image, order = batch.get("image"), _order(batch)
        share, pasted = _beta(self.alpha), batch
        if image is not None:
            (top, bottom), (left, right) = (_cut(side, share) for side in image.shape[-2:])
            image = image.clone()
            image[..., top:bottom, left:right] = batch["image"][order][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / image[0, 0].numel()
            pasted = {**batch, "image": image}
        others = [name for name in _inputs(batch) if name != "image"]
        blended = {name: _blend(batch[name], order, share) for name in others}
        return Mixed({**pasted, **_shown(batch, order), **blended}, batch["target"][order], share)


MIXES: Final[dict[str, Callable[..., Mix]]] = {"none": NoMix, "mixup": Mixup, "cutmix": CutMix}


def _inputs(batch: Batch) -> list[str]:
    """Return the names of the network's inputs."""
    return [name for name in batch if name not in ("row", "target", "shown")]


def _shown(batch: Batch, order: Int[Tensor, " b"]) -> Batch:
    """Return that an image is missing if it or its partner's is missing."""
    shown = batch.get("shown")
    return {} if shown is None else {"shown": shown & shown[order]}


def _beta(alpha: float) -> float:
    # torch.distributions draws from the same generator, but only a Gamma of tensors.
    first, second = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64))
    return float(first / (first + second).clamp(min=torch.finfo(torch.float64).tiny))


def _order(batch: Batch) -> Int[Tensor, " b"]:
    return torch.randperm(len(batch["target"])).to(batch["target"].device)


def _blend(values: Tensor, order: Int[Tensor, " b"], share: float) -> Tensor:
    """Return the weighted mean in the type of the values: images stay uint8."""
    if not values.is_floating_point():
        mean = torch.lerp(values[order].float(), values.float(), share)
        return mean.round().to(values.dtype)
    return torch.lerp(values[order], values, share)


def _cut(side: int, share: float) -> tuple[int, int]:
    """Return the bounds of the rectangle along one side, around a random centre."""
    half = round(side * (1 - share) ** 0.5) // 2
    centre = int(torch.randint(side, ()))
    return max(centre - half, 0), min(centre + half, side)
