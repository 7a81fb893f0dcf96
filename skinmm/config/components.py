"""Open choices: a name is looked up in a table, and the constructor's signature checks the args."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

from skinmm.config.schema import Component
from skinmm.errors import InputError

T = TypeVar("T")


def verify(
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


def build(
    table: Mapping[str, Callable[..., T]], kind: str, component: Component, **context: Any
) -> T:
    """Calls the constructor that `component.name` names; its signature is the schema of the args.

    Raises:
        InputError: as `verify`, or an argument that the constructor refuses.
    """
    verify(table, kind, component, context)
    try:
        return table[component.name](**context, **component.args)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # of torch's own checks
        raise InputError(f"{kind} '{component.name}': {error}") from error
