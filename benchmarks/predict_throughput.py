"""Compare the rate of `predict.py` with a plain PyTorch script and with the network alone.

Every leg is a process of its own; the legs alternate, so that other load affects all of them. The
time of a leg starts when its model is loaded. CPU seconds per row include the loader processes; on
a shared machine they are more reliable than wall time. Memory includes all child processes.

    SKINMM_DATA=DIR python benchmarks/predict_throughput.py CHECKPOINT [ROWS [ROUNDS [LARGER]]]

CHECKPOINT is an EfficientNet-Lite0 at 224 pixels with the exported model next to it. Legs:
`job` (predict.py, onnx), `network` (ONNX Runtime on pixels in memory, with as many batches at a
time as the job), `job torch`, `network torch`, `eager` (Dataset, DataLoader, PyTorch). At the end
the job runs on LARGER times the rows (0: not at all), which should need the same memory. All of
HAM10000: 10013 3 0. The memory of a job of 100,130 rows alone: 10013 0 10.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skinmm.config import PredictConfig
from skinmm.predict import job
from skinmm.predict.ensemble import load_models
from skinmm.predict.predictor import Predictor

BATCH: Final = 32
HAM: Final = Path(os.environ["SKINMM_DATA"]) / "ham10000"


def now() -> Any:
    """Return wall time, and CPU time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    cpu = sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))
    return np.array([perf_counter(), cpu])


class Pictures(Dataset[Tensor]):
    """Dataset of a plain script."""

    def __init__(self, names: list[str], size: int) -> None:
        """Store the names, and the side of the square."""
        self._names, self._size = names, size

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._names)

    def __getitem__(self, row: int) -> Tensor:
        """Return one image, uint8 (3, size, size)."""
        with Image.open(HAM / "jpeg" / f"{self._names[row]}.jpg") as opened:
            pixels = np.array(opened.convert("RGB").resize((self._size, self._size)))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def patients(rows: int) -> pd.DataFrame:
    """Return rows of HAM10000; repeat files if there are fewer."""
    table = pd.read_csv(HAM / "HAM10000_metadata.csv")
    table = table[[(HAM / "jpeg" / f"{name}.jpg").is_file() for name in table["image_id"]]]
    return pd.concat([table] * -(-rows // len(table))).head(rows)


def run_job(checkpoint: Path, rows: int, backend: str) -> Any:
    """Return the seconds of the whole job without loading the model."""
    loading: list[Any] = []

    def load(*arguments: Any, **settings: Any) -> Predictor:
        start = now()
        predictor = original(*arguments, **settings)
        loading.append(now() - start)
        return predictor

    original = Predictor.from_checkpoints
    Predictor.from_checkpoints = load  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.csv"
        patients(rows).to_csv(source, index=False)
        output, images = str(Path(folder) / "out.csv"), str(HAM / "jpeg")
        config = PredictConfig(
            str(checkpoint), backend, input=str(source), images=images, output=output
        )
        start = now()
        if job.predict_file(config):
            raise SystemExit("rows failed")
        return now() - start - loading[0]


def run_network(checkpoint: Path, rows: int, backend: str) -> Any:
    """Return the seconds of the network alone, on pixels and records in memory."""
    (member,) = load_models(checkpoint, torch.device("cpu"), backend, job.CONCURRENCY)
    rng = np.random.default_rng(0)
    size = member.view.size if member.view else 0
    pixels = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)
    record = np.tile(member.encoder.blank, (BATCH, 1)) if "record" in member.inputs else None
    start = now()
    with ThreadPoolExecutor(member.backend.concurrency) as lanes:
        for _ in range(rows // BATCH):
            lanes.submit(member.backend, pixels, record, np.ones(BATCH, bool))
    return now() - start


def run_eager(checkpoint: Path, rows: int, _: str) -> Any:
    """Return the seconds of a plain script."""
    (member,) = load_models(checkpoint, torch.device("cpu"), "torch")
    network, size = member.backend.network, member.view.size  # type: ignore[union-attr]
    network = network.to(memory_format=torch.contiguous_format)
    blank = torch.from_numpy(member.encoder.blank)
    start = now()
    pictures = Pictures(patients(rows)["image_id"].tolist(), size)
    with torch.inference_mode():
        for batch in DataLoader(pictures, batch_size=BATCH, num_workers=2):
            record = blank.repeat(len(batch), 1) if "record" in member.inputs else None
            network(batch, record).softmax(dim=1).numpy()
    return now() - start


LEGS: Final[dict[str, tuple[Callable[[Path, int, str], Any], str]]] = {
    "job": (run_job, "onnx"),
    "network": (run_network, "onnx"),
    "eager": (run_eager, "torch"),
    "job torch": (run_job, "torch"),
    "network torch": (run_network, "torch"),
}
SHARE: Final = 4
"""Legs other than the job take one row of so many: their rates are steady."""


def leg(name: str, checkpoint: Path, rows: int) -> dict[str, float]:
    """Run one leg in this process."""
    function, backend = LEGS[name]
    seconds, cpu = function(checkpoint, rows, backend)
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
    return {"rate": rows / seconds, "cpu": 1e3 * cpu / rows, "peak": peak}


def memory(process: int, *, root: bool = True) -> float:
    """Return the memory of a process, and the private memory of its descendants, in GB."""
    place = Path(f"/proc/{process}")
    try:
        lines = (place / "smaps_rollup").read_text().splitlines()[1:]
        children = [path.read_text().split() for path in place.glob("task/*/children")]
    except OSError:  # it ended meanwhile
        return 0
    sizes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    own = sizes["Rss"] if root else sizes["Private_Clean"] + sizes["Private_Dirty"]
    below = (memory(int(child), root=False) for each in children for child in each)
    return 1024 * own / 1e9 + sum(below)


def measured(name: str, checkpoint: Path, rows: int) -> dict[str, float]:
    """Run one leg in a process of its own."""
    command = [sys.executable, __file__, str(checkpoint), str(rows), "leg", name]
    peak = 0.0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.5)
        output = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise SystemExit(f"{name} failed")
    said: dict[str, float] = json.loads(output.splitlines()[-1])
    said["peak"] = max(said["peak"], peak)
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return said


def main(checkpoint: Path, rows: int, rounds: int, larger: int) -> None:
    """Run all legs in alternation and print their medians."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name in LEGS:
            found[name].append(measured(name, checkpoint, rows if name == "job" else rows // SHARE))
    if larger:
        found[f"job, {larger} times the rows"].append(measured("job", checkpoint, larger * rows))
    cores = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{cores}, torch {torch.__version__}; {rows} rows, {rounds} rounds\n")
    print(
        "| leg | rows/s, median (all) | CPU ms a row, median | peak memory, GB |\n|---|---|---|---|"
    )
    for name, runs in found.items():
        rates = ", ".join(f"{run['rate']:.1f}" for run in runs)
        rate, cpu = (median(run[key] for run in runs) for key in ("rate", "cpu"))
        peak = max(run["peak"] for run in runs)
        print(f"| {name} | {rate:.1f} ({rates}) | {cpu:.2f} | {peak:.2f} |")
    print()
    pairs = (("job", "eager"), ("job", "network"), ("job torch", "network torch"))
    for one, other in pairs if rounds else ():
        both = zip(found[one], found[other], strict=True)
        ratios = [a["rate"] / b["rate"] for a, b in both]
        cpu = median(run["cpu"] for run in found[other]) / median(run["cpu"] for run in found[one])
        print(f"{one} / {other}: {median(ratios):.2f} by the clock, {cpu:.2f} by CPU time")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "leg" in arguments:
        print(json.dumps(leg(arguments[3], Path(arguments[0]), int(arguments[1]))))
    else:
        numbers = [int(each) for each in arguments[1:]]
        main(Path(arguments[0]), *(numbers + [1500, 3, 4][len(numbers) :]))
