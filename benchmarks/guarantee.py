"""How often the chosen threshold reaches its target, with and without rows for calibration alone.

Epochs of a run are equally good and their scores correlate; the epoch with the highest validation
AUROC is selected, and the threshold of the product is chosen at its scores. The true sensitivity of
the threshold is known in closed form.

    python benchmarks/guarantee.py
"""

from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float64
from scipy.stats import norm, rankdata

from skinmm.evaluation.thresholds import choose_threshold

DISTANCE: Final = 1.8  # of the means of the classes: AUROC .90
BENIGN: Final = 600
TARGET: Final = 0.95
REPEATS: Final = 1000


def draw_scores(
    rng: np.random.Generator, epochs: int, correlation: float, malignant: int
) -> tuple[Float64[np.ndarray, "epochs malignant"], Float64[np.ndarray, "epochs benign"]]:
    """Return normal scores of one set of rows in every epoch."""
    rows = malignant + BENIGN
    common, own = rng.normal(size=rows), rng.normal(size=(epochs, rows))
    scores = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own
    return scores[:, :malignant] + DISTANCE, scores[:, malignant:]


def compute_aurocs(
    malignant: Float64[np.ndarray, "epochs malignant"], benign: Float64[np.ndarray, "epochs benign"]
) -> Float64[np.ndarray, " epochs"]:
    """Return the AUROC of every epoch."""
    m, n = malignant.shape[1], benign.shape[1]
    ranks = rankdata(np.hstack([malignant, benign]), axis=1)[:, :m].sum(axis=1)
    return (ranks - m * (m + 1) / 2) / (m * n)


def average_latest(
    values: Float64[np.ndarray, " epochs"], window: int
) -> Float64[np.ndarray, " epochs"]:
    """Return the mean over each epoch and those before it, as `trainer.smoothing` does."""
    return pd.Series(values).rolling(window, min_periods=1).mean().to_numpy()


def simulate(
    malignant: int,
    epochs: int,
    correlation: float,
    *,
    is_apart: bool,
    window: int = 1,
    repeats: int = REPEATS,
) -> tuple[float, float]:
    """Return the share of repeats that reach the target, and the excess of validation AUROC.

    Args:
        malignant: malignant patients that choose the threshold; as many select the epoch.
        epochs: epochs to select from.
        correlation: of the scores of two epochs within a class.
        is_apart: whether the threshold is chosen on other rows than the epoch.
        window: number of epochs, the latest ones, over which the AUROC is averaged to select one.
        repeats: number of runs.
    """
    rng = np.random.default_rng(0)
    reached, excess = [], []
    for _ in range(repeats):
        scores = draw_scores(rng, epochs, correlation, malignant)
        aurocs = compute_aurocs(*scores)
        best = int(average_latest(aurocs, window).argmax())
        if is_apart:
            scores = draw_scores(rng, epochs, correlation, malignant)
        values = np.concatenate([part[best] for part in scores])
        positives = np.arange(len(values)) < malignant
        patients = np.arange(len(values))
        threshold = choose_threshold(norm.cdf(values), positives, patients, sensitivity=TARGET)
        reached.append(norm.sf(norm.ppf(threshold.value) - DISTANCE) >= TARGET)
        excess.append(aurocs[best] - norm.cdf(DISTANCE / np.sqrt(2)))
    return float(np.mean(reached)), float(np.mean(excess))


def main() -> None:
    """Print the table as Markdown."""
    print(
        "| malignant | epochs | correlation | same rows | smoothed | other rows "
        "| AUROC too high by | smoothed |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for malignant in (60, 117):
        for epochs, correlation in ((1, 0.9), (15, 0.9), (15, 0.5)):
            setting = (malignant, epochs, correlation)
            (same, excess), (smoothed, less), (apart, _) = (
                simulate(*setting, is_apart=is_apart, window=window)
                for is_apart, window in ((False, 1), (False, 3), (True, 1))
            )
            print(
                f"| {malignant} | {epochs} | {correlation} | {same:.3f} | {smoothed:.3f} "
                f"| {apart:.3f} | {excess:.3f} | {less:.3f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
