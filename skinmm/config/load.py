"""Open choices: a name is looked up in a table, and the constructor's signature checks the args."""

import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, asdict, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from skinmm.config.commands import AuditConfig
from skinmm.config.schema import Component, Config, DataConfig, StudyConfig
from skinmm.errors import InputError

T = TypeVar("T")


def check_component(
    table: Mapping[str, Callable[..., Any]],
    kind: str,
    component: Component,
    context: Collection[str] = (),
) -> None:
    """Checks a component's name and the names of its args against its constructor's signature.

    Args:
        table: the components of this kind.
        kind: named in the error.
        component: the choice.
        context: parameters that the program supplies itself.

    Raises:
        InputError: an unknown name or argument, with the choices.
    """
    if component.name not in table:
        raise InputError(f"unknown {kind} '{component.name}'; choose from {', '.join(table)}")
    parameters = inspect.signature(table[component.name]).parameters
    allowed = [name for name in parameters if name not in context]
    for name in component.args:
        if name not in allowed:
            known = ", ".join(allowed) or "none"
            raise InputError(f"{kind} '{component.name}' has no argument '{name}'; it has: {known}")


def build_component(
    table: Mapping[str, Callable[..., T]], kind: str, component: Component, **context: Any
) -> T:
    """Calls the constructor that `component.name` names; its signature is the schema of the args.

    Raises:
        InputError: as `check_component`, or an argument that the constructor refuses.
    """
    check_component(table, kind, component, context)
    try:
        return table[component.name](**context, **component.args)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # of torch's own checks
        raise InputError(f"{kind} '{component.name}': {error}") from error


WIDTH: Final = 36  # characters of a key and its value, before what it is


def describe_settings(schema: type[Any], composed: Any) -> list[str]:
    """A line for each setting, `key=value  # what it is (what it may be)`; sections stand apart.

    Args:
        schema: the dataclass of the settings.
        composed: their values, as an OmegaConf mapping that may hold more.
    """
    own = OmegaConf.masked_copy(composed, [item.name for item in fields(schema)])
    values: Any = OmegaConf.to_container(own, resolve=True)
    return [*_lines(schema(), values)]


def _lines(settings: Any, values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for item in fields(settings):
        key, value, inner = f"{prefix}{item.name}", values[item.name], getattr(settings, item.name)
        if is_dataclass(inner):
            yield ""
            yield from _lines(inner, value, f"{key}.")
            continue
        # The arguments of a choice have keys of their own.
        own = {f"{key}.{name}": each for name, each in value.items()} if inner == {} else {}
        for name, each in (own or {key: value}).items():
            typed = json.dumps(each, separators=(",", ":"), ensure_ascii=False).replace('"', "")
            yield f"{f'{name}={typed}':<{WIDTH}}  # {_meaning(item)}"


def _meaning(item: "Field[Any]") -> str:
    """What a setting is, and what it may be."""
    told = item.metadata
    choices, low, high = told["choices"], told["low"], told["high"]
    free = choices is low is high is None
    allowed = ", ".join(choices) if choices else bounds(low, high)
    return told["explanation"] if free else f"{told['explanation']} ({allowed})"


Number = int | float


def from_mapping(schema: type[T], mapping: Any) -> T:
    """Types and checks a plain or OmegaConf mapping.

    Raises:
        InputError: an unknown key, a wrong type or a value out of bounds, by its full key.
    """
    try:
        if OmegaConf.is_config(mapping):  # plain, so that a key added past the schema is refused
            mapping = OmegaConf.to_container(mapping, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(schema), escape_interpolation(mapping))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = find_unknown_key(error)
        raise InputError(suggest_key(schema, key) if key else format_config_error(error)) from error
    check_settings(config)
    return config  # type: ignore[return-value]


def escape_interpolation(value: Any) -> Any:
    """Plain data in OmegaConf's spelling, in which a bare `${` would look something up."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: escape_interpolation(each) for key, each in value.items()}
    return (
        [escape_interpolation(each) for each in value] if isinstance(value, list | tuple) else value
    )


def to_mapping(config: Any) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, ready for YAML, JSON or a checkpoint."""
    return asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by full keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def read_config(path: Path) -> Config:
    """Reads a run's `config.yaml`.

    Raises:
        InputError: there is none, or it is not a configuration of this version.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"{path}: not a run's configuration: {format_config_error(error)}"
        ) from error
    try:
        return from_mapping(Config, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def write_config(path: Path, config: Config) -> None:
    """Writes a run's `config.yaml`, whole or not at all: without it a run cannot be resumed."""
    text = yaml.safe_dump(to_mapping(config), sort_keys=False, allow_unicode=True)
    from skinmm.files import atomic_write  # here: it imports pandas, which --help does not need

    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_settings(config: Any, prefix: str = "") -> None:
    """Enforces every field's bounds and choices.

    Raises:
        InputError: names the key, the value given and what is allowed.
    """
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check_settings(value, f"{key}.")
            continue
        example, choices, low, high = (item.metadata[name] for name in _ENFORCED)
        if example and not value:
            raise InputError(f"{key} is missing; for example {key}={example}")
        if choices and value not in choices:
            raise InputError(f"{key}={value}: choose from {', '.join(choices)}")
        if _is_number(value) and not _is_inside(value, low, high):
            raise InputError(f"{key}={value}: must be {bounds(low, high)}")
    for schema, check_whole in _WHOLE.items():
        if isinstance(config, schema):
            check_whole(config)


_ENFORCED: Final = ("example", "choices", "low", "high")


def find_unknown_key(error: BaseException | None) -> str | None:
    """The full key that OmegaConf did not find, if that is what the error says."""
    missing = isinstance(error, ConfigAttributeError | ConfigKeyError)
    return getattr(error, "full_key", None) if missing else None


def suggest_key(schema: type[Any], key: str) -> str:
    """One line for a key that the schema does not have: what is like it, or what is beside it."""
    section, _, name = key.rpartition(".")
    if section.endswith("args"):
        return f"unknown key '{key}'; to hand it to the constructor write +{key}=..."
    known = [each.rpartition(".") for each in _keys(schema())]
    like = get_close_matches(name, dict.fromkeys(each[2] for each in known), cutoff=0.75)
    like = [name] if name in like else like
    near = [each for each in known if each[2] in like]
    near.sort(key=lambda each: (each[0] != section, like.index(each[2])))
    if near:
        return f"unknown key '{key}'; did you mean {' or '.join(map(''.join, near[:3]))}?"
    beside = [each for each in known if each[0] == section] or [e for e in known if not e[0]]
    return f"unknown key '{key}'; there are {', '.join(map(''.join, beside))}"


def format_config_error(error: BaseException) -> str:
    """An error's first line, with the full key where OmegaConf names it further down."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("full_key:"))
    key, text = next(named, ""), lines[0] if lines else type(error).__name__
    text = _NO_INTEGER.sub(r"must be a whole number, e.g. 10, not \1", text)
    return f"{key}: {text}" if key else text


_NO_INTEGER: Final = re.compile(r"Value ('.*') of type '\w+' could not be converted to Integer")


def _keys(config: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(config):
        yield f"{prefix}{item.name}"
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _keys(value, f"{prefix}{item.name}.")


def _check_run(config: Config) -> None:
    if config.data.fold != "all":
        _check_fold(config.data, ", or all")
    _check_task(config)
    _check_study(config.study)
    devices = config.trainer.devices
    if devices != "auto" and not (isinstance(devices, int) and devices >= 1):
        raise InputError(f"trainer.devices={devices}: must be a number from 1, or auto")
    if not config.data.columns:
        raise InputError(
            "data.columns is empty; for a model without a record use fusion=image_only"
        )
    if config.evaluation.threshold == "cost" and not config.evaluation.cost_ratio:
        raise InputError("evaluation.threshold=cost needs evaluation.cost_ratio above 0")


def _check_task(config: Config) -> None:
    """Refuses what the task would pass over without a word."""
    drawing = config.task == "segmentation"
    monitor = config.trainer.monitor
    if monitor != "val/loss" and drawing != (monitor == "val/dice"):
        watched = "val/dice" if drawing else "val/auroc"
        raise InputError(f"trainer.monitor={monitor}: task={config.task} has it not; try {watched}")
    if not drawing:
        return
    if config.data.fold == "all":
        raise InputError("data.fold=all: task=segmentation trains one fold; choose a number")
    for section, names in _OF_CLASSIFIERS.items():
        given, usual = getattr(config, section), getattr(Config(), section)
        for name in names:
            if getattr(given, name) != getattr(usual, name):
                raise InputError(
                    f"{section}.{name}={getattr(given, name)}: task=segmentation has no use for it"
                )


_OF_CLASSIFIERS: Final = {
    "model": (
        *("freeze", "head_dropout", "head_masks", "drop_image", "drop_record", "drop_columns"),
        "cache",
    ),
    "optimizer": ("backbone_lr_scale", "layer_decay", "head_epochs"),
    "evaluation": ("views",),
    "trainer": ("augment_on",),
}


def _check_fold(data: DataConfig, otherwise: str = "") -> None:
    last = data.folds - 1
    if not (isinstance(data.fold, int) and 0 <= data.fold <= last):
        allowed = f"0 to {last} (data.folds={data.folds}){otherwise}"
        raise InputError(f"data.fold={data.fold}: must be {allowed}")


def _check_study(study: StudyConfig) -> None:
    if len(study.arms) == 1:
        raise InputError("study.arms: there is one, and nothing to compare it with; name another")
    if not {*study.against} <= study.arms.keys():
        raise InputError(f"study.against={study.against}: choose from {', '.join(study.arms)}")


_WHOLE: Final[dict[type[Any], Callable[[Any], None]]] = {
    Config: _check_run,
    AuditConfig: lambda config: _check_fold(config.data),
}
"""Schema -> what must hold between its settings."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_inside(value: Number, low: Number | None, high: Number | None) -> bool:
    """Not-a-number and the infinities are nowhere inside."""
    above = low is None or value >= low
    return math.isfinite(value) and above and (high is None or value <= high)


def bounds(low: Number | None, high: Number | None) -> str:
    """In words, the numbers that a setting takes."""
    if low is None and high is None:
        return "a finite number"
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"
