"""Settings of the evaluation and of other outputs: metrics, report, log, study, publication."""

from dataclasses import dataclass
from typing import Any, Final

from skinmm.config.optimisation import CLASSIFY
from skinmm.config.setting import has_no_text, literal_path, setting, shared

LOGGERS: Final = ("csv", "tensorboard", "wandb", "mlflow", "none")
UPLOADS: Final = ("wandb", "mlflow")  # of these, a client of a federation accepts none


@dataclass
class EvaluationConfig:
    """Metrics, confidence intervals, calibration and decision threshold."""

    views: int = shared(
        1, "flips and transposes averaged per prediction", low=1, high=8, task=CLASSIFY
    )
    resamples: int = shared(1000, "bootstrap resamples of patients", low=0, high=100_000)
    confidence: float = shared(0.95, "level of the confidence intervals", low=0.5, high=0.999)
    calibration: str = shared(
        "auto",
        "calibration fitted on the validation rows",
        choices=("auto", "none", "temperature", "platt", "isotonic"),
    )
    threshold: str = shared(
        "sensitivity", "rule for the decision threshold", choices=("sensitivity", "youden", "cost")
    )
    sensitivity: float = shared(
        0.95, "target of threshold=sensitivity", low=0.01, high=0.9999, first=True
    )
    cost_ratio: float | None = shared(
        None, "cost of a missed malignant lesion divided by that of a false alarm", low=0
    )
    call: str = shared(
        "likeliest",
        "rule for the predicted class: highest probability, that divided by class frequency "
        "(balanced) or by the threshold of best F1 (f1), or lowest expected cost (cost)",
        choices=("likeliest", "balanced", "f1", "cost"),
    )
    costs: Any = setting(
        None,
        "costs for call=cost: {TRUTH: {CALL: number}}, e.g. {mel: {nv: 20}}, or such a YAML "
        "file; other errors cost 1",
        shared=has_no_text,
    )
    half_cut: bool = shared(
        False, "also write half_<class>: 0.5 or more only for the predicted class"
    )
    coverage: float = shared(0.9, "coverage of the prediction sets by class", low=0.5, high=0.999)
    miss_rate: float = shared(
        0.01,
        "highest expected share of malignant lesions decided benign",
        low=0.0001,
        high=0.5,
    )
    false_alarm_rate: float = shared(
        0.1,
        "highest expected share of benign lesions decided malignant",
        low=0.0001,
        high=0.5,
    )
    prevalence: float | None = shared(
        None,
        "share of malignant lesions in the clinic; null: 0.0176 unless the data are similar",
        low=0.0001,
        high=0.99,
    )


@dataclass
class ReportConfig:
    """Content of the report of a run."""

    pictures: bool = shared(True, "show lesion images in the report")
    explain: bool = shared(True, "explain the most confident mistakes")


@dataclass
class LoggerConfig:
    """Destination of the training curves."""

    name: str = setting("csv", "logger", choices=LOGGERS, shared=lambda name: name not in UPLOADS)
    project: str = setting("skinmm", "W&B project, or MLflow experiment", shared=False)
    entity: str | None = setting(None, "W&B team or user", shared=False)
    group: str | None = setting(None, "W&B group, or MLflow tag", shared=False)
    images: bool = setting(
        False, "upload lesion images and identifiers to W&B or MLflow", shared=False
    )


@dataclass
class StudyConfig:
    """Arms of a study: runs to compare. Without arms there is one run."""

    arms: dict[str, list[str]] = setting({}, "overrides of each run, by its name")
    against: list[str] = setting([], "runs that all others are compared with; empty: the first")
    outside: bool = setting(False, "evaluate each arm's first model on the cohorts of the others")


@dataclass
class PushConfig:
    """Publish the network of a run on the Hugging Face Hub."""

    input: str = literal_path("", "run folder", example="RUN", positional=True)
    hub: str = setting("", "repository to publish in; created if absent", example="ORG/NAME")
    licence: str | None = setting(
        None, "licence of the weights; null: the strictest of the training images"
    )
    private: bool = setting(False, "create the repository as private")
    background: bool = setting(
        False, "include encoded validation rows, which explanations of predictions need"
    )
