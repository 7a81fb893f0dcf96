"""The within-source AUROC: coverage of its interval by simulation, and figures on HAM10000.

    python benchmarks/within_source.py [REPEATS]
    SKINMM_DATA=DIR python benchmarks/within_source.py ham10000

Four sources with the shares of HAM10000 (rows 39, 34, 23 and 4 %; malignant 1, 27, 41 and 16 %), a
shift of the scores by source, another separation in each source, and one to four lesions a patient
that share half of the variance. The true value is in closed form.

On HAM10000: the published predictions of eight foundation models (folder `ham_frontier`), and a
logistic regression of age, sex and site, tested on other lesions and on other sources than those
that it was fitted to.
"""

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.record import RecordEncoder
from skinmm.data.sources import leave_one_source_out, list_sources
from skinmm.data.splits import split
from skinmm.evaluation.curves import Samples
from skinmm.evaluation.intervals import independent_units
from skinmm.evaluation.metrics import estimate, evaluate
from skinmm.evaluation.predictions import BINARY, Predictions
from skinmm.evaluation.sources import WithinSourceAuroc

ROWS = np.array([0.39, 0.34, 0.23, 0.04])
MALIGNANT = np.array([0.01, 0.27, 0.41, 0.16])
DISTANCE = np.array([1.0, 1.5, 1.2, 2.0])  # between the mean scores, in standard deviations
NAMES = np.array(["a", "b", "c", "d"], dtype=object)
PATIENTS = (100, 200, 400, 1000)
RESAMPLES = 1000
NAME = "within_source_auroc"


def true_auroc() -> float:
    """Return the AUROC of pairs of the same source: the mean of the sources, weighted by pairs."""
    weights = ROWS**2 * MALIGNANT * (1 - MALIGNANT)
    return float(weights @ norm.cdf(DISTANCE / np.sqrt(2)) / weights.sum())


def measure(patients: int, repeats: int) -> tuple[float, float, float, float, float, int]:
    """Return coverage, misses below and above, mean width, mean AUROC of all pairs, undefined."""
    inside = low_misses = high_misses = undefined = 0
    widths, pooled = list[float](), list[float]()
    truth = true_auroc()
    for repeat in range(repeats):
        rng = np.random.default_rng([patients, repeat])
        codes = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
        source = rng.choice(4, patients, p=ROWS)[codes]
        malignant = rng.random(len(codes)) < MALIGNANT[source]
        noise = rng.normal(size=patients)[codes] + rng.normal(size=len(codes))
        scores = noise / np.sqrt(2) + DISTANCE[source] * malignant + 2 * MALIGNANT[source]
        ranking = WithinSourceAuroc(scores, malignant, codes, NAMES[source])

        def statistic(
            draws: Int64[np.ndarray, "b p"], ranking: WithinSourceAuroc = ranking
        ) -> dict[str, Samples]:
            return {NAME: ranking(draws)}

        units = independent_units(codes, malignant)
        metrics = estimate(statistic, statistic, codes, units, RESAMPLES, 0.95, 0)
        entry = metrics[NAME]
        pooled.append(float(roc_auc_score(malignant, scores)))
        low, high = entry["low"], entry["high"]
        if low is None or high is None:
            undefined += 1
            continue
        low_misses += truth < low
        high_misses += truth > high
        inside += low <= truth <= high
        widths.append(high - low)
    shares = (inside / repeats, low_misses / repeats, high_misses / repeats)
    return *shares, float(np.mean(widths)), float(np.mean(pooled)), undefined


def print_row(name: str, rows: pd.DataFrame, score: "pd.Series[float]") -> None:
    """Print AUROCs of all pairs, within sources and of each source, and the random-effects mean."""
    probabilities = np.stack([1 - score, score], axis=1)
    predictions = Predictions(
        image_id=rows["image_id"].to_numpy(object),
        patient_id=rows["lesion_id"].to_numpy(object),
        target=rows["target"].to_numpy(np.int64),
        probabilities=probabilities,
        raw=None,
        classes=BINARY,
        positive=BINARY[1:],
        source=rows["source"].to_numpy(object),
    )
    measured = evaluate(predictions)
    entries = [measured["metrics"][key] for key in ("auroc", NAME)]
    entries += measured["sources"]["aurocs"]
    pooled = measured["sources"]["random_effects"] or {}
    entries.append(pooled)
    print(f"| {name} | {' | '.join(map(format_entry, entries))} |", flush=True)


def format_entry(entry: dict[str, Any]) -> str:
    """Format value and interval."""
    if entry.get("value") is None:
        return "undefined"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def measure_ham10000(folder: Path) -> None:
    """Print a table with a line for each foundation model, and for the record alone."""
    rows = load_cohort(DataConfig(name="ham10000", root=str(folder / "ham10000"))).rows
    rows = rows.set_index("image_id", drop=False)
    sources = list_sources(rows)
    print(f"| score | all pairs | within sources | {' | '.join(sources)} | random effects |")
    print("|---" * (len(sources) + 4) + "|")
    share = rows["target"].groupby(rows["source"]).transform("mean")
    print_row("share of malignant rows of the source", rows, share)
    published = pd.read_csv(folder / "ham_frontier" / "predictions.csv").set_index("image_id")
    part = rows.loc[published.index]
    for model in dict.fromkeys(
        name.partition(":")[0] for name in map(str, published) if ":" in name
    ):
        malignant = published[[f"{model}:{k}" for k in (0, 1, 4)]]  # akiec, bcc, mel
        print_row(f"{model}, 1,503 images", part, malignant.sum(axis=1).clip(0, 1))
    for name, folds in (
        ("lesions", [split(rows, 5, fold, 0) for fold in range(5)]),
        ("sources", [leave_one_source_out(rows, 5, fold, 0) for fold in range(len(sources))]),
    ):
        print_row(f"record alone, other {name}", rows, predict_record(rows, folds))


def predict_record(rows: pd.DataFrame, folds: list[pd.DataFrame]) -> "pd.Series[float]":
    """Return out-of-fold probabilities of a logistic regression of age, sex and site."""
    score = pd.Series(np.nan, rows.index)
    for table in folds:
        train, test = (table[table["part"].isin(parts)] for parts in (("train", "val"), ("test",)))
        encoder = RecordEncoder.fit(train, ["age", "sex", "site"])
        model = LogisticRegression(max_iter=1000)
        model.fit(encoder.transform(train), train["target"].astype(int))
        score[test.index] = model.predict_proba(encoder.transform(test))[:, 1]
    return score


def main() -> None:
    """Print the table of the simulation, or that of HAM10000."""
    if sys.argv[1:] == ["ham10000"]:
        measure_ham10000(Path(os.environ["SKINMM_DATA"]))
        return
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"true within-source AUROC {true_auroc():.4f}; {repeats} repeats, {RESAMPLES} resamples")
    header = ("patients", "coverage", "interval above", "below", "width", "AUROC, all pairs")
    print(f"| {' | '.join((*header, 'undefined', 'seconds'))} |")
    print("|---" * (len(header) + 2) + "|")
    for patients in PATIENTS:
        start = time.perf_counter()
        *figures, undefined = measure(patients, repeats)
        cells = " | ".join(f"{figure:.3f}" for figure in figures)
        print(
            f"| {patients} | {cells} | {undefined} | {time.perf_counter() - start:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
