"""The Lightning Trainer of a configuration, its loggers and process-wide settings."""

import logging
import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.trainer.connectors.signal_connector import _SignalConnector

from skinmm.config import Config
from skinmm.config.cores import count_cores
from skinmm.errors import InputError, Terminated
from skinmm.images.decode import reuse_freed_memory
from skinmm.training.callbacks import (
    AtomicCheckpointIO,
    AverageWeights,
    Patience,
    RunCheckpoints,
)
from skinmm.training.distributed import is_torchrun
from skinmm.training.progress import Progress
from skinmm.training.trackers import LOGGERS

PRECISIONS: Final[dict[str, Any]] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
THREADS: Final = min(torch.get_num_threads(), count_cores())


def uses_gpu(config: Config) -> bool:
    """Return whether a run trains on a GPU of this machine."""
    return torch.cuda.is_available() and config.trainer.accelerator != "cpu"


def build_trainer(config: Config, run: Path, epochs: int | None = None) -> pl.Trainer:
    """Build the trainer of one fold; `epochs` replaces `trainer.max_epochs`, without validation."""
    options = config.trainer
    accelerator = "gpu" if uses_gpu(config) else "cpu"
    if options.accelerator == "gpu" and accelerator == "cpu":
        raise InputError("trainer.accelerator=gpu: no GPU is available here; use trainer=cpu")
    devices, nodes = _count_processes(options.devices, accelerator)
    is_ddp = options.strategy == "ddp" or devices * nodes > 1
    if options.sync_batchnorm and is_ddp and accelerator == "cpu":
        raise InputError("trainer.sync_batchnorm=true: needs GPUs; set it to false")
    # During head_epochs the image network has no gradients to wait for.
    has_unused, timeout = config.optimizer.head_epochs > 0, timedelta(minutes=options.timeout)
    ddp = DDPStrategy(timeout=timeout, find_unused_parameters=has_unused)
    # Without torchrun Lightning starts the processes, also within the job of a cluster.
    environments = [] if is_torchrun() else [LightningEnvironment()]
    trainer = pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=ddp if is_ddp else "auto",
        precision=_choose_precision(options.precision, accelerator),
        max_epochs=epochs or options.max_epochs,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip,
        limit_train_batches=options.limit_batches,
        limit_val_batches=0 if epochs else options.limit_batches,
        callbacks=_build_callbacks(config, run / "checkpoints", validates=epochs is None),
        logger=LOGGERS[config.logger.name](config, run),
        plugins=[AtomicCheckpointIO(), *environments],
        deterministic="warn",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=False,  # Progress is ours
        default_root_dir=run,
    )
    trainer._signal_connector = RestoringSignals(trainer)
    return trainer


def run_stage(stage: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Run `fit` or `test` of a trainer, and raise on Ctrl-C and SIGTERM.

    Lightning exits instead, after the callbacks have saved their state.

    Raises:
        KeyboardInterrupt: on Ctrl-C.
        Terminated: on SIGTERM.
    """
    try:
        stage(*args, **options)
    except SystemExit as error:
        is_sigterm = isinstance(error.__context__, Terminated)
        raise (Terminated if is_sigterm else KeyboardInterrupt) from error


class RestoringSignals(_SignalConnector):
    """Signal connector that only restores handlers after a stage.

    Lightning's handler of SIGTERM waits for other processes, and acts only between two batches.
    """

    def register_signal_handlers(self) -> None:
        """Store the handlers to restore."""
        self._original_handlers = self._get_current_signal_handlers()


def set_threads(*, has_images: bool, processes: int = 1) -> None:
    """Use all threads for images (divided among processes), and one for small record layers.

    Memory of tensors is reused as well.
    """
    reuse_freed_memory()
    threads = THREADS if processes == 1 else max(min(THREADS, count_cores() // processes), 1)
    torch.set_num_threads(threads if has_images else 1)


def silence_libraries() -> None:
    """Hide the messages of Lightning and timm that require no action from the user."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "timm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",  # addressed to Lightning
        ".*smaller than the logging interval.*",
        ".*does not have many workers.*",
        r"It is recommended to use `self\.log\(",  # logged values were gathered from all ranks
        ".*Checkpoint directory .* exists and is not empty.*",
        "You're resuming from a checkpoint that ended before",  # the sampler continues exactly
        ".*in eval mode at the start of training.*",  # intended with model.freeze
    ):
        warnings.filterwarnings("ignore", message=message)


def log_test(trainer: pl.Trainer, evaluation: dict[str, Any]) -> None:
    """Log the test metrics, as values of the last epoch and step."""
    values = {
        f"test/{name}": entry["value"]
        for name, entry in evaluation["metrics"].items()
        if entry["value"] is not None
    }
    # After training, both counters have moved past the last epoch and step.
    values["epoch"] = max(trainer.current_epoch - 1, 0)
    for logger in trainer.loggers:
        logger.log_metrics(values, max(trainer.global_step - 1, 0))


def _build_callbacks(config: Config, folder: Path, *, validates: bool) -> list[Callback]:
    options = config.trainer
    metric = options.monitor if validates else None
    checkpoints = RunCheckpoints(folder, metric, options.checkpoint_minutes, options.average_best)
    stopping = [Patience(options.monitor, options.patience)] if validates else []
    average = [AverageWeights(options.ema)] if options.ema else []
    lines = [Progress(options.monitor)] if options.progress else []
    return [*average, *stopping, checkpoints, *lines]


def _count_processes(setting: int | str, accelerator: str) -> tuple[int, int]:
    """Return the numbers of processes per machine and of machines, also under torchrun."""
    machines = 1
    if is_torchrun():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if setting not in ("auto", local):
            raise InputError(f"trainer.devices={setting}: torchrun started {local} processes here")
        setting, machines = local, int(os.environ["WORLD_SIZE"]) // local
    available = torch.cuda.device_count() if accelerator == "gpu" else 1
    if setting == "auto":
        return available, machines
    if accelerator == "gpu" and int(setting) > available:
        raise InputError(f"trainer.devices={setting}: this machine has {available} GPUs")
    if accelerator == "cpu" and not is_torchrun() and int(setting) > (cores := count_cores()):
        raise InputError(f"trainer.devices={setting}: this machine has {cores} CPU cores")
    return int(setting), machines


def _choose_precision(setting: str, accelerator: str) -> Any:
    if setting != "auto":
        return PRECISIONS[setting]
    if accelerator == "gpu":
        return PRECISIONS["bf16" if torch.cuda.is_bf16_supported() else "16"]
    return PRECISIONS["bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32"]
