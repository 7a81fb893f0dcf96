"""Several images of a lesion: HAM10000 by lesion, missing views, cost for single images, sorting.

    python benchmarks/views.py ham DIR SIDE            # HAM10000 under DIR, images of SIDE pixels
    python benchmarks/views.py tuned DIR SIDE          # the same, with fine-tuned networks
    python benchmarks/views.py withhold RUN DIR        # curve of a run of data.unit=lesion
    python benchmarks/views.py speed BEFORE            # BEFORE: checkout of an earlier commit
    python benchmarks/views.py sort ROWS               # rows of lesions sorted on disk

`speed` alternates both versions, each measurement in a process of its own, and compares CPU seconds
(wall-clock times of a busy machine differ by more than the effect) and the bytes of predictions.
"""

import hashlib
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch

ROOT = Path(__file__).parents[1]
ARMS = {
    "single": ["data.unit=lesion", "data.views=1"],
    "mean": ["data.unit=lesion", "views=mean"],
    "attention": ["data.unit=lesion", "views=attention"],
    "gated": ["data.unit=lesion", "views=gated"],
    "gated_withheld": ["data.unit=lesion", "views=gated", "model.drop_views=0.3"],
}
SHARED = (
    *("data=ham10000", "data.missing=drop", "data.fold=all", "model=effnet_lite0"),
    *("fusion=image_only", "report.pictures=false", "report.explain=false"),
    "evaluation.call=balanced",
)
FROZEN = (
    *("model.freeze=true", "augment=none", "trainer.workers=0"),
    *("optimizer.lr=0.003", "trainer.batch_size=128", "trainer.max_epochs=15"),
)
TUNED = (
    "trainer.devices=1",
    "trainer.batch_size=16",
    "trainer.max_epochs=3",
    "evaluation.resamples=0",
)
PROBE = """
import sys, time
import pandas as pd, torch
torch.set_num_threads(1)
from pathlib import Path
from skinmm.config import Config, Component, DataConfig, LossConfig, ModelConfig, OptimizerConfig
from skinmm.config.schema import TrainerConfig
from skinmm.data.datamodule import LesionData
from skinmm.models.network import build_network
import skinmm
demo = Path(skinmm.__file__).parent / "demo"
config = Config(data=DataConfig(limit=64), model=ModelConfig("test_efficientnet", "false",
    image_size=64), fusion=Component("concat"), tabular=Component("mlp"),
    loss=LossConfig("cross_entropy"), sampler=Component("shuffle"), augment=Component("standard"),
    optimizer=OptimizerConfig("adamw"), trainer=TrainerConfig(batch_size=32, workers=0,
    progress=False, precision="32"))
data = LesionData(config, frozenset({"image", "record"}))
data.setup()
torch.manual_seed(0)
network = build_network(config, data.record_widths, 2, pretrained=False)
loader = data.train_dataloader()
seconds = []
for _ in range(4):
    start = time.process_time()
    for batch in loader:
        logits = network(batch["image"], batch["record"], batch.get("has_image"))
        torch.nn.functional.cross_entropy(logits, batch["target"]).backward()
    seconds.append(time.process_time() - start)
from skinmm.predict.predictor import Predictor
from skinmm.config.checkpoints import find_checkpoint
predictor = Predictor.from_checkpoints("zoo:cc0", "cpu")
table = pd.read_csv(demo / "cohort.csv", dtype={"image_id": str}).head(64)
times = []
for _ in range(3):
    start = time.process_time()
    rows = predictor.predict(table, demo / "images", workers=0)
    times.append(time.process_time() - start)
names = ["image_id", "patient_id", "p_benign", "p_malignant", "malignancy", "decision",
         "threshold", "error", "prediction_set", "ood", "missing"]
rows[[n for n in names if n in rows]].to_csv(sys.argv[1], index=False, float_format="%.9g")
print(min(seconds), min(times))
"""


def measure_speed(before: Path, pairs: int = 4) -> None:
    """Print CPU seconds of training and prediction before and now, and compare the predictions."""
    results: dict[str, list[list[float]]] = {"before": [], "now": []}
    digests = {}
    with TemporaryDirectory() as folder:
        for pair in range(pairs):
            versions = [("before", before), ("now", ROOT)]
            for name, root in versions if pair % 2 else versions[::-1]:
                output = Path(folder) / f"{name}.csv"
                environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
                run = subprocess.run(  # noqa: S603
                    [sys.executable, "-c", PROBE, str(output)],
                    cwd=root,
                    env=environment,
                    check=True,
                    capture_output=True,
                    text=True,
                )
                results[name].append([float(word) for word in run.stdout.split()[-2:]])
                digests[name] = hashlib.sha256(output.read_bytes()).hexdigest()
                print(name, *results[name][-1], digests[name][:12], flush=True)
    times = {name: np.array(values) for name, values in results.items()}
    for column, label in enumerate(("training", "prediction")):
        ratios = times["before"][:, column] / times["now"][:, column]
        best = times["before"][:, column].min() / times["now"][:, column].min()
        print(
            f"{label}: throughput now / before {np.median(ratios):.3f} (of the fastest {best:.3f})"
        )
    print(f"predictions equal byte by byte: {digests['before'] == digests['now']}")


def make_rows(rows: int) -> Iterator[pd.DataFrame]:
    """Yield two rows per lesion, far from each other."""
    for start in range(0, rows, 10_000):
        numbers = (np.arange(start, min(start + 10_000, rows)) * 7919) % (rows // 2)
        lesions = [f"L{number}" for number in numbers]
        yield pd.DataFrame({"lesion_id": lesions, "image": lesions, "age": "50", "sex": "male"})


def measure_sorting(rows: int) -> None:
    """Print seconds and the highest memory of sorting rows by lesion on disk."""
    from skinmm.predict.lesions import sort_by_lesion

    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        count = sum(map(len, sort_by_lesion(make_rows(rows), ["age", "sex"], Path(folder))))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{count} rows: {time.perf_counter() - start:.0f} s, {peak:.0f} MB")


def compare_on_ham10000(root: Path, folder: Path, side: str, *, tuned: bool = False) -> None:
    """Train every arm on the lesions of several images, and compare them."""
    from skinmm.cli import main
    from skinmm.evaluation.comparison import compare
    from skinmm.evaluation.predictions import read_predictions

    folder.mkdir(parents=True, exist_ok=True)
    table = pd.read_csv(root / "HAM10000_metadata.csv")
    is_single = ~table["lesion_id"].duplicated(keep=False)
    table[is_single][["lesion_id"]].to_csv(folder / "single_images.csv", index=False)
    shared = [*SHARED, *(TUNED if tuned else FROZEN)]
    shared += [f"data.root={root}", f"model.image_size={side}"]
    if not tuned:
        shared += [f"model.cache={folder / 'features'}"]
    arms = dict([*ARMS.items()][: -1 if tuned else None])
    shared += [f"+data.args.exclude={folder / 'single_images.csv'}"]
    for name, overrides in arms.items():
        run = folder / name
        if not (run / "metrics.json").is_file():
            if main.train([*shared, *overrides, f"hydra.run.dir={run}"]):
                sys.exit(f"{name}: failed")
            torch.use_deterministic_algorithms(mode=False)
    files = {name: read_predictions(folder / name / "predictions" / "test.csv") for name in arms}
    result = compare(files)
    print({name: result[name] for name in ("n", "positives", "units")})
    names = ("auroc", "average_precision", "brier")
    for name, metrics in result["systems"].items():
        print(name, {key: metrics[key] for key in names if key in metrics})
    for pair in result["pairs"]:
        metrics = {key: pair["metrics"][key] for key in names if key in pair["metrics"]}
        print(pair["a"], "-", pair["b"], metrics)
    for name in () if tuned else ("gated", "gated_withheld"):
        measure_withholding(folder / name, root)


def measure_withholding(run: Path, root: Path) -> None:
    """Print AUROC and calibration of the test rows of fold 0 with a share of views withheld."""
    from sklearn.metrics import roc_auc_score

    from skinmm.predict.predictor import Predictor

    predictor = Predictor.from_checkpoints(run / "fold_0", "cpu")
    cohort = pd.read_csv(run / "fold_0" / "cohort.csv")
    test = cohort[(cohort["part"] == "test") & cohort["images"].str.contains("|", regex=False)]
    images = test.assign(image_id=test["images"].str.split("|")).explode("image_id")
    truth = test.set_index("lesion_id")["target"].isin(predictor.positive).astype(float)
    rng = np.random.default_rng(0)
    draws = pd.Series(rng.random(len(images)), images.index)
    first = ~images["lesion_id"].duplicated()
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        table = images[(draws >= share).to_numpy() | first.to_numpy()]
        rows: Any = predictor.predict(table[["image_id", "lesion_id"]], root / "jpeg")
        y, p = truth[rows["lesion_id"]].to_numpy(), rows["malignancy"].to_numpy()
        print(
            f"{run.name}: {share:.2f} withheld, {len(table)} of {len(images)} images: AUROC "
            f"{roc_auc_score(y, p):.4f}, Brier {((p - y) ** 2).mean():.4f}, mean p - y "
            f"{(p - y).mean():+.4f}",
            flush=True,
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["speed", before]:
            measure_speed(Path(before).resolve())
        case ["sort", rows]:
            measure_sorting(int(rows))
        case ["ham", root, side]:
            compare_on_ham10000(Path(root).resolve(), Path("runs/views").resolve(), side)
        case ["tuned", root, side]:
            folder = Path("runs/views_tuned").resolve()
            compare_on_ham10000(Path(root).resolve(), folder, side, tuned=True)
        case ["withhold", run, root]:
            measure_withholding(Path(run), Path(root))
        case _:
            sys.exit(__doc__)
