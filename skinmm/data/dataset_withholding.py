"""What a training row is not shown, so that a model learns to do without."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

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
