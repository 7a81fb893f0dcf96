"""The Lightning Trainer that a configuration asks for, and how long it will be busy."""

import copy
import logging
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor

from skinmm.config import Config, to_mapping
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError
from skinmm.training import distributed
from skinmm.training.averaging import WeightAverage
from skinmm.training.callbacks import (
    AtomicCheckpointIO,
    EpochLines,
    History,
    Patience,
    RunCheckpoints,
)
from skinmm.training.module import Classifier
from skinmm.training.wandb_upload import share

PRECISIONS: Final[dict[str, Any]] = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
EVALUATION_COST: Final = 0.25  # of a training step's, a row: no gradients, 16-bit


def build_trainer(config: Config, run: Path) -> pl.Trainer:
    """The trainer of one fold.

    Args:
        config: the whole configuration.
        run: the fold's folder.

    Raises:
        InputError: an accelerator or a number of devices that this machine does not have.
    """
    options = config.trainer
    accelerator = _accelerator(options.accelerator)
    devices, nodes = _processes(options.devices, accelerator)
    together = options.strategy == "ddp" or devices * nodes > 1
    if options.sync_batchnorm and together and accelerator == "cpu":
        raise InputError("trainer.sync_batchnorm=true: torch has it for GPUs only")
    # Where torchrun did not start the processes, Lightning does, whatever a cluster's queue says.
    started = [] if distributed.by_torchrun() else [LightningEnvironment()]
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=nodes,
        strategy=_ddp(config) if together else "auto",
        precision=_precision(options.precision, accelerator),
        max_epochs=options.max_epochs,
        accumulate_grad_batches=options.accumulate,
        gradient_clip_val=options.clip,
        limit_train_batches=options.limit_batches,
        limit_val_batches=options.limit_batches,
        callbacks=_callbacks(config, run / "checkpoints"),
        logger=LOGGERS[config.logger.name](config, run),
        plugins=[AtomicCheckpointIO(), *started],
        deterministic="warn",
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar=options.progress and sys.stdout.isatty(),
        default_root_dir=run,
    )


def quiet() -> None:
    """Leaves of Lightning's and timm's own lines those that someone has to act on."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "timm"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch to Lightning, not to us
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # What is logged of the validation split was gathered from all ranks before.
    warnings.filterwarnings("ignore", message=r"It is recommended to use `self\.log\(")
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
    # Lightning does not see that the sampler goes on where it was.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")
    # model.freeze means it:
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")


def expected_duration(
    module: Classifier, data: LesionData, trainer: pl.Trainer, epochs: int
) -> str:
    """Predicts how long a run trains from three training steps of a copy of the network.

    Reading a batch in a loader process overlaps with computing, so the slower of the two counts.
    """
    began = time.perf_counter()
    loader = data.train_dataloader()
    keys = islice(loader.sampler, loader.batch_size or 1)
    batch = loader.collate_fn([loader.dataset[key] for key in keys])
    reading = (time.perf_counter() - began) / max(loader.num_workers, 1)
    device = trainer.strategy.root_device
    network, loss = copy.deepcopy(module.network).to(device), module.loss.to(device)
    held = {name: value.to(device) for name, value in batch.items()}
    with torch.random.fork_rng():
        steps = [_timed(lambda: _step(network, loss, held, trainer), device) for _ in range(3)]
    step = max(min(steps[1:]), reading)
    evaluation = len(data.rows("val")) / (loader.batch_size or 1) * step * EVALUATION_COST
    return _said(epochs * (len(loader) * step + evaluation) / trainer.world_size)


def device_name(trainer: pl.Trainer) -> str:
    """What a run trains on, as its record says."""
    device = trainer.strategy.root_device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def log_test(trainer: pl.Trainer, evaluation: dict[str, Any]) -> None:
    """Hands the test metrics to the loggers."""
    values = {
        f"test/{name}": entry["value"]
        for name, entry in evaluation["metrics"].items()
        if entry["value"] is not None
    }
    # Both counters stand on the next one by now; the test belongs to the last.
    values["epoch"] = max(trainer.current_epoch - 1, 0)
    for logger in trainer.loggers:
        logger.log_metrics(values, max(trainer.global_step - 1, 0))


def share_run(trainer: pl.Trainer, run: Path, *, names: bool) -> None:
    """Hands a judged run to W&B, if it reports there, and ends it: the next fold has its own."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            share(logger.experiment, run, names=names)
            logger.experiment.finish()


def _said(seconds: float) -> str:
    """A duration in the largest unit of which there are at least two."""
    sizes = [("h", 3600, 1), ("min", 60, 0)]
    unit, size, digits = next((each for each in sizes if seconds >= 2 * each[1]), ("s", 1, 0))
    return f"{seconds / size:.{digits}f} {unit}"


def _callbacks(config: Config, checkpoints: Path) -> list[Callback]:
    options = config.trainer
    keeping = RunCheckpoints(
        checkpoints, options.monitor, options.checkpoint_minutes, options.average_best
    )
    stopping = Patience(options.monitor, mode=keeping.mode, patience=options.patience)
    average = [WeightAverage(options.ema)] if options.ema else []
    lines = [EpochLines(options.monitor)] if options.progress else []
    return [*average, stopping, keeping, *lines]


def _accelerator(wish: str) -> str:
    available = torch.cuda.is_available()
    if wish == "gpu" and not available:
        raise InputError("trainer.accelerator=gpu: no GPU is available here; use trainer=cpu")
    return "gpu" if available and wish != "cpu" else "cpu"


def _ddp(config: Config) -> DDPStrategy:
    return DDPStrategy(
        timeout=timedelta(minutes=config.trainer.timeout),
        # While the head learns alone, the image network has no gradients to wait for.
        find_unused_parameters=config.optimizer.head_epochs > 0,
    )


def _processes(wish: int | str, accelerator: str) -> tuple[int, int]:
    """Processes on this machine, and machines; where torchrun started them, its numbers hold."""
    if not distributed.by_torchrun():
        return _devices(wish, accelerator), 1
    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if wish not in ("auto", here):
        raise InputError(f"trainer.devices={wish}: torchrun started {here} processes here")
    return _devices(here, accelerator), everywhere // here


def _devices(wish: int | str, accelerator: str) -> int:
    available = torch.cuda.device_count()
    if wish == "auto":
        return available if accelerator == "gpu" else 1
    if accelerator == "gpu" and int(wish) > available:
        raise InputError(f"trainer.devices={wish}: this machine has {available} GPUs")
    return int(wish)


def _precision(wish: str, accelerator: str) -> Any:
    if wish != "auto":
        return PRECISIONS[wish]
    if accelerator == "gpu":
        return PRECISIONS["bf16" if torch.cuda.is_bf16_supported() else "16"]
    return PRECISIONS["bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "32"]


def _wandb(config: Config, run: Path) -> list[Logger]:
    options = config.logger
    # A fold, or a run of a grid, is known by its parent's name too.
    nested = run.name.isdecimal() or run.name.startswith("fold_")
    begun = sorted((run / "wandb").glob("*run-*-*"))
    logger = WandbLogger(
        name=f"{run.parent.name}/{run.name}" if nested else run.name,
        save_dir=run,
        project=options.project,
        entity=options.entity,
        group=options.group or (run.parent.name if nested else None),
        id=begun[-1].name.rpartition("-")[2] if begun and config.resume else None,
        resume="allow" if config.resume else None,
        config=to_mapping(config),
    )
    return [History(run / "history.csv"), logger]


LOGGERS: Final[dict[str, Callable[[Config, Path], list[Logger]]]] = {
    "csv": lambda _, run: [History(run / "history.csv")],
    "tensorboard": lambda _, run: [
        History(run / "history.csv"),
        TensorBoardLogger(run, name=None, version="tensorboard"),
    ],
    "wandb": _wandb,
    "none": lambda _, __: [],
}


def _step(network: Any, loss: Any, batch: dict[str, Tensor], trainer: pl.Trainer) -> None:
    with trainer.precision_plugin.forward_context():
        logits = network(*(batch.get(name) for name in ("image", "record", "shown")))
        value = loss(logits, batch["target"])
    value.backward()


def _timed(call: Callable[[], None], device: torch.device) -> float:
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began
