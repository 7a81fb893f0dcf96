"""Rows of a cohort as tensors: decoded images, encoded records, and modality dropout."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from skinmm.errors import InputError
from skinmm.images.base import resize
from skinmm.images.decode import decode
from skinmm.images.preprocess import DETAIL_STEPS, preprocess
from skinmm.images.source import Source, read_source

Transform = Callable[[Any], Any]
"""Function of an image, or of a pair of tv_tensors (image, mask) with the same geometry."""
T = TypeVar("T")


def apply_seeded(transform: Transform, image: T, seed: int) -> T:
    """Apply a random transform as a function of the seed, and restore the random state.

    Transforms use the generator of the CPU only; `torch.manual_seed` would also reseed the
    generator of the GPU, and with it the dropout of the network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        augmented: T = transform(image)
    return augmented


class Dropped(NamedTuple):
    """Inputs of a row that modality dropout removes: the image, and columns of the record."""

    image: bool
    columns: Bool[np.ndarray, " columns"]


@dataclass(frozen=True)
class ModalityDropout:
    """Random removal of inputs in training; depends on the row's seed alone.

    Attributes:
        image: probability that a row loses its image.
        record: probability that a row loses its whole record.
        column: probability of each column that a row loses it.
    """

    image: float = 0.0
    record: float = 0.0
    column: float = 0.0

    def draw(self, seed: int, columns: int) -> Dropped:
        """Draw independently whether a row loses its image, its record, and each of its columns."""
        # The stream 1 is independent of the one that augments the row.
        generator = np.random.default_rng((seed, 1))
        draws = generator.random(2 + columns)
        columns_dropped = (draws[2:] < self.column) | (draws[1] < self.record)
        return Dropped(bool(draws[0] < self.image), columns_dropped)


@dataclass(frozen=True)
class EmptyRecord:
    """Encoding of a record in which every value is missing.

    Attributes:
        row: the encoded record.
        widths: width of each column's block.
    """

    row: Float32[np.ndarray, " encoded"]
    widths: Sequence[int]

    def fill(
        self, record: Float32[Tensor, "*b encoded"], dropped: Bool[np.ndarray, "*b columns"]
    ) -> Float32[Tensor, "*b encoded"]:
        """Return the record with the dropped columns encoded as missing."""
        positions = torch.from_numpy(np.repeat(dropped, self.widths, axis=-1)).to(record.device)
        return torch.where(positions, torch.from_numpy(self.row).to(record.device), record)


PIXELS: Final = 1
"""Version of the pixels; increase it when the same bytes and view decode to other pixels, so that
cached features are computed again."""

Key = tuple[int, int | None]
"""Row and seed of its augmentation; rows without a seed are not augmented."""


class View(NamedTuple):
    """Size, colour and preprocessing of the images that a network takes.

    Attributes:
        size: side of the square, pixels.
        icc: treatment of embedded colour profiles.
        steps: names of the preprocessing steps, in order.
        find: finds the lesion, for the steps that need it; hashable, and can be pickled.
    """

    size: int
    icc: Any = "ignore"
    steps: tuple[str, ...] = ()
    find: Any = None


class Sample(TypedDict, total=False):
    """One row of a cohort; keys that the network does not use are absent.

    Attributes:
        row: position in the split.
        target: class index.
        image: (3, size, size) uint8, or the image's cached features, (..., dim) float32.
        record: (encoded,) float32.
        mask: (side, side) bool, True inside the lesion.
        seed: of the augmentation, where the image is still to be augmented.
        has_image: False where modality dropout has removed the image.
    """

    row: int
    target: int
    image: Tensor
    mask: Tensor
    record: Tensor
    seed: int
    has_image: bool


class CachedFeatures(NamedTuple):
    """Image features from a frozen network; row i has the features `values[positions[i]]`."""

    values: Float32[np.ndarray, "all *tokens dim"]
    positions: Int[np.ndarray, "n *views"]


class ImageError(InputError):
    """Image that cannot be used; the message is one line that names the image.

    A loader process passes only the text of its traceback, which becomes the argument of the same
    error here; the traceback's last line is the message.
    """

    def __init__(self, message: str) -> None:
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))


class LesionDataset(Dataset[Sample]):
    """Dataset of the rows of a cohort, indexed by `Key`.

    Args:
        targets: class index of every row.
        image_ids: named in errors.
        records: encoded records; None for a model without a record.
        paths: sources of the images; None for a model without an image.
        view: size, colour and preprocessing of the images.
        transform: augmentation; None: samples carry the seed, and are augmented later.
        dropout: modality dropout for samples with a seed.
        empty: the source of dropped columns; required if there are records.
        features: cached features, returned instead of images.
    """

    def __init__(  # noqa: PLR0913  (a cohort column by column)
        self,
        targets: Int[np.ndarray, " n"],
        image_ids: list[str],
        *,
        records: Float32[np.ndarray, "n encoded"] | None = None,
        paths: list[str] | None = None,
        view: View = View(0),  # noqa: B008  (immutable)
        transform: Transform | None = None,
        dropout: ModalityDropout | None = None,
        empty: EmptyRecord | None = None,
        features: CachedFeatures | None = None,
    ) -> None:
        self._targets = targets
        self._image_ids = image_ids
        self._records = None if records is None else torch.from_numpy(records)
        self._paths = paths
        self._view = view
        self._transform = transform
        self._dropout = dropout or ModalityDropout()
        self._empty = empty
        self._features = features

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._targets)

    def __getitem__(self, key: Key) -> Sample:
        """Return the sample of one row; raise `ImageError` if its image cannot be used."""
        row, seed = key
        sample = Sample(row=row, target=int(self._targets[row]))
        dropped = next(iter(self._draw_dropout([seed])), None)
        if self._records is not None:
            sample["record"] = self._records[row]
            if dropped and self._empty:
                sample["record"] = self._empty.fill(sample["record"], dropped.columns)
        if self._paths is not None:
            self._add_image(sample, row, seed, dropped is not None and dropped.image)
        return sample

    def _add_image(self, sample: Sample, row: int, seed: int | None, dropped: bool) -> None:
        if self._features is not None:
            values, positions = self._features
            sample["image"] = torch.from_numpy(values[positions[row]].copy())
        elif dropped:
            side = self._view.size
            sample["image"] = torch.zeros(3, side, side, dtype=torch.uint8)
        else:
            path: str = self._paths[row]  # type: ignore[index]
            sample["image"] = self._load_image(self._image_ids[row], path, seed)
        if self._dropout.image:
            sample["has_image"] = not dropped
        if seed is not None and self._transform is None and self._features is None:
            sample["seed"] = seed

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor] | list[Sample]:
        """Return the samples of rows, as one batch if no image has to be decoded."""
        if self._paths is not None and self._features is None:
            return [self[key] for key in keys]
        rows = np.array([row for row, _ in keys])
        batch = {"row": torch.from_numpy(rows), "target": torch.from_numpy(self._targets[rows])}
        seeds = [seed for _, seed in keys]
        dropped = self._draw_dropout(seeds)
        if self._records is not None:
            batch["record"] = self._records[rows]
            if dropped and self._empty:
                columns = np.array([row.columns for row in dropped])
                batch["record"] = self._empty.fill(batch["record"], columns)
        if self._features is not None:
            self._add_features(batch, rows, seeds, dropped)
        return batch

    def _add_features(
        self,
        batch: dict[str, Tensor],
        rows: Int[np.ndarray, " b"],
        seeds: Sequence[int | None],  # noqa: ARG002
        dropped: Sequence[Dropped],
    ) -> None:
        values, positions = self._features  # type: ignore[misc]
        batch["image"] = torch.from_numpy(values[positions[rows]])
        if self._dropout.image:
            batch["has_image"] = torch.tensor([not row.image for row in dropped])

    def _draw_dropout(self, seeds: list[int | None]) -> list[Dropped]:
        """Draw the dropped inputs of each row; empty where there is no dropout."""
        if self._dropout == ModalityDropout():
            return []
        columns = len(self._empty.widths) if self._empty else 0
        nothing = Dropped(image=False, columns=np.zeros(columns, dtype=bool))
        return [nothing if seed is None else self._dropout.draw(seed, columns) for seed in seeds]

    def _load_image(self, name: str, path: str, seed: int | None) -> Tensor:
        try:
            pixels = load_image(path, self._view)
        except (OSError, InputError) as error:
            raise ImageError(f"image {name} ({path}): {error}") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self._transform is None or seed is None:
            return image
        return apply_seeded(self._transform, image, seed)


def load_image(path: str, view: View) -> UInt8[np.ndarray, "size size 3"]:
    """Read, decode and preprocess an image: a file, or `FILE#NAME` for an entry of a container."""
    return decode_image(read_source(path), view)


def decode_image(source: Source, view: View, least: int = 1) -> UInt8[np.ndarray, "size size 3"]:
    """Decode and preprocess an image whose bytes were read already.

    Steps that need detail get the image at twice the size.

    Args:
        source: bytes, and the frame to decode.
        view: size, colour and preprocessing.
        least: shortest allowed side, as for `decode`.
    """
    size = view.size * (2 if DETAIL_STEPS.intersection(view.steps) else 1)
    decoded = decode(source.data, size=size, frame=source.frame, icc=view.icc, min_side=least)
    pixels = preprocess(decoded, view.steps, view.find)
    height, width, _ = pixels.shape
    square = (view.size, view.size)
    return pixels if (height, width) == square else resize(pixels, square, (height, width))
