"""Measure start-up and throughput of one and of two processes with one thread each.

Run from the checkout: python benchmarks/scaling.py
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
ROWS: Final = 192  # an epoch
EPOCHS: Final = 3
SETTINGS: Final = (
    "model=effnet_lite0",
    "model.image_size=96",
    "model.pretrained=false",
    f"data.limit={ROWS}",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.patience=99",
    "trainer.accelerator=cpu",
    "trainer.precision=32",
    "trainer.workers=0",
    "evaluation.resamples=0",
    "trainer.progress=true",
)


def measured(devices: int, threads: int) -> tuple[float, float]:
    """Return the seconds until the first step, and the seconds of an epoch with validation."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "train.py", *SETTINGS, f"hydra.run.dir={folder}/run"]
        command += [f"trainer.devices={devices}", f"trainer.batch_size={32 // devices}"]
        process = subprocess.Popen(  # noqa: S603
            command,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = (line for line in process.stdout or () if line.startswith("epoch "))
        ends = [time.monotonic() - began for _ in lines]
        if process.wait():
            sys.exit("training failed")
    epoch = (ends[-1] - ends[0]) / (EPOCHS - 1)
    return ends[0] - epoch, epoch


def main() -> None:
    """Print the table."""
    print("| processes | threads each | startup, s | epoch, s | training images a second |")
    print("|---:|---:|---:|---:|---:|")
    for devices, threads in ((1, 1), (1, 2), (2, 1)):
        startup, epoch = measured(devices, threads)
        print(f"| {devices} | {threads} | {startup:.1f} | {epoch:.1f} | {ROWS / epoch:.0f} |")


if __name__ == "__main__":
    main()
