"""Heads on the features of a frozen Lite0: neural, linear and boosted trees, paired over patients.

    SKINMM_DATA=DIR python benchmarks/heads.py [siim|ham10000] [SETTING=VALUE ...]
    python benchmarks/heads.py EMBEDDINGS.parquet

The first form runs all five folds with `train.py`; every row is predicted by a head that was not
fitted to its patient, and the folds of an arm are pooled. Further settings go to every arm.

The second form fits heads to a file of `skinmm embed columns=[target,age,sex,site]`, on four fifths
of the patients for each fifth, without and with columns that compare a lesion with the others of
its patient: the distance of its embedding to their mean, and the rank of that distance. They are
missing for a patient with one lesion, and do not contain the number of lesions. The neural head is
that of `fusion=concat`, without early stopping.

Differences are those from the first arm, with intervals over patients. The tables are in
`benchmarks/results/heads.md`.
"""

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from scipy.stats import rankdata
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

from skinmm.cli import main
from skinmm.data.record import RecordEncoder
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.predictions import BINARY, Predictions, read_predictions
from skinmm.models.fusion import Concat
from skinmm.models.heads import HEADS
from skinmm.models.tabular import MLP
from skinmm.training.calibrate import SplitOutputs
from skinmm.training.fitted_heads import fit_head
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
HEADER: Final = "| head | AUROC | AUPRC | Brier | AUROC - first | p | seconds a fold |"


def train_arm(cohort: str, name: str, folder: Path, settings: list[str]) -> Path:
    """Train the five folds of an arm, and return its run folder."""
    run = folder / name.replace(", ", "_").replace(" ", "_")
    data = [item.format(os.environ["SKINMM_DATA"]) for item in COHORTS[cohort]]
    paths = [f"model.cache={folder / 'features'}", f"hydra.run.dir={run}"]
    status = main.train([*data, *COMMON, *ARMS[name], *paths, *settings])
    if status:
        sys.exit(status)
    return run


def compare_with_patient(
    features: Float32[np.ndarray, "n dim"], patients: pd.Series
) -> Float32[np.ndarray, "n 4"]:
    """Return distance and rank of each row among its patient's, each with a flag for missing."""
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-6)
    columns = np.tile(np.array([0, 1, 0, 1], np.float32), (len(features), 1))
    for rows in patients.groupby(patients).indices.values():
        if len(rows) > 1:
            others = (scaled[rows].sum(axis=0) - scaled[rows]) / (len(rows) - 1)
            distances = np.linalg.norm(scaled[rows] - others, axis=1) / np.sqrt(features.shape[1])
            ranks = (rankdata(distances) - 1) / (len(rows) - 1) - 0.5
            columns[rows] = np.stack(
                [distances, np.zeros(len(rows)), ranks, np.zeros(len(rows))], axis=1
            )
    return columns


class NeuralHead(nn.Module):
    """The network of `fusion=concat` after the image network: dropout, MLP of the record, layer."""

    def __init__(self, width: int, columns: int) -> None:
        super().__init__()
        self.width, self.record = width, MLP([columns])
        self.fusion = Concat(width, self.record.dim)
        self.head = self.fusion.head(2)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits."""
        record = self.record(inputs[:, self.width :])
        return self.head(self.fusion(inputs[:, : self.width], record))


def train_neural(inputs: np.ndarray, target: np.ndarray, width: int) -> NeuralHead:
    """Train for 15 epochs in batches of 16, with AdamW and the schedule of `optimizer.lr=0.003`."""
    torch.manual_seed(0)
    head = NeuralHead(width, inputs.shape[1] - width)
    optimizer = torch.optim.AdamW(head.parameters(), 0.003, weight_decay=0.01)
    steps = 15 * (len(inputs) // 16)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.003, total_steps=steps)
    rows, targets = torch.from_numpy(inputs), torch.from_numpy(target)
    for _ in range(15):
        for batch in torch.randperm(len(rows))[: len(rows) // 16 * 16].view(-1, 16):
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(head(rows[batch]), targets[batch])
            loss.backward()
            optimizer.step()
            schedule.step()
    return head.eval()


def fit_arm(
    name: str, table: pd.DataFrame, features: Float32[np.ndarray, "n dim"], *, relative: bool
) -> tuple[Predictions, list[float]]:
    """Return the predictions of five folds, and the seconds of each."""
    target, patients = table["target"].to_numpy(int), table["patient_id"].to_numpy(str)
    logits, seconds = np.zeros((len(table), 2)), []
    extra = compare_with_patient(features, table["patient_id"])[:, : 4 * relative]
    for train, test in StratifiedGroupKFold(5, shuffle=True, random_state=0).split(
        features, target, patients
    ):
        encoder = RecordEncoder.fit(table.iloc[train], ["age", "sex", "site"])
        inputs = np.hstack([features, encoder.transform(table), extra]).astype(np.float32)
        width = features.shape[1]
        start = time.perf_counter()
        if name == "neural":
            head: Any = train_neural(inputs[train], target[train], width)
        else:
            head = HEADS[name](Concat(width, inputs.shape[1] - width), 2, width)
            raw = np.zeros((len(train), 2))
            rows = SplitOutputs(table.iloc[train], target[train], raw, inputs[train])
            fit_head(head, rows, (np.bincount(target[train]) / len(train)).tolist(), seed=0)
        seconds.append(time.perf_counter() - start)
        logits[test] = head(torch.from_numpy(inputs[test])).detach().numpy()
    probabilities = torch.from_numpy(logits).softmax(dim=1).numpy()
    predictions = Predictions(
        image_id=table["image_id"].to_numpy(str),
        patient_id=patients,
        target=target,
        probabilities=probabilities,
        raw=probabilities,
        classes=BINARY,
        positive=("malignant",),
    )
    return predictions, seconds


def describe(name: str, result: dict[str, Any], seconds: list[float]) -> str:
    """Return the line of an arm."""
    values, first = result["systems"][name], next(iter(result["systems"]))
    difference, p_value = "", ""
    for pair in result["pairs"]:
        if {pair["a"], pair["b"]} == {name, first} and name != first:
            gain, sign = pair["metrics"]["auroc"], 1 if pair["a"] == name else -1
            low, high = sorted(sign * gain[bound] for bound in ("low", "high"))
            difference = f"{sign * gain['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
            p_value = f"{gain['p']:.3f}"
    auroc = values["auroc"]
    cells = [
        name,
        f"{auroc['value']:.4f} [{auroc['low']:.4f}, {auroc['high']:.4f}]",
        *(f"{values[key]['value']:.4f}" for key in ("average_precision", "brier")),
        *(difference, p_value),
        f"{np.mean(seconds):.1f} (max {max(seconds):.1f})" if seconds else "",
    ]
    return f"| {' | '.join(cells)} |"


def print_table(title: str, files: dict[str, Predictions], seconds: dict[str, list[float]]) -> None:
    """Print the table of several arms."""
    result = compare(files, against=[next(iter(files))])
    print(f"\n{title}: {result['n']} rows, {result['patients']} patients\n\n{HEADER}")
    print("|---" * HEADER.count(" | ") + "|---|")
    for name in files:
        print(describe(name, result, seconds[name]))


def run_cohort(cohort: str, settings: list[str]) -> None:
    """Train all arms on a cohort."""
    with TemporaryDirectory() as temporary:
        runs = {name: train_arm(cohort, name, Path(temporary), settings) for name in ARMS}
        files, seconds = {}, {}
        for name, run in runs.items():
            positive = read_metrics(run)["positive"]
            files[name] = read_predictions(run / "predictions" / "test.csv", positive=positive)
            folds = [read_metrics(fold) for fold in sorted(run.glob("fold_*"))]
            fits = [fold["fitted_head"] for fold in folds if "fitted_head" in fold]
            seconds[name] = [fit["seconds"] for fit in fits]
        print_table(cohort, files, seconds)


def run_embeddings(path: Path) -> None:
    """Fit heads to a file of embeddings, without and with columns relative to the patient."""
    table = pd.read_parquet(path)
    table["age"] = pd.to_numeric(table["age"])
    table["target"] = table["target"].astype(float).astype(int)
    features = table.filter(regex=r"^e\d+$").to_numpy(np.float32)
    files, seconds = {}, {}
    for name in ("neural", "linear", "boosting"):
        for relative in (False, True):
            arm = f"{name}, relative columns" if relative else name
            files[arm], seconds[arm] = fit_arm(name, table, features, relative=relative)
            print(arm, np.round(seconds[arm], 1).tolist(), file=sys.stderr, flush=True)
    print_table(path.name, files, seconds)


if __name__ == "__main__":
    words = sys.argv[1:] or ["siim"]
    if words[0] in COHORTS:
        run_cohort(words[0], words[1:])
    else:
        run_embeddings(Path(words[0]))
