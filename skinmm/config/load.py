"""Typed configurations from mappings, files and resumed runs; the only user of OmegaConf."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from difflib import get_close_matches
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from skinmm.config.checks import check_final, check_fold, check_run
from skinmm.config.data_commands import AuditConfig
from skinmm.config.schema import Config
from skinmm.config.setting import TYPES, check_values, format_bounds, keys_with
from skinmm.errors import InputError, one_line

T = TypeVar("T")


def from_mapping(schema: type[T], mapping: Any) -> T:
    """Return the typed and checked configuration of a mapping or an OmegaConf container."""
    try:
        if OmegaConf.is_config(mapping):  # a plain mapping, so that keys outside the schema fail
            mapping = OmegaConf.to_container(mapping, resolve=True)
        merged = OmegaConf.merge(OmegaConf.structured(schema), escape_interpolation(mapping))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        key = find_unknown_key(error)
        message = explain_unknown_key(schema, key) if key else format_config_error(error, schema)
        raise InputError(message) from error
    check_settings(config)
    return config  # type: ignore[return-value]


def check_settings(config: Any) -> None:
    """Check the value of every setting, and settings that depend on each other."""
    check_values(config)
    if isinstance(config, Config):
        check_run(config)
    elif isinstance(config, AuditConfig):
        check_fold(config.data)


def escape_interpolation(value: Any) -> Any:
    """Escape `${` in all strings of plain data, which OmegaConf would interpolate."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, dict):
        return {key: escape_interpolation(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [escape_interpolation(item) for item in value]
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """Return the configuration as nested dictionaries, ready for YAML, JSON or a checkpoint."""
    return asdict(config)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings to one mapping with full keys such as `data.root`."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def read_config(path: Path) -> Config:
    """Read the `config.yaml` of a run."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and isinstance(content.get("data"), dict):
            content["data"].setdefault("calibration", 0)  # older runs resume with their parts
        if isinstance(content, dict) and isinstance(content.get("trainer"), dict):
            content["trainer"].setdefault("smoothing", 1)  # and with their choice of the epoch
        return from_mapping(Config, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path}: not the configuration of a run: {one_line(error)}") from error


def resume_config(composed: Config, overrides: Sequence[str]) -> Config:
    """Return the configuration of the run folder in `composed.resume`.

    Args:
        composed: source of the trainer and logger settings that the overrides name, and of whole
            sections whose option the overrides choose; all other settings are the run's.
        overrides: `KEY=VALUE`, as on the command line.
    """
    keys = [item.lstrip("+~").partition("=")[0] for item in overrides]
    keys = [key for key in keys if key != "resume"]
    resumable = keys_with(Config, "resumable")
    if fixed := [key for key in keys if key not in resumable]:
        names = [key for key in resumable if "." not in key]
        starred = [f"{key}.*" if f"{key}." in "".join(resumable) else key for key in names]
        allowed = f"{', '.join(starred[:-1])} and {starred[-1]}"
        raise InputError(
            f"resume=RUN takes the settings of RUN/config.yaml; only {allowed} may be given, "
            f"not {', '.join(fixed)}"
        )
    run = Path(composed.resume or "").absolute()
    if not (run / "config.yaml").is_file():
        raise InputError(
            f"resume={composed.resume}: not a run folder (config.yaml is missing); skinmm "
            "runs lists run folders"
        )
    config = read_config(run / "config.yaml")
    rows = config.trainer.batch_size
    for key in keys:
        section, _, name = key.rpartition(".")
        target = getattr(config, section) if section else config
        setattr(target, name, attrgetter(key)(composed))
    if config.trainer.batch_size == "auto":
        config.trainer.batch_size = rows  # that the run has chosen
    config.resume = str(run)
    check_settings(config)
    if config.final:
        check_final(config)
    return config


def describe_settings(schema: type[Any], composed: Any) -> list[str]:
    """Return the lines of the help: `key=value  # explanation (allowed values)`.

    The OmegaConf mapping `composed` has the values, and may have further keys.
    """
    settings = OmegaConf.masked_copy(composed, [item.name for item in fields(schema)])
    values: Any = OmegaConf.to_container(settings, resolve=True)
    return [*_describe(schema(), values, "")]


def find_unknown_key(error: BaseException | None) -> str | None:
    """Return the full name of an unknown key; None for any other error."""
    is_missing = isinstance(error, ConfigAttributeError | ConfigKeyError)
    return getattr(error, "full_key", None) if is_missing else None


def explain_unknown_key(schema: type[Any], key: str) -> str:
    """Return one line about an unknown key: similar keys, or the keys of the same section."""
    section, _, name = key.rpartition(".")
    if section.endswith("args"):
        return f"unknown key '{key}'; to pass it to the constructor write +{key}=..."
    keys = [candidate.rpartition(".") for candidate in _list_keys(schema())]
    names = get_close_matches(name, dict.fromkeys(last for *_, last in keys), cutoff=0.75)
    names = [name] if name in names else names
    similar = [parts for parts in keys if parts[2] in names]
    similar.sort(key=lambda parts: (parts[0] != section, names.index(parts[2])))
    if similar:
        return f"unknown key '{key}'; did you mean {' or '.join(map(''.join, similar[:3]))}?"
    siblings = [parts for parts in keys if parts[0] == section]
    siblings = siblings or [parts for parts in keys if not parts[0]]
    return f"unknown key '{key}'; choose from {', '.join(map(''.join, siblings))}"


LIST: Final = "a list, e.g. [a,b]"
_TYPES: Final = TYPES | {list: LIST, dict: "pairs, e.g. {name: value}"}


def describe_type(schema: type[Any], key: str) -> str | None:
    """Describe the values that a setting accepts; None for an unknown setting."""
    inner: Any = schema
    for name in key.partition("[")[0].split("."):
        types = {item.name: item.type for item in fields(inner)} if is_dataclass(inner) else {}
        if name not in types:
            return None
        inner = types[name]
    kinds = [kind for kind in (get_args(inner) or (inner,)) if kind in _TYPES]
    kind = get_origin(inner) if get_origin(inner) in _TYPES else next(iter(kinds), None)
    return _TYPES[dict] if "[" in key else _TYPES.get(kind)


def format_config_error(
    error: BaseException, schema: type[Any] | None = None, value: str | None = None
) -> str:
    """Return the first line of an OmegaConf error, preceded by the key it concerns.

    A `value` of the wrong type is named, with what the setting of the `schema` accepts.
    """
    keys = re.findall(r"^\s*full_key:[ \t]*(\S.*)$", str(error), re.MULTILINE)
    text = one_line(error)
    if not keys:
        return text
    allowed = describe_type(schema, keys[0]) if schema else None
    if allowed and "nterpolation" not in text:
        quoted = re.search("Value ('.*?') of type", text)
        actual = quoted[1] if quoted else repr(value) if value is not None else ""
        text = f"must be {allowed}{f', not {actual}' if actual else ''}"
    return f"{keys[0]}: {text}"


def _list_keys(config: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(config):
        yield f"{prefix}{item.name}"
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from _list_keys(value, f"{prefix}{item.name}.")


def _describe(settings: Any, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for item in fields(settings):
        key, value = f"{prefix}{item.name}", values[item.name]
        default = getattr(settings, item.name)
        if is_dataclass(default):
            yield ""
            yield from _describe(default, value, f"{key}.")
            continue
        explanation, choices, low, high = (
            item.metadata[name] for name in ("explanation", "choices", "low", "high")
        )
        if not (choices is low is high is None):
            allowed = ", ".join(choices) if choices else format_bounds(low, high)
            explanation = f"{explanation} ({allowed})"
        # A mapping such as `args` has a line for each of its entries.
        entries = {f"{key}.{name}": entry for name, entry in value.items()} if default == {} else {}
        for name, entry in (entries or {key: value}).items():
            text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False).replace('"', "")
            yield f"{f'{name}={text}':<36}  # {explanation}"


def read_costs(costs: Any) -> Any:
    """Return the mapping in a YAML file of `evaluation.costs`; other values are unchanged."""
    if not isinstance(costs, str):
        return costs
    try:
        content = yaml.safe_load(Path(costs).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"evaluation.costs={costs}: not a YAML file of costs ({one_line(error)})"
        ) from error
    if not isinstance(content, dict):
        raise InputError(
            f"evaluation.costs={costs}: the file must contain TRUTH: {{CALL: number}}, a line a "
            "true class"
        )
    return content
