"""Check before the first step that training fits into the free memory.

The estimate adds the tensors that autograd stores for the backward pass, counted without computing
them on torch's meta device, the gradients and the state of the optimiser. Measured peaks are 0.91
to 1.35 times as high, and up to 0.5 GB more on a CPU, where freed memory is kept
(docs/training.md); the rest is workspace of the kernels.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.func import functional_call

from skinmm.config import Config
from skinmm.config.cores import iterate_cgroups
from skinmm.config.schema import TrainerConfig
from skinmm.data.datamodule import LesionData
from skinmm.errors import InputError, print_line, warn
from skinmm.training.distributed import is_leader, is_torchrun
from skinmm.training.module import Classifier

_LEAST: Final = 0.91
_MOST: Final = 1.35
"""Lowest and highest ratio of a measured peak to its estimate."""
_MOST_OF_A_PIXEL: Final = 1 << 16
"""Bytes for each pixel of a row, which no network of timm exceeds."""
_RANGE: Final = (8, 256)  # rows per step that `auto` chooses; fewer only if no more fit
_UPDATES: Final = 20  # per epoch that `auto` keeps
_ROWS: Final = 2  # batch normalisation needs two
_GB: Final = 1e9
_WORTH_A_LINE: Final = 0.05 * _GB


@dataclass(frozen=True)
class _Step:
    """Bytes of a training step: `fixed` for each process on the device, `per_row` for each row."""

    processes: int
    fixed: int
    per_row: int

    def count_bytes(self, rows: int) -> int:
        """Return the bytes that steps of this many rows need in all processes."""
        return self.processes * (self.fixed + rows * self.per_row)

    def count_rows(self, free: int) -> int:
        """Return the rows per step of each process that fit with certainty, perhaps none."""
        return int((free / _MOST / self.processes - self.fixed) // max(self.per_row, 1))


def require_memory(
    network: nn.Module, config: Config, trainer: pl.Trainer, widths: Sequence[int] | None = None
) -> None:
    """Raise InputError if a batch exceeds the free memory; warn if it might.

    The default batch is divided instead (`divide_batch`). If a step needs more than 50 MB and more
    than a rough bound shows to fit, one line states its size.

    Without `widths`, the widths of the record columns, the network takes images alone.
    """
    rows, side = config.trainer.rows, config.model.image_size
    free = find_free_memory(trainer.strategy.root_device)
    views = config.data.views if _has_views(network) else 1
    step = _make_step(network, config, trainer, per_row=side**2 * views * _MOST_OF_A_PIXEL)
    if free is None or step.count_bytes(rows) < free:
        return
    step = _measure_step(network, config, trainer, widths)
    fits, needed = step.count_rows(free), step.count_bytes(rows)
    if needed * _MOST > free and divide_batch(config, trainer, fits):
        rows = config.trainer.rows
        needed = step.count_bytes(rows)
    if needed * _MOST <= free:
        if is_leader() and config.trainer.progress and needed > _WORTH_A_LINE:
            sizes = f"{needed / _GB:.1f} GB for a step of {rows} rows, {free / _GB:.1f} GB are free"
            print_line(f"memory: about {sizes}")
        return
    steps = config.trainer.accumulate * math.ceil(rows / max(fits, 1))
    advice = (
        f"trainer.batch_size={fits} fits (with trainer.accumulate={steps} for the same updates)"
        if fits > 0
        else "choose a smaller network or model.image_size"
    )
    problem = (
        f"{needed / _GB:.1f} GB of memory for trainer.batch_size={rows}, and {free / _GB:.1f} GB "
        f"are free; {advice}"
    )
    if needed * _LEAST > free:
        raise InputError(f"training {config.model.name} at {side} px needs about {problem}")
    warn(f"training {config.model.name} at {side} px may not fit: it needs about {problem}")


def may_tune(config: Config, trainer: pl.Trainer) -> bool:
    """Return whether settings that are `auto` are chosen by measurement: on a CPU, before ranks."""
    is_alone = trainer.world_size == 1 and not is_torchrun()
    is_cpu = trainer.strategy.root_device.type == "cpu"
    return is_cpu and is_alone and config.resume is None and not config.trainer.compile


def choose_batch(module: Classifier, data: LesionData, trainer: pl.Trainer) -> None:
    """Replace `trainer.batch_size=auto` by the largest power of two that fits; print it.

    It is 8 to 256, and leaves 20 updates per epoch if there are enough rows. The learning rate is
    that of the default size: it is multiplied by the ratio of the sizes for SGD (Goyal et al. 2017,
    arXiv:1706.02677), by its square root for other optimisers (Malladi et al. 2022,
    arXiv:2205.10287). A rate of `auto` is chosen afterwards, with this size.
    """
    config, network = data.config, module.network
    options, optimizer = config.trainer, config.optimizer
    if options.batch_size != "auto":
        return
    if network.fitted_head is not None:
        options.batch_size = TrainerConfig().rows  # not used
        return
    free = find_free_memory(trainer.strategy.root_device)
    step = _measure_step(network, config, trainer, data.record_widths)
    least, largest = _RANGE
    fits = largest if free is None else step.count_rows(free)
    updates = len(data.rows("train")) // (_UPDATES * trainer.world_size * options.accumulate)
    most = min(max(fits, _ROWS), max(updates, least), largest)
    rows = options.batch_size = 1 << most.bit_length() - 1
    text = f"trainer.batch_size={rows}"
    if not isinstance(optimizer.lr, str):
        power = 1 if optimizer.name == "sgd" else 0.5
        optimizer.lr = float(f"{optimizer.lr * (rows / TrainerConfig().rows) ** power:.3g}")
        text += f" optimizer.lr={optimizer.lr:g}"
    module.card.config["trainer"] = asdict(options)
    module.card.config["optimizer"]["lr"] = optimizer.lr
    if is_leader():
        room = "an unknown number of" if free is None else f"{max(fits, 0):,}"
        print_line(f"chosen: {text} (memory for {room} rows; {updates:,} rows leave 20 updates)")


def divide_batch(config: Config, trainer: pl.Trainer, fits: int) -> bool:
    """Divide a batch of the default size into 2, 4 or 8 steps of at most `fits` rows; print it.

    An update still averages over the same rows, batch normalisation over the rows of a step.
    Batches of another size, and of a resumed run, are left as they are.
    """
    options = config.trainer
    parts = next((parts for parts in (2, 4, 8) if options.rows // parts <= fits), None)
    is_default = (options.rows, options.accumulate) == (TrainerConfig().rows, 1)
    if not is_default or parts is None or config.resume is not None:
        return False
    rows = options.rows
    options.batch_size, options.accumulate = rows // parts, parts
    trainer.accumulate_grad_batches = parts
    if is_leader():
        print_line(
            f"memory: {rows} rows do not fit; trainer.batch_size={options.batch_size} "
            f"trainer.accumulate={parts} make the same updates, with batch normalisation over "
            f"{options.batch_size} rows"
        )
    return True


def count_stored_bytes(network: nn.Module, inputs: Sequence[Tensor | None]) -> int:
    """Return the bytes that autograd stores for the backward pass of one 32-bit row.

    `inputs` are the arguments for `_ROWS` rows, on the meta device; the network is unchanged.
    """
    state = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad)
        for name, value in (*network.named_parameters(), *network.named_buffers())
    }
    weights = {value.untyped_storage()._cdata for value in state.values()}
    stored: dict[int, Any] = {}

    def store(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        stored[storage._cdata] = storage
        return value

    hooks = torch.autograd.graph.saved_tensors_hooks(store, lambda value: value)
    with torch.compiler.set_stance("force_eager"), hooks:
        functional_call(network, state, tuple(inputs))
    return sum(s.nbytes() for key, s in stored.items() if key not in weights) // _ROWS


def find_free_memory(
    device: torch.device,
    meminfo: Path = Path("/proc/meminfo"),
    cgroup: Path = Path("/proc/self/cgroup"),
    cgroups: Path = Path("/sys/fs/cgroup"),
) -> int | None:
    """Return the bytes that are free for this process on a device; None if unknown.

    On a CPU it is the smallest of what the machine and each control group of the process leave.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu" or not meminfo.is_file():
        return None
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
    kilobytes = [int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree")]
    return min([sum(kilobytes) * 1024, *_iterate_cgroup_limits(cgroup, cgroups)])


def _iterate_cgroup_limits(cgroup: Path, cgroups: Path) -> Iterator[int]:
    """Yield the free bytes in the control groups of this process."""
    for folder, is_old in iterate_cgroups("memory", cgroup, cgroups):
        usage, limit, prefix = (
            ("memory.usage_in_bytes", "memory.limit_in_bytes", "total_")
            if is_old
            else ("memory.current", "memory.max", "")
        )
        # The kernel frees cached files when memory is short, also those read recently.
        cached = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
        try:
            statistics = dict(
                pair.split() for pair in (folder / "memory.stat").read_text().splitlines()
            )
            used = int((folder / usage).read_text())
            used -= sum(int(statistics.get(name, 0)) for name in cached)
            yield int((folder / limit).read_text()) - used
        except (OSError, ValueError):  # no such group, or no limit ("max")
            continue


def _measure_step(
    network: nn.Module, config: Config, trainer: pl.Trainer, widths: Sequence[int] | None
) -> _Step:
    """Return the bytes of a training step on the trainer's device."""
    per_row = count_stored_bytes(network, _example(network, config, widths))
    may_be_32 = config.trainer.precision == "auto" and may_tune(config, trainer)
    if "16" in str(trainer.precision) and not may_be_32:
        per_row //= 2
    return _make_step(network, config, trainer, per_row)


def _make_step(network: nn.Module, config: Config, trainer: pl.Trainer, per_row: int) -> _Step:
    """Add the bytes of gradients, optimiser and averages, and on a GPU of the weights."""
    on_gpu = trainer.strategy.root_device.type == "cuda"
    weights = sum(parameter.nbytes for parameter in network.parameters())
    trained = sum(parameter.nbytes for parameter in network.parameters() if parameter.requires_grad)
    moments = 1 if config.optimizer.name == "sgd" else 2
    average = weights if config.trainer.ema else 0
    fixed = trained * (1 + moments) + average + on_gpu * weights
    return _Step(1 if on_gpu else trainer.num_devices, fixed, per_row)


def _has_views(network: nn.Module) -> bool:
    return getattr(network, "views", None) is not None


def _example(
    network: nn.Module, config: Config, widths: Sequence[int] | None
) -> list[Tensor | None]:
    """Return a batch of two rows for the network, on the meta device."""
    side = config.model.image_size
    shape = [3, side, side]
    if _has_views(network):
        shape = [config.data.views, *shape]
    image = torch.empty(_ROWS, *shape, dtype=torch.uint8, device="meta")
    if widths is None:
        return [image]
    record = torch.empty(_ROWS, sum(widths), device="meta")
    return [image if network.image else None, record if network.record else None]
