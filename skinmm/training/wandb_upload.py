"""What a judged run hands to Weights & Biases; names of patients and pictures only on demand."""

import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import wandb

from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.report import write_anonymous_report
from skinmm.training import run_folder


def share(tracked: Any, run: Path, *, names: bool) -> None:
    """Adds metrics with intervals, plots, predictions, the report and the checkpoint to a W&B run.

    Args:
        tracked: what `wandb.init` gave.
        run: the folder, judged and reported.
        names: whether pictures and the names of images and patients may leave it too.
    """
    metrics = run_folder.read_metrics(run)
    tracked.summary.update(_intervals(metrics))
    file = run / "predictions" / "test.csv"
    predictions = read_predictions(file, positive=metrics["positive"])
    table = pd.read_csv(file, dtype={"image_id": str, "patient_id": str})
    hidden = [] if names else ["image_id", "patient_id"]
    with tempfile.TemporaryDirectory() as folder:
        page = (
            run / "report.html"
            if names
            else write_anonymous_report(run, Path(folder) / "report.html")
        )
        tracked.log(
            {
                "report": wandb.Html(page.read_text(encoding="utf-8"), inject=False),
                "test/predictions": wandb.Table(dataframe=table.drop(columns=hidden)),
                **_plots(predictions, metrics["threshold"]["value"]),
            }
        )
    checkpoint = wandb.Artifact(f"skinmm-{tracked.id}", type="model")
    for name in ("checkpoints/best.ckpt", "card.md"):
        checkpoint.add_file(str(run / name))
    tracked.log_artifact(checkpoint)


def _intervals(metrics: dict[str, Any]) -> dict[str, float]:
    return {
        f"{part}/{name}{'' if bound == 'value' else f'_{bound}'}": value
        for part in ("val", "test")
        for name, entry in metrics[part]["metrics"].items()
        for bound, value in entry.items()
        if bound in ("value", "low", "high") and value is not None
    }


def _plots(predictions: Predictions, threshold: float) -> dict[str, Any]:
    classes, scores = list(predictions.classes), predictions.probabilities
    called = predictions.predicted_classes(threshold)
    truth = predictions.target
    return {
        "test/confusion": wandb.plot.confusion_matrix(
            y_true=truth.tolist(), preds=called.tolist(), class_names=classes
        ),
        "test/roc": wandb.plot.roc_curve(truth.tolist(), scores.tolist(), labels=classes),
        "test/precision_recall": wandb.plot.pr_curve(
            truth.tolist(), scores.tolist(), labels=classes
        ),
    }
