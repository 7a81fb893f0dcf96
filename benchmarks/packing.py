"""Compare `skinmm pack` with two workers with one core that decodes and encodes.

Repeated camera originals become shards of 512 px. Both alternate; CPU time, which depends less on
other load, is printed next to wall time. The start of the processes, writing, checks of the records
and the checksums are included.

    SKINMM_DATA=DIR python benchmarks/packing.py >> benchmarks/results/loader.md
"""

import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final

import pandas as pd

from skinmm.data.pack import pack
from skinmm.data.packed import Encoder, PackSettings
from skinmm.images.source import read_source

WORKERS: Final = 2
REPEATS: Final = 8
ROUNDS: Final = 3


def cpu() -> float:
    """Return the CPU seconds of this process and of its children that have ended."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return wall and CPU seconds."""
    wall, used = time.perf_counter(), cpu()
    call()
    return time.perf_counter() - wall, cpu() - used


def main() -> None:
    """Measure and print a section."""
    files = sorted(Path(os.environ["SKINMM_DATA"], "isic_originals").glob("*.jpg")) * REPEATS
    names = [f"I{row}" for row in range(len(files))]
    blank = dict.fromkeys(("patient_id", "lesion_id", "target", "width", "height"))
    table = pd.DataFrame({"image_id": names, "path": list(map(str, files)), **blank})
    settings = PackSettings()
    encode = Encoder(read_source, settings)
    jobs = list(zip(table["image_id"], table["path"], strict=True))

    def packed() -> None:
        with tempfile.TemporaryDirectory() as folder:
            pack(table, Path(folder), read_source, settings, workers=WORKERS)

    alone, both = [], []
    for _ in range(ROUNDS):
        alone.append(timed(lambda: [encode(job) for job in jobs]))
        both.append(timed(packed))
    wall = median(one[0] / two[0] for one, two in zip(alone, both, strict=True))
    used = median(one[1] / two[1] for one, two in zip(alone, both, strict=True))
    rates = [len(files) / median(each[0] for each in times) for times in (alone, both)]
    costs = [1e3 * median(each[1] for each in times) / len(files) for times in (alone, both)]
    print(f"\n## Packing, {datetime.now(UTC):%Y-%m-%d}, two CPU cores, {platform.machine()}\n")
    print(
        f"Command: `SKINMM_DATA=DIR python benchmarks/{Path(__file__).name}`. {len(files)} images"
    )
    print(f"of 0.4 to 10 MP to {settings.size} px, median of {ROUNDS} rounds in turns.\n")
    print("| | images/s | CPU ms an image |\n|---|---:|---:|")
    print(f"| one core, decode + encode | {rates[0]:.0f} | {costs[0]:.1f} |")
    print(f"| pack, {WORKERS} workers | {rates[1]:.0f} | {costs[1]:.1f} |")
    print(f"\nThroughput {wall:.2f} times one core; by CPU time {used:.2f} of W.")


if __name__ == "__main__":
    main()
