"""Rate, AUROC, calibration and decisions of a checkpoint in 32 bits, 16 bits and int8.

    python benchmarks/quantise.py CHECKPOINT [ROOT]

The test part of the checkpoint's cohort is measured; the rates alternate between the files in one
process on one core, median of 40 images each.

"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from skinmm.errors import InputError
from skinmm.predict import quantise
from skinmm.predict.backends import OnnxBackend
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.export_onnx import _write

ROUNDS = 40


def measure_rates(files: dict[str, Path], size: int, record: int | None) -> dict[str, float]:
    """Return the milliseconds of an image by each file; the files take turns."""
    image = np.random.default_rng(0).integers(0, 255, (1, size, size, 3), np.uint8)
    cells = None if record is None else np.zeros((1, record), np.float32)
    backends = {name: OnnxBackend(path) for name, path in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(ROUNDS):
        for name, backend in backends.items():
            start = time.process_time()
            backend(image, cells, np.ones(1, bool))
            times[name].append(time.process_time() - start)
    return {name: 1e3 * float(np.median(values)) for name, values in times.items()}


def measure(model: CalibratedModel, root: str | None) -> None:
    """Print the table of a checkpoint."""
    data = quantise._load_data(model, "int8", root)
    with TemporaryDirectory() as folder:
        files = {name: Path(folder, f"{name}.onnx") for name in ("fp32", "fp16", "int8")}
        _write(model, files["fp32"])
        layers = {"fp32": "-"}
        for name in ("fp16", "int8"):
            files[name].write_bytes(files["fp32"].read_bytes())
            try:
                facts = quantise.reduce_precision(model, files[name], name, root)
                layers[name] = str(len(facts["layers_in_32_bits"]))
                print(quantise.describe(facts), flush=True)
            except InputError as error:
                print(error, flush=True)
                del files[name]
        width = model.encoder.dim if "record" in model.inputs else None
        size = model.view.size if model.view else 0
        rates = measure_rates(files, size, width)
        before = quantise.measure(model, OnnxBackend(files["fp32"]), data, "test")
        print("| file | MB | layers in 32 bits | ms an image | AUROC | ECE | equal decisions |")
        print("|---|---|---|---|---|---|---|")
        for name, path in files.items():
            after = quantise.measure(model, OnnxBackend(path), data, "test")
            equal = (before.decisions == after.decisions).mean()
            print(
                f"| {name} | {path.stat().st_size / 1e6:.1f} | {layers[name]} | {rates[name]:.1f} "
                f"| {after.auroc:.4f} | {after.ece:.4f} | {equal:.1%} of {len(after.decisions)} |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    (loaded,) = load_models(Path(sys.argv[1]), torch.device("cpu"))
    measure(loaded, next(iter(sys.argv[2:]), None))
