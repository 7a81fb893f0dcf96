"""How a file is written that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes its own name only once the block has succeeded."""
    # Of several machines that share a folder, two may have the same process number. Names have a
    # longest length, which the file's own may have used up.
    partial = path.with_name(f"{path.name[:32]}.{uuid4().hex}.part")
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def clear_partials(folder: Path) -> None:
    """Removes what was half written in a folder and those below when a process was killed."""
    for partial in folder.rglob("*.part"):
        partial.unlink(missing_ok=True)
