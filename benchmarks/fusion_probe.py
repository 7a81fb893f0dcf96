"""Every fusion block on the kept features of a frozen network: pooled out-of-fold AUROC, compared.

    python benchmarks/fusion_probe.py STUDY [FOLDER] [FUSION ...]

STUDY: siim_images (the SIIM images on disk, folds of patients) or ham10000 (folds of lesions); both
take the folder of the data from SKINMM_DATA. What is trained is what `train.py data.fold=all
model.freeze=true augment=none` trains, without its reports; FOLDER keeps features and predictions,
and what is there already is not repeated. Blocks that want an image's places keep 49 vectors an
image: 2.5 GB for HAM10000.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any, Final

from skinmm import judge
from skinmm.checkpoint import load_card
from skinmm.config import Config, from_mapping
from skinmm.data.datamodule import LesionData
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.intervals import holm
from skinmm.evaluation.predictions import Predictions, read_predictions, write_predictions
from skinmm.loop import build_trainer, quiet
from skinmm.models.fusion import FUSIONS
from skinmm.training_features import keep_features
from skinmm.training_fold import Fold, _module

DATA: Final = Path(os.environ.get("SKINMM_DATA", "")).absolute()
STUDIES: Final[dict[str, dict[str, Any]]] = {
    "siim_images": {"name": "siim_isic", "root": str(DATA / "siim_isic_2020"), "missing": "drop"},
    "ham10000": {
        "name": "ham10000",
        "root": str(DATA / "ham10000"),
        "missing": "drop",
        "target": "diagnosis",
    },
}
BATCH: Final = {"siim_images": 32, "ham10000": 128}
FOLDS: Final = 5
BOTH: Final = frozenset({"image", "record"})
REFERENCES: Final = ("image_only", "concat")


def main(study: str, folder: Path, fusions: list[str]) -> None:
    """Trains what is missing and prints a table row a block."""
    quiet()
    folder.mkdir(parents=True, exist_ok=True)
    for fusion in fusions:
        file = folder / f"{study}_{fusion}.csv"
        if not file.exists():
            began = time.monotonic()
            parts = [_tested(config_of(study, fusion, fold), folder) for fold in range(FOLDS)]
            write_predictions(file, judge.pool(parts))
            print(f"{fusion}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    files = {fusion: read_predictions(folder / f"{study}_{fusion}.csv") for fusion in fusions}
    found = compare(files, resamples=2000)
    differences = {name: _against(name, found["pairs"]) for name in REFERENCES if name in files}
    print(f"\n{study}: {found['n']} images, {found['patients']} patients or lesions,", end=" ")
    print(f"{found['positives']} malignant\n")
    print("| fusion | AUROC |", *(f"against {name} (p) |" for name in differences))
    print("|---|" + (len(differences) + 1) * "---|")
    for fusion in sorted(fusions, key=lambda name: -_auroc(found, name)["value"]):
        auroc = _auroc(found, fusion)
        value = f"{auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f})"
        print(f"| {fusion} | {value} |", *(f"{d.get(fusion, '')} |" for d in differences.values()))


def config_of(study: str, fusion: str, fold: int) -> Config:
    """A frozen Lite0 at 224 pixels with the record, and a block of default size."""
    model = {"name": "tf_efficientnet_lite0", "image_size": 224, "freeze": True}
    loop = {"batch_size": BATCH[study], "max_epochs": 20, "patience": 4}
    plain = {"precision": "32", "progress": False, "accelerator": "cpu"}
    return from_mapping(
        Config,
        {
            "data": {**STUDIES[study], "folds": FOLDS, "fold": fold},
            "model": model,
            "fusion": {"name": fusion},
            "tabular": {"name": "mlp"},
            "loss": {"name": "cross_entropy"},
            "sampler": {"name": "shuffle"},
            "augment": {"name": "none"},
            "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05},
            "trainer": {**loop, **plain},
            "logger": {"name": "none"},
        },
    )


def _tested(config: Config, folder: Path) -> Predictions:
    """One fold's test rows, predicted by the network of its best epoch."""
    data = LesionData(config, BOTH)
    place = folder / "run"
    fold = Fold(config, place, data, _module(config, data), build_trainer(config, place), {}, place)
    keep_features(config, data, fold.module.network, fold.module.device, folder / "features")
    fold.trainer.fit(fold.module, data)
    card, weights = load_card(place / "checkpoints" / "best.ckpt")
    fold.module.network.load_state_dict(weights)
    return judge.decide(
        fold._outcomes("val"),
        fold._outcomes("test"),
        classes=card.classes,
        positive=card.positive,
        prior=card.prior,
        config=config.evaluation,
    ).test


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
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(STUDIES)} [FOLDER] [FUSION ...]")
    where = Path(sys.argv[2] if len(sys.argv) > 2 else "runs/probe").absolute()  # noqa: PLR2004
    main(sys.argv[1], where, sys.argv[3:] or list(FUSIONS))
