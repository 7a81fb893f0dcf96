"""What every LightningModule here shares: random draws, the epoch's loss, optimiser, schedule."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Int, Shaped
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    multiclass_accuracy,
)
from torchmetrics.utilities import dim_zero_cat

from skinmm.config import Config, build_component
from skinmm.models.checkpoint import KEY, Card
from skinmm.models.network import Network
from skinmm.training.losses import Loss
from skinmm.training.mixup import MIXES
from skinmm.training.optimizer import build_optimizer, build_schedule

EPOCH_LOSSES: Final = "epoch_losses"


class Learner(pl.LightningModule):
    """Trains a network; what it knows of the run is plain data in `card`."""

    def __init__(self, network: nn.Module, card: Card, config: Config) -> None:
        """Lays the network out in memory as the trainer's settings say.

        Args:
            network: the network to train.
            card: what a checkpoint will say of it.
            config: the whole configuration.
        """
        super().__init__()
        self.network = network
        self.card = card
        self._config = config
        self.undefined = ""  # the monitored value, where the rows validated do not define it
        # Sum of the epoch's losses and number of its rows, over all ranks.
        self._losses = torch.zeros(2, dtype=torch.float64)
        if config.trainer.channels_last:
            network.to(memory_format=torch.channels_last)
        if config.trainer.compile:  # in place: no prefix in the state dict
            network.compile()

    def on_train_epoch_start(self) -> None:
        """Begins the mean of the epoch's loss; a run resumed within an epoch goes on with it."""
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Draws dropout from seed and place in the run, as if a resumed run had never stopped."""
        place = (self.card.config["seed"], self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))

    def counted(self, loss: Float[Tensor, ""], rows: int) -> Float[Tensor, ""]:
        """A batch's loss, which is added to the epoch's."""
        share = torch.tensor(float(rows), dtype=torch.float64, device=self.device)
        seen = torch.stack([loss.detach() * share, share])
        # Every rank has the whole sum at any time, so rank 0 can save it without asking others.
        self._losses = self._losses.to(seen) + self.trainer.strategy.reduce(seen, reduce_op="sum")
        return loss

    def log_validation(self, values: dict[str, Tensor]) -> None:
        """Logs metrics of the whole validation split and, in training, the epoch's loss.

        Where the monitored one is not among them, the run is steered by the falling `loss`.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.log("train/loss", self._losses[0] / self._losses[1])
        for name, value in values.items():
            key = f"val/{name}"
            self.log(key, value, prog_bar=key == self._config.trainer.monitor)
        monitor = self._config.trainer.monitor
        if monitor.removeprefix("val/") in values:
            return
        if not self.undefined and self.trainer.is_global_zero:
            said = f"the rows validated are of one kind: {monitor} is undefined, val/loss stands in"
            print(f"WARNING: {said}", file=sys.stderr)  # noqa: T201
        self.undefined = monitor
        self.log(monitor, -values["loss"], logger=False)  # for what stops the run or keeps its best

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimiser and its schedule over the whole run."""
        optimizer = build_optimizer(self.network, self._config.optimizer)
        steps = int(self.trainer.estimated_stepping_batches)
        monitor = self._config.trainer.monitor
        schedule = build_schedule(optimizer, self._config.schedule, steps, monitor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_epoch_end(self) -> None:
        """Lets plateau judge the epoch here: Lightning would after the checkpoint was written."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(float(self.trainer.callback_metrics[self._config.trainer.monitor]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Moves a schedule on; plateau has moved."""
        if metric is None:
            scheduler.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the card, and the loss of the epoch so far."""
        checkpoint[KEY] = asdict(self.card)
        checkpoint[EPOCH_LOSSES] = self._losses.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the interrupted epoch's loss."""
        self._losses = torch.tensor(checkpoint[EPOCH_LOSSES], dtype=torch.float64)


PIXELS: Final = 4  # dimensions of a batch of pictures; cached features have fewer


class Outcomes(Metric):
    """Values of a whole split row by row, gathered over ranks, each row once."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, names: Sequence[str] = ("logits", "targets")) -> None:
        """Starts without rows.

        Args:
            names: what is kept of a row.
        """
        super().__init__()
        self.names = names
        for name in ("rows", *names):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rows: Int[Tensor, " b"], *values: Shaped[Tensor, "b ..."]) -> None:
        """Keeps a batch's values, in the order of the names, in 32 bit."""
        self.rows.append(rows)
        for name, value in zip(self.names, values, strict=True):
            kept = value.detach()
            getattr(self, name).append(kept.float() if kept.is_floating_point() else kept)

    def compute(self) -> tuple[Tensor, ...]:
        """The values in the order of row numbers, without the repeats that padded ranks."""
        rows = dim_zero_cat(self.rows)
        order = torch.argsort(rows, stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = rows[order][1:] != rows[order][:-1]
        return tuple(dim_zero_cat(getattr(self, name))[order[first]] for name in self.names)

    def taken(self) -> tuple[Tensor, ...]:
        """What `compute` gives, and forgets it; a single row, which that squeezes, stays a row."""
        values = tuple(value if value.ndim else value[None] for value in self.compute())
        self.reset()
        return values


class Classifier(Learner):
    """Trains a `Network`; what it knows of the run is plain data in `card`.

    Attributes:
        tested: log-probabilities (n, classes), targets (n,) and fused features (n, dim) of the last
            test, in order of rows.
    """

    network: Network
    tested: tuple[Tensor, ...]

    def __init__(self, network: Network, loss: Loss, card: Card, config: Config) -> None:
        """Lays the network out in memory as the trainer's settings say.

        Args:
            network: the network to train.
            loss: its training loss, validated with too.
            card: what a checkpoint will say of the network.
            config: the whole configuration.
        """
        super().__init__(network, card, config)
        self.loss = loss
        self.outcomes = Outcomes()
        self.test_outcomes = Outcomes(("logits", "targets", "features"))
        self._mix = build_component(MIXES, "mix", config.mix)
        self._positive = [card.classes.index(name) for name in card.positive]

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "b classes"]:
        """Logits of a batch."""
        image = batch.get("image")
        if image is not None and image.ndim == PIXELS and self._config.trainer.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(image, batch.get("record"), batch.get("shown"))
        return logits

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Holds the image network as it is while the head learns alone."""
        super().on_train_batch_start(batch, batch_idx)
        image, first = self.network.image, self._config.optimizer.head_epochs
        if image is not None and first and not self._config.model.freeze:
            image.freeze(self.current_epoch < first)

    def training_step(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """The loss of a batch, in 32 bit whatever the network's precision is."""
        mixed, partners, share = self._mix(batch)
        logits = self(mixed).float()
        loss: Tensor = self.loss(logits, batch["target"])
        if share < 1:
            loss = share * loss + (1 - share) * self.loss(logits, partners)
        return self.counted(loss, len(logits))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's outcomes; runs in training precision, as it only steers the run."""
        self.outcomes.update(batch["row"], self(batch), batch["target"])

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Keeps a batch's log-probabilities, in 32 bit whatever the training precision was."""
        views = self.card.config["evaluation"]["views"]
        logits, features = self.network.predict(batch.get("image"), batch.get("record"), views)
        self.test_outcomes.update(batch["row"], logits, batch["target"], features)

    def on_test_epoch_end(self) -> None:
        """Gathers the rows of all ranks while they are on devices that can talk to each other."""
        self.tested = self.test_outcomes.taken()

    def on_validation_epoch_end(self) -> None:
        """Logs the metrics of the whole validation split, equal on all ranks."""
        logits, targets = self.outcomes.taken()
        values = monitored(logits.double().softmax(dim=1), targets, self._positive)
        values["loss"] = self.loss(logits, targets)
        self.log_validation(values)


def monitored(
    probabilities: Float[Tensor, "n classes"], targets: Int[Tensor, " n"], positive: Sequence[int]
) -> dict[str, Tensor]:
    """What a run is steered by: auroc, auprc and balanced accuracy of a whole split.

    `auroc` (one class against the rest) and `balanced_accuracy` are means over the classes that
    occur; `auprc` is malignant against the rest. What one class does not define is left out.

    Args:
        probabilities: rows sum to 1.
        targets: class indices.
        positive: the classes that count as malignant.
    """
    present = sorted(set(targets.tolist()))
    classes = probabilities.shape[1]
    recalls = multiclass_accuracy(probabilities, targets, num_classes=classes, average="none")
    malignant = probabilities[:, list(positive)].sum(dim=1).clamp(max=1)
    truth = torch.isin(targets, torch.tensor(list(positive), device=targets.device)).long()
    found = {"balanced_accuracy": recalls[present].mean()}
    if len(present) > 1:
        ranks = [binary_auroc(probabilities[:, each], (targets == each).long()) for each in present]
        found["auroc"] = torch.stack(ranks).mean()
    if truth.min() < truth.max():
        found["auprc"] = binary_average_precision(malignant, truth)
    return found
