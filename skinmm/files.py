"""Atomic writes: a file appears under its name only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block succeeds."""
    # Process numbers repeat across machines that share a folder, hence the UUID. File names have
    # a maximum length, which the name of the file itself may use up.
    partial = path.with_name(f"{path.name[:32]}.{uuid4().hex}.part")
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove the temporary files that killed writers left in a folder and its subfolders."""
    for partial in folder.rglob("*.part"):
        partial.unlink(missing_ok=True)
