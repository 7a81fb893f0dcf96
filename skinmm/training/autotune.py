"""Choice of `auto` settings of the trainer by timing training steps."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, count, islice
from typing import Final, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from skinmm.config import Config, OptimizerConfig, build_component
from skinmm.config.cores import count_cores
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError, print_line
from skinmm.images.decode import release_freed_memory
from skinmm.models.checkpoint import load_card
from skinmm.training.memory import find_free_memory, may_tune
from skinmm.training.module import Classifier
from skinmm.training.optimizer import OPTIMIZERS, parameter_groups
from skinmm.training.run_folder import RunFolder

LEAST_STEPS: Final = 100  # of a run in which steps are measured
LEAST_SECONDS: Final = 30.0  # of the run to save, as further processes take time to start
TURNS: Final = 3  # steps of a variant; the first warms up, the fastest of the others counts
LEAST_GAIN: Final = 1.05
"""Speed, divided by that of the default, from which a variant is chosen."""
LEAST_GAIN_OF_PROCESSES: Final = 1.1
LEAST_ROWS: Final = 8  # per process, over which batch normalisation averages
PROCESS_BYTES: Final = 1.5e9  # memory of a process without the rows of its batch
LR_RANGE: Final = (1e-6, 1.0)
LR_STEPS: Final = 80
LEAST_FALL: Final = 5  # steps of a range test in which the loss has to fall
SMOOTHING: Final = 0.9  # share of the mean loss in that of the next step


class Variant(NamedTuple):
    """Way to compute a step: trainer settings, and processes that share the batch."""

    precision: str
    channels_last: bool
    processes: int = 1


class StepTime(NamedTuple):
    """Steps per epoch, rows per step and seconds per step, for all processes together."""

    batches: int
    rows: int
    seconds: float


class StepClock:
    """Timer of training steps on copies of a network and one batch of training rows.

    The random numbers of the run do not depend on it.

    `reading` is the time to read a batch, divided by the number of loader processes; it is
    measured by `time`, and 0 before.
    """

    def __init__(self, module: Classifier, data: LesionData, device: torch.device) -> None:
        self._loader = loader = data.train_dataloader()
        self.batches = min(len(loader), data.config.trainer.limit_batches or len(loader))
        self.rows, self.reading = loader.batch_size or 1, 0.0
        self._module, self._device = module, device

    def time(self, *variants: Variant) -> dict[Variant, float]:
        """Return the seconds per step of each variant, measured in turns as other load varies."""
        start, loader = time.perf_counter(), self._loader
        samples = [loader.dataset[key] for key in islice(loader.sampler, self.rows)]
        batch = {name: value.to(self._device) for name, value in loader.collate_fn(samples).items()}
        self.reading = (time.perf_counter() - start) / max(loader.num_workers, 1)
        most = max(variant.processes for variant in variants)
        networks = [copy.deepcopy(self._module.network).to(self._device) for _ in range(most)]
        seconds: dict[Variant, list[float]] = {variant: [] for variant in variants}
        with torch.random.fork_rng():
            for _ in range(TURNS):
                for variant in variants:
                    run = self._prepare(variant, batch, networks[: variant.processes])
                    start = time.perf_counter()
                    run()
                    if self._device.type == "cuda":
                        torch.cuda.synchronize(self._device)
                    seconds[variant].append(time.perf_counter() - start)
        return {variant: min(values[1:]) for variant, values in seconds.items()}

    def _prepare(
        self, variant: Variant, batch: dict[str, Tensor], networks: Sequence[nn.Module]
    ) -> Callable[[], object]:
        """Return a function that computes a step, on a network per process."""
        parts = [
            {name: value.tensor_split(variant.processes)[i] for name, value in batch.items()}
            for i in range(variant.processes)
        ]
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        loss = self._module.loss.to(self._device)

        def step(number: int) -> None:
            if variant.processes > 1:
                torch.set_num_threads(1)  # of this thread
            batch, network = parts[number], networks[number]
            image: Tensor | None = batch.get("image")
            if image is not None and image.ndim == 4:  # noqa: PLR2004  # not features
                image = image.contiguous(memory_format=layout)
            dtype = torch.float16 if variant.precision == "16" else torch.bfloat16
            mixed = torch.autocast(self._device.type, dtype, enabled=variant.precision != "32")
            with mixed:
                logits = network(image, batch.get("record"), batch.get("has_image"))
            loss(logits.float(), batch["target"]).backward()

        def run_in_threads() -> None:
            before = torch.get_num_threads()
            with ThreadPoolExecutor(variant.processes) as pool:
                list(pool.map(step, range(variant.processes)))
            torch.set_num_threads(before)

        for network in networks:
            network.to(memory_format=layout)
            network.zero_grad()
        return run_in_threads if variant.processes > 1 else partial(step, 0)


def tune(
    module: Classifier, data: LesionData, trainer: pl.Trainer, run: RunFolder
) -> StepTime | None:
    """Choose, set and print precision, memory layout and processes of a run on a CPU.

    Only settings that are `auto` are measured, and only if the run has many steps. The choice
    replaces `auto` in the configuration of the run, so that folds, other processes and a resumed
    run share it. Processes divide the batch: rows and order remain the same, and batch
    normalisation averages over fewer rows.

    Returns:
        The time of a step; None: nothing was measured.
    """
    options, device = run.config.trainer, trainer.strategy.root_device
    is_open = "auto" in (options.precision, options.channels_last, options.devices)
    has_steps = module.network.image is not None and run.config.model.trained != "head"
    if not (is_open and has_steps and may_tune(run.config, trainer)) or run.is_resumed:
        return None
    default = current_variant(trainer, options.channels_last)
    variants = list_variants(default, options.precision, options.channels_last)
    processes = _count_possible_processes(module, run)
    if processes > 1:
        variants += [variant._replace(processes=processes) for variant in variants]
    clock = StepClock(module, data, device)
    steps = clock.batches * (trainer.max_epochs or 1)
    if len(variants) == 1 or steps < LEAST_STEPS:
        return None
    seconds = clock.time(*variants)
    release_freed_memory()
    best = choose_variant(default, seconds)
    if steps * (seconds[default] - seconds[best]) < LEAST_SECONDS:
        best = default
    if options.precision == "auto":
        options.precision = best.precision
    options.channels_last = best.channels_last
    if best.processes > 1:
        options.devices = best.processes
        options.batch_size = options.rows // best.processes
    module.network.to(
        memory_format=torch.channels_last if best.channels_last else torch.contiguous_format
    )
    module.card.config["trainer"] = asdict(options)
    print_line(describe_choice(default, best, seconds))
    return StepTime(clock.batches, clock.rows, max(seconds[best], clock.reading))


def measure_step(
    module: Classifier, data: LesionData, trainer: pl.Trainer, channels_last: bool | str
) -> StepTime:
    """Measure a step of a trainer with its present settings."""
    clock = StepClock(module, data, trainer.strategy.root_device)
    (seconds,) = clock.time(current_variant(trainer, channels_last)).values()
    share = max(seconds, clock.reading) / trainer.world_size
    return StepTime(clock.batches, clock.rows, share)


def current_variant(trainer: pl.Trainer, channels_last: bool | str) -> Variant:
    """Return the variant that a trainer uses without a measurement."""
    name = str(trainer.precision)
    precision = "bf16" if name.startswith("bf16") else "16" if name.startswith("16") else "32"
    return Variant(precision, bool(channels_last))


def list_variants(default: Variant, precision: str, channels_last: bool | str) -> list[Variant]:
    """Return the variants of one process to measure; emulated bf16 is never faster."""
    layouts = [True, False] if channels_last == "auto" else [default.channels_last]
    is_native = precision == "auto" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    precisions = ["32", "bf16"] if is_native else [default.precision]
    return [Variant(name, layout) for name in precisions for layout in layouts]


def choose_variant(default: Variant, seconds: dict[Variant, float]) -> Variant:
    """Return the fastest variant if its gain is large enough, otherwise the present one."""
    alone = {variant: value for variant, value in seconds.items() if variant.processes == 1}
    best = min(alone, key=alone.__getitem__)
    if alone[best] * LEAST_GAIN > alone[default]:
        best = default
    shared = min(seconds, key=seconds.__getitem__)
    return shared if seconds[shared] * LEAST_GAIN_OF_PROCESSES < alone[best] else best


def describe_choice(default: Variant, best: Variant, seconds: dict[Variant, float]) -> str:
    """Return one line with the chosen settings and the measured times."""
    layout = str(best.channels_last).lower()
    text = f"trainer.precision={best.precision} trainer.channels_last={layout}"
    if best.processes > 1:
        text += f" trainer.devices={best.processes}, which share each batch"
    reason = f"{seconds[best]:.2f} s a step"
    if best != default:
        reason += f" instead of {seconds[default]:.2f} s"
    others = sorted(value for variant, value in seconds.items() if variant not in (best, default))
    if others:
        reason += f"; other settings: {others[0]:.2f} to {others[-1]:.2f} s"
    return f"chosen by measurement: {text} ({reason})"


def choose_lr(module: Classifier, data: LesionData, trainer: pl.Trainer, run: RunFolder) -> None:
    """Replace `optimizer.lr=auto` by the result of a range test (Smith 2017, arXiv:1506.01186).

    A copy of the network is trained on training batches at rates that rise from 1e-6 to 1; the
    rate in the middle of the fall of the loss is chosen and printed. A resumed run uses the rate
    in its checkpoint. The random numbers of the run do not depend on the test.
    """
    options = run.config.optimizer
    if options.lr != "auto":
        return
    if module.network.fitted_head is not None:
        options.lr = OptimizerConfig().lr  # not used
        return
    if trainer.world_size > 1:
        raise InputError("optimizer.lr=auto: the range test needs one process; give a number")
    if last := run.last_checkpoint:
        options.lr = float(load_card(last)[0].config["optimizer"]["lr"])
        return
    rates, losses = measure_losses(module, data, trainer, run.config)
    options.lr = float(f"{suggest_lr(rates, losses):.2g}")
    module.card.config["optimizer"]["lr"] = options.lr
    print_line(
        f"chosen by a range test: optimizer.lr={options.lr:g} (middle of the range where the loss "
        f"falls, over {len(losses)} steps at rates from {rates[0]:.0e} to {rates[-1]:.1e})"
    )


def measure_losses(
    module: Classifier, data: LesionData, trainer: pl.Trainer, config: Config
) -> tuple[list[float], list[float]]:
    """Return rising learning rates and the smoothed loss at each, until the loss diverges."""
    device = trainer.strategy.root_device
    network = copy.deepcopy(module.network).to(device)
    groups = parameter_groups(network, replace(config.optimizer, lr=1.0))
    scales = [group["lr"] for group in groups]
    optimizer = build_component(OPTIMIZERS, "optimizer", config.optimizer, params=groups, lr=1.0)
    rates, losses, mean = np.geomspace(*LR_RANGE, LR_STEPS).tolist(), list[float](), 0.0
    with torch.random.fork_rng():
        loader = data.train_dataloader()
        batches = chain.from_iterable(iter(loader) for _ in count())
        for number, (rate, batch) in enumerate(zip(rates, batches, strict=False), start=1):
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = rate * scale
            inputs = {name: value.to(device) for name, value in batch.items()}
            inputs = data.on_after_batch_transfer(inputs, 0)
            with trainer.precision_plugin.forward_context():
                logits = network(*(inputs.get(name) for name in ("image", "record", "has_image")))
            loss = module.loss(logits.float(), inputs["target"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            mean = SMOOTHING * mean + (1 - SMOOTHING) * float(loss.detach())
            losses.append(mean / (1 - SMOOTHING**number))
            if not math.isfinite(losses[-1]) or losses[-1] > 4 * min(losses):
                break
    return rates[: len(losses)], losses


def suggest_lr(rates: Sequence[float], losses: Sequence[float]) -> float:
    """Return the geometric middle of the rates at which the loss falls longest.

    The fall is the longest subsequence of falling losses, as in fastai's rule `valley`, which
    depends less on the noise of single batches than the steepest slope.
    """
    values = [loss for loss in losses if math.isfinite(loss)]
    lengths, starts = [1] * len(values), [*range(len(values))]
    for i, value in enumerate(values):
        before = [j for j in reversed(range(i)) if values[j] > value]
        if before:
            longest = max(before, key=lambda j: lengths[j])
            lengths[i], starts[i] = lengths[longest] + 1, starts[longest]
    end = max(range(len(values)), key=lambda i: lengths[i], default=0)
    if not values or lengths[end] < LEAST_FALL:
        raise InputError("optimizer.lr=auto: the loss does not fall at any rate; give a number")
    return math.sqrt(rates[starts[end]] * rates[end])


def _count_possible_processes(module: Classifier, run: RunFolder) -> int:
    """Return the number of processes that could share a batch, at least 1."""
    options, cores = run.config.trainer, count_cores()
    is_fixed = options.devices != "auto" or options.strategy != "auto"
    is_fixed = is_fixed or run.root.config.optimizer.lr == "auto"  # processes could not share it
    if is_fixed or not run.root.starts_processes or cores == 1:
        return 1
    if options.rows % cores or options.rows // cores < LEAST_ROWS:
        return 1
    weights = sum(parameter.nbytes for parameter in module.network.parameters())
    free = find_free_memory(torch.device("cpu"))
    needed = (cores - 1) * (PROCESS_BYTES + 4 * weights)
    return cores if free is None or free > needed else 1
