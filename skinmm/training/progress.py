"""Progress of a run: bar or sparse lines, names of the stages, and the expected duration."""

import importlib
import sys
import time
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only
from tqdm import tqdm

from skinmm.config import Config, ModelConfig
from skinmm.data.datamodule import LesionData
from skinmm.data.splits import CALIBRATION
from skinmm.errors import print_line
from skinmm.models.backbone import Backbone
from skinmm.training.autotune import StepTime, measure_step
from skinmm.training.module import Classifier

SPARSE: Final = 15.0
"""Seconds between two lines where there is neither a terminal nor a notebook."""
QUICKER: Final = "tf_efficientnet_lite0"
SLOW: Final = 1800.0
"""Seconds of training on a CPU from which a quicker network is named."""
EVALUATION_COST: Final = 0.25
"""Cost of a row in evaluation, relative to one in training: no gradients, 16 bit."""
LATER_SECONDS: Final = (15.0, 0.004)
"""Seconds that intervals, explanations and report take: per fold, and per row of the test."""


class Progress(Callback):
    """Progress of training and testing: one bar, or a line every `SPARSE` seconds in a log.

    Epochs count from 1. Both have the losses, the monitored metric, and the time that the remaining
    epochs take at most: early stopping may end the training before.
    """

    def __init__(self, monitor: str) -> None:
        self._monitor = monitor
        self._bar: Any = None
        self._started = self._printed = 0.0
        self._first = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Start the clock, and the bar if there is a terminal or a notebook."""
        self._started, self._printed = time.monotonic(), 0.0
        self._first = trainer.current_epoch
        epochs, batches = trainer.max_epochs or 1, int(trainer.num_training_batches)
        self._open_bar(trainer, epochs * batches, self._first * batches, f"epoch 1/{epochs}")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Name the epoch."""
        if self._bar is not None:
            self._bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}")

    def on_train_batch_end(self, *_: Any) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update()

    on_test_batch_end: Any = on_train_batch_end

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Show the values of the epoch."""
        values = trainer.callback_metrics
        names = dict.fromkeys(("train/loss", "val/loss", self._monitor))
        text = "  ".join(
            f"{name} {float(values[name]):.4f}" if name in values else f"{name} -"
            for name in names
            if name in (*values, pl_module.undefined)
        )
        if self._bar is not None:
            self._bar.set_postfix_str(text)
            return
        epoch, epochs = trainer.current_epoch + 1, trainer.max_epochs or 1
        now, is_last = time.monotonic(), trainer.should_stop or epoch >= epochs
        if not is_last and self._printed and now - self._printed < SPARSE:
            return
        self._printed = now
        spent = now - self._started
        left = spent / (epoch - self._first) * (epochs - epoch)
        rest = "" if is_last else f", at most {format_duration(left)} left"
        print_line(f"epoch {epoch}/{epochs}  {text}  {format_duration(spent)}{rest}")

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # noqa: ARG002
        """Start a bar for the prediction of a part."""
        self._open_bar(trainer, sum(map(int, trainer.num_test_batches)), 0, "predicting")

    def on_train_end(self, *_: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    on_test_end: Any = on_train_end
    on_exception: Any = on_train_end

    def _open_bar(self, trainer: pl.Trainer, total: int, done: int, name: str) -> None:
        is_notebook = "ipykernel" in sys.modules
        if trainer.is_global_zero and (is_notebook or sys.stdout.isatty()):
            layout = "{desc}{percentage:.0f}% {bar} {elapsed}, at most {remaining} left{postfix}"
            options = {"bar_format": layout, "desc": f"{name}: ", "leave": name.startswith("epoch")}
            if is_notebook:
                options |= {
                    "file": NotebookLine(),
                    "mininterval": 1.0,
                    "ncols": 120,
                    "ascii": False,
                }
            else:
                options |= {"file": sys.stdout, "dynamic_ncols": True}
            self._bar = tqdm(total=total, initial=done, **options)


class NotebookLine:
    """Stream that replaces one line in the output of a notebook's cell."""

    def __init__(self) -> None:
        display: Any = importlib.import_module("IPython.display").display
        self._output = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        """Replace the line."""
        if text.strip("\r\n"):
            self._output.update({"text/plain": text.strip()}, raw=True)

    def flush(self) -> None:
        """Do nothing, as each line is shown at once."""


@rank_zero_only
def print_stage(config: Config, text: str) -> None:
    """Print the name of a stage after the training, unless `trainer.progress=false`."""
    if config.trainer.progress:
        print_line(text)


def format_duration(seconds: float) -> str:
    """Format `45 s`, `12 min` or `2.5 h`."""
    for unit, size, digits in (("h", 3600, 1), ("min", 60, 0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds:.0f} s"


def print_duration(
    module: Classifier,
    data: LesionData,
    trainer: pl.Trainer,
    config: Config,
    folds: int,
    step: StepTime | None = None,
) -> None:
    """Print the expected duration of a training with `trainer.progress=true`.

    It trains a copy on this process alone; SyncBatchNorm would wait for the others.
    """
    options = config.trainer
    if options.progress and not options.sync_batchnorm and module.network.fitted_head is None:
        step = step or measure_step(module, data, trainer, options.channels_last)
        duration = describe_duration(data, trainer, config, folds, step)
        print_line(f"expected duration: {duration}")
        seconds = (trainer.max_epochs or 1) * step.batches * step.seconds
        is_slow = seconds > SLOW and trainer.strategy.root_device.type == "cpu"
        if is_slow and module.network.image and config.model.trained != "head":
            share = measure_row(QUICKER) * step.rows / step.seconds
            if share < 1 / 2:
                rest = format_duration(share * seconds)
                print_line(f"quicker: model=effnet_lite0 trains in about {rest}")


def measure_row(name: str) -> float:
    """Measure the seconds of a training step per row of 224 px, with an untrained network."""
    rows, seconds = 8, []
    with torch.random.fork_rng():
        network = Backbone(ModelConfig(name=name, pretrained=False, image_size=224))
        images = torch.zeros(rows, 3, 224, 224, dtype=torch.uint8)
        network.to(memory_format=torch.channels_last)
        for _ in range(2):
            start = time.perf_counter()
            network(images.contiguous(memory_format=torch.channels_last)).sum().backward()
            seconds.append(time.perf_counter() - start)
    return min(seconds) / rows


def describe_duration(
    data: LesionData, trainer: pl.Trainer, config: Config, folds: int, step: StepTime
) -> str:
    """Estimate the durations of training and run from the seconds of a training step.

    The duration of the run includes tests, intervals, explanations and reports of `folds` folds
    (0: no).
    """
    rows = {part: len(data.rows(part)) for part in ("val", CALIBRATION, "test")}
    row_seconds = EVALUATION_COST / step.rows * step.seconds
    training = (trainer.max_epochs or 1) * (step.batches * step.seconds + rows["val"] * row_seconds)
    tested = sum(rows.values()) + rows["test"] * bool(data.record_widths)  # missing columns
    fold, row = LATER_SECONDS
    later = tested * config.evaluation.views * row_seconds
    total = folds * (training + later + fold + row * rows["test"])
    text = f"at most {format_duration(training)} to train"
    if not folds:
        return text
    count = f"all {folds} folds" if folds > 1 else "the whole run"
    return f"{text}, {format_duration(total)} for {count}"
