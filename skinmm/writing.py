"""How a file is written that is there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name to write to; the file takes its own name only once the block has succeeded."""
    # Of several machines that share a folder, two may have the same process number.
    partial = path.with_name(f"{path.name}.{uuid4().hex}.part")
    try:
        yield partial
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
