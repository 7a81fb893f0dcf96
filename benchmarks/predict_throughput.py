"""Rows a second of `predict.py`, beside a plain PyTorch script and the network alone.

Every leg is a process of its own; the legs take turns, so that what else the machine does falls on
all of them alike. A leg's time starts when its model is loaded. CPU seconds a row are those of the
leg with its loader processes: on a shared machine they tell more than the clock.

    SKINMM_DATA=DIR python benchmarks/predict_throughput.py CHECKPOINT [ROWS [ROUNDS [LARGER]]]

CHECKPOINT is one of an EfficientNet-Lite0 at 224 pixels with the exported model beside it. Legs:
`job` (predict.py, onnx), `network` (ONNX Runtime on pixels in memory), `job torch`, `network
torch`, `eager` (Dataset, DataLoader, PyTorch). At the end the job is run on LARGER times the rows:
10013 3 10 is all of HAM10000, and a job of 100,000 rows whose memory is to be the same; 0: none.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
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
from skinmm.predict.member import Member
from skinmm.predict.predictor import Predictor

BATCH: Final = 32
HAM: Final = Path(os.environ["SKINMM_DATA"]) / "ham10000"


def now() -> Any:
    """Seconds of the clock, and of the CPUs for this process and those that it has waited for."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    cpu = sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, kinds))
    return np.array([perf_counter(), cpu])


class Pictures(Dataset[Tensor]):
    """What a plain script reads."""

    def __init__(self, names: list[str], size: int) -> None:
        """Takes the names, and the side of the square."""
        self._names, self._size = names, size

    def __len__(self) -> int:
        """Number of pictures."""
        return len(self._names)

    def __getitem__(self, row: int) -> Tensor:
        """One picture, uint8 (3, size, size)."""
        with Image.open(HAM / "jpeg" / f"{self._names[row]}.jpg") as opened:
            pixels = np.array(opened.convert("RGB").resize((self._size, self._size)))
        return torch.from_numpy(pixels).permute(2, 0, 1)


def patients(rows: int) -> pd.DataFrame:
    """As many rows of HAM10000, files repeated where there are fewer."""
    table = pd.read_csv(HAM / "HAM10000_metadata.csv")
    table = table[[(HAM / "jpeg" / f"{name}.jpg").is_file() for name in table["image_id"]]]
    return pd.concat([table] * -(-rows // len(table))).head(rows)


def run_job(checkpoint: Path, rows: int, backend: str) -> Any:
    """Seconds of the whole job less those of loading the model."""
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
        config = PredictConfig(str(checkpoint), str(source), images, output, backend=backend)
        start = now()
        if job.predict_file(config):
            raise SystemExit("rows failed")
        return now() - start - loading[0]


def run_network(checkpoint: Path, rows: int, backend: str) -> Any:
    """Seconds of the network alone, on pixels and records that lie in memory."""
    member = Member.load(checkpoint, torch.device("cpu"), backend)
    rng = np.random.default_rng(0)
    size = member.view.size if member.view else 0
    pixels = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)
    record = np.tile(member.encoder.blank, (BATCH, 1)) if "record" in member.inputs else None
    start = now()
    for _ in range(rows // BATCH):
        member.backend(pixels, record, np.ones(BATCH, bool))
    return now() - start


def run_eager(checkpoint: Path, rows: int, _: str) -> Any:
    """Seconds of a plain script."""
    member = Member.load(checkpoint, torch.device("cpu"), "torch")
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
SLOWER: Final = 4
"""PyTorch's legs take one row of so many."""


def leg(name: str, checkpoint: Path, rows: int) -> dict[str, float]:
    """Runs one leg in this process."""
    function, backend = LEGS[name]
    seconds, cpu = function(checkpoint, rows, backend)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"rate": rows / seconds, "cpu": 1e3 * cpu / rows, "peak": peak}


def measured(name: str, checkpoint: Path, rows: int) -> dict[str, float]:
    """Runs one leg in a process of its own."""
    command = [sys.executable, __file__, str(checkpoint), str(rows), "leg", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
    said: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {said}", file=sys.stderr, flush=True)
    return said


def main(checkpoint: Path, rows: int, rounds: int, larger: int) -> None:
    """Runs all legs in turns and prints their medians."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for _ in range(rounds):
        for name in LEGS:
            share = SLOWER if LEGS[name][1] == "torch" else 1
            found[name].append(measured(name, checkpoint, rows // share))
    cores = f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    print(f"{cores}, torch {torch.__version__}; {rows} rows, {rounds} rounds\n")
    print(
        "| leg | rows/s, median (all) | CPU ms a row, median | peak memory, GB |\n|---|---|---|---|"
    )
    for name, runs in found.items():
        rates = ", ".join(f"{run['rate']:.1f}" for run in runs)
        rate, cpu, peak = (median(run[key] for run in runs) for key in ("rate", "cpu", "peak"))
        print(f"| {name} | {rate:.1f} ({rates}) | {cpu:.2f} | {peak:.2f} |")
    if larger:
        long = measured("job", checkpoint, larger * rows)
        usual = median(run["peak"] for run in found["job"])
        print(
            f"| job, {larger} times the rows | {long['rate']:.1f} | {long['cpu']:.2f} "
            f"| {long['peak']:.2f}, {long['peak'] / usual:.2f} times the job's |"
        )
    print()
    for one, other in (("job", "eager"), ("job", "network"), ("job torch", "network torch")):
        pairs = zip(found[one], found[other], strict=True)
        ratios = [a["rate"] / b["rate"] for a, b in pairs]
        cpu = median(run["cpu"] for run in found[other]) / median(run["cpu"] for run in found[one])
        print(f"{one} / {other}: {median(ratios):.2f} by the clock, {cpu:.2f} by CPU time")


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if "leg" in arguments:
        print(json.dumps(leg(arguments[3], Path(arguments[0]), int(arguments[1]))))
    else:
        numbers = [int(each) for each in arguments[1:]]
        main(Path(arguments[0]), *(numbers + [1500, 3, 4][len(numbers) :]))
