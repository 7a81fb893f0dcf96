"""Compare the training loader with two workers with one core that decodes and augments.

JPEGs of 512x512 px become augmented batches of 300x300 px, as in training. Both alternate, so that
other load affects both; the result is the median over the rounds. CPU time is printed next to wall
time, because it depends less on other load: the CPU time of an image through the loader, including
collation and transfer, against decoding and augmentation alone. The images on disk are too few for
an epoch of usual length, whose start is slower; each is loaded REPEATS times per epoch. The rate of
W independent processes that decode and augment without a loader is the upper limit of a loader.

    SKINMM_DATA=DIR python benchmarks/loader.py >> benchmarks/results/loader.md

The exit status is 1 below the target: 0.9 W times the single-core rate with W workers.
"""

import multiprocessing
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
LEGS: Final = {
    "alone": "one core, decode + augment",
    "loader": f"loader, {WORKERS} workers",
    "apart": f"{WORKERS} processes, no loader",
}
CONFIG: Final = {
    "data": {"name": "siim_isic", "missing": "drop"},
    "model": {"image_size": 300},
    "sampler": {"name": "shuffle"},
    "augment": {"name": "standard"},
    "trainer": {"batch_size": 32, "workers": WORKERS},
}


class Seconds(NamedTuple):
    """Wall and CPU time of an image."""

    wall: float
    cpu: float


def cpu_of_workers(loader: Any) -> float:
    """Return the CPU seconds of the loader processes so far."""
    workers = loader._iterator._workers
    ticks = 0
    for worker in workers:
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu_of_children() -> float:
    """Return the CPU seconds of the processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def timed(call: Callable[[], int], children: Callable[[], float]) -> Seconds:
    """Return the seconds per image of a call that returns the number of images."""
    cpu, wall = time.process_time() + children(), time.perf_counter()
    images = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() + children() - cpu
    return Seconds(wall / images, cpu / images)


def measured() -> tuple[int, dict[str, list[Seconds]]]:
    """Return the images of an epoch, and the time of an image in every round."""
    config = from_mapping(Config, CONFIG)
    config.data.root = str(Path(os.environ["SKINMM_DATA"], "siim_isic_2020"))
    data = LesionData(config, frozenset({"image", "record"}))
    data.setup()
    training: Any = data.train_dataloader()
    dataset, keys = training.dataset, list(training.sampler)
    loader: Any = data.build_loader(dataset, keys * REPEATS, config.trainer.rows)

    def alone(repeats: int = 1) -> int:
        return sum("image" in dataset[key] for key in keys * repeats)

    def loaded() -> int:
        return sum(len(batch["image"]) for batch in loader)

    def apart() -> int:
        fork = multiprocessing.get_context("fork")
        processes = [fork.Process(target=alone, args=(REPEATS,)) for _ in range(WORKERS)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            if process.exitcode:
                raise RuntimeError("a process that decodes and augments failed")
        return WORKERS * REPEATS * len(keys)

    rounds: dict[str, list[Seconds]] = {"alone": [], "loader": [], "apart": []}
    loaded()  # starts the processes, which stay
    for _ in range(ROUNDS):
        rounds["alone"].append(timed(alone, lambda: 0.0))
        rounds["loader"].append(timed(loaded, lambda: cpu_of_workers(loader)))
        rounds["apart"].append(timed(apart, cpu_of_children))
    return REPEATS * len(keys), rounds


def main() -> int:
    """Measure, print a section, return whether the target is missed."""
    torch.set_num_threads(1)
    images, rounds = measured()
    cpu = {name: median(each.cpu for each in times) for name, times in rounds.items()}
    print(f"\n## {datetime.now(UTC):%Y-%m-%d}, two CPU cores, {platform.machine()}\n")
    print(f"Command: `SKINMM_DATA=DIR python benchmarks/{Path(__file__).name}`. Python", end=" ")
    print(f"{platform.python_version()}, torch {torch.__version__}, ", end="")
    print(f"{images} images an epoch, median of {ROUNDS} rounds in turns.\n")
    print("| | images/s | CPU ms an image | times one core | W | W by CPU time |")
    print("|---|---:|---:|---:|---:|---:|")
    reached = {}
    for name, label in LEGS.items():
        pairs = zip(rounds["alone"], rounds[name], strict=True)
        ratios = [one.wall / many.wall for one, many in pairs]
        reached[name] = median(ratios) / WORKERS
        rate = 1 / median(each.wall for each in rounds[name])
        cells = [label, f"{rate:.0f}", f"{1e3 * cpu[name]:.2f}"]
        if name != "alone":
            spread = f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            cells += [spread, f"{reached[name]:.2f}", f"{cpu['alone'] / cpu[name]:.2f}"]
        print("|", " | ".join(cells), "|")
    return int(reached["loader"] < CLAIM)


if __name__ == "__main__":
    sys.exit(main())
