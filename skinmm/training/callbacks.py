"""Callbacks and loggers of a run: history, early stopping, EMA and checkpoints."""

import csv
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor

from skinmm.errors import Terminated
from skinmm.files import atomic_write
from skinmm.models.checkpoint import PREFIX, save_checkpoint

if TYPE_CHECKING:
    from skinmm.training.module import BaseModule

SELECTION: Final = "selection"
"""Name of the logged value that selects the best epoch and stops the run."""
BEST_EPOCHS: Final = "best-epoch=*.ckpt"
"""Names of the checkpoints in a run that stores more than one best epoch."""


class History(Logger):
    """Logger that writes `history.csv`, one line per logged value: epoch, step, name, value."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._rows: list[list[str]] | None = None

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "history"

    @property
    def version(self) -> str:
        """Empty: a run has one history."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: config.yaml contains the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append values atomically; first remove later values that a killed run logged."""
        if self._rows is None:
            lines = self._path.read_text(encoding="utf-8") if self._path.exists() else ""
            self._rows = [*csv.reader(lines.splitlines())][1:]
        step, epoch = step or 0, str(int(metrics.get("epoch", 0)))
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._rows = [row for row in self._rows if _is_valid(row, step, values.keys())]
        self._rows += [[epoch, str(step), name, f"{value:.9g}"] for name, value in values.items()]
        with atomic_write(self._path) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("epoch", "step", "name", "value"), *self._rows])


class Patience(EarlyStopping):
    """Early stopping that resumes its count, with the patience of the present configuration.

    `metric` names the metric whose mean is `SELECTION`; a loss should fall, others rise.
    """

    def __init__(self, metric: str, patience: int) -> None:
        super().__init__(SELECTION, mode=_mode(metric), patience=patience)
        self._metric = metric

    @property
    def state_key(self) -> str:
        """Key in a checkpoint; it contains the metric's name, as in earlier versions."""
        return super().state_key.replace(SELECTION, self._metric)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, but not the patience of the interrupted run."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Stop at once if the interrupted run had already stopped."""
        trainer.should_stop = self.wait_count >= self.patience


class RunCheckpoints(ModelCheckpoint):
    """Checkpoints `best.ckpt` (highest `SELECTION`) and `last.ckpt` (for `resume=`).

    `last.ckpt` is written after every epoch and, within an epoch, every so many minutes, on
    Ctrl-C and on SIGTERM, always between two steps. Rank 0 writes it without waiting for other
    processes. No absolute path is stored, so a folder that was moved is resumed with its best
    score.

    Args:
        metric: name of the metric whose mean is `SELECTION`; a loss should fall, others rise.
            None: without validation the last epochs are the best.
        minutes: least time between two checkpoints within an epoch; 0: after every step.
        best: number of best epochs to store; several are named by their epoch (`BEST_EPOCHS`).
    """

    def __init__(self, folder: Path, metric: str | None, minutes: float, best: int = 1) -> None:
        super().__init__(
            folder,
            filename="best" if best == 1 else "best-{epoch}",
            monitor=SELECTION if metric else "epoch",
            mode=_mode(metric or ""),
            save_top_k=best,
            enable_version_counter=False,
        )
        self._metric = metric or ""
        self._last = folder / "last.ckpt"
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._interrupt: type[KeyboardInterrupt] | None = None

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Install handlers that end the run after the current step, or at once if repeated."""
        self._saved = time.monotonic()

        def interrupt(number: int, *_: Any) -> None:
            kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
            if not trainer.training or self._interrupt:
                raise kind
            self._interrupt = kind

        if threading.current_thread() is not threading.main_thread():
            return
        # Lightning restores the earlier handlers.
        if trainer.is_global_zero:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, interrupt)
        else:  # rank 0 receives it too, and ends the others
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Save `last.ckpt` if it is due and finite.

        Never after an epoch's last batch: a run resumed there would skip the validation.
        """
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # gradients are not saved
            return
        is_due = self._interrupt or time.monotonic() - self._saved >= self._seconds
        if is_due and not loop.batch_progress.is_last_batch:
            cast("BaseModule", pl_module).require_finite_weights()
            self._save_last(trainer)
        self._raise_interrupt()

    def on_train_end(self, *_: Any) -> None:
        """Raise an interrupt (Ctrl-C or SIGTERM) that arrived after the last step."""
        self._raise_interrupt()

    def _raise_interrupt(self) -> None:
        if self._interrupt:
            raise self._interrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save `best.ckpt` if the epoch is the best, and `last.ckpt` always."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)

    @property
    def state_key(self) -> str:
        """Key in a checkpoint; it contains the metric's name, as in earlier versions."""
        return super().state_key.replace(SELECTION, self._metric)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, with file names instead of paths."""
        return _in_folder(super().state_dict(), Path())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, with the files in this run's folder."""
        super().load_state_dict(_in_folder(state_dict, Path(self.dirpath or "")))
        self.current_score = state_dict["current_score"]

    def _save_last(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, self._last)
            self._saved = time.monotonic()


class AverageWeights(WeightAveraging):
    """Exponential moving average of weights and BatchNorm statistics, updated after every step.

    Validation, `best.ckpt` and prediction use the average, which starts with the initial weights.
    At step n `decay`, which is below 1, is at most (1 + n) / (10 + n), as in timm and TensorFlow
    (Polyak and Juditsky 1992, doi:10.1137/0330046).
    """

    def __init__(self, decay: float) -> None:
        super().__init__(multi_avg_fn=partial(_update_average, decay))

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the average with the initial weights, not with the weights after the first step."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and self._average_model is not None:
            self._average_model.n_averaged += 1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Move the average to the device of the module, which `setup` does not know yet."""
        if self._average_model is not None:
            self._average_model.to(pl_module.device)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restore the average and the training weights, also from older checkpoints."""
        if "training_weights" in checkpoint:
            weights, steps = checkpoint["training_weights"], checkpoint["global_step"]
            checkpoint["current_model_state"] = {PREFIX + name: weights[name] for name in weights}
            checkpoint["averaging_state"] = {"n_averaged": torch.tensor(steps + 1)}
            self._latest_update_step = steps
        super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _update_average(
    decay: float, averages: Sequence[Tensor], values: Sequence[Tensor], step: Tensor
) -> None:
    decay = min(decay, (1 + int(step)) / (10 + int(step)))
    for average, value in zip(averages, values, strict=True):
        if average.is_floating_point():
            average.lerp_(value, 1 - decay)
        else:
            average.copy_(value)  # counters


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writer of checkpoint files under a temporary name, renamed when complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Save atomically."""
        save_checkpoint(checkpoint, Path(path))


def _is_valid(row: list[str], step: int, names: Set[str]) -> bool:
    """Return whether a row of the history remains valid when a step is logged."""
    _, earlier, name, _ = row
    if int(earlier) < step:
        return not name.startswith("test/")  # logged before the run was resumed
    return int(earlier) == step and name not in names


def _mode(metric: str) -> str:
    """Return `min` for a metric that should be low, `max` for others."""
    return "min" if metric.endswith("loss") else "max"


def _in_folder(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a checkpoint callback's state with all files in another folder."""

    def move(path: str) -> str:
        return str(folder / Path(path).name) if path else ""

    moved = {name: move(path) for name, path in state.items() if name.endswith("model_path")}
    models = {move(path): score for path, score in state["best_k_models"].items()}
    return {**state, **moved, "best_k_models": models, "dirpath": str(folder)}
