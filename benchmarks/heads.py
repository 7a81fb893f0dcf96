"""Heads on the features of a frozen Lite0: neural, linear and boosted trees, paired over patients.

    SKINMM_DATA=DIR python benchmarks/heads.py [siim|ham10000] [SETTING=VALUE ...]

All five folds; every row is predicted by a head that was not fitted to its patient. The folds of an
arm are pooled. Differences are those from `neural`, with intervals over patients. Further settings
go to `train.py` of every arm. It prints the table of `benchmarks/results/heads.md`.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np

from skinmm.cli import main
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.predictions import read_predictions
from skinmm.training.run_folder import read_metrics

COHORTS: Final = {
    "siim": ("data=siim_isic", "data.root={}/siim_isic_2020", "data.missing=drop"),
    "ham10000": ("data=ham10000", "data.root={}/ham10000", "data.missing=drop"),
}
COMMON: Final = (
    *("model=effnet_lite0", "model.freeze=true", "augment=none", "data.fold=all"),
    *("trainer.progress=false", "trainer.workers=2", "logger=none"),
    *("report.pictures=false", "report.explain=false", "evaluation.resamples=100"),
)
ARMS: Final[dict[str, tuple[str, ...]]] = {
    "neural": ("optimizer.lr=0.003", "trainer.max_epochs=15", "trainer.batch_size=16"),
    "linear": ("head=linear",),
    "linear, image alone": ("head=linear", "fusion=image_only"),
    "boosting": ("head=boosting",),
    "boosting, record alone": ("head=boosting", "fusion=tabular_only"),
}
HEADER: Final = "| head | AUROC | AUPRC | Brier | AUROC - neural | p | seconds a fold |"


def train_arm(cohort: str, name: str, folder: Path, settings: list[str]) -> Path:
    """Train the five folds of an arm, and return its run folder."""
    run = folder / name.replace(", ", "_").replace(" ", "_")
    data = [item.format(os.environ["SKINMM_DATA"]) for item in COHORTS[cohort]]
    own = [*ARMS[name], f"model.cache={folder / 'features'}", f"hydra.run.dir={run}"]
    status = main.train([*data, *COMMON, *own, *settings])
    if status:
        sys.exit(status)
    return run


def describe(name: str, run: Path, result: dict[str, Any]) -> str:
    """Return the line of an arm."""
    values = result["systems"][name]
    pair = next((p for p in result["pairs"] if p["b"] == "neural" and p["a"] == name), None)
    sign = 1.0
    if pair is None:
        pair = next((p for p in result["pairs"] if p["a"] == "neural" and p["b"] == name), None)
        sign = -1.0
    difference, p_value = "", ""
    if pair:
        gain = pair["metrics"]["auroc"]
        low, high = sorted(sign * gain[bound] for bound in ("low", "high"))
        difference = f"{sign * gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        p_value = f"{gain['p']:.3f}"
    folds = [read_metrics(fold).get("fitted_head", {}) for fold in sorted(run.glob("fold_*"))]
    seconds = [fold["seconds"] for fold in folds if fold]
    took = f"{np.mean(seconds):.1f} (max {max(seconds):.1f})" if seconds else ""
    auroc = values["auroc"]
    cells = [
        name,
        f"{auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}]",
        *(f"{values[key]['value']:.4f}" for key in ("average_precision", "brier")),
        *(difference, p_value, took),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    cohort = next((word for word in sys.argv[1:] if word in COHORTS), "siim")
    settings = [word for word in sys.argv[1:] if "=" in word]
    with TemporaryDirectory() as temporary:
        runs = {name: train_arm(cohort, name, Path(temporary), settings) for name in ARMS}
        files = {
            name: read_predictions(
                run / "predictions" / "test.csv", positive=read_metrics(run)["positive"]
            )
            for name, run in runs.items()
        }
        result = compare(files, against=["neural"])
        print(f"\n{cohort}: {result['n']} rows, {result['patients']} patients\n\n{HEADER}")
        print("|---" * HEADER.count(" | ") + "|---|")
        for name, run in runs.items():
            print(describe(name, run, result))
