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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import simplejpeg
from tqdm import tqdm

from skinmm.data.decode import decode, probe
from skinmm.data.decode_resize import resize
from skinmm.data.pack_manifest import (
    FILE,
    Manifest,
    PackError,
    Shard,
    describe,
    load_manifest,
)
from skinmm.data.preprocess import DETAILED, Pixels, check_steps, preprocess
from skinmm.data.tfrecord import TFRecordFile, read_table
from skinmm.data.tfrecord_format import whole, write_tfrecord
from skinmm.data.vocabulary import patients_of
from skinmm.errors import InputError

COHORT: Final = "cohort.csv"
_FEATURES: Final[dict[str, str]] = {
    "image_id": "image_name",
    "age": "age_approx",
    "site": "anatom_site_general_challenge",
}
"""Canonical column -> the public schema's name for it, where that is another."""
_INTEGERS: Final = ("target", "width", "height")
_ENDINGS: Final = ("", ".tfindex", ".names.json")  # of a shard and its index
_CHUNK: Final = 4  # images that a worker takes at once

Read = Callable[[str], tuple[bytes, int | None]]
"""A cohort's `path` -> encoded bytes, and which DICOM frame where the path says so."""


@dataclass(frozen=True)
class PackSettings:
    """How images are packed.

    Attributes:
        size: length of the shorter side in pixels; a smaller image keeps its size, and a JPEG that
            needs no change its bytes.
        quality: of JPEG, 1 to 100; colour is stored at full resolution.
        shard_images: images per shard, exceeded only by a patient who has more.
        icc: "srgb" converts through embedded colour profiles, "ignore" takes numbers as sRGB.
        steps: of preprocessing, in order; who reads the pack is told of them by its manifest.
        segmenter: checkpoint that finds the lesion, for the steps that need it.
    """

    size: int = 512
    quality: int = 95
    shard_images: int = 1024
    icc: Literal["ignore", "srgb"] = "ignore"
    steps: tuple[str, ...] = ()
    segmenter: str | None = None

    def __post_init__(self) -> None:
        """Refuse what no pack can be made with."""
        check_steps(self.steps, finds=self.segmenter is not None)
        if "crop_lesion" in self.steps:
            raise InputError(
                "crop_lesion cuts a square of what a network sees, so it is taken in training: "
                "leave it out of the pack's data.preprocess"
            )
        limits = {"size": (16, 8192), "quality": (1, 100), "shard_images": (1, 1_000_000)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise PackError(f"{name}={getattr(self, name)}: allowed are {low} to {high}")

    def to_mapping(self) -> dict[str, Any]:
        """As the manifest holds them: a checkpoint by its digest, steps where there are any."""
        plain = asdict(self) | {"steps": list(self.steps)}
        if self.segmenter:
            plain["segmenter"] = _finder(self.segmenter).digest
        return {name: value for name, value in plain.items() if value not in ([], None)}


def pack(
    table: pd.DataFrame,
    out: Path,
    read: Read,
    settings: PackSettings | None = None,
    *,
    workers: int | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Pack a cohort, or finish a pack that was stopped.

    Args:
        table: canonical cohort table, every row with a path and a 0/1 or missing target.
        out: the folder; made where it is not there.
        read: a function of a module (workers import it) that gives the bytes of a path.
        settings: how images are packed.
        workers: processes that decode and encode; None is one per core.
        overwrite: replace a pack of other rows or settings.

    Raises:
        PackError: a row cannot be packed, the folder holds something else, or it cannot be written.
    """
    settings = settings or PackSettings()
    _check(table)
    numbers = shard_numbers(patients_of(table), settings.shard_images)
    name = f"shard-{{:05d}}-of-{numbers.max() + 1:05d}.tfrec"
    shards = {name.format(number): rows for number, rows in table.groupby(numbers)}
    try:
        manifest = _manifest(table, out, settings, list(shards), overwrite=overwrite)
        _write_shards(shards, out, manifest, _Encoder(read, settings), workers)
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


def shard_numbers(patients: "pd.Series[Any]", limit: int) -> "pd.Series[int]":
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
    for partial in out.glob("*.part"):  # what a kill left
        partial.unlink()
    if old and old.digest == digest:
        return old
    new.save(out)
    return new


def _remove(out: Path, manifest: Manifest) -> None:
    """Remove a pack, its manifest last, and nothing else."""
    shards = [f"{file}{ending}" for file in manifest.files for ending in _ENDINGS]
    for name in (*shards, COHORT, FILE):
        (out / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Encoder:
    """What a worker does with one image."""

    read: Read
    settings: PackSettings

    def __call__(self, job: tuple[str, str]) -> tuple[bytes, int, int]:
        """JPEG bytes, and the original width and height in pixels."""
        image_id, path = job
        try:
            data, frame = self.read(path)
            info = probe(data)
            steps = self.settings.steps
            room = self.settings.size * (2 if DETAILED.intersection(steps) else 1)
            size = _smaller((info.height, info.width), room)
            pixels = decode(data, size=size, frame=frame, icc=self.settings.icc)
            if steps:
                pixels = self._preprocessed(pixels)
        except (OSError, InputError) as error:
            raise PackError(f"image {image_id} ({path}): {error}") from error
        unchanged = size is None and info.format == "jpeg" and not steps
        if unchanged and (self.settings.icc == "ignore" or info.icc is None):
            return data, info.width, info.height
        jpeg = simplejpeg.encode_jpeg(pixels, self.settings.quality, colorsubsampling="444")
        return jpeg, info.width, info.height

    def _preprocessed(self, pixels: Pixels) -> Pixels:
        segmenter = self.settings.segmenter
        find = _finder(segmenter) if segmenter else None
        pixels = preprocess(pixels, self.settings.steps, find)
        height, width, _ = pixels.shape
        size = _smaller((height, width), self.settings.size)
        return resize(pixels, size, (height, width)) if size else pixels


@lru_cache(maxsize=1)
def _finder(checkpoint: str) -> Any:
    """Once in every worker; torch is loaded where it is needed alone."""
    from skinmm.segmentation import LesionFinder

    return LesionFinder.load(Path(checkpoint))


def _smaller(sides: tuple[int, int], shorter: int) -> tuple[int, int] | None:
    """Height and width with so long a shorter side; None: they are not longer now."""
    scale = shorter / min(sides)
    return (round(sides[0] * scale), round(sides[1] * scale)) if scale < 1 else None


def _write_shards(
    shards: dict[str, pd.DataFrame],
    out: Path,
    manifest: Manifest,
    encoder: _Encoder,
    workers: int | None,
) -> None:
    """Write the shards that are not finished; the manifest grows by each."""
    pending = {
        name: rows
        for name, rows in shards.items()
        if not _finished(out / name, manifest.shards.get(name))
    }
    done = manifest.images - sum(map(len, pending.values()))
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_follow_parent
    )
    bar = tqdm(total=manifest.images, initial=done, desc="packing", unit=" images", disable=None)
    try:
        for name, rows in pending.items():
            jobs = zip(rows["image_id"], rows["path"], strict=True)
            images = pool.map(encoder, jobs, chunksize=_CHUNK)
            write_tfrecord(out / name, _records(rows, images, bar))
            TFRecordFile(out / name)  # reads it back: checks every CRC, leaves the index
            manifest.shards[name] = describe(out / name, len(rows), patients_of(rows).nunique())
            manifest.save(out)
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


def _records(
    rows: pd.DataFrame, images: Iterable[tuple[bytes, int, int]], bar: tqdm
) -> Iterator[dict[str, Any]]:
    """Each row and its image as the features of a record."""
    plain = rows.drop(columns="path").to_dict("records")
    for row, (jpeg, width, height) in zip(plain, images, strict=True):
        known = {str(name): value for name, value in row.items() if not pd.isna(value)}
        known = {"width": width, "height": height} | known  # the table's are the original's
        features = {
            _FEATURES.get(name, name): int(value) if name in _INTEGERS else value
            for name, value in known.items()
        }
        yield features | {"image": jpeg}
        bar.update()


def _write_cohort(table: pd.DataFrame, out: Path, manifest: Manifest) -> None:
    """The cohort as `data=packed` reads it, with the original sizes that the shards know."""
    packed = read_table(out / name for name in manifest.files).set_index("image_name")
    rows = table.drop(columns="path")
    for side in ("width", "height"):
        rows[side] = rows["image_id"].map(packed[side])
    with whole(out / COHORT) as partial:
        rows.to_csv(partial, index=False)
