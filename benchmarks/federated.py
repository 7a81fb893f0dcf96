"""HAM10000's four centres: pooled, each alone, FedAvg, FedProx and FedBN; calibration by centre.

    SKINMM_DATA=DIR python benchmarks/federated.py OUTPUT [CACHE|finetune]

An EfficientNet-Lite0 at 128 px with the record, malignant against benign: frozen for ten rounds, or
with `finetune` trained for three. Rows of the nine lesions of two centres are left out; every arm
has the same parts of every centre, split by lesion within it. Intervals: 1,000 resamples of
lesions. `CACHE` stores the features of the frozen network.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from skinmm.config import (
    Component,
    Config,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
)
from skinmm.config.outputs import LoggerConfig, ReportConfig
from skinmm.config.remote_commands import FederateSimulateConfig
from skinmm.config.schema import TrainerConfig
from skinmm.evaluation.calibration import Calibration, fit_calibration
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.federated import simulate, split_sources
from skinmm.federated.agreement import Federation
from skinmm.models.checkpoint import load_card
from skinmm.training.fit import fit

ROUNDS: Final = 10
ROUNDS_FINETUNED: Final = 3
ARMS: Final = ("pooled", "alone", "fedavg", "fedprox", "fedbn")


def build_config(data: DataConfig, cache: Path | None) -> Config:
    """Return the settings that all arms share; without a cache the image network is trained."""
    rounds = ROUNDS if cache else ROUNDS_FINETUNED
    return Config(
        data=data,
        model=ModelConfig(
            name="tf_efficientnet_lite0",
            freeze=cache is not None,
            image_size=128,
            args={"drop_path_rate": 0.2},
            cache=str(cache) if cache else None,
        ),
        fusion=Component("concat"),
        tabular=Component("mlp"),
        loss=LossConfig("cross_entropy"),
        sampler=Component("shuffle"),
        augment=Component("none"),
        optimizer=OptimizerConfig(name="adamw", backbone_lr_scale=1 if cache else 0.3),
        trainer=TrainerConfig(max_epochs=rounds, workers=0, precision="32", progress=False),
        evaluation=EvaluationConfig(resamples=0),
        report=ReportConfig(pictures=False, explain=False),
        logger=LoggerConfig("none"),
    )


def run_federated(config: Config, strategy: str, folder: Path) -> dict[str, Path]:
    """Train an arm as a simulated federation, and return the run folder of each centre."""
    plain = {item.name: getattr(config, item.name) for item in fields(Config)}
    settings = FederateSimulateConfig(
        **plain,
        strategy=strategy,
        rounds=config.trainer.max_epochs,
        output=str(folder),
        mu=0.1,
    )
    if not (folder / "card.md").is_file():
        simulate(settings)
    return {path.name: path for path in sorted((folder / "clients").iterdir())}


def run_alone(config: Config, centres: dict[str, DataConfig], folder: Path) -> dict[str, Path]:
    """Train each centre on its own rows."""
    for name, data in centres.items():
        if not (folder / name / "metrics.json").is_file():
            fit(replace(config, data=data), folder / name)
    return {name: folder / name for name in centres}


def run_pooled(config: Config, parts: dict[str, Path], folder: Path) -> Path:
    """Train on the training rows of all centres together, with the parts of the federation."""
    table = folder / "table"
    table.mkdir(parents=True, exist_ok=True)
    rows = pd.concat([pd.read_csv(path / "cohort.csv", dtype=str) for path in parts.values()])
    rows = rows[rows["part"] != "unused"]
    rows["part"] = rows["part"].replace("calibration", "val")
    names = ["image_id", "lesion_id", "age", "sex", "site", "diagnosis", "source", "part", "path"]
    rows[names].drop(columns="image_id").to_csv(table / "cohort.csv", index=False)
    data = DataConfig(
        name="csv", root=str(table), target="malignant", positive=["mel", "bcc", "akiec"]
    )
    if not (folder / "run" / "metrics.json").is_file():
        fit(replace(config, data=data), folder / "run")
    return folder / "run"


def read(run: Path, part: str) -> tuple[Predictions, pd.DataFrame]:
    """Return predictions of a part, and the rows of the cohort in their order."""
    predictions = read_predictions(run / "predictions" / f"{part}.csv")
    cohort = pd.read_csv(run / "cohort.csv", dtype=str).set_index("image_id")
    return predictions, cohort.loc[list(predictions.image_id)]


def join(parts: Sequence[Predictions], names: Sequence[str]) -> Predictions:
    """Return predictions of several centres as one set, with the source of each row."""
    columns = ("image_id", "patient_id", "target", "probabilities", "raw")
    values: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in columns
    }
    source = np.repeat(np.array(names, object), [len(part) for part in parts])
    return Predictions(
        **values, classes=parts[0].classes, positive=parts[0].positive, source=source
    )


def format_entry(entry: dict[str, Any] | None) -> str:
    """Format a value and its interval."""
    if not entry or entry.get("value") is None:
        return "undefined"
    if entry.get("low") is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} ({entry['low']:.3f} to {entry['high']:.3f})"


def balanced(predictions: Predictions) -> dict[str, Any]:
    """Return the balanced accuracy at the share of malignant rows, resampled by lesion."""
    malignant = predictions.malignant
    calls = predictions.malignancy >= malignant.mean()
    _, codes = np.unique(predictions.patient_id.astype(str), return_inverse=True)
    rng, values, lesions = np.random.default_rng(0), [], codes.max() + 1
    for _ in range(1000):
        drawn = rng.integers(0, lesions, lesions)
        weights = np.bincount(drawn, minlength=lesions)[codes]
        positives, negatives = weights[malignant].sum(), weights[~malignant].sum()
        if positives and negatives:
            found = weights[malignant & calls].sum() / positives
            spared = weights[~malignant & ~calls].sum() / negatives
            values.append((found + spared) / 2)
    value = (calls[malignant].mean() + (~calls[~malignant]).mean()) / 2
    low, high = np.quantile(values, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def brier(calibration: Calibration, predictions: Predictions) -> float:
    """Return the Brier score of raw probabilities after a calibration."""
    probabilities = calibration.apply(predictions.raw)  # type: ignore[arg-type]
    return float(np.mean((probabilities[:, 1] - predictions.malignant) ** 2))


def compare_calibrations(runs: dict[str, Path]) -> list[str]:
    """Return a line for each centre: Brier score by its own calibration, and by one of all."""
    parts = {name: (read(run, "val")[0], read(run, "test")[0]) for name, run in runs.items()}

    def fit_one(rows: Predictions, priors: Sequence[dict[str, list[float]]]) -> Calibration:
        weights = np.array([len(parts[name][0]) for name in runs], float)
        weights = weights if len(priors) > 1 else np.ones(1)
        means = [np.average([p[k] for p in priors], 0, weights) for k in ("trained", "deployed")]
        groups = rows.patient_id.astype(str)
        return fit_calibration(rows.raw, rows.target, groups, prior=(means[0], means[1]))  # type: ignore[arg-type]

    priors = {n: load_card(run / "checkpoints" / "best.ckpt")[0].prior for n, run in runs.items()}
    whole = fit_one(join([val for val, _ in parts.values()], [*runs]), [*priors.values()])
    lines = []
    for name, (val, test) in parts.items():
        own = fit_one(val, [priors[name]])
        share = test.malignant.mean()
        means = [float(c.apply(test.raw)[:, 1].mean()) for c in (own, whole)]  # type: ignore[arg-type]
        lines.append(
            f"| {name} | {share:.3f} | {means[0]:.3f} | {means[1]:.3f} | {brier(own, test):.4f} | "
            f"{brier(whole, test):.4f} |"
        )
    return lines


def main(output: Path, cache: Path | None) -> None:
    """Train all arms that are missing in the output folder, and print the tables."""
    data = DataConfig(
        name="ham10000",
        root=str(Path(os.environ["SKINMM_DATA"]) / "ham10000"),
        missing="drop",
        split="source",
        calibration=0,
    )
    config = build_config(data, cache)
    output.mkdir(parents=True, exist_ok=True)
    runs: dict[str, dict[str, Path]] = {}
    runs["fedavg"] = run_federated(config, "fedavg", output / "fedavg")
    plain = {item.name: getattr(config, item.name) for item in fields(Config)}
    centres = split_sources(data, Federation(FederateSimulateConfig(**plain), output))
    runs["alone"] = run_alone(config, centres, output / "alone")
    pooled = run_pooled(config, runs["fedavg"], output / "pooled")
    for strategy in ("fedprox", "fedbn"):
        runs[strategy] = run_federated(config, strategy, output / strategy)
    tests = {arm: {n: read(run, "test")[0] for n, run in by.items()} for arm, by in runs.items()}
    predictions, cohort = read(pooled, "test")
    source = cohort["source"].to_numpy(object)
    tests["pooled"] = {n: predictions.select(source == n) for n in runs["fedavg"]}
    names = [*runs["fedavg"]]
    print("\nAUROC\n\n| arm | within sources |", " | ".join(names), "|")
    for arm in ARMS:
        whole = evaluate(join([tests[arm][n] for n in names], names))["metrics"]
        cells = [evaluate(tests[arm][n])["metrics"]["auroc"] for n in names]
        row = " | ".join(map(format_entry, [whole.get("within_source_auroc"), *cells]))
        print(f"| {arm} | {row} |", flush=True)
    print("\nBalanced accuracy, malignant from the share of malignant test rows on\n")
    for arm in ARMS:
        cells = [balanced(join([tests[arm][n] for n in names], names))]
        cells += [balanced(tests[arm][n]) for n in names]
        print(f"| {arm} | {' | '.join(map(format_entry, cells))} |", flush=True)
    print("\nFedAvg: malignant, mean by own and by one calibration, Brier by own and by one\n")
    print("\n".join(compare_calibrations(runs["fedavg"])))


if __name__ == "__main__":
    folder, *others = sys.argv[1:]
    main(
        Path(folder),
        None if others == ["finetune"] else Path(others[0] if others else folder) / "features",
    )
