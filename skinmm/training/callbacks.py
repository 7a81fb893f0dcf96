"""What watches a run: its history, a line an epoch, when it stops, and its checkpoints."""

import csv
import signal
import threading
import time
from argparse import Namespace
from collections.abc import Set
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.utilities import rank_zero_only

from skinmm.files import atomic_write
from skinmm.models.checkpoint import save_checkpoint

SEVERAL: Final = "best-epoch=*.ckpt"
HISTORY_COLUMNS: Final = ("epoch", "step", "name", "value")


class History(Logger):
    """Writes `history.csv`, a line for every logged value: epoch, step, name, value."""

    def __init__(self, path: Path) -> None:
        """Takes the file, which is made with the first value."""
        super().__init__()
        self._path = path
        self._rows: list[list[str]] | None = None

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
        """Adds values, in place of what a run that was killed had logged from this step on.

        The file is whole at any time, whatever comes next.
        """
        if self._rows is None:
            self._rows = _rows_of(self._path)
        place, epoch = step or 0, str(int(metrics.get("epoch", 0)))
        values = {name: value for name, value in metrics.items() if name != "epoch"}
        self._rows = [row for row in self._rows if _stays(row, place, values.keys())]
        self._rows += [[epoch, str(place), name, f"{value:.9g}"] for name, value in values.items()]
        with (
            atomic_write(self._path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([HISTORY_COLUMNS, *self._rows])


class EpochLines(Callback):
    """Prints a line an epoch: training loss, the monitored value, the time it took."""

    def __init__(self, monitor: str) -> None:
        """Takes the name of the monitored value."""
        self._monitor = monitor
        self._started = 0.0

    def on_train_start(self, *_: Any) -> None:
        """Starts the clock of an epoch that a resumed run goes on with."""
        self._started = time.monotonic()

    def on_train_epoch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Prints the line."""
        values = trainer.callback_metrics
        names = dict.fromkeys(("train/loss", "val/loss", self._monitor))
        shown = "  ".join(
            f"{name} -" if name == pl_module.undefined else f"{name} {float(values[name]):.4f}"
            for name in names
            if name in values
        )
        epoch, seconds = trainer.current_epoch + 1, time.monotonic() - self._started
        line = f"epoch {epoch}/{trainer.max_epochs}  {shown}  {seconds:.0f} s"
        print(line, flush=True)  # noqa: T201


class Patience(EarlyStopping):
    """Early stopping that a resumed run keeps to, with the patience of its own configuration."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what was seen, not how patient the interrupted run was."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A run that had stopped before it was killed trains no further."""
        trainer.should_stop = self.wait_count >= self.patience


class RunCheckpoints(ModelCheckpoint):
    """Keeps `best.ckpt` by the monitored value, and `last.ckpt` for `resume=`.

    The last one is written after every epoch and, within an epoch, every so many minutes and on
    Ctrl-C, always between two steps. Rank 0 decides and writes alone: it waits for no other
    process. No absolute path is kept, so a folder that was moved is resumed with its best score.
    """

    def __init__(self, folder: Path, monitor: str, minutes: float, best: int = 1) -> None:
        """Takes the folder, what the best checkpoint watches, and the time between two.

        Args:
            folder: of both checkpoints.
            monitor: name of a logged value; a loss is to fall, others are to rise.
            minutes: at least between two checkpoints within an epoch; 0 is after every step.
            best: how many epochs to keep; several are named by their epoch (`SEVERAL`).
        """
        mode = "min" if monitor.endswith("loss") else "max"
        super().__init__(
            folder,
            filename="best" if best == 1 else "best-{epoch}",
            monitor=monitor,
            mode=mode,
            save_top_k=best,
            enable_version_counter=False,
        )
        self._last = folder / "last.ckpt"
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._interrupted = False

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """From now on Ctrl-C ends the step that is being made."""
        self._saved = time.monotonic()

        def interrupt(*_: Any) -> None:
            if not trainer.is_global_zero:
                return  # rank 0 was told as well, and ends the others
            if not trainer.training or self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, interrupt)  # Lightning puts the former one back

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves where the run is, if it is time to.

        Never after an epoch's last batch: a run resumed there would miss the validation.
        """
        loop = trainer.fit_loop.epoch_loop
        if loop._should_accumulate():  # gradients are not saved
            return
        leaves = self._interrupted or trainer.received_sigterm
        due = leaves or time.monotonic() - self._saved >= self._seconds
        if due and not loop.batch_progress.is_last_batch:
            self._save_last(trainer)
        if self._interrupted:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Saves the best one, and the last one whether or not it is the best."""
        super().on_train_epoch_end(trainer, pl_module)
        self._save_last(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The state, its files by their names."""
        return _moved(super().state_dict(), Path())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the state over, its files in this run's folder."""
        super().load_state_dict(_moved(state_dict, Path(self.dirpath or "")))
        self.current_score = state_dict["current_score"]

    def _save_last(self, trainer: pl.Trainer) -> None:
        if trainer.is_global_zero:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, self._last)
            self._saved = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes every checkpoint beside its place and renames it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, *_: Any, **__: Any) -> None:
        """Saves atomically."""
        save_checkpoint(checkpoint, Path(path))


def _rows_of(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))[1:]


def _stays(row: list[str], step: int, names: Set[str]) -> bool:
    """Whether a line is still true once values of a step are logged."""
    _, earlier, name, _ = row
    if int(earlier) < step:
        return not name.startswith("test/")  # of a run that has been resumed since
    return int(earlier) == step and name not in names


def _moved(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    def here(path: str) -> str:
        return str(folder / Path(path).name) if path else ""

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    models = {here(path): score for path, score in state["best_k_models"].items()}
    files = {name: here(state[name]) for name in names}
    return {**state, **files, "best_k_models": models, "dirpath": str(folder)}
