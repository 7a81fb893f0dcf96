"""Accuracy and speed of the evaluation: coverage of intervals and bounds, and calibration.

The truth is simulated: patients have one to eleven lesions that share a part of their risk. The
last section trains on the SIIM-ISIC table, and is omitted without it.

    SKINMM_DATA=DIR python benchmarks/evaluation.py [SECTION ...] > benchmarks/results/evaluation.md
"""

import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression

from skinmm.evaluation.calibration import Calibration, fit_calibration
from skinmm.evaluation.conformal import fit_conformal
from skinmm.evaluation.delong import delong_interval
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions, read_predictions, write_predictions
from skinmm.evaluation.referral import add_decisions
from skinmm.evaluation.thresholds import choose_threshold, fit_band

ROOT: Final = Path(__file__).resolve().parents[1]
THRESHOLD: Final = 0.02
RESAMPLES: Final = 400
EVEN: Final = np.array([0.5, 0.5])

Rows = tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"], Int64[np.ndarray, " n"]]


def main() -> None:
    """Run every section and print Markdown."""
    print(f"# Evaluation\n\n{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, ", end="")
    print(f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}.")
    print("Command: `SKINMM_DATA=DIR python benchmarks/evaluation.py`.")
    for name in sys.argv[1:] or SECTIONS:
        for line in SECTIONS[name]():
            print(line, flush=True)
    print(f"\nCPU time in all: {time.process_time():.0f} s.")


def predictions(
    scores: Float64[np.ndarray, " n"],
    truth: Bool[np.ndarray, " n"],
    codes: Int64[np.ndarray, " n"],
) -> Predictions:
    """Return a binary prediction file in memory."""
    return Predictions(
        image_id=np.arange(len(scores)).astype(str),
        patient_id=codes,
        target=truth.astype(np.int64),
        probabilities=np.column_stack([1 - scores, scores]),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )


class World(NamedTuple):
    """Distribution of patients, by default with 1.9 % malignant and calibrated scores."""

    patients: int
    mean: float = -5.2
    spread: float = 1.5
    overconfidence: float = 1.0
    shared: float = 0.8
    sizes: tuple[int, ...] = ()  # quantiles of the number of lesions; empty: 1 to 11, uniform


def draw(generator: np.random.Generator, world: World) -> Rows:
    """Return scores, truth and patients."""
    if world.sizes:
        shares = np.linspace(0, 1, len(world.sizes))
        lesions = np.rint(np.interp(generator.random(world.patients), shares, world.sizes)).astype(
            int
        )
    else:
        lesions = generator.integers(1, 12, size=world.patients)
    codes = np.repeat(np.arange(world.patients), lesions)
    risk = world.mean + world.shared * generator.normal(size=world.patients)[codes]
    risk += world.spread * generator.normal(size=len(codes))
    truth = generator.random(len(codes)) < expit(risk)
    return expit(world.overconfidence * (risk + 4) - 4), truth, codes


def table(*header: str) -> str:
    """Print the head of a Markdown table."""
    return f"| {' | '.join(header)} |\n|---{'|---:' * (len(header) - 1)}|"


def speed() -> Iterator[str]:
    """Measure time and memory of the whole metric set."""
    yield "\n## Speed: the whole metric set, 1,000 resamples of patients\n"
    yield table("rows", "patients", "read file", "evaluate: wall", "CPU", "peak memory")
    for rows, patients in ((33_126, 2_056), (400_000, 25_000), (400_000, 400_000)):
        generator = np.random.default_rng(0)
        risk = generator.normal(-5.2, 1.5, size=rows)
        codes = generator.integers(patients, size=rows)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.csv"
            truth = generator.random(rows) < expit(risk)
            write_predictions(path, predictions(expit(risk), truth, codes))
            start = time.perf_counter()
            read = read_predictions(path)
            reading = time.perf_counter() - start
        start, cpu = time.perf_counter(), time.process_time()
        evaluate(read, threshold=THRESHOLD)
        wall, used = time.perf_counter() - start, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        yield (
            f"| {rows:,} | {patients:,} | {reading:.1f} s | {wall:.1f} s | {used:.1f} s | "
            f"{peak:.0f} MB |"
        )


WORLDS: Final[dict[str, tuple[World, int]]] = {
    "rare": (World(170), 300),
    "usual": (World(400), 400),
    "many": (World(1_500), 1_000),
    "overconfident": (World(400, overconfidence=1.6), 200),
    "easy": (World(250, mean=-6.5, spread=3.0), 200),
    "common": (World(60, mean=-1.5), 300),
}


def coverage() -> Iterator[str]:
    """Measure the share of intervals that contain the truth."""
    yield "\n## Coverage of 95 % intervals (lesions of a patient are correlated)\n"
    yield from covered_table(WORLDS)
    yield (
        "\nStandard error of a share of 0.95 in 1,000 repeats: 0.007, in 400: 0.011, in 200: 0.015."
        " `ece` of calibrated scores: the truth is 0."
    )


def covered_table(worlds: Mapping[str, tuple["World", int]]) -> Iterator[str]:
    """Print a table of coverage by metric and world."""
    columns = [_covered(name, *plan) for name, plan in worlds.items()]
    yield table("metric", *(column.pop("name") for column in columns))
    for name in dict.fromkeys(name for column in columns for name in column):
        yield f"| {name} | {' | '.join(column.get(name, '') for column in columns)} |"


def mean_lesions(world: World) -> int:
    """Return the mean number of lesions of a patient."""
    return round(np.mean(world.sizes)) if world.sizes else 6


def _covered(kind: str, world: World, repeats: int) -> dict[str, str]:
    generator = np.random.default_rng(1)
    validation = draw(generator, world._replace(patients=2_000))
    threshold = choose_threshold(*validation).value  # as the product does: 95 % sensitivity
    everyone = predictions(
        *draw(generator, world._replace(patients=1_000_000 // mean_lesions(world)))
    )
    found = evaluate(everyone, threshold=threshold, resamples=0)["metrics"]
    truth = {name: entry["value"] for name, entry in found.items()}
    held = dict.fromkeys((*truth, "auroc, DeLong over patients", "auroc, DeLong over rows"), 0)
    malignant = patients = 0
    for repeat in range(repeats):
        rows = draw(generator, world)
        malignant += int(rows[1].sum())
        patients += len(np.unique(rows[2][rows[1]]))
        file = predictions(*rows)
        found = evaluate(file, threshold=threshold, resamples=RESAMPLES, seed=repeat)["metrics"]
        entries: dict[str, tuple[Any, float]] = {
            name: (entry, truth[name]) for name, entry in found.items()
        }
        for label, codes in (("patients", rows[2]), ("rows", None)):
            entry = delong_interval(rows[0], rows[1], codes)
            entries[f"auroc, DeLong over {label}"] = (entry, truth["auroc"])
        for name, (entry, value) in entries.items():
            held[name] += entry["low"] is not None and entry["low"] <= value <= entry["high"]
    name = (
        f"{kind}: {world.patients:,} patients, {malignant / repeats:.0f} malignant "
        f"lesions of {patients / repeats:.0f} patients, AUROC "
        f"{truth['auroc']:.2f}, {repeats} repeats"
    )
    return {"name": name, **{key: f"{count / repeats:.3f}" for key, count in held.items()}}


def bounds() -> Iterator[str]:
    """Measure how often the sensitivity of a guaranteed threshold reaches its target."""
    yield "\n## The sensitivity bound: 95 % sensitivity with 95 % confidence, 2,000 repeats\n"
    yield table("malignant patients", "lesions each", "shared", "bound is true", "mean sensitivity")
    generator = np.random.default_rng(2)
    for patients, lesions, shared in ((59, 1, 0.0), (117, 1, 0.0), (93, 2, 0.5), (300, 3, 0.9)):
        codes = np.repeat(np.arange(patients), lesions)
        reached = np.empty(2_000)
        for repeat in range(len(reached)):
            common = generator.normal(size=patients)[codes]
            own = generator.normal(size=len(codes))
            scores = norm.cdf(np.sqrt(shared) * common + np.sqrt(1 - shared) * own)
            chosen = choose_threshold(scores, np.ones(len(codes), dtype=bool), codes)
            reached[repeat] = 1 - chosen.value  # over lesions: scores are uniform
        share = np.mean(reached >= 0.95)  # noqa: PLR2004 - the target
        yield f"| {patients} | {lesions} | {shared} | {share:.3f} | {reached.mean():.3f} |"


def priors() -> Iterator[str]:
    """Correct and calibrate a logistic model of a balanced sample."""
    yield "\n## Correction of balanced sampling: logistic model, 33,126 rows, 20 repeats\n"
    yield table("probabilities", "mean / prevalence", "worst repeat", "mean ECE", "worst ECE")
    generator = np.random.default_rng(3)
    names = ("raw", "prior corrected", "corrected and calibrated")
    ratios, errors = np.empty((20, 3)), np.empty((20, 3))
    for repeat in range(20):
        parts = [_features(generator) for _ in range(3)]
        (x, y), (x_val, y_val), (x_test, y_test) = parts
        weights = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
        drawn = generator.choice(len(y), size=4 * len(y), p=weights / weights.sum())
        model = LogisticRegression().fit(x[drawn], y[drawn])
        raw = model.predict_proba(x_test)
        prior = (EVEN, np.array([1 - y.mean(), y.mean()]))
        fitted = fit_calibration(
            model.predict_proba(x_val), y_val.astype(int), np.arange(len(y)), prior=prior
        )
        corrected = Calibration(prior=fitted.prior).apply(raw)
        for column, p in enumerate((raw, corrected, fitted.apply(raw))):
            file = predictions(p[:, 1], y_test, np.arange(len(y)))
            found = evaluate(file, resamples=0)["metrics"]
            # Against the prevalence that was simulated, not that of one draw of 584 melanomas.
            ratios[repeat, column] = p[:, 1].mean() / expit(_risk(x_test)).mean()
            errors[repeat, column] = found["ece"]["value"]
    for column, name in enumerate(names):
        worst = ratios[np.argmax(np.abs(np.log(ratios[:, column]))), column]
        yield (
            f"| {name} | {ratios[:, column].mean():.3f} | {worst:.3f} | "
            f"{errors[:, column].mean():.4f} | {errors[:, column].max():.4f} |"
        )


def _risk(x: Float64[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    return x @ np.array([1.0, 0.7, 0.4]) - 4.78


def _features(
    generator: np.random.Generator,
) -> tuple[Float64[np.ndarray, "n d"], Bool[np.ndarray, " n"]]:
    x = generator.normal(size=(33_126, 3))
    return x, generator.random(len(x)) < expit(_risk(x))


def conformal() -> Iterator[str]:
    """Measure coverage by class, and the share of referred rows."""
    yield "\n## Class-conditional conformal sets, stated coverage 0.90, 100 repeats\n"
    names = ("coverage_benign", "coverage_malignant", "referred", "found_or_referred")
    yield table("patients, malignant of them in validation", *names)
    generator = np.random.default_rng(5)
    for patients in (170, 500, 2_000):
        found, malignant = [], 0
        for _ in range(100):
            validation = predictions(*draw(generator, World(patients)))
            malignant += int(validation.malignant.sum())
            fitted = fit_conformal(validation)
            chosen = choose_threshold(
                validation.malignancy, validation.malignant, validation.patient_id
            )
            test = predictions(*draw(generator, World(5_000)))
            rows = validation.malignancy, validation.malignant, validation.patient_id
            band = fit_band(*rows, miss_rate=0.01, false_alarm_rate=0.1)
            sets = fitted.predict_sets(test.probabilities)
            decided = add_decisions(test, chosen.value, band, sets, None)
            metrics = evaluate(decided, resamples=0)["metrics"]
            found.append([metrics[name]["value"] for name in names])
        cells = " | ".join(f"{share:.3f}" for share in np.mean(found, axis=0))
        yield f"| {patients:,}, {malignant / 100:.0f} | {cells} |"


def siim() -> Iterator[str]:
    """Train on age, sex and site with balanced sampling; pool five test folds."""
    folder = os.environ.get("SKINMM_DATA")
    if folder is None:
        return
    with tempfile.TemporaryDirectory() as run:
        overrides = [
            "data=siim_isic",
            f"data.root={Path(folder) / 'siim_isic_2020'}",
            "data.fold=all",
            "fusion=tabular_only",
            "sampler=balanced",
            "trainer.batch_size=256",
            "optimizer.lr=0.003",
            "trainer.progress=false",
        ]
        yield "\n## SIIM-ISIC 2020: age, sex and site, balanced sampling, five test folds pooled\n"
        yield f"`python train.py {' '.join(overrides[:1] + overrides[2:])}`\n"
        command = [sys.executable, "train.py", *overrides, f"hydra.run.dir={run}/run"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603
        file = read_predictions(Path(run) / "run" / "predictions" / "test.csv")
    yield from pooled(file)


def pooled(file: Predictions) -> Iterator[str]:
    """Print the metrics of a pooled run before and after correction and calibration."""
    if file.raw is None:
        raise ValueError("the file has no raw probabilities")
    shown = ("auroc", "calibration_slope", "calibration_intercept", "ece", "brier")
    yield table("probabilities", "mean / prevalence", *shown)
    for name, p in (("raw", file.raw), ("corrected and calibrated", file.probabilities)):
        found = evaluate(replace(file, probabilities=p))["metrics"]
        cells = [
            f"{e['value']:.4f} ({e['low']:.4f}, {e['high']:.4f})"
            for e in map(found.get, shown)
            if e
        ]
        ratio = p[:, 1].mean() / file.malignant.mean()
        yield f"| {name} | {ratio:.3f} | {' | '.join(cells)} |"


SECTIONS: Final[dict[str, Callable[[], Iterator[str]]]] = {
    section.__name__: section for section in (speed, coverage, bounds, priors, conformal, siim)
}

if __name__ == "__main__":
    main()
