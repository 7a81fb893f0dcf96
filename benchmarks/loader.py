"""Throughput of the training loader with two workers against one core that decodes and augments.

JPEGs of 512x512 px become augmented batches of 300x300 px, as in training. The two take turns, so
what the machine does meanwhile hits both; the median of the rounds counts. Beside wall time stands
CPU time, which other work on the cores does not lengthen: what an image costs through the loader,
collating and handing over included, against decoding and augmenting it alone. The images on disk
are too few for an epoch of usual length, at whose beginning nothing is ready yet: each is loaded
REPEATS times in an epoch.

    SKINMM_DATA=DIR python benchmarks/loader.py >> benchmarks/results/loader.md

Exits with 1 below the claim: 0.9 W times the single-core rate with W workers.
"""

import os
import platform
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import torch

from skinmm.config import Config, from_mapping
from skinmm.data.datamodule import LesionData

WORKERS: Final = 2
ROUNDS: Final = 9
REPEATS: Final = 8
CLAIM: Final = 0.9
CONFIG: Final = {
    "data": {"name": "siim_isic", "missing": "drop"},
    "model": {"image_size": 300},
    "sampler": {"name": "shuffle"},
    "augment": {"name": "standard"},
    "trainer": {"batch_size": 32, "workers": WORKERS},
}


class Seconds(NamedTuple):
    """What an image took: on the clock, and of all cores together."""

    wall: float
    cpu: float


def cpu_of_workers(loader: Any) -> float:
    """CPU seconds of the loader's processes so far."""
    workers = loader._iterator._workers
    ticks = 0
    for worker in workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return ticks / os.sysconf("SC_CLK_TCK")


def timed(call: Callable[[], int], children: Callable[[], float]) -> Seconds:
    """Seconds an image of a call that returns how many there were."""
    cpu, wall = time.process_time() + children(), time.perf_counter()
    images = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() + children() - cpu
    return Seconds(wall / images, cpu / images)


def main() -> int:
    """Measures, prints a section, returns whether the claim holds."""
    torch.set_num_threads(1)
    config = from_mapping(Config, CONFIG)
    config.data.root = str(Path(os.environ["SKINMM_DATA"], "siim_isic_2020"))
    data = LesionData(config, frozenset({"image", "record"}))
    training: Any = data.train_dataloader()
    dataset, keys = training.dataset, list(training.sampler)
    loader: Any = data._loader(dataset, keys * REPEATS, config.trainer.batch_size)

    def alone() -> int:
        return sum("image" in dataset[key] for key in keys)

    def loaded() -> int:
        return sum(len(batch["image"]) for batch in loader)

    rounds: dict[str, list[Seconds]] = {"alone": [], "loader": []}
    loaded()  # starts the processes, which stay
    for _ in range(ROUNDS):
        rounds["alone"].append(timed(alone, lambda: 0.0))
        rounds["loader"].append(timed(loaded, lambda: cpu_of_workers(loader)))
    wall, cpu = (
        {name: median(each[clock] for each in times) for name, times in rounds.items()}
        for clock in (0, 1)
    )
    ratios = [one.wall / two.wall for one, two in zip(*rounds.values(), strict=True)]
    ratio = median(ratios)
    print(f"\n## {datetime.now(UTC):%Y-%m-%d}, two CPU cores, {platform.machine()}\n")
    print(f"Command: `SKINMM_DATA=DIR python benchmarks/{Path(__file__).name}`. Python", end=" ")
    print(f"{platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"{len(keys) * REPEATS} images an epoch, median of {ROUNDS} rounds in turns.\n")
    print("| | images/s | CPU ms an image |\n|---|---:|---:|")
    print(f"| one core, decode + augment | {1 / wall['alone']:.0f} | {1e3 * cpu['alone']:.2f} |")
    print(f"| loader, {WORKERS} workers | {1 / wall['loader']:.0f} | {1e3 * cpu['loader']:.2f} |")
    print(
        f"\nThroughput {ratio:.2f} times one core ({min(ratios):.2f} to {max(ratios):.2f}), that is"
    )
    print(f"{ratio / WORKERS:.2f} W; by CPU time {cpu['alone'] / cpu['loader']:.2f} W.")
    return int(ratio < CLAIM * WORKERS)


if __name__ == "__main__":
    sys.exit(main())
