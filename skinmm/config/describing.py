"""Every setting in a line, as `--help` shows it: its key, its value, what it is."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from typing import Any, Final

from omegaconf import OmegaConf

from skinmm.config.mapping import bounds

WIDTH: Final = 36  # characters of a key and its value, before what it is


def described(schema: type[Any], composed: Any) -> list[str]:
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
