"""One shard of a pack: which images how, from their files to records that were read back."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

import pandas as pd
import simplejpeg

from skinmm.data.manifest import PackError, Shard, describe
from skinmm.errors import InputError
from skinmm.images.base import resize
from skinmm.images.decode import decode, probe
from skinmm.images.preprocess import DETAILED, Pixels, check_steps, preprocess
from skinmm.images.shards import TFRecordFile
from skinmm.images.tfrecord import TFRecordError, write_tfrecord
from skinmm.vocabulary import resolve_patients

_FEATURES: Final[dict[str, str]] = {
    "image_id": "image_name",
    "age": "age_approx",
    "site": "anatom_site_general_challenge",
}
"""Canonical column -> the public schema's name for it, where that is another."""
_INTEGERS: Final = ("target", "width", "height")

Read = Callable[[str], tuple[bytes, int | None]]
"""A cohort's `path` -> encoded bytes, and which DICOM frame where the path says so."""
Job = tuple[str, str]
"""An image's id and path."""
Encoded = tuple[bytes, int, int]
"""JPEG bytes, and the original width and height in pixels."""


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


def write_shard(
    file: Path, rows: pd.DataFrame, encode: Callable[[Iterable[Job]], Iterable[Encoded]]
) -> Shard:
    """Writes a shard; one that is whole already, but of which no manifest knows yet, is kept.

    Args:
        file: its name in the pack's folder.
        rows: of the cohort table.
        encode: gives the images of jobs in their order.

    Raises:
        PackError: an image cannot be packed.
        OSError: the file cannot be written.
    """
    if not _holds(file, list(rows["image_id"])):
        jobs = zip(rows["image_id"], rows["path"], strict=True)
        write_tfrecord(file, _records(rows, encode(jobs)))
        TFRecordFile(file)  # reads it back: checks every CRC, leaves the index
    return describe(file, len(rows), resolve_patients(rows).nunique())


def _holds(file: Path, names: list[str]) -> bool:
    try:
        return TFRecordFile(file).names == names
    except TFRecordError:
        return False


@dataclass(frozen=True)
class Encoder:
    """What a worker does with one image."""

    read: Read
    settings: PackSettings

    def __call__(self, job: Job) -> Encoded:
        """An image as its record holds it."""
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
    from skinmm.models.lesion_finder import LesionFinder

    return LesionFinder.load(Path(checkpoint))


def _smaller(sides: tuple[int, int], shorter: int) -> tuple[int, int] | None:
    """Height and width with so long a shorter side; None: they are not longer now."""
    scale = shorter / min(sides)
    return (round(sides[0] * scale), round(sides[1] * scale)) if scale < 1 else None


def _records(rows: pd.DataFrame, images: Iterable[Encoded]) -> Iterator[dict[str, Any]]:
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
