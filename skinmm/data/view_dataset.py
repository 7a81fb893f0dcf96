"""Dataset of lesions with several images each."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from skinmm.data.dataset import Dropped, LesionDataset, Sample
from skinmm.data.lesions import SEPARATOR, UNSTATED
from skinmm.vocabulary import VIEW_TYPES

if TYPE_CHECKING:
    import pandas as pd


def locate_views(
    cohort: "pd.DataFrame", used_rows: Int[np.ndarray, " u"], rows: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, "n limit"], Int[np.ndarray, "n limit"]]:
    """Return the type of each view, and the position of its cached features.

    `rows` are lesions among `used_rows`, ascending row numbers whose images are counted.
    """
    counts = cohort["images"].str.count(re.escape(SEPARATOR)).to_numpy() + 1
    types = encode_types(cohort["image_views"].iloc[rows].tolist(), int(counts.max()))
    ends = np.cumsum(counts[used_rows])
    starts = (ends - counts[used_rows])[np.searchsorted(used_rows, rows)]
    return types, np.where(types > 0, starts[:, None] + np.arange(types.shape[1]), 0)


def encode_types(views: Sequence[str], count: int) -> Int[np.ndarray, "n count"]:
    """Return the code of each view in `VIEW_TYPES` from cells such as `clinical|dermoscopic`."""
    types = np.zeros((len(views), count), np.int64)
    for row, cell in enumerate(views):
        codes = [VIEW_TYPES.index(view or UNSTATED) for view in cell.split(SEPARATOR)]
        types[row, : len(codes)] = codes
    return types


class ViewDataset(LesionDataset):
    """Lesion samples: `image` has the shape (views, 3, size, size), `has_image` (views,).

    `has_image` has the type of each view, 0 for a missing image. A sample has at most `limit`
    views; `paths` and `image_ids` list the images of a lesion with `|` between them.

    Args:
        targets: class index of every lesion.
        image_ids: names of the images of every lesion.
        types: type of each view, (n, limit).
        drop_views: probability that a view is withheld in training; one always remains.
        options: further arguments of `LesionDataset`.
    """

    def __init__(
        self,
        targets: Int[np.ndarray, " n"],
        image_ids: list[str],
        *,
        types: Int[np.ndarray, "n limit"],
        drop_views: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(targets, image_ids, **options)
        self._types, self._drop_views = types, drop_views

    def _add_image(self, sample: Sample, row: int, seed: int | None, dropped: bool) -> None:
        types = self._draw_types(row, seed, dropped)
        seeds = [None if seed is None else (seed + place) % 2**63 for place in range(len(types))]
        if self._features is not None:
            values, positions = self._features
            sample["image"] = torch.from_numpy(values[positions[row]])
        else:
            side = self._view.size
            image = torch.zeros(len(types), 3, side, side, dtype=torch.uint8)
            names = zip(
                self._image_ids[row].split(SEPARATOR),
                self._paths[row].split(SEPARATOR),  # type: ignore[index]
                strict=True,
            )
            for place, (name, path) in enumerate(names):
                if types[place]:
                    image[place] = self._load_image(name, path, seeds[place])
            sample["image"] = image
            if seed is not None and self._transform is None:
                sample["seed"] = torch.tensor(seeds)  # type: ignore[typeddict-item]
        sample["has_image"] = torch.from_numpy(types)  # type: ignore[typeddict-item]

    def _add_features(
        self,
        batch: dict[str, Tensor],
        rows: Int[np.ndarray, " b"],
        seeds: Sequence[int | None],
        dropped: Sequence[Dropped],
    ) -> None:
        super()._add_features(batch, rows, seeds, dropped)
        is_dropped = [row.image for row in dropped] or [False] * len(rows)
        drawn = zip(rows.tolist(), seeds, is_dropped, strict=True)
        batch["has_image"] = torch.from_numpy(np.stack([self._draw_types(*row) for row in drawn]))

    def _draw_types(self, row: int, seed: int | None, dropped: bool) -> Int[np.ndarray, " limit"]:
        """Draw the views that are not withheld, and return their types."""
        types = self._types[row].copy()
        if dropped:
            types[:] = 0
        elif seed is not None and self._drop_views:
            generator = np.random.default_rng((seed, 2))  # stream 1 is that of `ModalityDropout`
            present = np.flatnonzero(types)
            withheld: Bool[np.ndarray, " k"] = generator.random(len(present)) < self._drop_views
            withheld[generator.integers(len(present))] = False
            types[present[withheld]] = 0
        return types


DATASETS: Final = {"image": LesionDataset, "lesion": ViewDataset}
"""Datasets by `data.unit`."""
