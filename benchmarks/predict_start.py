"""Measure the time from the start of `predict.py` to the first rows on disk, for some checkouts.

    SKINMM_DATA=DIR python benchmarks/predict_start.py CHECKPOINT ROUNDS [CHECKOUT ...]

The exported model is next to CHECKPOINT. Checkouts alternate, so that other load affects all of
them; the ratio of two is that of their medians.
"""

import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import Final

import pandas as pd

ROOT: Final = Path(__file__).parents[1]
HAM: Final = Path(os.environ["SKINMM_DATA"]) / "ham10000"


def first_rows(checkout: Path, checkpoint: Path, folder: Path) -> tuple[float, float]:
    """Return the seconds until the first rows are on disk, and the CPU seconds of the job."""
    source, output = folder / "in.csv", folder / "out.csv"
    pd.read_csv(HAM / "HAM10000_metadata.csv").head(64).to_csv(source, index=False)
    command = [sys.executable, str(checkout / "predict.py"), f"checkpoint={checkpoint}"]
    command += [f"input={source}", f"images={HAM / 'jpeg'}", f"output={output}", "overwrite=true"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = perf_counter()
    started = subprocess.Popen(  # noqa: S603
        [*command, "backend=onnx", "accelerator=cpu"], cwd=checkout, stdout=subprocess.DEVNULL
    )
    partial = output.with_name(f".{output.name}.partial")
    while not (partial.is_file() and partial.stat().st_size) and started.poll() is None:
        sleep(0.005)
    seconds = perf_counter() - start
    if started.wait():
        raise SystemExit("the job failed")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(checkpoint: Path, rounds: int, checkouts: list[Path]) -> None:
    """Print every measurement and the medians."""
    found: dict[Path, list[tuple[float, float]]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for checkout in checkouts:
                found[checkout].append(first_rows(checkout, checkpoint, Path(folder)))
    print(
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    print("| checkout | to the first rows, s, median (all) | CPU, s, median |\n|---|---|---|")
    for checkout, runs in found.items():
        clock, cpu = zip(*runs, strict=True)
        each = ", ".join(f"{seconds:.1f}" for seconds in clock)
        print(f"| {checkout.name} | {median(clock):.1f} ({each}) | {median(cpu):.1f} |")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), int(sys.argv[2]), [*map(Path, sys.argv[3:])] or [ROOT])
