"""What every LightningModule here shares: random draws, the epoch's loss, optimiser, schedule."""

import sys
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import pytorch_lightning as pl
import torch
from jaxtyping import Float
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from skinmm.config import Config
from skinmm.models.checkpoint import KEY, Card
from skinmm.optimization import build_optimizer, build_schedule

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
