"""Settings as dataclass fields with help, bounds and flags; checks of values and components."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from typing import Any, Final, TypedDict, TypeVar, Unpack, get_args

from skinmm.errors import InputError

T = TypeVar("T")
Number = int | float


TYPES: Final[dict[Any, str]] = {
    bool: "true or false",
    int: "a whole number, e.g. 10",
    float: "a number, e.g. 0.001",
    str: "text",
}


class Flags(TypedDict, total=False):
    """Flags of a setting; `keys_with` lists the settings with a given flag.

    Attributes:
        path: the value is a path or URL, read literally; for a mapping, the names of such entries.
        output: the program writes to this path, which must be writable.
        disables_output: nothing is written if the setting is true.
        usage: value in the second example of the help.
        positional: file names without KEY= on the command line belong to this setting.
        decides_rows: changes predicted rows, so a resumed prediction job requires the same value.
        resumable: may be given with `resume=RUN`.
        per_start: concerns one start of the program, not its result; not compared.
        incidental: differs between runs without being a design choice; not compared.
        task: the only task that uses the setting.
        unit: the only `data.unit` that uses the setting.
        neural: only head=neural uses the setting.
        inputs: inputs of the network that the setting needs: image, record, or both.
        local: a client of a federation sets it, not the server.
        shared: the server of a federation may set it for its clients; a function returns whether it
            may set a value. Clients accept nothing but the default of a setting without this flag.
            False of a section applies to all of it.
        first: the help lists the setting before all others.
        first_group: the help lists the options of the section before all others.
    """

    path: bool | tuple[str, ...]
    output: bool
    disables_output: bool
    usage: str
    positional: bool
    decides_rows: bool
    resumable: bool
    per_start: bool
    incidental: bool
    task: str
    unit: str
    neural: bool
    inputs: str
    local: bool
    shared: bool | Callable[[Any], bool]
    first: bool
    first_group: bool


def setting(
    default: Any,
    explanation: str,
    *,
    low: Number | None = None,
    high: Number | None = None,
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


PLUGINS: Final = "Python files of plug-ins, e.g. [my_blocks.py]"
literal_path = partial(setting, path=True)
local = partial(setting, local=True)
shared = partial(setting, shared=True)
output_path = partial(setting, path=True, output=True)
fraction = partial(setting, low=0, high=1)


def section(default: Callable[[], Any], **flags: Unpack[Flags]) -> Any:
    """Return a dataclass field for a group of settings; its flags apply to all of them."""
    return field(default_factory=default, metadata=flags)


def keys_with(
    schema: type[Any], flag: str, prefix: str = "", inherited: Any = None
) -> dict[str, Any]:
    """Return a flag's values by full key, for all sections and settings that have the flag.

    Settings of list items are written with brackets, as in `data.extra[].root`.
    """
    values: dict[str, Any] = {}
    for item in fields(schema):
        key = f"{prefix}{item.name}"
        value = False if inherited is False else item.metadata.get(flag, inherited)
        if isinstance(value, tuple):
            values |= {f"{key}.{name}": True for name in value}
        elif value:
            values[key] = value
        for inner, separator in ((item.type, "."), *((arg, "[].") for arg in get_args(item.type))):
            if isinstance(inner, type) and is_dataclass(inner):
                values |= keys_with(inner, flag, f"{key}{separator}", value)
    return values


def has_no_text(value: Any) -> bool:
    """Return whether a value and its items contain no text, which may be a path or an address."""
    items = value.values() if isinstance(value, Mapping) else value
    return not isinstance(value, str) and (
        not isinstance(items, Collection) or all(map(has_no_text, items))
    )


@dataclass
class Component:
    """Choice from a table of classes; `args` are passed to the constructor."""

    name: str = shared("", "name of the component")
    args: dict[str, Any] = setting(
        {}, "keyword arguments of the component's constructor", shared=has_no_text
    )


def check_component(
    table: Mapping[str, Callable[..., Any]],
    kind: str,
    component: Component,
    context: Collection[str] = (),
) -> None:
    """Check the name of a component, and its args against the signature of the constructor.

    `kind` is the group of the component, and `context` names the parameters that the program
    passes.
    """
    if component.name not in table:
        raise InputError(f"unknown {kind} '{component.name}'; choose from {', '.join(table)}")
    parameters = inspect.signature(table[component.name]).parameters
    allowed = [name for name in parameters if name not in context]
    if unknown := [name for name in component.args if name not in allowed]:
        raise InputError(
            f"{kind} '{component.name}' has no argument '{unknown[0]}'; "
            f"it has: {', '.join(allowed) or 'none'}"
        )
    for name, value in component.args.items():
        expected = parameters[name].annotation
        kinds = (int, float) if expected is float else expected
        if expected in TYPES and not isinstance(value, kinds):
            raise InputError(
                f"{kind} '{component.name}': {name} must be {TYPES[expected]}, not {value!r}"
            )


def build_component(
    table: Mapping[str, Callable[..., T]], kind: str, component: Component, **context: Any
) -> T:
    """Call the constructor of a component with its args and the context."""
    check_component(table, kind, component, context)
    try:
        return table[component.name](**context, **component.args)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # torch raises any of these
        raise InputError(f"{kind} '{component.name}': {error}") from error


def check_values(config: Any, prefix: str = "") -> None:
    """Check the bounds and choices of every setting."""
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
            continue
        example, choices = item.metadata["example"], item.metadata["choices"]
        if example and not value:
            raise InputError(f"{key} is missing; for example {key}={example}")
        if choices and value not in choices:
            raise InputError(f"{key}={value}: choose from {', '.join(choices)}")
        if item.type == list[str] and any(not isinstance(word, str) for word in value):
            raise InputError(f"{key}={value}: must be a list of words, e.g. [a,b]")
        low, high = item.metadata["low"], item.metadata["high"]
        if isinstance(value, Number) and not isinstance(value, bool):
            is_inside = (low is None or value >= low) and (high is None or value <= high)
            if not (math.isfinite(value) and is_inside):
                raise InputError(f"{key}={value}: must be {format_bounds(low, high)}")


def format_bounds(low: Number | None, high: Number | None) -> str:
    """Return the range of a number in words."""
    if low is None and high is None:
        return "a finite number"
    if high is None:
        return f"at least {low}"
    return f"at most {high}" if low is None else f"between {low} and {high}"
