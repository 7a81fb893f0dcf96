"""Promises of `skinmm plan`, by simulation: 500 cohorts of each planned size.

python benchmarks/plan.py [guarantee|sensitivity|auroc|difference|resampling|slope ...]
"""

import math
import sys
from typing import Any, Final

import numpy as np
from scipy.special import expit, logit, ndtri
from scipy.stats import norm

from skinmm.evaluation import planning
from skinmm.evaluation.delong import delong_interval, delong_test
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import BINARY, Predictions
from skinmm.evaluation.thresholds import choose_threshold, sensitivity_bound

REPEATS: Final = 500
AUROC: Final = 0.85
SHARE: Final = 0.1
TARGET: Final = 0.95
LEVEL: Final = 0.05
SPREAD: Final = math.sqrt(2) * float(ndtri(AUROC))


def draw(rng: np.random.Generator, malignant: int, spread: float = SPREAD) -> tuple[Any, Any]:
    """Return calibrated log odds and the truth of so many malignant lesions and others."""
    target = np.r_[np.ones(malignant), np.zeros(round(malignant * (1 / SHARE - 1)))] == 1
    evidence = rng.normal(np.where(target, 1, -1) * spread**2 / 2, spread)
    return logit(SHARE) + evidence, target


def to_predictions(log_odds: Any, target: Any) -> Predictions:
    """Return predictions with one lesion a patient."""
    names, p = np.arange(len(target)).astype(str), expit(log_odds)
    return Predictions(names, names, target.astype(int), np.c_[1 - p, p], None, BINARY, BINARY[1:])


def guarantee(rng: np.random.Generator) -> str:
    """A threshold with a guaranteed sensitivity."""
    size = planning.malignant_for_guarantee(0.95)
    reached = []
    for _ in range(REPEATS):
        log_odds, target = draw(rng, size)
        threshold = choose_threshold(expit(log_odds), target, np.arange(len(target)))
        cut = logit(threshold.value) - logit(SHARE) - SPREAD**2 / 2
        reached.append(threshold.guaranteed and norm.sf(cut / SPREAD) >= TARGET)
    return f"guaranteed sensitivity of 0.95 | {size} | reached in {np.mean(reached):.3f}"


def sensitivity(rng: np.random.Generator) -> str:
    """A sensitivity that is shown for a given threshold."""
    size = planning.malignant_for_sensitivity(0.95, 0.98)
    hits = rng.binomial(size, 0.98, size=20 * REPEATS)
    shown = np.mean([sensitivity_bound(int(h), size, 0.95) >= TARGET for h in hits])
    hits = rng.binomial(size, 0.95, size=20 * REPEATS)
    covered = np.mean([sensitivity_bound(int(h), size, 0.95) <= TARGET for h in hits])
    promise = f"shown in {shown:.3f} (promised 0.8); bound not above the truth in {covered:.3f}"
    return f"sensitivity above 0.95 shown, if it is 0.98 | {size} | {promise}"


def auroc(rng: np.random.Generator) -> str:
    """An interval of the AUROC of a given width."""
    size = planning.malignant_for_auroc(AUROC, 0.1, SHARE)
    covered, widths = [], []
    for _ in range(REPEATS):
        log_odds, target = draw(rng, size)
        entry = delong_interval(log_odds, target, np.arange(len(target)))
        low, high = entry["low"] or 0.0, entry["high"] or 1.0
        covered.append(low <= AUROC <= high)
        widths.append(high - low)
    return f"interval of the AUROC of width 0.1 | {size} | {describe(covered, widths)}"


def slope(rng: np.random.Generator) -> str:
    """An interval of the calibration slope of a given width."""
    size = planning.malignant_for_slope(AUROC, 0.4, SHARE)
    covered, widths = [], []
    for _ in range(REPEATS):
        rows = to_predictions(*draw(rng, size))
        entry = evaluate(rows, resamples=300)["metrics"]["calibration_slope"]
        covered.append(entry["low"] <= 1 <= entry["high"])
        widths.append(entry["high"] - entry["low"])
    return f"interval of the calibration slope of width 0.4 | {size} | {describe(covered, widths)}"


def difference(rng: np.random.Generator) -> str:
    """A difference of two AUROCs on the same lesions."""
    gain, shared = 0.05, 0.55  # the correlation of the scores that gives one of 0.5 of the AUROCs
    size = planning.malignant_for_difference(AUROC, gain, SHARE)
    shown, covered, values = [], [], []
    for _ in range(REPEATS):
        target = draw(rng, size)[1]
        both = rng.multivariate_normal([0, 0], [[1, shared], [shared, 1]], size=len(target))
        means = np.outer(target, [math.sqrt(2) * ndtri(AUROC + gain), SPREAD])
        first, second = (both + means).T
        entry = delong_test(first, second, target, np.arange(len(target)))
        shown.append((entry["p"] or 1.0) < LEVEL)
        covered.append((entry["low"] or -1) <= gain <= (entry["high"] or 1))
        values.append([delong_interval(s, target)["value"] for s in (first, second)])
    correlation = np.corrcoef(np.array(values).T)[0, 1]
    promise = (
        f"shown in {np.mean(shown):.3f} (promised 0.8); covered in {np.mean(covered):.3f}; "
        f"correlation {correlation:.2f} (assumed 0.5)"
    )
    return f"difference of 0.05 between two AUROCs | {size} | {promise}"


def resampling(rng: np.random.Generator) -> str:
    """An interval of the AUROC, planned by resampling a file of 200 malignant lesions."""
    sizes, covered, widths = [], [], []
    for _ in range(REPEATS // 5):
        pilot = to_predictions(*draw(rng, 200))
        sizes.append(planning.malignant_by_simulation(pilot, "auroc", 0.1))
        for _ in range(5):
            log_odds, target = draw(rng, sizes[-1])
            entry = delong_interval(log_odds, target, np.arange(len(target)))
            low, high = entry["low"] or 0.0, entry["high"] or 1.0
            covered.append(low <= AUROC <= high)
            widths.append(high - low)
    size = f"{np.median(sizes):.0f} ({min(sizes)} to {max(sizes)})"
    return f"the same, by resampling | {size} | {describe(covered, widths)}"


def describe(covered: list[bool], widths: list[float]) -> str:
    """Return the coverage and the widths."""
    low, middle, high = np.quantile(widths, [0.05, 0.5, 0.95])
    return f"covered in {np.mean(covered):.3f}; width {middle:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    print(f"| goal | malignant lesions | in {REPEATS} cohorts |\n|---|---|---|")
    promises = (guarantee, sensitivity, auroc, difference, resampling, slope)
    chosen = [promise for promise in promises if promise.__name__ in sys.argv[1:]]
    for promise in chosen or promises:
        print(f"| {promise(np.random.default_rng(0))} |", flush=True)
