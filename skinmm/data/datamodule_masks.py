"""One fold of a cohort whose images have masks, split as for a classifier."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch.utils.data import Dataset

from skinmm.config import Config
from skinmm.data.cohorts import load_cohort, require_images, require_masks
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import Sample
from skinmm.data.dataset_masks import MaskDataset
from skinmm.errors import InputError
from skinmm.images.preprocess import IN_PLACE


class MaskData(LesionData):
    """The rows that have an image and a mask; targets only make the parts alike."""

    def __init__(self, config: Config) -> None:
        """Reads and splits the cohort.

        Raises:
            InputError: as `LesionData`; a row without a mask, preprocessing that moves pixels, or
                an augmentation that knows no masks.
        """
        if moving := set(config.data.preprocess) - IN_PLACE:
            raise InputError(
                f"data.preprocess={config.data.preprocess}: task=segmentation takes only steps "
                f"that leave pixels where they are: {', '.join(sorted(IN_PLACE))}; not "
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
        table = load_cohort(config.data, labelled=False)
        self.classes = tuple(map(str, sorted(table["target"].unique())))
        self.positive = ()
        return require_masks(require_images(table, config.data.missing), config.data)

    def _dataset(self, part: str, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        if part not in self._datasets:
            columns: dict[Any, Any] = self.cohort.iloc[rows].to_dict("list")
            self._datasets[part] = MaskDataset(
                columns["image_id"], columns["path"], columns["mask"], self._view, self._transform
            )
        return self._datasets[part]
