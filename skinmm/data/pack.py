"""Any cohort as resized JPEGs in TFRecord shards: written in parallel, resumed after a kill.

A pack is a folder: shards with their indices, `manifest.json` (settings, and size and SHA-256 of
every finished shard) and, once every shard is there, `cohort.csv`. A shard appears under its name
when it is whole, and in the manifest when it was read back, so whatever stops a pack, the same
call goes on where it stopped. The same cohort and settings give the same bytes. Records follow the
public SIIM-ISIC schema, with text for its codes and the original width and height.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any, Final

import pandas as pd
from tqdm import tqdm

from skinmm.data.manifest import FILE, Manifest, PackError, Shard, load_manifest
from skinmm.data.shard_writer import Encoded, Encoder, Job, PackSettings, Read, write_shard
from skinmm.files import atomic_write, remove_partials
from skinmm.images.shards import read_table
from skinmm.vocabulary import resolve_patients

COHORT: Final = "cohort.csv"
_ENDINGS: Final = ("", ".tfindex", ".names.json")  # of a shard and its index
_CHUNK: Final = 4  # images that a worker takes at once

Deal = Callable[[Mapping[str, pd.DataFrame], Path, Encoder], Iterable[tuple[str, Shard]]]
"""Has shards written (`write_shard`), given by file name, in a folder; they come when finished."""


def pack(
    table: pd.DataFrame,
    out: Path,
    read: Read,
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    deal: Deal | None = None,
) -> Manifest:
    """Pack a cohort, or finish a pack that was stopped.

    Args:
        table: canonical cohort table, every row with a path and a 0/1 or missing target.
        out: the folder; made where it is not there.
        read: a function of a module (workers import it) that gives the bytes of a path.
        settings: how images are packed.
        workers: processes that decode and encode; None is one per core.
        overwrite: replace a pack of other rows or settings.
        deal: who writes the shards instead of such processes.

    Raises:
        PackError: a row cannot be packed, the folder holds something else, or it cannot be written.
    """
    settings = settings or PackSettings()
    _check(table)
    numbers = assign_shards(resolve_patients(table), settings.shard_images)
    name = f"shard-{{:05d}}-of-{numbers.max() + 1:05d}.tfrec"
    shards = {name.format(number): rows for number, rows in table.groupby(numbers)}
    try:
        manifest = _manifest(table, out, settings, list(shards), overwrite=overwrite)
        pending = {
            file: rows
            for file, rows in shards.items()
            if not _finished(out / file, manifest.shards.get(file))
        }
        deal = deal or partial(_in_processes, workers=workers)
        for file, shard in deal(pending, out, Encoder(read, settings)):
            manifest.shards[file] = shard
            manifest.save(out)
        remove_partials(out)  # of killed writers
        _write_cohort(table, out, manifest)
    except OSError as error:
        raise PackError(f"{out}: cannot be written: {error.strerror or error}") from error
    return manifest


def _check(table: pd.DataFrame) -> None:
    """Refuse what would fail hours later."""
    if table.empty:
        raise PackError("the cohort has no rows: nothing to pack")
    for wrong, problem in (
        (table["path"].isna(), "have no image on disk: data.missing=drop leaves them out"),
        (table["image_id"].duplicated(), "repeat an image_id: keep one row per image"),
        (~table["target"].isin((0, 1)) & table["target"].notna(), "have a target other than 0 or 1:"
         " pack with data.target=malignant, the diagnosis comes along"),
    ):  # fmt: skip
        if wrong.any():
            names = ", ".join(table.loc[wrong, "image_id"].iloc[:3])
            raise PackError(f"{int(wrong.sum())} of {len(table)} rows {problem} (e.g. {names})")


def assign_shards(patients: "pd.Series[Any]", limit: int) -> "pd.Series[int]":
    """The shard of each row: patients in order of appearance, none of them in two.

    Args:
        patients: the patient of each row.
        limit: rows per shard, exceeded only by a patient who has more.
    """
    number, room, numbers = 0, limit, {}
    for patient, rows in patients.groupby(patients, sort=False).size().items():
        if rows > room and room < limit:
            number, room = number + 1, limit
        numbers[patient] = number
        room -= rows
    return patients.map(numbers)


def _manifest(
    table: pd.DataFrame, out: Path, settings: PackSettings, files: list[str], *, overwrite: bool
) -> Manifest:
    """The folder's own manifest if it is of this pack, a new one in an empty folder."""
    described = settings.to_mapping()
    text = table.to_csv(index=False) + json.dumps(described)
    digest = hashlib.sha256(text.encode()).hexdigest()
    new = Manifest(digest, described, len(table), files)
    out.mkdir(parents=True, exist_ok=True)
    old = load_manifest(out)
    if old is None and any(not file.name.startswith(FILE) for file in out.iterdir()):
        raise PackError(f"{out}: holds files that are no pack: choose a new or empty folder")
    if old and old.digest != digest:
        if not overwrite:
            raise PackError(
                f"{out}: holds a pack of other rows or settings: choose a new folder or"
                " overwrite=true"
            )
        _remove(out, old)
    remove_partials(out)  # of killed writers
    if old and old.digest == digest:
        return old
    new.save(out)
    return new


def _remove(out: Path, manifest: Manifest) -> None:
    """Remove a pack, its manifest last, and nothing else."""
    shards = [f"{file}{ending}" for file in manifest.files for ending in _ENDINGS]
    for name in (*shards, COHORT, FILE):
        (out / name).unlink(missing_ok=True)


def _in_processes(
    pending: Mapping[str, pd.DataFrame], out: Path, encoder: Encoder, workers: int | None
) -> Iterator[tuple[str, Shard]]:
    """One shard after the other, their images by processes of this machine."""
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    total = sum(map(len, pending.values()))
    bar = tqdm(total=total, desc="packing", unit=" images", disable=None)

    def encode(jobs: Iterable[Job]) -> Iterator[Encoded]:
        for image in pool.map(encoder, jobs, chunksize=_CHUNK):
            yield image
            bar.update()

    try:
        for name, rows in pending.items():
            yield name, write_shard(out / name, rows, encode)
    except BrokenProcessPool as error:
        message = "a worker died, perhaps for want of memory: run the same pack with fewer workers"
        raise PackError(message) from error
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)


def _finished(file: Path, shard: Shard | None) -> bool:
    return shard is not None and file.is_file() and file.stat().st_size == shard.bytes


def _follow_parent() -> None:
    """A worker leaves Ctrl-C to its parent, and ends with it even where that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _write_cohort(table: pd.DataFrame, out: Path, manifest: Manifest) -> None:
    """The cohort as `data=packed` reads it, with the original sizes that the shards know."""
    packed = read_table(out / name for name in manifest.files).set_index("image_name")
    rows = table.drop(columns="path")
    for side in ("width", "height"):
        rows[side] = rows["image_id"].map(packed[side])
    with atomic_write(out / COHORT) as partial:
        rows.to_csv(partial, index=False)
