"""Settings as dataclass fields with help, bounds and flags; checks of values and components."""

import inspect
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, TypedDict, TypeVar, Unpack, get_args

from skinmm.errors import InputError

T = TypeVar("T")
Number = int | float


class Flags(TypedDict, total=False):
    """What a setting means to the program; `keys_with` lists the settings that have a flag.

    Attributes:
        path: the value is a path or URL, read literally; for a mapping, the names of such entries.
        output: the program writes to this path, which must be writable.
        disables_output: nothing is written if the setting is true.
        positional: file names without KEY= on the command line belong to this setting.
        decides_rows: changes predicted rows, so a resumed prediction job requires the same value.
        resumable: may be given with `resume=RUN`.
        per_start: concerns one start of the program, not its result.
        incidental: differs between runs without being a design choice; not compared.
        task: the only task that uses the setting.
    """

    path: bool | tuple[str, ...]
    output: bool
    disables_output: bool
    positional: bool
    decides_rows: bool
    resumable: bool
    per_start: bool
    incidental: bool
    task: str


def setting(
    default: Any,
    explanation: str,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    choices: tuple[str, ...] | None = None,
    example: str | None = None,
    **flags: Unpack[Flags],
) -> Any:
    """Return a dataclass field with its explanation for `--help`, its bounds and its flags.

    A setting with an `example` is required; the error message shows the example.
    """
    metadata: dict[str, Any] = {"explanation": explanation, "example": example, "choices": choices}
    metadata |= {"low": low, "high": high} | dict(flags)
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


literal_path = partial(setting, path=True)
output_path = partial(setting, path=True, output=True)
fraction = partial(setting, low=0, high=1)


def section(default: Callable[[], Any], **flags: Unpack[Flags]) -> Any:
    """Return a dataclass field for a group of settings; its flags apply to all of them."""
    return field(default_factory=default, metadata=flags)


def flag_values(schema: type[Any], flag: str) -> dict[str, Any]:
    """Return the value of a flag by the full keys of the sections and settings that have it.

    Settings of list items are written with brackets, as in `data.extra[].root`.
    """
    return dict(_flag_values(schema, flag, "", None))


def keys_with(schema: type[Any], flag: str) -> tuple[str, ...]:
    """Return the full keys of the sections and settings that have a flag."""
    return tuple(flag_values(schema, flag))


def _flag_values(
    schema: type[Any], flag: str, prefix: str, inherited: Any
) -> Iterator[tuple[str, Any]]:
    for item in fields(schema):
        key, value = f"{prefix}{item.name}", item.metadata.get(flag, inherited)
        if isinstance(value, tuple):
            yield from ((f"{key}.{name}", True) for name in value)
        elif value:
            yield key, value
        for inner, separator in ((item.type, "."), *((arg, "[].") for arg in get_args(item.type))):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from _flag_values(inner, flag, f"{key}{separator}", value)


@dataclass
class Component:
    """A choice from a table of classes; `args` go to the constructor."""

    name: str = setting("", "name of the component")
    args: dict[str, Any] = setting({}, "keyword arguments of the component's constructor")


def check_component(
    table: Mapping[str, Callable[..., Any]],
    kind: str,
    component: Component,
    context: Collection[str] = (),
) -> None:
    """Check the name of a component, and its args against the signature of the constructor.

    Args:
        table: constructors of this kind, by name.
        kind: the kind, for the error message.
        component: name and arguments.
        context: parameters that the program passes itself.

    Raises:
        InputError: an unknown name or argument; the message lists the choices.
    """
    if component.name not in table:
        raise InputError(f"unknown {kind} '{component.name}'; choose from {', '.join(table)}")
    parameters = inspect.signature(table[component.name]).parameters
    allowed = [name for name in parameters if name not in context]
    for name in component.args:
        if name not in allowed:
            raise InputError(
                f"{kind} '{component.name}' has no argument '{name}'; "
                f"it has: {', '.join(allowed) or 'none'}"
            )


def build_component(
    table: Mapping[str, Callable[..., T]], kind: str, component: Component, **context: Any
) -> T:
    """Call the constructor of a component with its args and the context.

    Raises:
        InputError: an unknown name or argument, or a value that the constructor rejects.
    """
    check_component(table, kind, component, context)
    try:
        return table[component.name](**context, **component.args)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises any of these
        raise InputError(f"{kind} '{component.name}': {error}") from error


def check_values(config: Any, prefix: str = "") -> None:
    """Check the bounds and choices of every setting.

    Raises:
        InputError: names the key, the value given and the values allowed.
    """
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        else:
            _check_value(key, value, item.metadata)


def format_bounds(low: Number | None, high: Number | None) -> str:
    """Return the range of a number in words."""
    if low is None and high is None:
        return "a finite number"
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"


def _check_value(key: str, value: Any, metadata: Mapping[str, Any]) -> None:
    example, choices, low, high = (metadata[name] for name in ("example", "choices", "low", "high"))
    if example and not value:
        raise InputError(f"{key} is missing; for example {key}={example}")
    if choices and value not in choices:
        raise InputError(f"{key}={value}: choose from {', '.join(choices)}")
    if isinstance(value, Number) and not isinstance(value, bool):
        is_inside = (low is None or value >= low) and (high is None or value <= high)
        if not (math.isfinite(value) and is_inside):
            raise InputError(f"{key}={value}: must be {format_bounds(low, high)}")
