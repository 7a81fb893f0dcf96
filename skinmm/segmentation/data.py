"""Images with the masks of their lesions, augmented alike."""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch.utils.data import Dataset
from torchvision.tv_tensors import Image, Mask

from skinmm.config import Config
from skinmm.data.augment import Transform, apply_seeded
from skinmm.data.cohorts import load_cohort, require_images, require_masks
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import ImageError, Key, LesionDataset, Sample, View
from skinmm.errors import InputError
from skinmm.images.decode import ImageInfo, decode, probe
from skinmm.images.preprocess import ALIGNED_STEPS
from skinmm.images.source import read_source

JUDGED: Final = 256
"""Side of the square at which masks are compared, pixels."""
_HALF: Final = 127


class MaskDataset(LesionDataset):
    """Rows as image and mask; the mask has the image's size, without a seed `JUDGED`."""

    def __init__(
        self,
        image_ids: list[str],
        paths: list[str],
        masks: list[str],
        view: View,
        transform: Transform,
    ) -> None:
        """Takes the cohort column by column.

        Args:
            image_ids: named in errors.
            paths: where each image's bytes are.
            masks: where each mask is.
            view: how images are wanted.
            transform: augmentation.
        """
        super().__init__(np.zeros(len(paths), np.int64), image_ids, paths=paths, view=view)
        self._located = list(zip(paths, masks, strict=True))
        self._alike = transform

    def __getitem__(self, key: Key) -> Sample:
        """The sample of one row.

        Raises:
            ImageError: its image or its mask cannot be read or decoded, or the mask has another
                aspect ratio than the image, so that nobody knows what it covers.
        """
        row, seed = key
        image = Image(self._image(row, self._located[row][0], None))
        pair = image, self._mask(row, JUDGED if seed is None else self._view.size)
        image, mask = pair if seed is None else apply_seeded(self._alike, pair, seed)
        shown = mask.as_subclass(torch.Tensor)[0].bool()
        return Sample(row=row, image=image.as_subclass(torch.Tensor), mask=shown)

    def _mask(self, row: int, side: int) -> Mask:
        image, path = self._located[row]
        try:
            data = Path(path).read_bytes()
            _refuse_other_shape(probe(data), probe(read_source(image).data))
            pixels = decode(data, size=side)
        except (OSError, InputError) as error:
            raise ImageError(f"mask of {self._image_ids[row]} ({path}): {error}") from error
        return Mask(torch.from_numpy((pixels[None, ..., 0] > _HALF).astype(np.uint8)))


def _refuse_other_shape(mask: ImageInfo, image: ImageInfo) -> None:
    """A pack's smaller images go with the masks there are: sizes agree to within a pixel."""
    sides = (mask.width, mask.height, image.width, image.height)
    if abs(mask.width * image.height - mask.height * image.width) > max(sides):
        raise InputError(
            "{}x{} pixels, but its image has {}x{}: a mask covers the whole image, in its size or "
            "another one of the same aspect ratio".format(*sides)
        )


class MaskData(LesionData):
    """The rows that have an image and a mask; targets only make the parts alike."""

    def __init__(self, config: Config) -> None:
        """Reads and splits the cohort.

        Raises:
            InputError: as `LesionData`; a row without a mask, preprocessing that moves pixels, or
                an augmentation that knows no masks.
        """
        if moving := set(config.data.preprocess) - ALIGNED_STEPS:
            raise InputError(
                f"data.preprocess={config.data.preprocess}: task=segmentation takes only steps "
                f"that leave pixels where they are: {', '.join(sorted(ALIGNED_STEPS))}; not "
                f"{', '.join(sorted(moving))}"
            )
        if config.augment.name == "randaugment":
            raise InputError("augment=randaugment cannot augment masks; use standard or strong")
        super().__init__(config, frozenset({"image"}))
        if self.steps != (*config.data.preprocess,):
            raise InputError(
                f"data.root={config.data.root}: task=segmentation takes pictures as they came, and "
                f"this pack's went through {', '.join(self.steps)}"
            )

    def _read(self, config: Config) -> pd.DataFrame:
        cohort = load_cohort(config.data, labelled=False)
        self.classes = tuple(map(str, sorted(cohort.rows["target"].unique())))
        self.positive = ()
        return require_masks(require_images(cohort, config.data.missing), config.data)

    def _dataset(self, part: str, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        if part not in self._datasets:
            columns: dict[Any, Any] = self.cohort.iloc[rows].to_dict("list")
            self._datasets[part] = MaskDataset(
                columns["image_id"], columns["path"], columns["mask"], self._view, self._transform
            )
        return self._datasets[part]
