"""One fold, the ensemble of the folds and one network of all rows, on images of other patients.

    SKINMM_DATA=DIR python benchmarks/final_model.py [FOLDER]

A head on the frozen features of a Lite0 with the record, trained with `data.fold=all final=true` on
about half of the SIIM images that have pixels; the other patients evaluate it. All choices are the
defaults of the product.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from skinmm.cli import main as cli
from skinmm.data.splits import hold_out
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import BINARY, Predictions

SHARE: Final = 0.476  # of the images, held out in whole patients
FOLDS: Final = 5
RECIPE: Final = (
    *("data=csv", "model=effnet_lite0", "model.freeze=true", "model.image_size=192"),
    *(
        "augment=none",
        "fusion=concat",
        "optimizer.lr=0.003",
        "trainer.batch_size=16",
        "trainer.max_epochs=15",
    ),
    *(f"data.folds={FOLDS}", "data.fold=all", "final=true", "trainer.progress=false"),
    *("evaluation.resamples=0", "report.pictures=false", "report.explain=false"),
)


def find_images() -> Path:
    """Return the folder of the images."""
    return Path(os.environ["SKINMM_DATA"], "siim_isic_2020", "jpeg", "train")


def write_cohort(root: Path, folder: Path) -> pd.DataFrame:
    """Write the table to train with, and return the rows of other patients."""
    table = pd.read_csv(root / "train_with_images.csv")
    names = {"image_name": "image_id", "anatom_site_general_challenge": "site"}
    canonical = table.rename(columns={**names, "age_approx": "age"})
    parts = hold_out(canonical, SHARE, seed=0)["part"].to_numpy()
    held_out = table[parts == "test"]
    columns = table.columns.drop(["diagnosis", "benign_malignant"])
    table.loc[parts != "test", columns].to_csv(folder / "cohort.csv", index=False)
    held_out[columns].to_csv(folder / "held_out.csv", index=False)
    return held_out


def predict(checkpoint: Path, folder: Path, name: str) -> Float64[np.ndarray, " n"]:
    """Return the calibrated probabilities of malignancy of the held-out rows."""
    output = folder / f"{name}.csv"
    arguments = [f"checkpoint={checkpoint}", f"input={folder / 'held_out.csv'}", f"output={output}"]
    if cli.predict([*arguments, f"images={find_images()}", "overwrite=true"]):
        raise RuntimeError(f"no predictions of {checkpoint}")
    return pd.read_csv(output)["malignancy"].to_numpy()


def to_predictions(
    table: pd.DataFrame, target: Int64[np.ndarray, " n"], p: Float64[np.ndarray, " n"]
) -> Predictions:
    """Return predictions of the held-out rows."""
    return Predictions(
        image_id=table["image_name"].to_numpy(str),
        patient_id=table["patient_id"].to_numpy(str),
        target=target,
        probabilities=np.stack([1 - p, p], axis=1),
        raw=None,
        classes=BINARY,
        positive=("malignant",),
    )


def main(folder: Path) -> None:
    """Print the table as Markdown."""
    table = write_cohort(Path(os.environ["SKINMM_DATA"], "siim_isic_2020"), folder)
    target, run = table["target"].to_numpy(np.int64), folder / "run"
    if not (run / "metrics.json").is_file() and cli.train(
        [
            *(*RECIPE, f"data.root={folder}", f"+data.args.images={find_images()}"),
            f"hydra.run.dir={run}",
        ]
    ):
        raise RuntimeError("the training failed")
    folds = [run / f"fold_{fold}" / "checkpoints" / "best.ckpt" for fold in range(FOLDS)]
    single = [predict(file, folder, f"fold_{fold}") for fold, file in enumerate(folds)]
    systems = {f"fold {fold}": p for fold, p in enumerate(single)}
    systems["ensemble of the folds"] = np.mean(single, axis=0)  # as the product averages
    systems["final, all rows"] = predict(run / "checkpoints" / "final.ckpt", folder, "final")
    patients = table["patient_id"].nunique()
    print(f"\n{len(table)} images of {patients} patients, {target.sum()} malignant.\n")
    print("| network | AUROC | Brier | mean probability over prevalence | unfamiliar |")
    print("|---|---|---|---|---|")
    rows = {name: to_predictions(table, target, p) for name, p in systems.items()}
    for name, predictions in rows.items():
        metrics = evaluate(predictions, threshold=0.5, resamples=1000)["metrics"]
        auroc = metrics["auroc"]
        ratio = systems[name].mean() / target.mean()
        file = folder / f"{name.replace(' ', '_').partition(',')[0]}.csv"
        far = f"{(pd.read_csv(file)['ood'] > 1).mean():.3f}" if file.is_file() else "-"
        print(
            f"| {name} | {auroc['value']:.3f} ({auroc['low']:.3f} to {auroc['high']:.3f}) "
            f"| {metrics['brier']['value']:.3f} | {ratio:.2f} | {far} |"
        )
    result = compare(rows, against=["final, all rows"])
    print("\n| difference of AUROC | value | p |\n|---|---|---|")
    for pair in result["pairs"]:
        entry = pair["metrics"]["auroc"]
        print(
            f"| {pair['a']} minus {pair['b']} | {entry['difference']:+.3f} "
            f"({entry['low']:+.3f} to {entry['high']:+.3f}) | {entry['p']:.3f} |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
        main(Path(sys.argv[1]))
    else:
        with TemporaryDirectory() as temporary:
            main(Path(temporary))
