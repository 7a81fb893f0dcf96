"""Exceptions for errors of input, one-line messages on the terminal, and SIGTERM."""

import os
import signal
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NoReturn

GRACE: Final = 4.0  # seconds from SIGTERM to the end of the process
_INVISIBLE: Final = ("Cf", "Zl", "Zp")  # format characters and separators of lines
MAX_WORDS: Final = 10  # of a list in a message


class InputError(ValueError):
    """Unusable option, file, table or image; the message states the remedy."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, for example from `docker stop`, a batch system or systemd; handled like Ctrl-C."""


def is_utf8(name: str) -> bool:
    """Return whether a file name is valid UTF-8; Python stores other bytes as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def one_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its class."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def print_line(text: str) -> None:
    """Print to standard output and flush it."""
    print(text, flush=True)  # noqa: T201


def print_error(text: str) -> None:
    """Print to standard error, with invisible characters such as U+200B as escapes."""
    print(show_invisible(text), file=sys.stderr, flush=True)  # noqa: T201


def show_invisible(text: str) -> str:
    """Escape the characters of a text that a terminal shows as nothing or as a space."""
    if text.isascii():
        return text
    return "".join(
        f"\\u{ord(character):04x}" if unicodedata.category(character) in _INVISIBLE else character
        for character in text.replace("\N{NO-BREAK SPACE}", "\\u00a0")
    )


def warn(text: str) -> None:
    """Print a warning to standard error."""
    print_error(f"WARNING: {text}")


def list_words(words: Counter[str]) -> str:
    """Return the most frequent words with their numbers, such as `'moon' (3), 'mars' (1)`."""
    listed = [f"{word!r} ({count})" for word, count in words.most_common(MAX_WORDS)]
    more = [f"{len(words) - MAX_WORDS} more"] if len(words) > MAX_WORDS else []
    return ", ".join([*listed, *more])


def format_count(count: int | float, noun: str) -> str:
    """Format `1 patient`, `2 patients`."""
    return f"{count:,.0f} {noun}{'' if count == 1 else 's'}"


def suggest_path(path: Path | str) -> str:
    """Return `; did you mean PATH?` with the nearest name in the folder of a path, or ""."""
    path = Path(path)
    try:
        others = [other.name for other in path.parent.iterdir() if other.name != path.name]
    except OSError:  # no such folder, or no permission
        return ""
    nearest = get_close_matches(path.name, others, n=1)
    return f"; did you mean {path.with_name(nearest[0])}?" if nearest else ""


def require_package(module: str, feature: str, extra: str) -> None:
    """Raise InputError if an optional package is not installed; the message names the extra."""
    if find_spec(module) is None:
        raise InputError(f"{feature} needs {module}: pip install 'skinmm[{extra}]'")


def require_new_output(key: str, path: Path, *, overwrite: bool, suffix: str = "") -> None:
    """Raise InputError if an output path already has a file, or a folder with files.

    Also a file without the `suffix`.
    """
    if not path.name.lower().endswith(suffix):
        raise InputError(f"{key}={path}: the suffix must be {suffix}")
    is_free = not any(path.iterdir()) if path.is_dir() else not path.exists()
    if overwrite or is_free:
        return
    state = "contains files" if path.is_dir() else "exists"
    raise InputError(f"{key}={path} {state}; choose another path or set overwrite=true")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise `Terminated` in the main thread on SIGTERM, and end the process `GRACE` seconds later.

    A thread ends the process if the main thread is in native code or waits at exit. Nothing is
    lost by that: every file is written under a temporary name and renamed.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    has_ended = threading.Event()
    threading.Thread(target=_end_after_sigterm, args=(reader, has_ended), daemon=True).start()
    handler = signal.signal(signal.SIGTERM, _terminate)
    # Python's own handler runs when the main thread is between two instructions, this at once.
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        has_ended.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, handler)
        os.close(writer)


def delay_sigterm() -> None:
    """End this process some seconds after SIGTERM, so that the main process can finish a step."""
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(round(GRACE) - 1))


def _terminate(*_: Any) -> NoReturn:
    raise Terminated


def _end_after_sigterm(reader: int, has_ended: threading.Event) -> None:
    """End the process `GRACE` seconds after SIGTERM; return when the pipe is closed."""
    while (numbers := os.read(reader, 64)) and signal.SIGTERM not in numbers:
        pass
    if not numbers:
        os.close(reader)
        return
    deadline = time.monotonic() + GRACE
    if not has_ended.wait(GRACE):
        print_error("terminated")
    time.sleep(max(deadline - time.monotonic(), 0))
    os._exit(128 + signal.SIGTERM)


def _reset_after_fork() -> None:
    """Restore the default SIGTERM handler in a forked process."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


os.register_at_fork(after_in_child=_reset_after_fork)
