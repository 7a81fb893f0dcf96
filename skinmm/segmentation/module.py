"""The LightningModule of networks that draw masks, beside the classifier's."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from skinmm.config import Config
from skinmm.models.checkpoint import Card
from skinmm.models.network import full_precision
from skinmm.models.segmentation import Segmenter
from skinmm.training.losses import dice_bce
from skinmm.training.module import Learner, Outcomes

AREAS = ("overlap", "drawn", "true")
"""Pixels of a row that are in both masks, in the network's, and in the true one."""


class MaskLearner(Learner):
    """Trains a `Segmenter`.

    Attributes:
        tested: the last test's `AREAS`, (n,) each, in order of rows.
    """

    tested: tuple[Tensor, ...]

    def __init__(self, network: Segmenter, card: Card, config: Config) -> None:
        """Takes the network, what a checkpoint will say of it, and the whole configuration."""
        super().__init__(network, card, config)
        self.outcomes = Outcomes((*AREAS, "loss"))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "b h w"]:
        """Logits of a batch, at the size of its masks."""
        image = batch["image"]
        if self._config.trainer.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        return at_size(self.network(image), batch["mask"].shape[-1])

    def training_step(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of a batch, in 32 bit whatever the network's precision is."""
        logits = self(batch)
        return self.counted(dice_bce(logits, batch["mask"]), len(logits))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's areas, in training precision, as they only steer the run."""
        self._keep(batch, self(batch))

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's areas, in 32 bit whatever the training precision was."""
        with full_precision(self.device.type):
            self._keep(batch, self(batch))

    def on_validation_epoch_end(self) -> None:
        """Logs the means of the whole validation split, equal on all ranks."""
        *areas, loss = self.outcomes.taken()
        overlap, drawn, true = areas
        dice = torch.where(drawn + true > 0, 2 * overlap / (drawn + true).clamp(min=1), 1)
        self.log_validation({"dice": dice.mean(), "loss": loss.mean()})

    def on_test_epoch_end(self) -> None:
        """Gathers the rows of all ranks while they are on devices that can talk to each other."""
        self.tested = self.outcomes.taken()[: len(AREAS)]

    def _keep(self, batch: dict[str, Tensor], logits: Float[Tensor, "b h w"]) -> None:
        drawn, true = logits > 0, batch["mask"]
        areas = (_pixels(mask) for mask in (drawn & true, drawn, true))
        losses = [dice_bce(row[None], mask[None]) for row, mask in zip(logits, true, strict=True)]
        self.outcomes.update(batch["row"], *areas, torch.stack(losses))


def at_size(logits: Float[Tensor, "b h w"], side: int) -> Float[Tensor, "b side side"]:
    """Logits of a square, interpolated between pixels."""
    if logits.shape[-1] == side:
        return logits
    scaled = functional.interpolate(logits[:, None].float(), (side, side), mode="bilinear")
    return scaled[:, 0]


def _pixels(mask: Bool[Tensor, "b h w"]) -> Float[Tensor, " b"]:
    return mask.sum(dim=(1, 2)).float()
