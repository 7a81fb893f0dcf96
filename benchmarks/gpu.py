"""Measure training and inference on the GPU of this machine, in under four minutes.

    python benchmarks/gpu.py [cuda|cpu] > benchmarks/results/gpu.md

The training step of skinmm, a bare PyTorch loop and a loop with the parts of timm's `train.py` (its
optimiser, gradient scaler and clipping; timm's package does not contain the script) get the same
batches of the included images, which are already in memory. Then the share of time that training
waits for its data, inference, and the peak memory. Without CUDA the sizes are tiny: such a run only
shows that the script works.
"""

import os
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import pytorch_lightning as pl
import timm
import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.utils import NativeScaler  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skinmm.config import Config, from_mapping
from skinmm.data.datamodule import LesionData
from skinmm.models.fusion import FUSIONS
from skinmm.training.fold import build_classifier
from skinmm.training.module import Classifier
from skinmm.training.trainer import build_trainer, set_threads, silence_libraries

NETWORKS: Final = {
    "EfficientNet-B3": ("efficientnet_b3", 300),
    "Lite0": ("efficientnet_lite0", 224),
}
LOOPS: Final = ("skinmm", "bare", "timm")
EPOCH: Final[dict[str, Any]] = {
    "fusion": {"name": "concat"},
    "tabular": {"name": "mlp"},
    "loss": {"name": "cross_entropy"},
    "sampler": {"name": "shuffle"},
    "augment": {"name": "standard"},
    "optimizer": {"name": "adamw"},
    "schedule": {"name": "constant"},
    "overwrite": True,
}
Batch = dict[str, Tensor]


class Sizes(NamedTuple):
    """Sizes of a run: rows of a batch, timed steps, steps before, and side in pixels if fixed."""

    batch: int
    steps: int
    warm: int
    side: int | None = None


SIZES: Final = {"cuda": Sizes(64, 40, 8), "cpu": Sizes(4, 2, 1, 64)}


class Clock(pl.Callback):
    """Timer of the steps of an epoch after the first `warm` ones."""

    def __init__(self, sizes: Sizes) -> None:
        self._sizes, self.seconds, self._began = sizes, 0.0, 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Start after the last warm step, stop after the last one."""
        done = args[-1] + 1
        if done == self._sizes.warm:
            self._began = now()
        elif done == self._sizes.warm + self._sizes.steps:
            self.seconds = now() - self._began


def now() -> float:
    """Return the time once the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def build(network: str, sizes: Sizes, device: str, **trainer: Any) -> tuple[Config, LesionData]:
    """Return a configuration and its rows."""
    name, side = NETWORKS[network]
    model = {"name": name, "pretrained": False, "image_size": sizes.side or side}
    options = {
        "max_epochs": 1,
        "progress": False,
        "batch_size": sizes.batch,
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": 1,
    }
    config = from_mapping(Config, EPOCH | {"model": model, "trainer": options | trainer})
    data = LesionData(config, FUSIONS[config.fusion.name].inputs)
    data.setup()
    return config, data


def train_skinmm(config: Config, module: Classifier, batches: list[Batch], sizes: Sizes) -> float:
    """Return the seconds of the timed steps by skinmm's trainer."""
    with TemporaryDirectory() as folder:
        trainer = build_trainer(config, Path(folder), epochs=1)  # without validation
        clock = Clock(sizes)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        steps: Any = [*islice(cycle(batches), sizes.warm + sizes.steps)]
        trainer.fit(module, DataLoader(steps, batch_size=None))
        return clock.seconds


def train_bare(config: Config, module: Classifier, batches: list[Batch], sizes: Sizes) -> float:
    """Return the seconds of the timed steps by a plain loop."""
    network, is_bf16 = module.network, config.trainer.precision == "bf16"
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step(batch: Batch) -> None:
        image = batch["image"].contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=is_bf16):
            value = module.loss(network(image, batch["record"]), batch["target"])
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.trainer.clip or 0.0)
        optimizer.step()

    return time_steps(step, network, batches, sizes)


def train_timm(config: Config, module: Classifier, batches: list[Batch], sizes: Sizes) -> float:
    """Return the seconds of the timed steps by the parts of timm's training; images only."""
    del module
    network: nn.Module = timm.create_model(config.model.name, num_classes=2)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=1e-4)
    loss, is_bf16, parameters = (
        nn.CrossEntropyLoss(),
        config.trainer.precision == "bf16",
        [*network.parameters()],
    )
    make_scaler: Any = NativeScaler
    scaler = make_scaler() if torch.cuda.is_available() and not is_bf16 else None

    def step(batch: Batch) -> None:
        image = batch["image"].to(memory_format=torch.channels_last, dtype=torch.float32)
        image = image.sub_(127.5).div_(127.5)  # on the device, as timm's loader does
        with torch.autocast(image.device.type, torch.bfloat16, enabled=is_bf16):
            value = loss(network(image), batch["target"])
        optimizer.zero_grad()
        if scaler:
            scaler(value, optimizer, clip_grad=config.trainer.clip or None, parameters=parameters)
            return
        value.backward()
        nn.utils.clip_grad_norm_(parameters, config.trainer.clip or 0.0)
        optimizer.step()

    return time_steps(step, network, batches, sizes)


def time_steps(
    step: Callable[[Batch], None], network: nn.Module, batches: list[Batch], sizes: Sizes
) -> float:
    """Return the seconds of the timed steps; batches are moved to the device one at a time."""
    device = "cuda" if torch.cuda.is_available() and sizes.side is None else "cpu"
    network.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    began = 0.0
    for number, batch in enumerate(islice(cycle(batches), sizes.warm + sizes.steps)):
        if number == sizes.warm:
            began = now()
        step({name: value.to(device, non_blocking=True) for name, value in batch.items()})
    return now() - began


def read_batches(data: LesionData, count: int) -> list[Batch]:
    """Return decoded and augmented batches in page-locked memory, without names."""
    loader = islice(cycle(data.train_dataloader()), count)
    tensors = [{n: v for n, v in batch.items() if isinstance(v, Tensor)} for batch in loader]
    if not torch.cuda.is_available():
        return tensors
    return [{name: value.pin_memory() for name, value in batch.items()} for batch in tensors]


def compare_training(network: str, sizes: Sizes, device: str) -> Iterator[str]:
    """Yield a row for each loop, precision and compilation."""
    _, data = build(network, sizes, device)
    batches = read_batches(data, 4)
    functions = {"skinmm": train_skinmm, "bare": train_bare, "timm": train_timm}
    settings = [(loop, p, False) for p in ("32", "bf16") for loop in LOOPS]
    if device == "cuda":  # a CPU compiles for minutes
        settings.append(("skinmm", "bf16", True))
    for loop, precision, compiled in settings:
        config, data = build(network, sizes, device, precision=precision, compile=compiled)
        torch.manual_seed(0)
        module = build_classifier(config, data)
        reset_memory()
        began = now()
        seconds = functions[loop](config, module, batches, sizes)
        cells = [loop, precision, "compiled" if compiled else ""]
        cells += [f"{sizes.batch * sizes.steps / seconds:,.0f}", measure_memory()]
        yield f"| {network} | {' | '.join(cells)} | {now() - began:.0f} s |"


def measure_wait(network: str, sizes: Sizes, device: str) -> str:
    """Return a row: rate with decoding and augmentation, and the share of time spent waiting."""
    config, data = build(network, sizes, device, precision="bf16")
    module = build_classifier(config, data)
    network_, place = module.network, torch.device(device)
    network_.to(place, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network_.parameters(), lr=1e-4)
    loader, waited, rows = iter(data.train_dataloader()), 0.0, 0
    began = asked = now()
    for number, batch in enumerate(islice(loader, sizes.warm + sizes.steps)):
        if number == 0:  # the start of the workers does not count
            began = asked = now()
        waited += now() - asked
        tensors = {n: v.to(place) for n, v in batch.items() if isinstance(v, Tensor)}
        with torch.autocast(device, torch.bfloat16):
            value = module.loss(network_(tensors["image"], tensors["record"]), tensors["target"])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        rows += len(tensors["target"])
        asked = now()
    seconds = now() - began
    workers = data.train_dataloader().num_workers
    return f"| {network} | {workers} | {rows / seconds:,.0f} | {waited / seconds:.0%} |"


@torch.inference_mode()
def measure_inference(network: str, sizes: Sizes, device: str) -> Iterator[str]:
    """Yield a row for each precision: images a second of the network alone."""
    config, data = build(network, sizes, device)
    module = build_classifier(config, data).network
    module.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    (batch,) = read_batches(data, 1)
    image = batch["image"].to(device).contiguous(memory_format=torch.channels_last)
    record = batch["record"].to(device)
    for precision in ("32", "bf16"):
        reset_memory()
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            for _ in range(sizes.warm):
                module(image, record)
            began = now()
            for _ in range(sizes.steps):
                module(image, record)
            rate = sizes.batch * sizes.steps / (now() - began)
        yield f"| {network} | {precision} | {rate:,.0f} | {measure_memory()} |"


def reset_memory() -> None:
    """Free the cached memory of the GPU and forget its peak."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_memory() -> str:
    """Return the peak memory of the GPU since the last reset, or of the whole process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB (process)"


def main(device: str) -> None:
    """Print all tables."""
    silence_libraries()
    warnings.filterwarnings("ignore")
    set_threads(has_images=True)
    sizes, began = SIZES[device], time.perf_counter()
    name = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    print("# Training and inference on a GPU\n")
    if device == "cpu":
        print(
            "Run on a CPU with tiny sizes: it shows that the script works, not how fast a GPU is.\n"
        )
    print(
        f"{time.strftime('%Y-%m-%d')}, {name}, {len(os.sched_getaffinity(0))} cores, Python "
        f"{platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}. "
        f"`python benchmarks/gpu.py {device}`: batches of {sizes.batch}, {sizes.steps} timed steps "
        f"after {sizes.warm}{f', {sizes.side} px' if sizes.side else ''}.\n"
    )
    sections: dict[str, tuple[str, Callable[..., Any]]] = {
        "Training, batches in memory": (
            "network | loop | precision | compiled | images/s | peak memory | with its start",
            compare_training,
        ),
        "Training with decoding, bf16": (
            "network | workers | images/s | share of time waiting for data",
            lambda *settings: [measure_wait(*settings)],
        ),
        "Inference, one batch on the device": (
            "network | precision | images/s | peak memory",
            measure_inference,
        ),
    }
    for title, (columns, measure) in sections.items():
        print(f"## {title}\n\n| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
        for network in NETWORKS:
            for line in measure(network, sizes, device):
                print(line, flush=True)
        print()
    print(f"The whole script took {time.perf_counter() - began:.0f} s.")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cuda" if torch.cuda.is_available() else "cpu")
