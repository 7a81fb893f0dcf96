"""The LightningModule: one store of outcomes, one optimiser, one schedule."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
)
from torchmetrics.utilities import dim_zero_cat

from skinmm.checkpoint import KEY, Card
from skinmm.config import OptimizerConfig, ScheduleConfig, TrainerConfig, build
from skinmm.losses import Loss
from skinmm.models.network import Network

EPOCH_LOSSES: Final = "epoch_losses"
OPTIMIZERS: Final[dict[str, type[torch.optim.Optimizer]]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


class Outcomes(Metric):
    """Logits and targets of a whole split, gathered over ranks, each row once."""

    full_state_update = False
    rows: list[Tensor]
    logits: list[Tensor]
    targets: list[Tensor]

    def __init__(self) -> None:
        """Starts without rows."""
        super().__init__()
        for name in ("rows", "logits", "targets"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(
        self, rows: Int[Tensor, " b"], logits: Float[Tensor, "b c"], targets: Int[Tensor, " b"]
    ) -> None:
        """Keeps a batch."""
        self.rows.append(rows)
        self.logits.append(logits.detach().float())
        self.targets.append(targets)

    def compute(self) -> tuple[Float[Tensor, "n c"], Int[Tensor, " n"]]:
        """Logits and targets in the order of row numbers, without the repeats that padded ranks."""
        rows, logits, targets = map(dim_zero_cat, (self.rows, self.logits, self.targets))
        order = torch.argsort(rows, stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = rows[order][1:] != rows[order][:-1]
        return logits[order[first]], targets[order[first]]


class Classifier(pl.LightningModule):
    """Trains a `Network`; what it knows of the run is plain data in `card`.

    Attributes:
        tested: log-probabilities (n, classes) and targets (n,) of the last test, in order of rows.
    """

    tested: tuple[Tensor, Tensor]

    def __init__(
        self,
        network: Network,
        loss: Loss,
        card: Card,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        trainer: TrainerConfig,
    ) -> None:
        """Lays the network out in memory as the trainer's settings say.

        Args:
            network: the network to train.
            loss: its training loss, validated with too.
            card: what a checkpoint will say of the network.
            optimizer: optimiser, rates and decay.
            schedule: the learning rate over the run.
            trainer: memory layout, compilation, and what the run watches.
        """
        super().__init__()
        self.network = network
        self.loss = loss
        self.card = card
        self.outcomes = Outcomes()
        # Sum of the epoch's losses and number of its rows, over all ranks.
        self._losses = torch.zeros(2, dtype=torch.float64)
        self._optimizer = optimizer
        self._schedule = schedule
        self._channels_last = trainer.channels_last
        self._monitor = trainer.monitor
        if trainer.channels_last:
            network.to(memory_format=torch.channels_last)
        if trainer.compile:  # in place: no prefix in the state dict
            network.compile()
        self._positive = [card.classes.index(name) for name in card.positive]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "b classes"]:
        """Logits of a batch."""
        image = batch.get("image")
        if image is not None and self._channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(image, batch.get("record"))
        return logits

    def on_train_epoch_start(self) -> None:
        """Begins the mean of the epoch's loss; a run resumed within an epoch goes on with it."""
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Draws dropout from seed and place in the run, as if a resumed run had never stopped."""
        place = (self.card.config["seed"], self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def training_step(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of a batch, in 32 bit whatever the network's precision is."""
        logits = self(batch).float()
        loss: Tensor = self.loss(logits, batch["target"])
        rows = torch.tensor(float(len(logits)), dtype=torch.float64, device=self.device)
        seen = torch.stack([loss.detach() * rows, rows])
        # Every rank has the whole sum at any time, so rank 0 can save it without asking others.
        self._losses = self._losses.to(seen) + self.trainer.strategy.reduce(seen, reduce_op="sum")
        return loss

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's outcomes; runs in training precision, as it only steers the run."""
        self.outcomes.update(batch["row"], self(batch), batch["target"])

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's log-probabilities, in 32 bit whatever the training precision was."""
        views = self.card.config["evaluation"]["views"]
        outcome = self.network.log_probabilities(batch.get("image"), batch.get("record"), views)
        self.outcomes.update(batch["row"], outcome, batch["target"])

    def on_test_epoch_end(self) -> None:
        """Gathers the rows of all ranks while they are on devices that can talk to each other."""
        self.tested = self.outcomes.compute()
        self.outcomes.reset()

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole validation split, equal on all ranks."""
        logits, targets = self.outcomes.compute()
        self.outcomes.reset()
        values = monitored(logits.double().softmax(dim=1), targets, self._positive)
        values["loss"] = self.loss(logits, targets)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("train/loss", self._losses[0] / self._losses[1])
        for name, value in values.items():
            key = f"val/{name}"
            self.log(key, value, prog_bar=key == self._monitor)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Weight decay on matrices only; the image network may have its own rate."""
        config = self._optimizer
        optimizer = build(OPTIMIZERS, "optimizer", config, params=self._groups(), lr=config.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        scale = partial(rate, config=self._schedule, steps=steps)
        schedule = LambdaLR(optimizer, scale)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, and the loss of the epoch so far."""
        checkpoint[KEY] = asdict(self.card)
        checkpoint[EPOCH_LOSSES] = self._losses.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the interrupted epoch's loss."""
        self._losses = torch.tensor(checkpoint[EPOCH_LOSSES], dtype=torch.float64)

    def _groups(self) -> list[dict[str, Any]]:
        config = self._optimizer
        groups: dict[tuple[bool, bool], list[Tensor]] = {}
        for name, parameter in self.network.named_parameters():
            if parameter.requires_grad:
                key = (name.startswith("image."), parameter.ndim > 1)
                groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": parameters,
                "lr": config.lr * (config.backbone_lr_scale if of_image else 1.0),
                "weight_decay": config.weight_decay if matrix else 0.0,
            }
            for (of_image, matrix), parameters in groups.items()
        ]


def monitored(
    probabilities: Float[Tensor, "n classes"], targets: Int[Tensor, " n"], positive: Sequence[int]
) -> dict[str, Tensor]:
    """What a run is steered by: auroc, auprc and balanced accuracy of a whole split.

    `auroc` (one class against the rest) and `balanced_accuracy` are means over the classes that
    occur; `auprc` is malignant against the rest.

    Args:
        probabilities: rows sum to 1.
        targets: class indices.
        positive: the classes that count as malignant.
    """
    present = sorted(set(targets.tolist()))
    ranks = [binary_auroc(probabilities[:, each], (targets == each).long()) for each in present]
    classes = probabilities.shape[1]
    recalls = multiclass_accuracy(probabilities, targets, num_classes=classes, average="none")
    malignant = probabilities[:, list(positive)].sum(dim=1).clamp(max=1)
    truth = torch.isin(targets, torch.tensor(list(positive), device=targets.device)).long()
    return {
        "auroc": torch.stack(ranks).mean(),
        "auprc": binary_average_precision(malignant, truth),
        "balanced_accuracy": recalls[present].mean(),
    }


def rate(step: int, *, config: ScheduleConfig, steps: int) -> float:
    """The learning rate at a step, as a share of the highest: linear warm-up, then a half cosine.

    Args:
        step: from 0.
        config: shape, share of the steps that warm up, and last rate.
        steps: of the whole run.
    """
    warmup = int(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.name == "constant":
        return 1.0
    done = min((step - warmup) / max(steps - warmup, 1), 1.0)
    return config.final + (1 - config.final) * 0.5 * (1 + math.cos(math.pi * done))
