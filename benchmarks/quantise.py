"""Rate, AUROC, calibration and decisions of a checkpoint in 32 bits, 16 bits and int8.

    python benchmarks/quantise.py CHECKPOINT [ROOT] [BITS OF THE WEIGHTS]

Validation and test part of the checkpoint's cohort are measured; the rates alternate between the
two files in one process on one core, median of 40 images each.
"""

import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from skinmm.predict import quantise, quantiser
from skinmm.predict.backends import OnnxBackend
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.export_onnx import _write

ROUNDS = 40
PARTS = ("val", "test")


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
    width = model.encoder.dim if "record" in model.inputs else None
    size = model.view.size if model.view else 0
    with TemporaryDirectory() as folder:
        plain, smaller = Path(folder, "fp32.onnx"), Path(folder, "smaller.onnx")
        _write(model, plain)
        backend = OnnxBackend(plain)
        expected = {part: quantise.compute_scores(model, backend, data, part) for part in PARTS}
        before = {part: quantise.measure(model, expected[part], data, part) for part in PARTS}
        print(
            "| file | layers in 32 bits | MB | ms, fp32 | ms | AUROC | ECE | equal decisions | ",
            end="",
        )
        print("AUROC, test | ECE, test | equal decisions, test |")
        print("|" + "---|" * 11)
        for name in ("fp32", "fp16", "int8"):
            smaller.write_bytes(plain.read_bytes())
            candidates = quantise._write_candidates(model, plain, smaller, name, data)
            for layers in [[]] if name == "fp32" else candidates:
                backend = OnnxBackend(smaller)
                scores = {
                    part: quantise.compute_scores(model, backend, data, part) for part in PARTS
                }
                scale = 1.0
                if model.ood_detector:
                    scale = quantise.fit_ood_scale(*(s["val"][:, -1] for s in (expected, scores)))
                rates = measure_rates({"fp32": plain, name: smaller}, size, width)
                cells = [name, str(len(layers)), f"{smaller.stat().st_size / 1e6:.1f}"]
                cells += [f"{rates['fp32']:.1f}", f"{rates[name]:.1f}"]
                for part in PARTS:
                    after = quantise.measure(model, scores[part], data, part, scale)
                    equal = (before[part].decisions == after.decisions).mean()
                    cells += [f"{after.auroc:.4f}", f"{after.ece:.4f}", f"{equal:.1%}"]
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    checkpoint, *rest = sys.argv[1:]
    (loaded,) = load_models(Path(checkpoint), torch.device("cpu"))
    root = next((text for text in rest if not text.isdigit()), None)
    quantiser.WEIGHT_BITS = next((int(text) for text in rest if text.isdigit()), 7)
    measure(loaded, root)
