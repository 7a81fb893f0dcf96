"""Lightning modules: training steps, and collection of the outputs of whole splits."""

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
from skinmm.errors import InputError, warn
from skinmm.models.checkpoint import KEY, Card
from skinmm.models.network import Network
from skinmm.models.tuning import merge_adapters, split_adapters
from skinmm.training.callbacks import SELECTION
from skinmm.training.losses import Loss, distillation_loss
from skinmm.training.mixup import MIXES
from skinmm.training.optimizer import OPTIMIZERS, build_schedule, parameter_groups

ADAPTERS: Final = "adapters"  # key in a checkpoint of model.tune=lora
IMAGE_DIMS: Final = 4  # of a batch of images; a batch of cached features has fewer


class BaseModule(pl.LightningModule):
    """Base of the training modules.

    Attributes:
        network: the network to train.
        card: description of the run that every checkpoint contains.
        undefined: name of the monitored value, if the validation rows do not define it.
        window: number of epochs, the latest ones, over which the monitored value is averaged to
            select the best epoch; the mean of several is less optimistic than the highest value.
    """

    def __init__(self, network: nn.Module, card: Card, config: Config, window: int = 1) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.undefined = ""
        self.window = window
        self._monitored: list[float] = []  # of the latest epochs
        self._config = config
        # Sum of the epoch's losses and number of its rows, over all ranks.
        self._losses = torch.zeros(2, dtype=torch.float64)
        if config.trainer.channels_last:
            network.to(memory_format=torch.channels_last)
        if config.trainer.compile:  # in place: no prefix in the state dict
            network.compile()

    def on_train_epoch_start(self) -> None:
        """Reset the epoch's loss; Lightning does not call this in a run resumed within an epoch."""
        self._losses = torch.zeros(2, dtype=torch.float64, device=self.device)

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        """Seed dropout by epoch and batch, so that a resumed run draws the same masks."""
        position = (self._config.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(position).generate_state(1)[0]))

    def accumulate_loss(self, loss: Float[Tensor, ""], rows: int) -> Float[Tensor, ""]:
        """Add the mean loss of a batch to the epoch's sum, and return it."""
        count = torch.tensor(float(rows), dtype=torch.float64, device=self.device)
        batch = torch.stack([loss.detach() * count, count])
        # Every rank always has the whole sum, so that rank 0 can save it without communication.
        self._losses = self._losses.to(batch) + self.trainer.strategy.reduce(batch, reduce_op="sum")
        if self.trainer.is_last_batch and not self.trainer.enable_validation:
            self._require_finite(self._losses.sum())  # as `log_validation` does with validation
            mean = self._losses[0] / self._losses[1]
            self.log("train/loss", mean, on_step=False, on_epoch=True, batch_size=1)
        return loss

    def require_finite_weights(self) -> None:
        """Stop the run before a checkpoint if a loss of the epoch or a weight is not finite."""
        for value in (self._losses.sum(), *self.network.state_dict().values()):
            self._require_finite(value)

    def _require_finite(self, values: Tensor) -> None:
        if not values.isfinite().all():
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            raise InputError(
                f"the loss is not finite in epoch {self.current_epoch + 1} (step "
                f"{self.global_step}, learning rate {rate:.3g}); lower optimizer.lr"
            )

    def log_validation(self, values: dict[str, Tensor]) -> None:
        """Log metrics of the whole validation split and, in training, the epoch's loss.

        The mean of the monitored value over the latest epochs is logged as `SELECTION`. If the
        monitored value is not among the metrics, the negative `loss` replaces it.
        """
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._require_finite(self._losses.sum() + values["loss"])
            self.log("train/loss", self._losses[0] / self._losses[1])
        monitor = self._config.trainer.monitor
        for name, value in values.items():
            self.log(f"val/{name}", value, prog_bar=f"val/{name}" == monitor)
        if monitor.removeprefix("val/") not in values:
            if not self.undefined and self.trainer.is_global_zero:
                warn(f"{monitor} is undefined (one class in validation); val/loss replaces it")
            self.undefined = monitor
        monitored = values.get(monitor.removeprefix("val/"), -values["loss"])
        self._monitored = [*self._monitored, float(monitored)][-self.window :]
        self.log(SELECTION, sum(self._monitored) / len(self._monitored), logger=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimiser, and its schedule over `trainer.max_epochs`."""
        options, monitor = self._config.optimizer, self._config.trainer.monitor
        groups = parameter_groups(self.network, options)
        optimizer = build_component(OPTIMIZERS, "optimizer", options, params=groups, lr=options.lr)
        per_epoch = int(self.trainer.estimated_stepping_batches) // (self.trainer.max_epochs or 1)
        steps = per_epoch * self._config.trainer.max_epochs  # the trainer may run fewer epochs
        schedule = build_schedule(optimizer, self._config.schedule, steps, monitor)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_train_epoch_end(self) -> None:
        """Step the plateau schedule before the checkpoint is written; Lightning does it after."""
        schedule = self.lr_schedulers()
        if isinstance(schedule, ReduceLROnPlateau):
            schedule.step(float(self.trainer.callback_metrics[SELECTION]))

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule other than plateau; `on_train_epoch_end` steps the latter."""
        if metric is None:
            scheduler.step()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the card and the loss of the current epoch, and merge adapters into the weights."""
        checkpoint[KEY] = asdict(self.card)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = merge_adapters(state)
        if adapters := {n: state[n] for n in state if n not in checkpoint["state_dict"]}:
            checkpoint[ADAPTERS] = adapters  # a resumed run continues with them
        checkpoint["epoch_losses"] = self._losses.tolist()
        checkpoint["monitored"] = {"window": self.window, "values": self._monitored}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the loss of the interrupted epoch, and its adapters."""
        if parts := checkpoint.pop(ADAPTERS, None):
            checkpoint["state_dict"] = split_adapters(checkpoint["state_dict"], parts)
        self._losses = torch.tensor(checkpoint["epoch_losses"], dtype=torch.float64)
        # Earlier versions selected by the value of one epoch.
        monitored = checkpoint.get("monitored", {"window": 1, "values": []})
        if monitored["window"] != self.window:
            raise InputError(
                f"the best epoch was selected by the mean over {monitored['window']} epochs, now "
                f"over {self.window}; set trainer.smoothing={monitored['window']} to resume"
            )
        self._monitored = monitored["values"]


class RowCollector(Metric):
    """Collector of named values of every row of a split over all ranks, each row once."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self, names: Sequence[str] = ("logits", "targets")) -> None:
        super().__init__()
        self.names = names
        for name in ("rows", *names):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, rows: Int[Tensor, " b"], *values: Shaped[Tensor, "b ..."]) -> None:
        """Append a batch; `values` follow the order of `names`, floats as float32."""
        self.rows.append(rows)
        for name, value in zip(self.names, values, strict=True):
            is_float = value.is_floating_point()
            getattr(self, name).append(value.detach().float() if is_float else value.detach())

    def compute(self) -> tuple[Tensor, ...]:
        """Return the values by ascending row number, without rows repeated to pad ranks."""
        rows = dim_zero_cat(self.rows)
        order = torch.argsort(rows, stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = rows[order][1:] != rows[order][:-1]
        return tuple(dim_zero_cat(getattr(self, name))[order[first]] for name in self.names)

    def take(self) -> tuple[Tensor, ...]:
        """Return the values and reset; the shape of a single row is (1,)."""
        values = tuple(value if value.ndim else value[None] for value in self.compute())
        self.reset()
        return values


class Classifier(BaseModule):
    """Training of a `Network` on images and records.

    A batch has `row` (number in the split), `target`, and inputs `image`, `record`, `has_image`.

    Attributes:
        test_outputs: log-probabilities (n, classes), targets (n,) and fused features (n, dim) of
            the last test, in order of rows.
    """

    network: Network
    test_outputs: tuple[Tensor, ...]
    teacher: Tensor | None

    def __init__(
        self, network: Network, loss: Loss, card: Card, config: Config, window: int = 1
    ) -> None:
        super().__init__(network, card, config, window)
        self.loss = loss
        # Distillation: probabilities for the training rows, (n, classes); not in the checkpoint.
        self.register_buffer("teacher", None, persistent=False)
        self._mix = build_component(MIXES, "mix", config.mix)
        self._positive = [card.classes.index(name) for name in card.positive]
        self._validation = RowCollector()
        self._test = RowCollector(("log_probabilities", "targets", "features"))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "b classes"]:
        """Return the logits of a batch."""
        image = batch.get("image")
        if image is not None and image.ndim == IMAGE_DIMS and self._config.trainer.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(image, batch.get("record"), batch.get("has_image"))
        return logits

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Freeze the image network in the first `optimizer.head_epochs` epochs, also if resumed."""
        super().on_train_batch_start(batch, batch_idx)
        image, head_epochs = self.network.image, self._config.optimizer.head_epochs
        if image is not None and head_epochs and self._config.model.trained != "head":
            image.freeze(self.current_epoch < head_epochs)

    def training_step(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Return the loss of a batch in 32-bit precision, regardless of the network's precision."""
        if self.teacher is not None:
            batch = {**batch, "teacher": self.teacher[batch["row"]]}
        mixed, partners, share = self._mix(batch)  # partners: targets of the rows mixed in
        logits = self(mixed).float()
        loss: Tensor = self.loss(logits, batch["target"])
        if share < 1:
            loss = share * loss + (1 - share) * self.loss(logits, partners)
        if self.teacher is not None:
            options = self._config.loss
            soft = distillation_loss(logits, mixed["teacher"], options.temperature)
            loss = (1 - options.teacher_share) * loss + options.teacher_share * soft
        return self.accumulate_loss(loss, len(logits))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Collect logits in training precision; they only select the epoch."""
        self._validation.update(batch["row"], self(batch), batch["target"])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole validation split, equal on all ranks."""
        logits, targets = self._validation.take()
        values = validation_metrics(logits.double().softmax(dim=1), targets, self._positive)
        values["loss"] = self.loss(logits, targets)
        self.log_validation(values)

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Collect log-probabilities in 32 bit, regardless of the training precision."""
        symmetries = self.card.config["evaluation"]["views"]
        image, record = batch.get("image"), batch.get("record")
        has_image = batch.get("has_image")
        log_probabilities, features = self.network.predict(image, record, symmetries, has_image)
        self._test.update(batch["row"], log_probabilities, batch["target"], features)

    def on_test_epoch_end(self) -> None:
        """Gather the rows of all ranks before the devices are released."""
        self.test_outputs = self._test.take()


def validation_metrics(
    probabilities: Float[Tensor, "n classes"], targets: Int[Tensor, " n"], positive: Sequence[int]
) -> dict[str, Tensor]:
    """Return AUROC, AUPRC and balanced accuracy of a whole split.

    `auroc` (one class against the rest) and `balanced_accuracy` are means over the classes that
    occur; `auprc` is malignant (the classes `positive`) against the rest. Undefined metrics are
    left out.
    """
    present = sorted(set(targets.tolist()))
    classes = probabilities.shape[1]
    recalls = multiclass_accuracy(probabilities, targets, num_classes=classes, average="none")
    columns = torch.tensor(list(positive), device=targets.device)
    malignancy = probabilities[:, columns].sum(dim=1).clamp(max=1)
    is_malignant = torch.isin(targets, columns).long()
    metrics = {"balanced_accuracy": recalls[present].mean()}
    if len(present) > 1:
        aurocs = [binary_auroc(probabilities[:, k], (targets == k).long()) for k in present]
        metrics["auroc"] = torch.stack(aurocs).mean()
    if is_malignant.min() < is_malignant.max():
        metrics["auprc"] = binary_average_precision(malignancy, is_malignant)
    return metrics
