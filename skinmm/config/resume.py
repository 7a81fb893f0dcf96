"""What `resume=RUN` means for the configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from skinmm.config.load import check_settings, read_config
from skinmm.config.schema import Config
from skinmm.errors import InputError

CHANGEABLE: Final = ("trainer", "logger")


def resume_config(given: Config, overrides: Sequence[str]) -> Config:
    """The configuration of the run that `given.resume` names.

    Args:
        given: what was composed; of it only the trainer's and the logger's settings that the
            overrides name are taken, whole sections where a group's option was chosen.
        overrides: as on the command line, `KEY=VALUE`.

    Raises:
        InputError: no run there, or an override of anything else.
    """
    keys = [key for key in _keys(overrides) if key != "resume"]
    foreign = [key for key in keys if key.split(".")[0] not in CHANGEABLE]
    if foreign:
        raise InputError(
            "resume=RUN takes everything from RUN/config.yaml; beside it only trainer.* and "
            f"logger.* may be given, not {', '.join(foreign)}"
        )
    run = Path(given.resume or "").absolute()
    if not (run / "config.yaml").is_file():
        raise InputError(f"resume={given.resume}: no run there (config.yaml is missing)")
    config = read_config(run / "config.yaml")
    _take(config, given, keys)
    config.resume = str(run)
    check_settings(config)
    return config


def filter_overrides(sections: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """The overrides of these sections."""
    keys = _keys(overrides)
    return [
        item for item, key in zip(overrides, keys, strict=True) if key.split(".")[0] in sections
    ]


def _keys(overrides: Sequence[str]) -> list[str]:
    return [item.lstrip("+~").partition("=")[0] for item in overrides]


def _take(config: Config, given: Config, keys: Sequence[str]) -> None:
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            setattr(getattr(config, section), name, getattr(getattr(given, section), name))
        else:
            setattr(config, section, getattr(given, section))
