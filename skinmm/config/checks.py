"""Checks of settings that depend on each other."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from operator import attrgetter
from typing import Any, Final

from skinmm.config.schema import Config, DataConfig, TrainerConfig
from skinmm.config.setting import keys_with
from skinmm.errors import InputError

LARGEST_CALIBRATION: Final = 0.9


def check_run(config: Config) -> None:
    """Check the settings of a training run."""
    check_fold(config.data, ", or all")
    _check_task(config)
    _check_trainer(config.trainer)
    if config.final and config.resume is None:  # else `resume_config` checks the whole
        check_final(config)
    share = config.data.calibration
    if share != "auto" and (isinstance(share, str) or not 0 <= share <= LARGEST_CALIBRATION):
        raise InputError(
            f"data.calibration={share}: must be auto, or between 0 and {LARGEST_CALIBRATION}"
        )
    study = config.study
    if len(study.arms) == 1:
        raise InputError("study.arms: a study compares two or more runs; add another arm")
    if not {*study.against} <= study.arms.keys():
        raise InputError(f"study.against={study.against}: choose from {', '.join(study.arms)}")
    if not config.data.columns:
        raise InputError(
            "data.columns is empty; for a model without a record use fusion=image_only"
        )
    if config.evaluation.threshold == "cost" and not config.evaluation.cost_ratio:
        raise InputError("evaluation.threshold=cost needs evaluation.cost_ratio above 0")
    if (config.evaluation.call == "cost") != bool(config.evaluation.costs):
        raise InputError(
            "evaluation.call=cost and evaluation.costs belong together, e.g. evaluation.call=cost "
            "'evaluation.costs={mel: {nv: 20}}'; give both or none"
        )


def _check_trainer(trainer: TrainerConfig) -> None:
    for name in ("batch_size", "devices", "smoothing"):
        value = getattr(trainer, name)
        if value != "auto" and not (isinstance(value, int) and value >= 1):
            raise InputError(f"trainer.{name}={value}: must be a positive integer, or auto")
    if (layout := trainer.channels_last) not in (True, False, "auto"):
        raise InputError(f"trainer.channels_last={layout}: must be true, false, or auto")


def check_final(config: Config) -> None:
    """Raise InputError if settings need validation rows, or leave rows out, with `final=true`."""
    if config.data.fold != "all":
        raise InputError(
            f"final=true: needs data.fold=all, whose folds select the number of epochs; here "
            f"data.fold={config.data.fold}"
        )
    if config.data.limit is not None:
        raise InputError(
            f"final=true trains on all rows, data.limit={config.data.limit} on a part; remove one"
        )
    if config.schedule.name == "plateau":
        raise InputError(
            "final=true: schedule=plateau needs validation rows, and the final network is trained "
            "on all rows; choose another schedule"
        )


def _check_task(config: Config) -> None:
    """Raise InputError if the task would ignore a setting."""
    if config.model.freeze and config.model.tune in ("norm", "lora"):
        raise InputError(f"model.freeze=true means tune=head, not model.tune={config.model.tune}")
    task, monitor = config.task, config.trainer.monitor
    is_segmentation = task == "segmentation"
    if monitor != "val/loss" and is_segmentation != (monitor == "val/dice"):
        monitor_of_task = "val/dice" if is_segmentation else "val/auroc"
        raise InputError(
            f"trainer.monitor={monitor}: not available for task={task}; use {monitor_of_task}"
        )
    if is_segmentation and {"all", "auto"} & {
        *(config.data.fold, config.optimizer.lr, config.trainer.batch_size)
    }:
        raise InputError(
            "task=segmentation trains one fold with given settings: choose numbers for data.fold "
            "(not all), optimizer.lr and trainer.batch_size (not auto)"
        )
    if config.data.unit == "lesion" and config.mix.name != "none":
        raise InputError(f"mix={config.mix.name}: not available for data.unit=lesion; use none")
    for flag, key_of_choice in (("task", "task"), ("unit", "data.unit")):
        choice = attrgetter(key_of_choice)(config)
        for key, value, needed in list_changed(config, flag):
            if needed != choice:
                raise InputError(f"{key}={value}: not used by {key_of_choice}={choice}; remove it")


def list_changed(config: Config, flag: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield key, value and flag of the settings that have a flag and not their default value."""
    defaults = type(config)()
    for key, content in keys_with(type(config), flag).items():
        value, default = map(attrgetter(key), (config, defaults))
        if value != default and not is_dataclass(value):
            yield key, value, content


def check_fold(data: DataConfig, alternative: str = "") -> None:
    """Check `data.fold`; `alternative` describes another allowed value in the error message."""
    by_source, last = data.split == "source", data.folds - 1
    if by_source and data.folds != DataConfig().folds:
        raise InputError(
            f"data.folds={data.folds}: data.split=source has a fold for each source; leave "
            "data.folds out"
        )
    is_number = isinstance(data.fold, int) and data.fold >= 0
    if (alternative and data.fold == "all") or (
        is_number and (by_source or int(data.fold) <= last)
    ):
        return
    allowed = "a source's number, from 0" if by_source else f"0 to {last} (data.folds={data.folds})"
    raise InputError(f"data.fold={data.fold}: must be {allowed}{alternative}")
