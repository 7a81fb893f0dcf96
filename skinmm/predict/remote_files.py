"""Tables and images behind a URL that fsspec knows: `s3://`, `gs://`, `https://`, `memory://`."""

from collections.abc import Callable
from typing import Any, TypeVar

import fsspec

from skinmm.errors import InputError

T = TypeVar("T")


def listed(folder: str) -> tuple[Any, str, list[str]]:
    """A folder's file system, its path there and the names of what is in it.

    Raises:
        InputError: no such folder, or it cannot be reached.
    """

    def ask() -> tuple[Any, str, list[str]]:
        system, path = fsspec.core.url_to_fs(folder)
        return system, path, [name.rsplit("/", 1)[-1] for name in system.ls(path, detail=False)]

    return _reached(f"images={folder}", ask)


def opened(path: str) -> Any:
    """A file behind a URL, open for reading bytes.

    Raises:
        InputError: no such file, or it cannot be reached.
    """
    return _reached(f"input={path}", lambda: fsspec.open(path, "rb").open())


def fingerprint(path: str) -> str:
    """What changes when the file changes: its size and, where the store knows them, tag and time.

    Raises:
        InputError: no such file, or it cannot be reached.
    """

    def ask() -> str:
        system, inside = fsspec.core.url_to_fs(path)
        info = system.info(inside)
        known = ("size", "ETag", "etag", "mtime", "created", "LastModified", "updated")
        return "|".join(str(info.get(name)) for name in known)

    return _reached(f"input={path}", ask)


def _reached(what: str, ask: Callable[[], T]) -> T:
    try:
        return ask()
    except FileNotFoundError as error:
        raise InputError(f"{what}: no such file or folder") from error
    except ImportError as error:
        raise InputError(f"{what}: {error}") from error
    except Exception as error:  # each store has errors of its own
        raise InputError(f"{what}: cannot be reached ({' '.join(str(error).split())})") from error
