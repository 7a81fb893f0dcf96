"""Settings of what a run writes besides its model: report, log, and comparison of its arms."""

from dataclasses import dataclass

from skinmm.config.setting import setting


@dataclass
class ReportConfig:
    """Content of the report of a run."""

    pictures: bool = setting(True, "show lesion images in the report")
    explain: bool = setting(True, "explain the most confident mistakes")


@dataclass
class LoggerConfig:
    """Destination of the training curves."""

    name: str = setting("csv", "logger", choices=("csv", "tensorboard", "wandb", "none"))
    project: str = setting("skinmm", "W&B project")
    entity: str | None = setting(None, "W&B team or user")
    group: str | None = setting(None, "W&B group")
    images: bool = setting(False, "upload lesion images and patient identifiers to W&B")


@dataclass
class StudyConfig:
    """Several runs to be compared; without arms there is one run."""

    arms: dict[str, list[str]] = setting({}, "overrides of each run, by its name")
    against: list[str] = setting([], "runs that all others are compared with; empty: the first")
    outside: bool = setting(False, "evaluate each arm's first model on the cohorts of the others")
