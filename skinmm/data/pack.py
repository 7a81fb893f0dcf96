"""Pack a cohort into TFRecord shards of resized JPEGs, in parallel; a stopped pack is resumed.

A pack is a folder: shards with their indices, `manifest.json` (settings, and size and SHA-256 of
every finished shard) and, once all shards are finished, `cohort.csv`. A shard gets its name when it
is complete, and enters the manifest when it was read back. The same call therefore resumes a pack,
whatever stopped it. The same cohort and settings give the same bytes. Records follow the public
SIIM-ISIC schema, with text instead of codes, and the original width and height.
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
from typing import Any

import pandas as pd
from tqdm import tqdm

from skinmm.data.packed import (
    COHORT,
    FILE,
    INDEX_ENDINGS,
    Encoded,
    Encoder,
    Job,
    Manifest,
    PackError,
    PackSettings,
    Shard,
    load_manifest,
    write_shard,
)
from skinmm.files import atomic_write, remove_partials
from skinmm.images.shards import read_records
from skinmm.images.source import Read
from skinmm.vocabulary import resolve_patients

WriteShards = Callable[[Mapping[str, pd.DataFrame], Path, Encoder], Iterable[tuple[str, Shard]]]
"""Writes shards (rows by file name) to a folder with `write_shard`; yields each when finished."""


def pack(
    table: pd.DataFrame,
    out: Path,
    read: Read,
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
    write_shards: WriteShards | None = None,
) -> Manifest:
    """Pack a cohort, or resume a pack that was stopped.

    Args:
        table: canonical rows, each with a path and a target of 0, 1 or missing.
        out: folder of the pack; created if missing.
        read: module-level function (workers import it) that returns the bytes at a path.
        settings: how images are packed.
        workers: number of processes that decode and encode; None: one per core.
        overwrite: replace a pack of other rows or settings.
        write_shards: replaces the local processes, for example by a cluster.
    """
    settings = settings or PackSettings()
    _require_packable(table)
    numbers = assign_shards(resolve_patients(table), settings.shard_images)
    name = f"shard-{{:05d}}-of-{numbers.max() + 1:05d}.tfrec"
    shards = {name.format(number): rows for number, rows in table.groupby(numbers)}
    try:
        manifest = _start_manifest(table, out, settings, list(shards), overwrite=overwrite)
        finished = {
            file
            for file, shard in manifest.shards.items()
            if (out / file).is_file() and (out / file).stat().st_size == shard.bytes
        }
        pending = {file: rows for file, rows in shards.items() if file not in finished}
        write_shards = write_shards or partial(_write_in_processes, workers=workers)
        for file, shard in write_shards(pending, out, Encoder(read, settings)):
            manifest.shards[file] = shard
            manifest.save(out)
        remove_partials(out)
        _write_cohort(table, out, manifest)
    except OSError as error:
        raise PackError(f"{out}: cannot be written: {error.strerror or error}") from error
    return manifest


def _require_packable(table: pd.DataFrame) -> None:
    """Check all rows before packing starts."""
    if table.empty:
        raise PackError("the cohort has no rows to pack")
    for wrong, problem in (
        (table["path"].isna(), "have no image on disk: set data.missing=drop to leave them out"),
        (table["image_id"].duplicated(), "repeat an image_id: use one row per image"),
        (
            ~table["target"].isin((0, 1)) & table["target"].notna(),
            "have a target other than 0 or 1: pack with data.target=malignant; the diagnosis is "
            "packed as well",
        ),
    ):
        if wrong.any():
            names = ", ".join(table.loc[wrong, "image_id"].iloc[:3])
            raise PackError(f"{int(wrong.sum())} of {len(table)} rows {problem} (e.g. {names})")


def assign_shards(patients: "pd.Series[Any]", limit: int) -> "pd.Series[int]":
    """Return the shard of each row; all rows of a patient are in the same shard.

    A shard has at most `limit` rows, unless it has a single patient with more rows.
    """
    number, free, numbers = 0, limit, {}
    for patient, rows in patients.groupby(patients, sort=False).size().items():
        if rows > free and free < limit:
            number, free = number + 1, limit
        numbers[patient] = number
        free -= rows
    return patients.map(numbers)


def _start_manifest(
    table: pd.DataFrame, out: Path, settings: PackSettings, files: list[str], *, overwrite: bool
) -> Manifest:
    """Return the manifest of a pack to be resumed, or write a new one to an empty folder."""
    mapping = settings.to_mapping()
    text = table.to_csv(index=False) + json.dumps(mapping)
    digest = hashlib.sha256(text.encode()).hexdigest()
    new = Manifest(digest, mapping, len(table), files)
    out.mkdir(parents=True, exist_ok=True)
    old = load_manifest(out)
    if old is None and any(not file.name.startswith(FILE) for file in out.iterdir()):
        raise PackError(f"{out}: contains files that are not a pack: choose a new or empty folder")
    if old and old.digest != digest:
        if not overwrite:
            raise PackError(
                f"{out}: contains a pack of other rows or settings: choose a new folder or set "
                "overwrite=true"
            )
        endings = ("", *INDEX_ENDINGS)
        shards = [f"{file}{ending}" for file in old.files for ending in endings]
        for name in (*shards, COHORT, FILE):  # the files of a pack and no others, the manifest last
            (out / name).unlink(missing_ok=True)
    remove_partials(out)
    if old and old.digest == digest:
        return old
    new.save(out)
    return new


def _write_in_processes(
    pending: Mapping[str, pd.DataFrame], out: Path, encoder: Encoder, workers: int | None
) -> Iterator[tuple[str, Shard]]:
    """Write one shard after the other; local processes decode and encode the images."""
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    total = sum(map(len, pending.values()))
    bar = tqdm(total=total, desc="packing", unit=" images", disable=None)

    def encode(jobs: Iterable[Job]) -> Iterator[Encoded]:
        for image in pool.map(encoder, jobs, chunksize=4):
            yield image
            bar.update()

    try:
        for name, rows in pending.items():
            yield name, write_shard(out / name, rows, encode)
    except BrokenProcessPool as error:
        message = "a worker died, perhaps out of memory: run the same command with fewer workers"
        raise PackError(message) from error
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)


def _follow_parent() -> None:
    """Ignore Ctrl-C and SIGTERM, which the parent handles, and exit when the parent ends."""

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _write_cohort(table: pd.DataFrame, out: Path, manifest: Manifest) -> None:
    """Write the table for `data=packed`, with the original image sizes from the shards."""
    packed = read_records(out / name for name in manifest.files).set_index("image_name")
    rows = table.drop(columns="path")
    for side in ("width", "height"):
        rows[side] = rows["image_id"].map(packed[side])
    with atomic_write(out / COHORT) as partial:
        rows.to_csv(partial, index=False)
