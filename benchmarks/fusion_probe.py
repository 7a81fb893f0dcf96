"""Every fusion block on the kept features of a frozen network: pooled out-of-fold AUROC, compared.

    python benchmarks/fusion_probe.py STUDY [RUNS_FOLDER] [FUSION ...]

STUDY: siim_images (the SIIM images on disk, folds of patients) or ham10000 (folds of lesions); both
take the folder of the data from SKINMM_DATA. Every run is `train.py data.fold=all` as a user would
type it; a run that is in RUNS_FOLDER already is not repeated. Blocks that want an image's places
keep 49 vectors an image: 2.5 GB for HAM10000.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from skinmm.evaluation.comparison import compare
from skinmm.evaluation.intervals import holm
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.models.fusion import FUSIONS

ROOT: Final = Path(__file__).resolve().parents[1]
DATA: Final = Path(os.environ.get("SKINMM_DATA", "")).absolute()
PROBE: Final = (
    *("model=effnet_lite0", "model.freeze=true", "augment=none", "trainer.progress=false"),
    *("optimizer.lr=0.001", "optimizer.weight_decay=0.05", "trainer.precision='32'"),
    *("evaluation.resamples=0", "data.fold=all"),
)
STUDIES: Final[dict[str, tuple[str, ...]]] = {
    "siim_images": (
        *("data=siim_isic", f"data.root={DATA / 'siim_isic_2020'}", "data.missing=drop"),
        *("trainer.max_epochs=20", "trainer.batch_size=32"),
    ),
    "ham10000": (
        *("data=ham10000", f"data.root={DATA / 'ham10000'}", "data.missing=drop"),
        *("trainer.max_epochs=10", "trainer.batch_size=128", "trainer.patience=3"),
    ),
}
REFERENCES: Final = ("image_only", "concat")


def main(study: str, runs: Path, fusions: list[str]) -> None:
    """Trains what is missing and prints a table row a block."""
    seconds = {fusion: _train(study, fusion, runs) for fusion in fusions}
    files = {fusion: _predictions(runs / f"{study}_{fusion}") for fusion in fusions}
    found = compare(files, resamples=2000)
    print(f"\n{study}: {found['n']} images, {found['patients']} patients or lesions,", end=" ")
    print(f"{found['positives']} malignant\n")
    differences = {name: _against(name, found["pairs"]) for name in REFERENCES if name in files}
    print("| fusion | AUROC |", *(f"against {name} (p) |" for name in differences), "seconds |")
    print("|---|" + (len(differences) + 2) * "---|")
    for fusion in sorted(fusions, key=lambda name: -_auroc(found, name)["value"]):
        auroc = _auroc(found, fusion)
        cells = [each.get(fusion, "") for each in differences.values()]
        print(
            f"| {fusion} | {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}) |",
            *(f"{cell} |" for cell in cells),
            f"{seconds[fusion]:.0f} |",
            flush=True,
        )


def _train(study: str, fusion: str, runs: Path) -> float:
    """Seconds that the five folds took, now or when they were run."""
    run = runs / f"{study}_{fusion}"
    took = run / "seconds.json"
    if not took.exists():
        began = time.monotonic()
        cache, place = f"model.cache={runs / 'features'}", f"hydra.run.dir={run}"
        command = [*STUDIES[study], *PROBE, f"fusion={fusion}", cache, place, "overwrite=true"]
        subprocess.run([sys.executable, "train.py", *command], cwd=ROOT, check=True, stdout=2)  # noqa: S603
        took.write_text(json.dumps(time.monotonic() - began))
    return float(json.loads(took.read_text()))


def _predictions(run: Path) -> Predictions:
    positive = json.loads((run / "metrics.json").read_text())["positive"]
    return read_predictions(run / "predictions" / "test.csv", positive=positive)


def _auroc(found: dict[str, Any], fusion: str) -> dict[str, float]:
    auroc: dict[str, float] = found["systems"][fusion]["auroc"]
    return auroc


def _against(reference: str, pairs: list[dict[str, Any]]) -> dict[str, str]:
    """Each other block's difference to one, with Holm's adjustment over these differences."""
    meant = [pair for pair in pairs if reference in (pair["a"], pair["b"])]
    adjusted = holm([pair["metrics"]["auroc"]["p"] for pair in meant])
    told = {}
    for pair, p in zip(meant, adjusted, strict=True):
        first = pair["b"] == reference
        difference = pair["metrics"]["auroc"]["difference"] * (1 if first else -1)
        told[pair["a"] if first else pair["b"]] = f"{difference:+.3f} ({p:.3f})"
    return told


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in STUDIES:  # noqa: PLR2004
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(STUDIES)} [RUNS_FOLDER] [FUSION ...]")
    where = Path(sys.argv[2] if len(sys.argv) > 2 else "runs").absolute()  # noqa: PLR2004
    main(sys.argv[1], where, sys.argv[3:] or list(FUSIONS))
