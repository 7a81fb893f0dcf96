"""Adaptation to other cohorts: calibration and net benefit before and after, by number of labels.

    python train.py experiment=outside_study data.root=DATA data.fold=0 hydra.run.dir=STUDY
    python benchmarks/adapt.py STUDY [MODEL_on_SITE ...]

Instead of a study, a folder with predictions MODEL_on_SITE.csv, and MODEL.csv of its own cohort:

    skinmm embed model.name=tf_efficientnet_lite0 ... input=ham10000.csv output=E/ham10000.parquet
    python benchmarks/adapt.py E heads

writes them for each file of embeddings in E, with the columns patient_id and target. A model is a
logistic regression on three fifths of the patients of a cohort, calibrated on another fifth.

For each model of the study and each other cohort, whole patients are drawn until so many lesions
are labelled. The model is adapted to them; of the other lesions at most 2,000 evaluate it.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skinmm.evaluation.adaptation import fit_adaptation
from skinmm.evaluation.calibration import apply_scale, fit_calibration
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.predictions import (
    BINARY,
    Predictions,
    read_predictions,
    write_predictions,
)
from skinmm.evaluation.prevalence_shift import estimate_shift
from skinmm.evaluation.referral import cross_fit_ood
from skinmm.evaluation.statistics import MalignancyMetrics

SIZES: Final = (200, 50, 100, 400)
REPEATS: Final = 200
UNLABELLED: Final = 50  # repeats, each with a bootstrap of its own
TEST: Final = 2000
NOISE: Final = 1e-9  # of unchanged probabilities
SHOWN: Final = ("log_loss", "ece", "calibration_slope", "net_benefit")


def measure(probabilities: Any, rows: Predictions) -> dict[str, float]:
    """Return log loss, calibration and net benefit at the share of malignant rows."""
    codes, count = patient_codes(rows.patient_id)
    share = float(rows.malignant.mean())
    statistic = MalignancyMetrics(
        np.clip(probabilities[:, 1], 0, 1), rows.malignant, codes, threshold=share
    )
    values = statistic(np.ones((1, count), dtype=np.int64))
    return {name: float(values[name][0]) for name in SHOWN}


def draw(rows: Predictions, lesions: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """Return the row numbers of whole patients with about so many lesions, and of a test."""
    codes, count = patient_codes(rows.patient_id)
    order = rng.permutation(count)
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    shuffled = np.argsort(rank[codes], kind="stable")
    cut = min(lesions, len(rows) // 2)
    while codes[shuffled[cut]] == codes[shuffled[cut - 1]]:
        cut += 1
    rest = shuffled[cut:]
    return shuffled[:cut], rng.choice(rest, min(TEST, len(rest)), replace=False)


def run(direction: str, rows: Predictions, reference: Predictions | None) -> None:
    """Print the rows of one direction; without reference rows only those with labels."""
    rng = np.random.default_rng(0)
    counts = f"{len(rows):,} rows, {int(rows.malignant.sum()):,} melanomas"
    print(f"| **{direction}** ({counts}) | | | | | | |")
    for size in SIZES:
        before, after, chosen = [], [], []
        for _ in range(REPEATS):
            labelled, test = (rows.select(part) for part in draw(rows, size, rng))
            fit = fit_adaptation(
                labelled.probabilities, labelled.target, labelled.patient_id.astype(str)
            )
            before.append(measure(test.probabilities, test))
            adapted = test.probabilities
            if fit.method != "none":
                adapted = apply_scale(fit.state, adapted)
            after.append(measure(adapted, test))
            chosen.append(fit.method)
        report(f"{size} labels", before, after, dict(Counter(chosen)))
    if reference is not None:
        run_unlabelled(rows, reference, rng)


def run_unlabelled(rows: Predictions, reference: Predictions, rng: np.random.Generator) -> None:
    """Print the row without labels, and how often the shift was refused."""
    before, after, refused, unchanged = [], [], 0, 0
    known = (reference.probabilities, reference.target, reference.patient_id.astype(str))
    share = reference.malignant.mean()
    for _ in range(UNLABELLED):
        site, test = (rows.select(part) for part in draw(rows, SIZES[-1], rng))
        shift = estimate_shift(
            site.probabilities,
            site.patient_id.astype(str),
            known,
            [1 - share, share],
            ood=None if site.ood is None or reference.ood is None else (site.ood, reference.ood),
            resamples=100,
        )
        refused += not shift.is_plausible
        is_used = shift.is_plausible and shift.is_changed
        unchanged += shift.is_plausible and not shift.is_changed
        before.append(measure(test.probabilities, test))
        adapted = apply_scale(shift.state, test.probabilities) if is_used else test.probabilities
        after.append(measure(adapted, test))
    report(f"{SIZES[-1]} unlabelled", before, after, {"refused": refused, "unchanged": unchanged})


def report(name: str, before: list[Any], after: list[Any], facts: dict[str, Any]) -> None:
    """Print one row: medians before and after, and the share of repeats that are better."""
    first, second = pd.DataFrame(before), pd.DataFrame(after)
    cells = [f"{first[key].median():.3f} to {second[key].median():.3f}" for key in SHOWN]
    gain = second["log_loss"] - first["log_loss"]
    better, worse = (gain < -NOISE).mean(), (gain > NOISE).mean()
    cells.append(f"{better:.1%} better, {worse:.1%} worse, median {gain.median():+.3f}")
    print(f"| {name} | {' | '.join(cells)} | {facts} |", flush=True)


def write_heads(folder: Path) -> None:
    """Write the predictions of a linear head on each cohort of embeddings for all others."""
    tables = {file.stem: read_embeddings(file) for file in sorted(folder.glob("*.parquet"))}
    for name, own in tables.items():
        codes, count = patient_codes(own["patient_id"].to_numpy(str))
        parts = np.random.default_rng(0).permutation(count)[codes] % 5
        train, val = own[parts < 3], own[parts == 3]  # noqa: PLR2004 - of five
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        head.fit(to_features(train), train["target"])
        features = to_features(val)
        patients = val["patient_id"].to_numpy(str)
        calibration = fit_calibration(head.predict_proba(features), to_targets(val), patients)
        fitted = cross_fit_ood(features, patients)
        if fitted is None:
            sys.exit(f"{name}: too few rows for an out-of-distribution score")
        write_rows(folder / f"{name}.csv", val, head, calibration, fitted[1])
        for site, table in tables.items():
            rows = table[~table["image_id"].isin(own["image_id"])]
            ood = fitted[0].score(to_features(rows))
            if site != name:
                write_rows(folder / f"{name}_on_{site}.csv", rows, head, calibration, ood)


def read_embeddings(file: Path) -> pd.DataFrame:
    """Return image_id, patient_id, target and the columns of the embedding."""
    table = pd.read_parquet(file)
    names = table["image_id"].map(lambda name: Path(name).stem)
    patients = table["patient_id"].fillna(names)
    return table.assign(image_id=names, patient_id=patients, target=table["target"].astype(int))


def to_features(rows: pd.DataFrame) -> Any:
    """Return the embeddings."""
    return rows.filter(regex=r"^e\d+$").to_numpy(np.float32)


def to_targets(rows: pd.DataFrame) -> Any:
    """Return the index of the true class of each row."""
    return rows["target"].to_numpy(np.int64)


def write_rows(file: Path, rows: pd.DataFrame, head: Any, calibration: Any, ood: Any) -> None:
    """Write the calibrated predictions of a head."""
    p = calibration.apply(head.predict_proba(to_features(rows)))
    names, patients = (rows[name].to_numpy(str) for name in ("image_id", "patient_id"))
    target = to_targets(rows)
    made = Predictions(names, patients, target, p, None, BINARY, BINARY[1:], ood=ood)
    write_predictions(file, made)
    print(f"{file}: AUROC {roc_auc_score(rows['target'], p[:, 1]):.3f}", flush=True)


def main(folder: Path, directions: list[str]) -> None:
    """Measure every direction, or the named ones such as `ham10000_on_isic_2017`."""
    print("| site | log loss | ECE | slope | net benefit | log loss of repeats | chosen |")
    print("|---|---|---|---|---|---|---|")
    for file in sorted([*folder.glob("*_on_*.csv"), *folder.glob("outside/*_on_*.csv")]):
        if file.name.endswith(".input.csv") or (directions and file.stem not in directions):
            continue
        model = file.stem.partition("_on_")[0]
        sources = folder / f"{model}.csv", folder / model / "predictions" / "val.csv"
        reference = next((read_predictions(path) for path in sources if path.is_file()), None)
        run(file.stem.replace("_on_", " on "), read_predictions(file), reference)


if __name__ == "__main__":
    if sys.argv[2:] == ["heads"]:
        write_heads(Path(sys.argv[1]))
    else:
        main(Path(sys.argv[1]), sys.argv[2:])
