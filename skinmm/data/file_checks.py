"""Check of a run's image files before training, so that all unusable ones are reported at once."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool
from tqdm import tqdm

from skinmm.config import DataConfig
from skinmm.data.splits import UNUSED
from skinmm.errors import InputError, warn
from skinmm.images.base import Icc, check_frame
from skinmm.images.decode import DecodeError, decode, probe
from skinmm.images.source import Source, read_source

HEAD: Final = 1 << 16
"""Bytes read of a file for its header; the whole file where the header is longer."""
SIDE: Final = 64
"""Side in pixels to which an image is decoded for the check, which reads its whole stream."""
_ENDS: Final = {"jpeg": b"\xff\xd9", "png": b"IEND"}
_BATCH: Final = 16  # files per task of a thread
_NAMED: Final = 5


class FileCheck(NamedTuple):
    """Check that is applied to one file of each row.

    Attributes:
        columns: columns whose cells are the arguments of `check`.
        check: function that raises `InputError` or `OSError` for an unusable file.
        noun: what the files are, in messages.
    """

    columns: Sequence[str]
    check: Callable[..., None]
    noun: str = "images"


def image_checks(rows: pd.DataFrame, data: DataConfig, *, needed: bool = True) -> list[FileCheck]:
    """Return the check of a cohort's images; an empty list if no check is needed.

    With `data.missing=drop` images are checked even if not `needed`: models without images leave
    out the same rows.
    """
    if rows["path"].isna().any() or not (needed or data.missing == "drop"):
        return []
    check = partial(check_image, icc="srgb" if data.icc == "srgb" else "ignore")
    return [FileCheck(("path", "part"), check)]


def check_image(path: str, part: object, *, icc: Icc = "ignore") -> None:
    """Read the header of an image; decode images of validation and test, and truncated files.

    A JPEG or PNG file without its end marker is decoded too.
    """
    if part in ("val", "test"):
        source = read_source(path)
        decode(source.data, size=SIDE, frame=source.frame, icc=icc)
    elif "#" in path:
        _check_header(read_source(path))
    else:
        _check_file(Path(path))


def _check_header(source: Source) -> str:
    info = probe(source.data)
    check_frame(source.frame, info.frames)
    return info.format


def _check_file(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(HEAD)
        try:
            format_ = _check_header(Source(head))
        except DecodeError:
            format_ = _check_header(Source(head + file.read()))
        file.seek(max(file.seek(0, os.SEEK_END) - SIDE, 0))
        if _ENDS.get(format_, b"") not in file.read():
            decode(path.read_bytes(), size=SIDE)


def require_usable(
    rows: pd.DataFrame, checks: Sequence[FileCheck], missing: str
) -> tuple[Bool[np.ndarray, " n"], tuple[str, ...]]:
    """Check the files of all rows in use, in parallel.

    Args:
        rows: rows with `image_id`, and `part` if they are split.
        checks: what to check.
        missing: `drop` warns of unusable files, `error` refuses them.

    Returns:
        Whether each row is usable, and a line with the duration of each check.
    """
    parts = rows["part"] if "part" in rows else pd.Series(None, rows.index, dtype=object)
    is_usable, notes = np.ones(len(rows), bool), []
    for columns, check, noun in checks:
        used = np.flatnonzero(is_usable & (parts != UNUSED).to_numpy())
        start = perf_counter()
        cells = rows.assign(part=parts)[[*columns]].iloc[used]
        problems = _find_problems(list(cells.itertuples(index=False, name=None)), check, noun)
        notes.append(f"{len(used)} {noun} checked in {perf_counter() - start:.1f} s")
        if not problems:
            continue
        is_usable[used[[*problems]]] = False
        names = rows["image_id"].iloc[used]
        listed = [f"{names.iloc[row]} ({text})" for row, text in islice(problems.items(), _NAMED)]
        more = [f"{len(problems) - _NAMED} more"] if len(problems) > _NAMED else []
        message = f"{len(problems)} of {len(used)} {noun} cannot be used"
        message = f"{message}: {'; '.join([*listed, *more])}"
        if missing != "drop":
            raise InputError(f"{message}; data.missing=drop leaves them out")
        warn(f"{message}: left out")
        if lost := {*parts} - {*parts[is_usable]}:
            raise InputError(f"{message}; no row is left{_describe(lost)}")
    return is_usable, tuple(notes)


def _describe(parts: set[Any]) -> str:
    names = sorted(part for part in parts if isinstance(part, str))
    return f" in {', '.join(names)}" if names else ""


def _find_problems(
    cells: list[tuple[Any, ...]], check: Callable[..., None], noun: str
) -> dict[int, str]:
    """Return position and message of the rows whose check fails."""
    batches = [cells[first : first + _BATCH] for first in range(0, len(cells), _BATCH)]
    bar = tqdm(total=len(cells), desc=f"checking {noun}", unit=f" {noun}", disable=None)
    messages: list[str | None] = []
    with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(partial(_check_batch, check), batches):
            messages += results
            bar.update(len(results))
    return {row: message for row, message in enumerate(messages) if message is not None}


def _check_batch(check: Callable[..., None], batch: list[tuple[Any, ...]]) -> list[str | None]:
    return [_describe_problem(check, cells) for cells in batch]


def _describe_problem(check: Callable[..., None], cells: tuple[Any, ...]) -> str | None:
    try:
        check(*cells)
    except (OSError, InputError) as error:
        return str(error)
    return None
