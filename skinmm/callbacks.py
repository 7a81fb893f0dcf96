"""What watches a run: history file, a line an epoch, atomic checkpoints, the last one on Ctrl-C."""

import csv
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from skinmm.checkpoint import save_atomically

HISTORY_COLUMNS: Final = ("epoch", "step", "name", "value")


class History(Logger):
    """Writes `history.csv`, a line for every logged value: epoch, step, name, value."""

    def __init__(self, path: Path) -> None:
        """Takes the file, which is made with the first value."""
        super().__init__()
        self._path = path

    @property
    def name(self) -> str:
        """The logger's name."""
        return "history"

    @property
    def version(self) -> str:
        """There is one history a run."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: the configuration has a file of its own."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Appends values; the file is complete after every epoch, whatever comes next."""
        new = not self._path.exists()
        with self._path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(HISTORY_COLUMNS)
            epoch = int(metrics.get("epoch", 0))
            for name, value in metrics.items():
                if name != "epoch":
                    writer.writerow([epoch, step, name, f"{value:.9g}"])


class EpochLines(Callback):
    """Prints a line an epoch: training loss, the monitored value, the time it took."""

    def __init__(self, monitor: str) -> None:
        """Takes the name of the monitored value."""
        self._monitor = monitor
        self._started = 0.0

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Prints the line."""
        values = trainer.callback_metrics
        names = dict.fromkeys(("train/loss", "val/loss", self._monitor))
        shown = "  ".join(f"{name} {float(values[name]):.4f}" for name in names if name in values)
        epoch, seconds = trainer.current_epoch + 1, time.monotonic() - self._started
        line = f"epoch {epoch}/{trainer.max_epochs}  {shown}  {seconds:.0f} s"
        print(line, flush=True)  # noqa: T201


class InterruptCheckpoint(Callback):
    """Keeps where a run was when it was interrupted."""

    def __init__(self, path: Path) -> None:
        """Takes the checkpoint's place."""
        self._path = path

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """Saves on Ctrl-C; after an error the last whole epoch's checkpoint is the better one.

        Unlike `trainer.save_checkpoint` this waits for no other process: the signal may have
        reached rank 0 alone, and the others are waiting for it in the middle of a step.
        """
        if isinstance(exception, KeyboardInterrupt) and trainer.global_step > 0:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, self._path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes every checkpoint beside its place and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Saves atomically."""
        save_atomically(checkpoint, Path(path))
