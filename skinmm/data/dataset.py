"""What a training row is not shown, so that a model learns to do without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from skinmm.data.augment import Transform, apply_seeded
from skinmm.errors import InputError
from skinmm.images.base import resize
from skinmm.images.decode import decode
from skinmm.images.preprocess import DETAIL_STEPS, preprocess
from skinmm.images.source import Source, read_source

_STREAM = 1
"""Apart from the stream that the row's augmentation draws from."""


class Withheld(NamedTuple):
    """Whether the image is withheld, and which columns are."""

    image: bool
    columns: Bool[np.ndarray, " columns"]


@dataclass(frozen=True)
class Withholding:
    """Draws from a row's seed alone, so that a resumed or a distributed run withholds the same.

    Attributes:
        image: probability that a row has no image.
        record: probability that a row has no record.
        column: probability of each column that a row lacks it.
    """

    image: float = 0.0
    record: float = 0.0
    column: float = 0.0

    def draw(self, seed: int, columns: int) -> Withheld:
        """What a row lacks; the three are independent.

        Args:
            seed: of the row in its epoch.
            columns: number of the record's columns.
        """
        image, record, *each = np.random.default_rng((seed, _STREAM)).random(2 + columns)
        without = np.array(each, dtype=float).reshape(columns) < self.column
        return Withheld(image < self.image, without | (record < self.record))


@dataclass(frozen=True)
class Blank:
    """A record without any value, to take columns from.

    Attributes:
        row: the encoded record of a patient of whom nothing is known.
        widths: width of each column's block.
    """

    row: Float32[np.ndarray, " encoded"]
    widths: Sequence[int]

    def fill(
        self, record: Float32[Tensor, "*b encoded"], withheld: Bool[np.ndarray, "*b columns"]
    ) -> Float32[Tensor, "*b encoded"]:
        """The record as if the withheld columns had no value."""
        places = torch.from_numpy(np.repeat(withheld, self.widths, axis=-1)).to(record.device)
        return torch.where(places, torch.from_numpy(self.row).to(record.device), record)


PIXELS: Final = 1
"""Goes up whenever the same bytes and view give other pixels: kept features are made again."""

Key = tuple[int, int | None]
"""A row, and the seed of its augmentation; without a seed it is not augmented."""


class View(NamedTuple):
    """How a network wants its images.

    Attributes:
        size: side of the square, pixels.
        icc: what to do with embedded colour profiles.
        steps: of preprocessing, in order.
        find: what finds the lesion, for the steps that need it; hashable, and may be pickled.
    """

    size: int
    icc: Any = "ignore"
    steps: tuple[str, ...] = ()
    find: Any = None


class Sample(TypedDict, total=False):
    """One row; image (3, size, size) uint8 and record (columns,) float32 where they are used.

    `mask`, (side, side) bool, is where the lesion is, in place of a target.

    In place of the image there may be its features, (..., dim) float32.

    `seed` comes with a picture that is still to be augmented.

    `shown` says whether there is an image, where training withholds some.
    """

    row: int
    target: int
    image: Tensor
    mask: Tensor
    record: Tensor
    seed: int
    shown: bool


class Kept(NamedTuple):
    """What a frozen network made of images: of row i it is `values[places[i]]`."""

    values: Float32[np.ndarray, "all *places dim"]
    places: Int[np.ndarray, " n"]


class ImageError(InputError):
    """An image that cannot be used, by its id, in one line.

    A loader process hands over only the text of its traceback, which becomes the argument of the
    same error here: its last line is the message.
    """

    def __init__(self, message: str) -> None:
        """Takes the message, or a traceback that ends in it."""
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))


class LesionDataset(Dataset[Sample]):
    """Rows of a cohort as samples, addressed by `Key`."""

    def __init__(  # noqa: PLR0913  (a cohort column by column)
        self,
        targets: Int[np.ndarray, " n"],
        image_ids: list[str],
        *,
        records: Float32[np.ndarray, "n columns"] | None = None,
        paths: list[str] | None = None,
        view: View = View(0),  # noqa: B008  (immutable)
        transform: Transform | None = None,
        withholding: Withholding | None = None,
        blank: Blank | None = None,
        features: Kept | None = None,
    ) -> None:
        """Takes the cohort column by column.

        Args:
            targets: class index of every row.
            image_ids: named in errors.
            records: encoded records, or None for a model without a record.
            paths: where each image's bytes are, or None for a model without an image.
            view: how images are wanted.
            transform: augmentation; None: left to others, with a training row's seed.
            withholding: what samples with a seed are shown without.
            blank: the record that withheld columns are taken from; needed if there are records.
            features: what a frozen network made of the images, to be given instead of them.
        """
        self._targets = targets
        self._image_ids = image_ids
        self._records = None if records is None else torch.from_numpy(records)
        self._paths = paths
        self._view = view
        self._transform = transform
        self._withholding = withholding or Withholding()
        self._blank = blank
        self._features = features

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._targets)

    def __getitem__(self, key: Key) -> Sample:
        """The sample of one row.

        Raises:
            ImageError: its image cannot be read or decoded.
        """
        row, seed = key
        sample = Sample(row=row, target=int(self._targets[row]))
        without = next(iter(self._withheld([seed])), None)
        if self._records is not None:
            sample["record"] = self._records[row]
            if without and self._blank:
                sample["record"] = self._blank.fill(sample["record"], without.columns)
        if self._paths is not None:
            hidden = without is not None and without.image
            sample["image"] = (
                torch.zeros(3, self._view.size, self._view.size, dtype=torch.uint8)
                if hidden and self._features is None
                else self._image(row, self._paths[row], seed)
            )
            if self._withholding.image:
                sample["shown"] = not hidden
            if seed is not None and self._transform is None and self._features is None:
                sample["seed"] = seed
        return sample

    def __getitems__(self, keys: list[Key]) -> dict[str, Tensor] | list[Sample]:
        """Rows; where no image has to be read, as one batch.

        Raises:
            ImageError: as for one row.
        """
        if self._paths is not None and self._features is None:
            return [self[key] for key in keys]
        rows = np.array([row for row, _ in keys])
        batch = {"row": torch.from_numpy(rows), "target": torch.from_numpy(self._targets[rows])}
        without = self._withheld([seed for _, seed in keys])
        if self._records is not None:
            batch["record"] = self._records[rows]
            if without and self._blank:
                hidden = np.array([each.columns for each in without])
                batch["record"] = self._blank.fill(batch["record"], hidden)
        if self._features is not None:
            values, places = self._features
            batch["image"] = torch.from_numpy(values[places[rows]])
            if self._withholding.image:
                batch["shown"] = torch.tensor([not each.image for each in without])
        return batch

    def _withheld(self, seeds: list[int | None]) -> list[Withheld]:
        """What each row lacks; nothing where none lacks anything."""
        if self._withholding == Withholding():
            return []
        columns = len(self._blank.widths) if self._blank else 0
        nothing = Withheld(image=False, columns=np.zeros(columns, dtype=bool))
        return [
            nothing if seed is None else self._withholding.draw(seed, columns) for seed in seeds
        ]

    def _image(self, row: int, path: str, seed: int | None) -> Tensor:
        if self._features is not None:
            return torch.from_numpy(self._features.values[self._features.places[row]].copy())
        try:
            pixels = read_image(path, self._view)
        except (OSError, InputError) as error:
            raise ImageError(f"image {self._image_ids[row]} ({path}): {error}") from error
        image = torch.from_numpy(pixels).permute(2, 0, 1)
        if self._transform is None or seed is None:
            return image
        return apply_seeded(self._transform, image, seed)


def read_image(path: str, view: View) -> UInt8[np.ndarray, "size size 3"]:
    """Reads and decodes what a cohort's path names, resized to a square.

    Args:
        path: as in the cohort table: a file, or an entry of one behind a `#`.
        view: how it is wanted.

    Raises:
        OSError: the bytes cannot be read.
        InputError: they are no picture that can be used.
    """
    return picture(read_source(path), view)


def picture(source: Source, view: View, least: int = 1) -> UInt8[np.ndarray, "size size 3"]:
    """As `read_image`, of bytes that were read already; `least` is as for `decode`.

    Where a step needs detail, the steps are given twice the size.

    Raises:
        InputError: they are no picture that can be used.
    """
    size = view.size * (2 if DETAIL_STEPS.intersection(view.steps) else 1)
    whole = decode(source.data, size=size, frame=source.frame, icc=view.icc, min_side=least)
    pixels = preprocess(whole, view.steps, view.find)
    height, width, _ = pixels.shape
    square = (view.size, view.size)
    return pixels if (height, width) == square else resize(pixels, square, (height, width))
