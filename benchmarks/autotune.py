"""Epoch time of `auto` trainer settings against fixed ones, on the embedded cohort.

    python benchmarks/autotune.py OUTPUT [NETWORK ...]

Every choice trains three epochs in a process of its own, in turns; the mean of the last two counts.
`before` is what `auto` meant before it measured: bf16 where the processor has it, one process.
"""

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
NETWORKS: Final = {
    "tf_efficientnet_lite0": 128,
    "efficientnet_b0": 96,
    "tf_efficientnet_b3": 96,
    "resnet50": 96,
    "vit_small_patch16_224": 96,
}
CHOICES: Final = {
    "auto": ("auto", "auto", "auto"),
    "before": ("bf16", "true", "1"),
    "32, one process": ("32", "true", "1"),
    "32, one process, contiguous": ("32", "false", "1"),
    "32, two processes": ("32", "true", "2"),
    "bf16, two processes": ("bf16", "true", "2"),
}
EPOCHS: Final = 3
ROUNDS: Final = 2
ROWS: Final = 32


def measure(network: str, side: int, choice: str, run: Path) -> tuple[float, str]:
    """Train until three epochs are logged, and return the seconds of one and what `auto` chose."""
    precision, channels_last, devices = CHOICES[choice]
    rows = ROWS // int(devices) if devices.isdigit() else ROWS
    overrides = [
        *("data=demo", f"model.name={network}", "model.pretrained=false", "fusion=concat"),
        *(f"model.image_size={side}", f"trainer.precision={precision}", "trainer.max_epochs=60"),
        *(f"trainer.channels_last={channels_last}", f"trainer.devices={devices}"),
        *(f"trainer.batch_size={rows}", "trainer.patience=99", f"hydra.run.dir={run}"),
    ]
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, ROOT / "train.py", *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    ends: list[float] = []
    history = run / "history.csv"
    while len(ends) < EPOCHS and process.poll() is None:
        time.sleep(0.02)
        if history.is_file():
            epochs = {
                line.split(",")[0] for line in history.read_text().split("\n") if "val/" in line
            }
            if len(epochs) > len(ends):
                ends.append(time.perf_counter())
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    text = process.communicate()[0]
    if len(ends) < EPOCHS:
        sys.exit(text)
    lines = [line for line in text.split("\n") if line.startswith("chosen by measurement")]
    return (ends[-1] - ends[0]) / (EPOCHS - 1), lines[0] if lines else ""


def main(output: Path, networks: list[str]) -> None:
    """Print a row per network and choice: seconds of an epoch, relative to the best fixed one."""
    for network in networks or NETWORKS:
        seconds: dict[str, list[float]] = {choice: [] for choice in CHOICES}
        for number in range(ROUNDS):
            for choice in [*CHOICES][:: 1 if number % 2 == 0 else -1]:
                run = output / f"{network}_{number}_{choice.replace(', ', '_').replace(' ', '_')}"
                value, line = measure(network, NETWORKS[network], choice, run)
                seconds[choice].append(value)
                print(f"# {network} {choice}: {value:.2f} s {line}", flush=True)
        times = {choice: statistics.mean(values) for choice, values in seconds.items()}
        best = min(value for choice, value in times.items() if choice != "auto")
        print(f"| {network} | " + " | ".join(f"{times[choice]:.2f}" for choice in CHOICES), end="")
        print(
            f" | {times['auto'] / best:.2f} | {times['before'] / times['auto']:.2f} |", flush=True
        )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(__doc__)
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
