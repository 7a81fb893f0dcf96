"""What the choice of the epoch costs and promises: single epochs, or the mean of neighbouring ones.

    [SKINMM_DATA=DIR] python benchmarks/epoch_selection.py [REPEATS]

First simulated epochs that are equally good, the worst case; then real trainings of a head on the
frozen features of a Lite0, on REPEATS splits of the included cohort and, with SKINMM_DATA, of the
SIIM images and of 2,000 images of HAM10000 (melanoma against the rest), so that fewer than 100
validation lesions are malignant, as where the product averages. "Too high" is the AUROC of
validation minus that of the test rows of the same epoch.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import torch
from guarantee import DISTANCE, average_latest, compute_aurocs, draw_scores
from jaxtyping import Bool, Float32, Float64
from scipy.stats import norm, rankdata

from skinmm.config import Config, ScheduleConfig, from_mapping
from skinmm.data.datamodule import LesionData
from skinmm.data.splits import split
from skinmm.models.network import build_network
from skinmm.training.frozen_features import cache_features
from skinmm.training.optimizer import rate
from skinmm.training.trainer import silence_libraries

FOLDS: Final = 5
BATCH: Final = 16
ROWS: Final = 2_000  # of HAM10000, in whole lesions
Values = Float64[np.ndarray, " epochs"]


def average_neighbours(values: Values) -> Values:
    """Return the mean over each epoch, the one before and the one after it."""
    return pd.Series(values).rolling(3, min_periods=1, center=True).mean().to_numpy()


RULES: Final[dict[str, Callable[[Values], Values]]] = {
    "single epoch": lambda values: values,
    "latest 3 (the product)": partial(average_latest, window=3),
    "latest 5": partial(average_latest, window=5),
    "neighbours": average_neighbours,
    "last epoch": lambda values: np.arange(len(values), dtype=float),
}


class Setting(NamedTuple):
    """A training: number of epochs, highest learning rate, schedule."""

    epochs: int
    lr: float
    schedule: str


SETTINGS: Final = (Setting(15, 1e-3, "warmup_cosine"), Setting(30, 3e-3, "constant"))


def simulate(malignant: int, correlation: float, repeats: int, epochs: int = 15) -> list[str]:
    """Return the excess of the AUROC of the selected one of equally good epochs, by rule."""
    rng, excess = np.random.default_rng(0), dict.fromkeys(RULES, 0.0)
    truth = norm.cdf(DISTANCE / np.sqrt(2))
    for _ in range(repeats):
        aurocs = compute_aurocs(*draw_scores(rng, epochs, correlation, malignant))
        for name, rule in RULES.items():
            excess[name] += (aurocs[rule(aurocs).argmax()] - truth) / repeats
    return [f"{value:+.4f}" for value in excess.values()]


def read_features(
    data: dict[str, Any], folder: Path
) -> tuple[pd.DataFrame, Float32[np.ndarray, "n d"]]:
    """Return the rows of a cohort and the features of their images."""
    model = {"name": "tf_efficientnet_lite0", "image_size": 192, "freeze": True}
    names = {"fusion": "image_only", "tabular": "mlp", "sampler": "shuffle", "augment": "none"}
    sections = {key: {"name": name} for key, name in names.items()}
    config = from_mapping(Config, {"model": model, "data": data, **sections})
    cohort = LesionData(config, frozenset({"image"}))
    cohort.setup()
    network = build_network(config, cohort.record_widths, 2, pretrained=True)
    print(f"Weights: {network.image.origin if network.image else None}.", file=sys.stderr)
    file = cache_features(config, cohort, network, torch.device("cpu"), folder)
    return cohort.cohort.assign(target=cohort.targets), np.load(file)


def exclude_lesions(root: Path, folder: Path) -> Path:
    """Write the lesions of HAM10000 that are left out, so that about `ROWS` images remain."""
    sizes = pd.read_csv(root / "HAM10000_metadata.csv")["lesion_id"].value_counts(sort=False)
    order = np.random.default_rng(0).permutation(len(sizes))
    is_excluded = np.cumsum(sizes.to_numpy()[order]) > ROWS
    pd.Series(sizes.index[order[is_excluded]], name="lesion_id").to_csv(
        folder / "exclude.csv", index=False
    )
    return folder / "exclude.csv"


def train(
    features: Float32[np.ndarray, "n d"],
    table: pd.DataFrame,
    setting: Setting,
    seed: int,
) -> tuple[Values, Values]:
    """Train a linear head on one split; return AUROC of validation and test after each epoch."""
    torch.manual_seed(seed)
    x, y = torch.from_numpy(features), torch.from_numpy(table["target"].to_numpy())
    parts = {name: np.flatnonzero(table["part"] == name) for name in ("train", "val", "test")}
    head = torch.nn.Linear(x.shape[1], 2)
    optimizer = torch.optim.AdamW(head.parameters(), lr=setting.lr)
    count = -(-len(parts["train"]) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        partial(rate, config=ScheduleConfig(setting.schedule), steps=count * setting.epochs),
    )
    aurocs: dict[str, list[float]] = {"val": [], "test": []}
    for _ in range(setting.epochs):
        order = parts["train"][torch.randperm(len(parts["train"])).numpy()]
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            loss = torch.nn.functional.cross_entropy(head(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.inference_mode():
            scores = torch.softmax(head(x), dim=1)[:, 1].numpy()
        for name, values in aurocs.items():
            rows = parts[name]
            values.append(compute_auroc(scores[rows], y.numpy()[rows] == 1))
    return np.array(aurocs["val"]), np.array(aurocs["test"])


def compute_auroc(scores: Float32[np.ndarray, " n"], malignant: Bool[np.ndarray, " n"]) -> float:
    """Return the AUROC of some rows."""
    m = malignant.sum()
    ranks = rankdata(scores)[malignant].sum()
    return float((ranks - m * (m + 1) / 2) / (m * (len(scores) - m)))


def measure(data: dict[str, Any], setting: Setting, repeats: int, folder: Path) -> list[str]:
    """Return the rows of a table: test AUROC, its difference to single epochs, and the optimism."""
    table, features = read_features(data, folder)
    plain = table.drop(columns=["part", "fold"])
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in RULES}
    for repeat in range(repeats):
        parts = split(plain, FOLDS, repeat % FOLDS, seed=repeat // FOLDS)
        val, test = train(features, parts, setting, seed=repeat)
        for name, rule in RULES.items():
            epoch = int(rule(val).argmax())
            results[name].append((test[epoch], val[epoch] - test[epoch]))
    single = np.array(results["single epoch"])
    lines = []
    for name, pairs in results.items():
        values = np.array(pairs)
        gain = values[:, 0] - single[:, 0]
        error = gain.std(ddof=1) / np.sqrt(repeats)
        spread = values[:, 1].std(ddof=1) / np.sqrt(repeats)
        lines.append(
            f"| {name} | {values[:, 0].mean():.4f} | {gain.mean():+.4f} ({error:.4f}) "
            f"| {values[:, 1].mean():+.4f} ({spread:.4f}) |"
        )
    return lines


def main() -> None:
    """Print the tables as Markdown."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    silence_libraries()
    torch.set_num_threads(1)
    print(f"| malignant | correlation | {' | '.join(RULES)} |")
    print(f"|---|---|{'---|' * len(RULES)}")
    for malignant in (28, 60, 117):
        for correlation in (0.9, 0.5):
            line = simulate(malignant, correlation, 1000)
            print(f"| {malignant} | {correlation} | {' | '.join(line)} |", flush=True)
    cohorts: dict[str, dict[str, Any]] = {"included cohort": {"name": "demo"}}
    if root := os.environ.get("SKINMM_DATA"):
        for name, label in (("siim_isic", "SIIM images"), ("ham10000", "HAM10000")):
            path = "siim_isic_2020" if name == "siim_isic" else name
            cohorts[label] = {"name": name, "root": f"{root}/{path}", "missing": "drop"}
        cohorts["HAM10000"] |= {"target": "malignant", "positive": ["mel"]}
    with TemporaryDirectory() as folder:
        if root:
            exclude = exclude_lesions(Path(root, "ham10000"), Path(folder))
            cohorts["HAM10000"]["args"] = {"exclude": str(exclude)}
        for cohort, data in cohorts.items():
            for setting in SETTINGS:
                lines = measure(data, setting, repeats, Path(folder))
                text = f"{setting.epochs} epochs, rate {setting.lr:g}, {setting.schedule}"
                print(f"\n{cohort}, {text}, {repeats} trainings:\n")
                print("| rule | test AUROC | minus single epoch (s.e.) | too high by (s.e.) |")
                print("|---|---|---|---|", *lines, sep="\n", flush=True)


if __name__ == "__main__":
    main()
