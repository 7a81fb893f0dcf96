"""Files of a pack: `manifest.json` (settings, progress, checksums) and the shards."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import simplejpeg

from skinmm.errors import InputError
from skinmm.files import atomic_write
from skinmm.images.base import resize
from skinmm.images.decode import decode, probe
from skinmm.images.preprocess import DETAIL_STEPS, Pixels, check_steps, preprocess
from skinmm.images.shards import TFRecordFile
from skinmm.images.source import Read
from skinmm.images.tfrecord import TFRecordError, write_tfrecord
from skinmm.vocabulary import resolve_patients

FILE: Final = "manifest.json"
COHORT: Final = "cohort.csv"
INDEX_ENDINGS: Final = (".tfindex", ".names.json")
"""Endings of the two files of a shard's index."""
_SCHEMA: Final = 1


class PackError(InputError):
    """Error in writing or using a pack; the message gives the remedy."""


@dataclass(frozen=True)
class Shard:
    """Finished shard: size in bytes and SHA-256 of the file on disk."""

    images: int
    patients: int
    bytes: int
    sha256: str


@dataclass
class Manifest:
    """Plan and progress of a pack.

    Attributes:
        digest: SHA-256 of the cohort and the settings, which identifies the pack.
        settings: how images are packed.
        images: number of images in the complete pack.
        files: names of all shards.
        shards: finished shards by file name.
    """

    digest: str
    settings: dict[str, Any]
    images: int
    files: list[str]
    shards: dict[str, Shard] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `manifest.json` atomically."""
        content = {"schema": _SCHEMA, "complete": self.complete, **asdict(self)}
        content["shards"] = dict(sorted(content["shards"].items()))  # completed in any order
        with atomic_write(folder / FILE) as partial:
            partial.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    @property
    def complete(self) -> bool:
        """Return whether every shard is finished."""
        return set(self.files) == set(self.shards)


def load_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder, or None if it contains no pack; refuse an invalid one."""
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text("utf-8"))
        schema, _ = content.pop("schema"), content.pop("complete")
        shards = {name: Shard(**shard) for name, shard in content.pop("shards").items()}
        manifest = Manifest(**content, shards=shards)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PackError(f"{file}: not the manifest of a pack: choose another folder") from error
    if schema != _SCHEMA:
        raise PackError(f"{file}: written by another version of skinmm: choose another folder")
    return manifest


def load_packed_steps(folder: Path) -> tuple[tuple[str, ...], str | None]:
    """Return the preprocessing steps of a pack, and the digest of its segmentation checkpoint."""
    manifest = load_manifest(folder)
    settings = manifest.settings if manifest else {}
    return tuple(settings.get("steps", ())), settings.get("segmenter")


def describe_shard(file: Path, images: int, patients: int) -> Shard:
    """Measure size and SHA-256 of a finished shard."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Shard(images, patients, file.stat().st_size, digest)


def verify_pack(folder: Path) -> Manifest:
    """Compare every shard of a pack with its checksum, for example after copying it."""
    manifest = require_complete(folder)
    for name, shard in manifest.shards.items():
        file = folder / name
        if not file.is_file() or describe_shard(file, shard.images, shard.patients) != shard:
            raise PackError(f"{file}: missing or changed since it was packed: copy it again")
    return manifest


def require_complete(folder: Path) -> Manifest:
    """Return the manifest of a complete pack; refuse any other folder."""
    manifest = load_manifest(folder)
    if manifest is None:
        raise PackError(f"{folder}: no {FILE}: name a folder that skinmm pack wrote")
    if not manifest.complete:
        done, planned = len(manifest.shards), len(manifest.files)
        raise PackError(f"{folder}: {done} of {planned} shards packed: run the same command again")
    return manifest


Job = tuple[str, str]
"""Name and path of an image."""
Encoded = tuple[bytes, int, int]
"""JPEG bytes, and the original width and height in pixels."""


@dataclass(frozen=True)
class PackSettings:
    """Format of packed images.

    Attributes:
        size: length of the shorter side in pixels; smaller images are not enlarged, and the bytes
            of a JPEG that needs no change are copied.
        quality: JPEG quality, 1 to 100; colour is stored at full resolution.
        shard_images: images per shard, exceeded only by a patient with more images.
        icc: "srgb" converts through embedded colour profiles, "ignore" treats values as sRGB.
        steps: preprocessing steps, in order; the manifest passes them on to readers of the pack.
        segmenter: segmentation checkpoint, for the steps that need the lesion.
    """

    size: int = 512
    quality: int = 95
    shard_images: int = 1024
    icc: Literal["ignore", "srgb"] = "ignore"
    steps: tuple[str, ...] = ()
    segmenter: str | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_steps(self.steps, has_finder=self.segmenter is not None)
        if "crop_lesion" in self.steps:
            raise InputError(
                "crop_lesion cannot be part of a pack, because training applies it: remove it from "
                "data.preprocess"
            )
        limits = {"size": (16, 8192), "quality": (1, 100), "shard_images": (1, 1_000_000)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise PackError(f"{name}={getattr(self, name)}: must be between {low} and {high}")

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings as plain data for the manifest, with the digest of the segmenter."""
        settings = asdict(self) | {"steps": list(self.steps)}
        if self.segmenter:
            settings["segmenter"] = _load_finder(self.segmenter).digest
        return {name: value for name, value in settings.items() if value not in ([], None)}


def write_shard(
    file: Path, rows: pd.DataFrame, encode: Callable[[Iterable[Job]], Iterable[Encoded]]
) -> Shard:
    """Write a shard of the images that `encode` yields, or accept an existing complete one."""
    names: list[str] = []
    with suppress(TFRecordError):
        names = TFRecordFile(file).names
    if names != list(rows["image_id"]):
        jobs = zip(rows["image_id"], rows["path"], strict=True)
        write_tfrecord(file, _to_records(rows, encode(jobs)))
        TFRecordFile(file)  # reads the file back: checks every CRC and writes the index
    return describe_shard(file, len(rows), resolve_patients(rows).nunique())


@dataclass(frozen=True)
class Encoder:
    """Encode one image; runs in a worker."""

    read: Read
    settings: PackSettings

    def __call__(self, job: Job) -> Encoded:
        """Return the image as stored in its record."""
        image_id, path = job
        try:
            data, frame = self.read(path)
            info, steps = probe(data), self.settings.steps
            shorter = self.settings.size * (2 if DETAIL_STEPS.intersection(steps) else 1)
            size = _shrink((info.height, info.width), shorter)
            pixels = decode(data, size=size, frame=frame, icc=self.settings.icc)
            pixels = self._preprocess(pixels) if steps else pixels
        except (OSError, InputError) as error:
            raise PackError(f"image {image_id} ({path}): {error}") from error
        unchanged = size is None and info.format == "jpeg" and not steps
        if unchanged and (self.settings.icc == "ignore" or info.icc is None):
            return data, info.width, info.height
        jpeg = simplejpeg.encode_jpeg(pixels, self.settings.quality, colorsubsampling="444")
        return jpeg, info.width, info.height

    def _preprocess(self, pixels: Pixels) -> Pixels:
        segmenter = self.settings.segmenter
        find = _load_finder(segmenter) if segmenter else None
        pixels = preprocess(pixels, self.settings.steps, find)
        sides = pixels.shape[0], pixels.shape[1]
        size = _shrink(sides, self.settings.size)
        return resize(pixels, size, sides) if size else pixels


@lru_cache(maxsize=1)  # once per worker; only then is torch imported
def _load_finder(checkpoint: str) -> Any:
    from skinmm.data.lesion_finder import LesionFinder

    return LesionFinder.load(Path(checkpoint))


def _shrink(sides: tuple[int, int], shorter: int) -> tuple[int, int] | None:
    """Return (height, width) for a new shorter side; None if no reduction is needed."""
    scale = shorter / min(sides)
    return (round(sides[0] * scale), round(sides[1] * scale)) if scale < 1 else None


def _to_records(rows: pd.DataFrame, images: Iterable[Encoded]) -> Iterator[dict[str, Any]]:
    """Yield one record per row and image, with the feature names of the public TFRecords."""
    names = {"age": "age_approx", "site": "anatom_site_general_challenge"}
    table = rows.drop(columns="path").rename(columns={"image_id": "image_name", **names})
    for row, (jpeg, width, height) in zip(table.to_dict("records"), images, strict=True):
        cells = {str(name): value for name, value in row.items() if not pd.isna(value)}
        cells = {"width": width, "height": height} | cells  # the table has the original size
        cells |= {name: int(cells[name]) for name in ("target", "width", "height") if name in cells}
        yield cells | {"image": jpeg}
