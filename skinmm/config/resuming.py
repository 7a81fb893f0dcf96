"""What `resume=RUN` and `fusion.args.base=RUN` mean for the configuration."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from skinmm.config.mapping import check, read_config
from skinmm.config.schema import Component, Config
from skinmm.errors import InputError

CHANGEABLE: Final = ("trainer", "logger")
CONTEXT: Final = "patient_context"
"""The choice of `fusion=` that is a second stage over another one."""
OF_SECOND_STAGE: Final = (
    *("fusion", "loss", "sampler", "optimizer", "schedule", "trainer", "logger", "report"),
    *("seed", "overwrite", "hydra"),
)


def resumed(given: Config, overrides: Sequence[str]) -> Config:
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
    check(config)
    return config


def below(fusion: Component) -> Component:
    """The block that joins image and record: the choice itself, unless it is a second stage.

    Raises:
        InputError: the second stage does not say over what.
    """
    if fusion.name != CONTEXT:
        return fusion
    try:
        return Component(**fusion.args.get("plain", {"name": "concat"}))
    except TypeError as error:
        raise InputError(
            "fusion.args.plain: choose a block by fusion.args.plain.name=NAME, its arguments by "
            "fusion.args.plain.args.KEY=VALUE"
        ) from error


def staged(given: Config, overrides: Sequence[str]) -> Config:
    """The configuration of a second stage on the plain run that `fusion.args.base` names.

    Args:
        given: what was composed; of it only what does not change the plain model is taken, where
            the overrides name it.
        overrides: as on the command line, `KEY=VALUE`.

    Raises:
        InputError: no plain run there, or an override of what the plain run has settled.
    """
    base = Path(given.fusion.args["base"]).absolute()
    if not (base / "config.yaml").is_file():
        raise InputError(f"fusion.args.base={base}: no run there (config.yaml is missing)")
    keys = _keys(overrides)
    foreign = [key for key in keys if key.split(".")[0] not in OF_SECOND_STAGE]
    if foreign:
        raise InputError(
            "fusion.args.base=RUN takes everything from RUN/config.yaml but "
            f"{', '.join(OF_SECOND_STAGE[:-2])}; not {', '.join(foreign)}"
        )
    config = read_config(base / "config.yaml")
    if config.fusion.name == CONTEXT:
        raise InputError(f"fusion.args.base={base} is such a run itself; name a plain one")
    _take(config, given, [key for key in keys if not key.startswith(("fusion", "hydra"))])
    args = {**given.fusion.args, "base": str(base), "plain": asdict(config.fusion)}
    return replace(config, fusion=Component(CONTEXT, args), resume=None, overwrite=given.overwrite)


def among(sections: Sequence[str], overrides: Sequence[str]) -> list[str]:
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
        if name and not name.startswith("args."):  # which belong to a choice
            setattr(getattr(config, section), name, getattr(getattr(given, section), name))
        else:
            setattr(config, section, getattr(given, section))
