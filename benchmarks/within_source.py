"""Coverage of the interval of the within-source AUROC, by simulation.

    python benchmarks/within_source.py [REPEATS]

Four sources with the shares of HAM10000 (rows 39, 34, 23 and 4 %; malignant 1, 27, 41 and 16 %), a
shift of the scores by source, another separation in each source, and one to four lesions a patient
that share half of the variance. The true value is in closed form.
"""

import sys
import time

import numpy as np
from jaxtyping import Int64
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from skinmm.evaluation.curves import Samples
from skinmm.evaluation.intervals import independent_units
from skinmm.evaluation.metrics import estimate
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


def main() -> None:
    """Print a table with a line for each number of patients."""
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
