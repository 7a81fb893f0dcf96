"""Loggers of a training by name: history.csv, TensorBoard, Weights & Biases, MLflow."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from skinmm.config import Config, to_mapping
from skinmm.config.checkpoints import is_part_of_run
from skinmm.errors import require_package
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.report import write_anonymous_report
from skinmm.report.blocks import order_metrics
from skinmm.training.callbacks import History
from skinmm.training.run_folder import RunFolder, read_metrics

EXTRA_OF: Final = {"tensorboard": "tensorboard", "wandb": "train", "mlflow": "mlflow"}
"""The extra of skinmm that installs the package of a logger."""
RUN_TAG: Final = "skinmm.run"  # folder of the run, by which a resumed run finds its MLflow run
HIDDEN: Final = ["image_id", "patient_id", "lesion_id", "images"]  # columns that stay local


def require_packages(config: Config) -> None:
    """Raise InputError if report, segmenter or logger need a package that is not installed."""
    require_package("matplotlib", "the report of a training", "train")
    if config.task == "segmentation" and config.segmenter.name == "unet":
        require_package("segmentation_models_pytorch", "segmenter=unet", "train")
    name = config.logger.name
    if name in EXTRA_OF:
        require_package(name, f"logger={name}", EXTRA_OF[name])


def log_config(config: Config, trainer: pl.Trainer) -> None:
    """Log the configuration of a run that starts, to MLflow; W&B has it from the start."""
    for logger in trainer.loggers:
        if isinstance(logger, MLFlowLogger) and not config.resume:
            logger.log_hyperparams(to_mapping(config))


def upload_run(config: Config, folder: RunFolder, trainer: pl.Trainer) -> None:
    """Upload a finished fold to its W&B or MLflow run, and end that run.

    The upload consists of metrics with intervals, predictions, report and checkpoint, and plots for
    W&B, without images and without ids of images and patients unless `logger.images` is set.
    """
    uploads = [log for log in trainer.loggers if isinstance(log, WandbLogger | MLFlowLogger)]
    if not uploads:
        return
    run, with_ids = folder.path, config.logger.images
    metrics = read_metrics(run)
    values = {
        f"{part}/{name}{suffix}": entry[bound]
        for part in ("val", "test")
        for name, entry in {
            **order_metrics(metrics[part]["metrics"]),
            **metrics[part]["metrics"],
        }.items()
        for bound, suffix in (("value", ""), ("low", "_low"), ("high", "_high"))
        if entry.get(bound) is not None
    }
    file = run / "predictions" / "test.csv"
    table = pd.read_csv(file, dtype={"image_id": str, "patient_id": str})
    if not with_ids:
        table = table.drop(columns=HIDDEN, errors="ignore")
    with tempfile.TemporaryDirectory() as temporary:
        shared = Path(temporary) / "report.html"
        page = run / "report.html" if with_ids else write_anonymous_report(run, shared)
        for log in uploads:
            if isinstance(log, WandbLogger):
                log.experiment.summary.update(values)
                predictions = read_predictions(file, positive=metrics["positive"])
                plots = _plots(predictions, metrics["threshold"]["value"])
                _log_to_wandb(log, page, table, plots)
            else:
                log.log_metrics(values, max(trainer.global_step - 1, 0))
                log.experiment.log_artifact(str(log.run_id), str(page))
                rows = Path(temporary) / "test.csv"
                table.to_csv(rows, index=False)
                log.experiment.log_artifact(str(log.run_id), str(rows), "predictions")
    upload_files(trainer, [run / "checkpoints" / "best.ckpt", run / "card.md"])


def upload_files(trainer: pl.Trainer, files: Sequence[Path]) -> None:
    """Upload the files of a model, if the logger is W&B or MLflow, and end the run there."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            tracked = logger.experiment
            checkpoint = wandb.Artifact(f"skinmm-{tracked.id}", type="model")
            for file in files:
                checkpoint.add_file(str(file))
            tracked.log_artifact(checkpoint)
            tracked.finish()  # the next fold starts its own
        elif isinstance(logger, MLFlowLogger):
            for file in files:
                logger.experiment.log_artifact(str(logger.run_id), str(file), "model")
            logger.finalize("success")


def _log_to_wandb(
    logger: WandbLogger, page: Path, table: pd.DataFrame, plots: dict[str, Any]
) -> None:
    import wandb

    report = wandb.Html(page.read_text(encoding="utf-8"), inject=False)
    predictions = wandb.Table(dataframe=table)
    logger.experiment.log({"report": report, "test/predictions": predictions, **plots})


def _plots(predictions: Predictions, threshold: float) -> dict[str, Any]:
    from wandb import plot

    classes, scores = list(predictions.classes), predictions.probabilities.tolist()
    called, truth = predictions.predicted_classes(threshold).tolist(), predictions.target.tolist()
    return {
        "test/confusion": plot.confusion_matrix(None, truth, called, classes),
        "test/roc": plot.roc_curve(truth, scores, labels=classes),
        "test/precision_recall": plot.pr_curve(truth, scores, labels=classes),
    }


def _name_run(run: Path) -> tuple[str, str | None]:
    """Return the name of a run, and its group if it is a part of a run or of a grid."""
    # Those have names that are unique in their parent folder only.
    if is_part_of_run(run.name):
        return f"{run.parent.name}/{run.name}", run.parent.name
    return run.name, None


def _wandb(config: Config, run: Path) -> list[Logger]:
    options = config.logger
    name, group = _name_run(run)
    earlier = sorted((run / "wandb").glob("*run-*-*"))
    logger = WandbLogger(
        name=name,
        save_dir=run,
        project=options.project,
        entity=options.entity,
        group=options.group or group,
        id=earlier[-1].name.rpartition("-")[2] if earlier and config.resume else None,
        resume="allow" if config.resume else None,
        config=to_mapping(config),
    )
    return [History(run / "history.csv"), logger]


def _mlflow(config: Config, run: Path) -> list[Logger]:
    """Build the logger of MLflow: the server of MLFLOW_TRACKING_URI, or files in the run folder."""
    from mlflow.tracking import MlflowClient

    options = config.logger
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        uri = (run / "mlruns").absolute().as_uri()
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # MLflow 3.9 asks for it
    name, group = _name_run(run)
    run_id = None
    if config.resume:
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(options.project)
        tag = f"tags.`{RUN_TAG}` = '{run.absolute()}'"
        runs = client.search_runs([experiment.experiment_id], tag) if experiment else []
        run_id = runs[0].info.run_id if runs else None
    tags = {RUN_TAG: str(run.absolute()), "group": options.group or group}
    tags = {key: value for key, value in tags.items() if value}
    logger = MLFlowLogger(options.project, name, tracking_uri=uri, tags=tags, run_id=run_id)
    return [History(run / "history.csv"), logger]


LOGGERS: Final[dict[str, Callable[[Config, Path], list[Logger]]]] = {
    "csv": lambda _, run: [History(run / "history.csv")],
    "tensorboard": lambda _, run: [
        History(run / "history.csv"),
        TensorBoardLogger(run, name=None, version="tensorboard"),
    ],
    "wandb": _wandb,
    "mlflow": _mlflow,
    "none": lambda _, __: [],
}
