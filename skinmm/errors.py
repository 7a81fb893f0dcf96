"""Exceptions that a user can fix, and one-line messages on the terminal."""

import sys
from pathlib import Path


class InputError(ValueError):
    """An option, file, table or image that cannot be used; the message names what to do."""


def is_utf8(name: str) -> bool:
    """Return whether a file name is valid UTF-8; Python stores other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def one_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def print_line(text: str) -> None:
    """Print to standard output at once, also where it is a file or a pipe."""
    print(text, flush=True)  # noqa: T201


def print_error(text: str) -> None:
    """Print to standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def warn(text: str) -> None:
    """Print a warning to standard error."""
    print_error(f"WARNING: {text}")


def require_new_output(key: str, path: Path, *, overwrite: bool) -> None:
    """Refuse an output file that exists, or an output folder that contains files.

    `key` is the setting that names the path.
    """
    is_free = not any(path.iterdir()) if path.is_dir() else not path.exists()
    if overwrite or is_free:
        return
    state = "contains files" if path.is_dir() else "exists"
    raise InputError(f"{key}={path} {state}; choose another path or set overwrite=true")
