"""Compare a training epoch with a bare PyTorch loop: same rows, augmentation, network and workers.

    python benchmarks/overhead.py [PAIRS] [IMAGE_SIZE]

Both alternate in one process, so that other load affects both. The ratio of each pair and the
median are printed. The target is a median of at most 1.03.
"""

import copy
import os
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytorch_lightning as pl
import torch
from torch import nn

from skinmm.config import Config, from_mapping
from skinmm.data.datamodule import LesionData
from skinmm.models.fusion import FUSIONS
from skinmm.training.fold import build_classifier
from skinmm.training.module import Classifier
from skinmm.training.trainer import build_trainer, silence_libraries

EPOCH = {
    "model": {"name": "tf_efficientnet_lite0", "pretrained": False},
    "fusion": {"name": "concat"},
    "tabular": {"name": "mlp"},
    "loss": {"name": "cross_entropy"},
    "sampler": {"name": "shuffle"},
    "augment": {"name": "standard"},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "constant"},
    "trainer": {"max_epochs": 1, "progress": False},
    "overwrite": True,
}


class Clock(pl.Callback):
    """Timer of the training epoch alone, without set-up and validation."""

    def on_train_epoch_start(self, *_: object) -> None:
        """Start."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, *_: object) -> None:
        """Stop after each batch; validation follows the last one."""
        self.seconds = time.perf_counter() - self.began


def build(config: Config, folder: Path) -> tuple[pl.Trainer, LesionData, Classifier]:
    """Return what `train_fold` trains."""
    pl.seed_everything(config.seed, verbose=False)
    trainer = build_trainer(config, folder)
    data = LesionData(config, FUSIONS[config.fusion.name].inputs)
    data.setup()
    return trainer, data, build_classifier(config, data)


def ours(config: Config, folder: Path) -> float:
    """Return the seconds of an epoch through `skinmm`."""
    trainer, data, module = build(config, folder)
    clock = Clock()
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    trainer.fit(module, data)
    return clock.seconds


def bare(config: Config, folder: Path) -> float:
    """Return the seconds of the same epoch in a plain loop."""
    trainer, data, module = build(config, folder)
    network, loss = copy.deepcopy(module.network), module.loss
    loader, precision = data.train_dataloader(), trainer.precision
    optimizer = torch.optim.AdamW(network.parameters(), lr=float(config.optimizer.lr))
    network.train()
    began = time.perf_counter()
    for batch in loader:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            value = loss(network(image, batch["record"]), batch["target"])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.trainer.clip or 0.0)
        optimizer.step()
    return time.perf_counter() - began


def main(pairs: int, size: int) -> None:
    """Print a line per pair and the medians."""
    silence_libraries()
    config = from_mapping(Config, EPOCH)
    config.model.image_size = size
    ratios = []
    with TemporaryDirectory() as folder:
        for pair in range(pairs):
            turns = [ours, bare] if pair % 2 == 0 else [bare, ours]
            seconds = {turn.__name__: turn(config, Path(folder)) for turn in turns}
            ratios.append(seconds["ours"] / seconds["bare"])
            print(
                f"pair {pair + 1}: ours {seconds['ours']:.2f} s, "
                f"bare {seconds['bare']:.2f} s, ratio {ratios[-1]:.3f}"
            )
    print(
        f"median ratio {statistics.median(ratios):.3f} of {pairs} pairs; Lite0 at {size} px, "
        f"420 rows, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}"
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(*(numbers + [5, 128][len(numbers) :]))
