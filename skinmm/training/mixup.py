"""Batches whose lesions are mixed in pairs: image, record and target alike."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from skinmm.errors import InputError

Batch = dict[str, Tensor]


class Mixed(NamedTuple):
    """A batch, the targets that were mixed in, and the share of the batch's own targets."""

    batch: Batch
    partners: Int[Tensor, " b"]
    share: float


class Mix(Protocol):
    """What every entry of `MIXES` answers, drawing from torch's generator of the CPU."""

    def __call__(self, batch: Batch) -> Mixed:
        """Mixes a batch; `row` and `target` stay as they are."""


@dataclass(frozen=True)
class NoMix:
    """Every lesion alone."""

    def __call__(self, batch: Batch) -> Mixed:
        """The batch itself."""
        return Mixed(batch, batch["target"], 1.0)


@dataclass(frozen=True)
class _Drawn:
    """A mix whose share is drawn from Beta(alpha, alpha)."""

    alpha: float

    def __post_init__(self) -> None:
        """Refuses an alpha out of bounds."""
        if not self.alpha > 0:
            raise InputError(f"mix argument alpha={self.alpha}: must be above 0")


@dataclass(frozen=True)
class Mixup(_Drawn):
    """Weighted means of two lesions (Zhang et al. 2018, arXiv:1710.09412).

    Attributes:
        alpha: of the Beta(alpha, alpha) that the share is drawn from, above 0.
    """

    alpha: float = 0.2

    def __call__(self, batch: Batch) -> Mixed:
        """Mixes every row with another one of the batch."""
        share, order = _beta(self.alpha), _order(batch)
        blended = {name: _blend(batch[name], order, share) for name in _mixed_in(batch)}
        return Mixed({**batch, **_shown(batch, order), **blended}, batch["target"][order], share)


@dataclass(frozen=True)
class CutMix(_Drawn):
    """A rectangle of another lesion (Yun et al. 2019, arXiv:1905.04899), its record in proportion.

    Attributes:
        alpha: of the Beta(alpha, alpha) that the share is drawn from, above 0.
    """

    alpha: float = 1.0

    def __call__(self, batch: Batch) -> Mixed:
        """Pastes into every picture of the batch the same rectangle of another one."""
        image, order = batch.get("image"), _order(batch)
        share, pasted = _beta(self.alpha), batch
        if image is not None:
            (top, bottom), (left, right) = (_cut(side, share) for side in image.shape[-2:])
            image = image.clone()
            image[..., top:bottom, left:right] = batch["image"][order][..., top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / image[0, 0].numel()
            pasted = {**batch, "image": image}
        others = [name for name in _mixed_in(batch) if name != "image"]
        blended = {name: _blend(batch[name], order, share) for name in others}
        return Mixed({**pasted, **_shown(batch, order), **blended}, batch["target"][order], share)


MIXES: Final[dict[str, Callable[..., Mix]]] = {"none": NoMix, "mixup": Mixup, "cutmix": CutMix}


def _mixed_in(batch: Batch) -> list[str]:
    """What is averaged: everything that a network looks at."""
    return [name for name in batch if name not in ("row", "target", "shown")]


def _shown(batch: Batch, order: Int[Tensor, " b"]) -> Batch:
    """A picture that was withheld stays so, and withholds its partner's."""
    shown = batch.get("shown")
    return {} if shown is None else {"shown": shown & shown[order]}


def _beta(alpha: float) -> float:
    # torch.distributions draws from the same generator, but only a Gamma of tensors.
    first, second = torch._standard_gamma(torch.tensor([alpha, alpha], dtype=torch.float64))
    return float(first / (first + second).clamp(min=torch.finfo(torch.float64).tiny))


def _order(batch: Batch) -> Int[Tensor, " b"]:
    return torch.randperm(len(batch["target"])).to(batch["target"].device)


def _blend(values: Tensor, order: Int[Tensor, " b"], share: float) -> Tensor:
    """A weighted mean, in the values' own type: pictures stay uint8."""
    if not values.is_floating_point():
        mean = torch.lerp(values[order].float(), values.float(), share)
        return mean.round().to(values.dtype)
    return torch.lerp(values[order], values, share)


def _cut(side: int, share: float) -> tuple[int, int]:
    """The bounds of a cut along one side, around a centre drawn anywhere."""
    half = round(side * (1 - share) ** 0.5) // 2
    centre = int(torch.randint(side, ()))
    return max(centre - half, 0), min(centre + half, side)
