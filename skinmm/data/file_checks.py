"""Check of all image files before training; one message names all unusable ones.

The headers also give the sizes of the images, which the audit tests as a shortcut.
"""

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
from jaxtyping import Bool, Float64
from tqdm import tqdm

from skinmm.config import DataConfig
from skinmm.config.cores import count_cores
from skinmm.data.bucket import is_in_bucket
from skinmm.data.splits import UNUSED
from skinmm.errors import InputError, warn
from skinmm.images.base import MIN_SIDE, Icc, check_frame, check_size, require_colours
from skinmm.images.decode import DecodeError, ImageInfo, decode, probe
from skinmm.images.source import Source, read_source

HEAD: Final = 1 << 16
"""Bytes read of a file for its header; the whole file where the header is longer."""
SIDE: Final = 64
"""Side in pixels to which an image is decoded for the check, which reads its whole stream."""
_ENDS: Final = {"jpeg": b"\xff\xd9", "png": b"IEND"}
_BATCH: Final = 16  # files per task of a thread
_NAMED: Final = 5
Size = tuple[int, int]
"""Width and height of an image in pixels, upright according to EXIF."""


class FileCheck(NamedTuple):
    """Check of one file of each row.

    Attributes:
        columns: columns whose cells are the arguments of `check`.
        check: function that raises `InputError` or `OSError` for an unusable file, and returns the
            size of an image.
        noun: what the files are, in messages.
    """

    columns: Sequence[str]
    check: Callable[..., Size | None]
    noun: str = "images"


class CheckResults(NamedTuple):
    """Results of the checks of all rows.

    Attributes:
        is_usable: whether each row is usable.
        notes: a line with the duration of each check.
        sizes: width and height of each row's image in pixels; NaN where none was read.
    """

    is_usable: Bool[np.ndarray, " n"]
    notes: tuple[str, ...]
    sizes: Float64[np.ndarray, "n 2"]


def image_checks(rows: pd.DataFrame, data: DataConfig, *, needed: bool = True) -> list[FileCheck]:
    """Return the check of a cohort's images; an empty list if no check is needed.

    With `data.missing=drop` images are checked even if not `needed`: models without images leave
    out the same rows. The images of a pack in object storage were decoded when it was written, and
    every read compares a checksum.
    """
    if is_in_bucket(data) and not data.extra:
        return []
    if rows["path"].isna().any() or not (needed or data.missing == "drop"):
        return []
    check = partial(check_image, icc="srgb" if data.icc == "srgb" else "ignore")
    return [FileCheck(("path", "part"), check)]


def check_image(path: str, part: object, *, icc: Icc = "ignore") -> Size:
    """Read the header of an image; decode images of validation and test, and truncated files.

    A JPEG or PNG file without its end marker is decoded too. Images that are too small are refused,
    decoded ones also if they have a single colour. Returns the size in the header.
    """
    if part in ("val", "test"):
        source = read_source(path)
        pixels = decode(source.data, size=SIDE, frame=source.frame, icc=icc, min_side=MIN_SIDE)
        require_colours(pixels)
        info = probe(source.data)
    else:
        info = _check_header(read_source(path)) if "#" in path else _check_file(Path(path))
    return info.width, info.height


def _check_header(source: Source) -> ImageInfo:
    info = probe(source.data)
    check_size(info.width, info.height, info.width * info.height, MIN_SIDE)
    check_frame(source.frame, info.frames)
    return info


def _check_file(path: Path) -> ImageInfo:
    with path.open("rb") as file:
        head = file.read(HEAD)
        try:
            info = _check_header(Source(head))
        except DecodeError:
            info = _check_header(Source(head + file.read()))
        file.seek(max(file.seek(0, os.SEEK_END) - SIDE, 0))
        if _ENDS.get(info.format, b"") not in file.read():
            decode(path.read_bytes(), size=SIDE)
    return info


def require_usable(rows: pd.DataFrame, checks: Sequence[FileCheck], missing: str) -> CheckResults:
    """Check the files of all rows in use, in parallel.

    `missing=drop` warns of unusable files, `error` refuses them. Rows have `image_id`, and `part`
    if they are split.
    """
    parts = rows["part"] if "part" in rows else pd.Series(None, rows.index, dtype=object)
    is_usable, notes, sizes = np.ones(len(rows), bool), [], np.full((len(rows), 2), np.nan)
    for columns, check, noun in checks:
        used = np.flatnonzero(is_usable & (parts != UNUSED).to_numpy())
        start = perf_counter()
        cells = rows.assign(part=parts)[[*columns]].iloc[used]
        results = _run_check(list(cells.itertuples(index=False, name=None)), check, noun)
        problems = {i: result for i, result in enumerate(results) if isinstance(result, str)}
        for row, result in zip(used, results, strict=True):
            if isinstance(result, tuple):
                sizes[row] = result
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
            raise InputError(f"{message}; set data.missing=drop to leave them out")
        warn(f"{message}: left out")
        if lost := {*parts} - {*parts[is_usable]}:
            raise InputError(f"{message}; no row is left{_describe(lost)}")
    return CheckResults(is_usable, tuple(notes), sizes)


def _describe(parts: set[Any]) -> str:
    names = sorted(part for part in parts if isinstance(part, str))
    return f" in {', '.join(names)}" if names else ""


def _run_check(
    cells: list[tuple[Any, ...]], check: Callable[..., Size | None], noun: str
) -> list[Size | str | None]:
    """Check every row in parallel; return its size, or the error message."""

    def check_batch(batch: list[tuple[Any, ...]]) -> list[Size | str | None]:
        return [_describe_file(check, cells) for cells in batch]

    batches = [cells[first : first + _BATCH] for first in range(0, len(cells), _BATCH)]
    bar = tqdm(total=len(cells), desc=f"checking {noun}", unit=f" {noun}", disable=None)
    checked: list[Size | str | None] = []
    with bar, ThreadPoolExecutor(count_cores()) as pool:
        for results in pool.map(check_batch, batches):
            checked += results
            bar.update(len(results))
    return checked


def _describe_file(check: Callable[..., Size | None], cells: tuple[Any, ...]) -> Size | str | None:
    try:
        return check(*cells)
    except (OSError, InputError) as error:
        return str(error)


def fill_sizes(table: pd.DataFrame, sizes: Float64[np.ndarray, "n 2"]) -> pd.DataFrame:
    """Fill missing widths and heights, which the audit tests as a shortcut."""
    measured = dict(zip(("width", "height"), sizes.T, strict=True))
    return table.assign(
        **{k: table[k].fillna(pd.Series(v, table.index)) for k, v in measured.items()}
    )
