"""Train the model `skinmm/zoo/cc0` on CC0 images alone, and measure it on images of others.

    python benchmarks/zoo.py train ISIC_2017 OUT       # about 20 minutes on two cores
    python benchmarks/zoo.py fit OUT                   # the decision; writes skinmm/zoo
    python benchmarks/zoo.py measure OUT NAME ROOT     # NAME: own, ham10000 or siim_isic

A fifth of the images tests, a fifth validates, by the hash of the first name of each lesion; near
duplicates count as one lesion. Repeat `fit` when the code of calibration or referral changes.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from skinmm.cli.main import predict, train
from skinmm.config import DataConfig
from skinmm.config.checkpoints import INCLUDED, ZOO
from skinmm.data.audit import compute_fingerprints, find_near_duplicates
from skinmm.data.cohorts import load_cohort
from skinmm.data.splits import find_components
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.evaluation.smooth_calibration import calibration_noise
from skinmm.images.source import read_source
from skinmm.models.checkpoint import load_card, save_checkpoint, save_compact, to_16_bits

PARTS: Final = ("test", "val", "train", "train", "train")
RECIPE: Final = (
    *("experiment=lite0_finetune", "data=csv", "data.calibration=0", "model.image_size=192"),
    *("model.drop_image=0.05", "model.drop_record=0.15", "model.drop_columns=0.15"),
    *("trainer.max_epochs=12", "trainer.patience=12", "trainer.average_best=3"),
    *("trainer.precision=32", "evaluation.views=1", "report.explain=false"),
)
SOURCES: Final = {
    "own": DataConfig("isic_2017", args={"folds": "public"}),
    "ham10000": DataConfig("ham10000", target="malignant", positive=["mel"]),
    "siim_isic": DataConfig("siim_isic", missing="drop"),
}
ALIASES: Final = {
    "ISIC_7101732": "ISIC_0014289",
    "ISIC_2342769": "ISIC_0014331",
    "ISIC_8325226": "ISIC_0014360",
    "ISIC_2797353": "ISIC_0014507",
}
"""Images of SIIM-ISIC whose 256-bit hash differs from that of an image of ISIC 2017 in at most two
bits, of the 775 and 10,013 images compared. No other image differs in 30 bits or fewer."""
SHOWN: Final = (
    *("auroc", "ece", "calibration_slope", "calibration_intercept"),
    *("sensitivity", "specificity", "referred"),
)


def train_network(root: Path, out: Path) -> None:
    """Write `OUT/cohort.csv` with the parts, and train in `OUT/run`."""
    rows = read_rows("own", root)
    pairs = find_near_duplicates(compute_fingerprints(rows, read_source))
    rows["duplicate_of"] = rows.image_id.map(dict(zip(pairs.second, pairs["first"], strict=True)))
    first = rows.image_id.groupby(find_components(rows)).transform("min")
    digests = first.map(lambda name: hashlib.sha256(name.encode()).digest()[0])
    rows["part"] = [PARTS[digest % len(PARTS)] for digest in digests]
    print(f"near duplicates:\n{pairs}\n", rows.groupby("part").target.agg(["size", "sum"]))
    rows["image_id"] = [str(Path(path).relative_to(root)) for path in rows.path]
    columns = ["image_id", "lesion_id", "duplicate_of", "age", "sex", "site", "target", "part"]
    out.mkdir(parents=True, exist_ok=True)
    rows[columns].to_csv(out / "cohort.csv", index=False, lineterminator="\n")
    here = (f"data.root={root}", f"+data.args.table={(out / 'cohort.csv').absolute()}")
    sys.exit(train([*RECIPE, *here, f"hydra.run.dir={out / 'run'}", "overwrite=true"]))


def fit_decision(out: Path) -> None:
    """Round the weights as they are shipped, fit what follows validation, and write the model."""
    best = out / "run" / "checkpoints" / "best.ckpt"
    content: dict[str, Any] = torch.load(best, weights_only=True)
    weights = content["state_dict"]
    rounded = {name: to_16_bits(value).to(value.dtype) for name, value in weights.items()}
    save_checkpoint({**content, "state_dict": rounded}, best)
    (out / "run" / "metrics.json").unlink(missing_ok=True)
    epochs = f"trainer.max_epochs={content['epoch'] + 1}"
    if status := train([f"resume={out / 'run'}", epochs]):
        sys.exit(status)
    write_model(best, out)


def write_model(best: Path, out: Path) -> None:
    """Write a checkpoint to `skinmm/zoo`, without paths of this machine, and its rows."""
    card = load_card(best)[0]
    data = {**card.config["data"], "name": "isic_2017", "root": None, "args": {"folds": "public"}}
    name = ZOO / INCLUDED.partition(":")[2]
    save_compact(best, name.with_suffix(".safetensors"), config={**card.config, "data": data})
    rows = pd.read_csv(out / "run" / "cohort.csv", dtype=str).assign(source="isic_2017")
    part = rows.set_index("image_id").part
    aliases = [
        {"image_id": alias, "patient_id": image, "source": "siim_isic", "part": part[image]}
        for alias, image in ALIASES.items()
    ]
    columns = ["image_id", "patient_id", "lesion_id", "source", "target", "part"]
    table = pd.concat([rows[columns], pd.DataFrame(aliases)])
    table.to_csv(name.with_suffix(".csv"), index=False, lineterminator="\n")


def measure(out: Path, name: str, root: Path) -> None:
    """Predict a cohort without the rows of the training, and print rows of the table.

    An output that exists is measured again, without a prediction.
    """
    rows = read_rows(name, root)
    used = pd.read_csv((ZOO / "cc0.csv"), dtype=str)
    if name == "own":
        rows = rows[rows.image_id.isin(used.image_id[used.part == "test"])]
    else:
        rows = rows[~rows.image_id.isin(used.image_id)]
    inputs = rows.assign(image=rows.path)
    columns = ["image", "patient_id", "age", "sex", "site", "target"]
    inputs[columns].to_csv(out / f"{name}_input.csv", index=False)
    output = out / f"{name}.csv"
    job = [f"input={out / name}_input.csv", f"output={output}"]
    if not output.is_file() and (status := predict(job)):
        sys.exit(status)
    groups = {name: rows.index == rows.index}
    if "dataset" in rows:
        groups |= {source: (rows.dataset == source).to_numpy() for source in rows.dataset.unique()}
    predictions = read_predictions(output)
    threshold = float(pd.read_csv(output).threshold[0])
    for group, mask in groups.items():
        part = predictions.select(mask.nonzero()[0])
        print(format_row(group, part, evaluate(part, threshold=threshold)))


def read_rows(name: str, root: Path) -> pd.DataFrame:
    """Return the rows of a cohort whose image is there, with the source of those of HAM10000."""
    config = SOURCES[name]
    config.root = str(root)
    rows = load_cohort(config).rows
    rows = rows[rows.path.notna()].reset_index(drop=True)
    official = root / "HAM10000_metadata"
    if name == "ham10000" and official.is_file():
        sources = pd.read_csv(official).set_index("image_id").dataset
        rows["dataset"] = rows.image_id.map(sources)
    return rows


def format_row(group: str, rows: Predictions, metrics: dict[str, Any]) -> str:
    """Return a row: counts, mean probability and prevalence, calibration error by chance, ..."""
    cells = [f"{metrics['n']:,}", f"{metrics['positives']:,}"]
    cells.append(f"{rows.malignancy.mean():.3f} / {metrics['prevalence']:.3f}")
    cells.append(f"{calibration_noise(rows.malignancy)['ece']:.3f}")
    for name in SHOWN:
        entry = metrics["metrics"][name]
        value, low, high = (entry[bound] for bound in ("value", "low", "high"))
        cells.append("" if value is None else f"{value:.3f} ({low:.3f} to {high:.3f})")
    return f"| {' | '.join([group, *cells])} |"


if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    if step == "train":
        train_network(Path(rest[0]), Path(rest[1]))
    elif step == "fit":
        fit_decision(Path(rest[0]))
    else:
        measure(Path(rest[0]), rest[1], Path(rest[2]))
