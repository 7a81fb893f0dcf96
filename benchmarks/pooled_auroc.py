"""Pooled out-of-fold AUROC of whole runs, each `train.py data.fold=all` as a user would type it.

    python benchmarks/pooled_auroc.py STUDY [RUNS_FOLDER]

STUDY: demo (three fusions, the embedded cohort, frozen Lite0), siim_images (SIIM images on disk) or
siim_record (age, sex and site of all SIIM rows). The SIIM studies take the folder of the data from
SKINMM_DATA. A run that is in RUNS_FOLDER already is continued, not repeated.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
SIIM: Final = f"data.root={Path(os.environ.get('SKINMM_DATA', '')) / 'siim_isic_2020'}"
STUDIES: Final[dict[str, dict[str, list[str]]]] = {
    "demo": {
        fusion: [
            "experiment=demo",
            f"fusion={fusion}",
            "model.freeze=true",
            "optimizer.lr=0.003",
            "trainer.max_epochs=8",
        ]
        for fusion in ("image_only", "tabular_only", "concat")
    },
    "siim_images": {
        "concat, Lite0 at 224 px": [
            "experiment=lite0_finetune",
            "data=siim_isic",
            SIIM,
            "data.missing=drop",
        ]
    },
    "siim_record": {
        "tabular_only": [
            "fusion=tabular_only",
            "data=siim_isic",
            SIIM,
            "trainer.batch_size=256",
            "optimizer.lr=0.003",
        ]
    },
}


def main(study: str, runs: Path) -> None:
    """Trains what is missing and prints a table row a model."""
    print("| model | rows | malignant | pooled AUROC (95 % over patients) | folds | seconds |")
    print("|---|---|---|---|---|---|")
    for name, overrides in STUDIES[study].items():
        run = runs / f"{study}_{name.split(',')[0]}"
        began = time.monotonic()
        if not (run / "metrics.json").exists():
            fresh = [*overrides, "data.fold=all", f"hydra.run.dir={run}"]
            wanted = [f"resume={run}"] if (run / "config.yaml").exists() else fresh
            subprocess.run([sys.executable, "train.py", *wanted], cwd=ROOT, check=True, stdout=2)  # noqa: S603
        test = json.loads((run / "metrics.json").read_text())
        auroc = test["test"]["metrics"]["auroc"]
        folds = [fold["test"]["metrics"]["auroc"]["value"] for fold in test["folds"]]
        print(
            f"| {name} | {test['test']['n']} | {test['test']['positives']} "
            f"| {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}) "
            f"| {', '.join(f'{value:.3f}' for value in folds)} | {time.monotonic() - began:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:  # noqa: PLR2004
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(STUDIES)} [RUNS_FOLDER]")
    main(sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "runs").absolute())  # noqa: PLR2004
