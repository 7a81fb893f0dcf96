"""Lightning data modules: one fold of a cohort as loaders for training and evaluation."""

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Float32, Int
from torch.utils.data import DataLoader, Dataset

from skinmm.config import Config, build_component, name_relative
from skinmm.config.cores import count_cores
from skinmm.data.augment import AUGMENTS
from skinmm.data.cohorts import list_classes, list_positive_classes, load_cohort, require_images
from skinmm.data.dataset import (
    CachedFeatures,
    EmptyRecord,
    Key,
    LesionDataset,
    ModalityDropout,
    Sample,
    View,
    apply_seeded,
)
from skinmm.data.file_checks import FileCheck, fill_sizes, image_checks, require_usable
from skinmm.data.lesion_finder import add_measurements, build_preprocessing
from skinmm.data.lesions import explode_images, group_usable
from skinmm.data.loader import SlotLoader, ignore_interrupts
from skinmm.data.record import RecordEncoder
from skinmm.data.sampling import SAMPLERS, EpochSampler, shard_evaluation
from skinmm.data.sources import list_sources, require_both_targets, split_by_config
from skinmm.data.splits import (
    UNUSED,
    class_indices,
    cut_calibration,
    limit_rows,
    shares_in_use,
)
from skinmm.data.view_dataset import DATASETS, locate_views
from skinmm.errors import InputError, print_line
from skinmm.models.fusion import FUSIONS

MAX_WORKERS: Final = 8


class FoldData(pl.LightningDataModule):
    """Base of the data modules: loaders of one fold, reproducible under DDP and on resuming.

    `setup` of a subclass reads the cohort and calls `split_cohort`.

    Attributes:
        cohort: canonical rows with the columns `fold` and `part`, in the table's order.
        targets: class index of every row.
        classes: names, in the order of the logits.
        natural_prior: class shares in use (`shares_in_use`).
        notes: lines on the cohort, to be printed.
        sampler: draws the training rows.
    """

    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    decodes_images = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.sampler = build_component(SAMPLERS, "sampler", config.sampler)
        size = config.model.image_size
        self.transform = build_component(AUGMENTS, "augment", config.augment, size=size)
        self._datasets: dict[str, Dataset[Sample]] = {}
        self._start = (0, 0)

    def split_cohort(self, table: pd.DataFrame, *checks: FileCheck) -> None:
        """Assign every row of a cohort to a part, and its target to a class index.

        With `data.fold=all` every row is a training row. Rows in use whose files do not pass the
        checks are refused, or left out.
        """
        data = self.config.data
        trains_on_all = data.fold == "all"
        fold = 0 if trains_on_all else int(data.fold)
        cohort = split_by_config(table, data, fold)
        if trains_on_all:
            cohort["part"] = cohort["part"].replace(UNUSED, "train")
        targets = class_indices(cohort["target"], self.classes)
        training = np.flatnonzero((cohort["part"] == "train").to_numpy() | trains_on_all)
        used = limit_rows(training, targets, data.limit, self.config.seed)
        cohort.loc[cohort.index[np.setdiff1d(training, used)], "part"] = UNUSED
        is_usable, notes, sizes = require_usable(cohort, checks, data.missing)
        self.notes += notes
        training = training[is_usable[training]]
        self.natural_prior = shares_in_use(cohort, training, targets, len(self.classes))
        self.cohort = fill_sizes(cohort, sizes)[is_usable].reset_index(drop=True)
        if trains_on_all:
            self.cohort["part"] = "train"
        self.targets = targets[is_usable]

    def build_dataset(self, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        """Return the samples of some rows of the cohort."""
        raise NotImplementedError

    def rows(self, part: str) -> Int[np.ndarray, " n"]:
        """Return the row numbers of a part, in the cohort's order."""
        return np.flatnonzero((self.cohort["part"] == part).to_numpy())

    @property
    def training_targets(self) -> Int[np.ndarray, " n"]:
        """Class index of every training row."""
        return self.targets[self.rows("train")]

    @property
    def training_groups(self) -> Int[np.ndarray, " n"]:
        """Patient number of every training row."""
        return pd.factorize(self.cohort["patient_id"].iloc[self.rows("train")])[0]

    def train_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of this rank's augmented training batches, ordered by the sampler."""
        rank, world_size = self._rank_and_world_size()
        batch_size = self.config.trainer.rows
        sampler = EpochSampler(
            self.sampler,
            self.training_targets,
            self.training_groups,
            seed=self.config.seed,
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
        )
        sampler.start_at(*self._start)
        return self.build_loader(self._dataset("train"), sampler, min(batch_size, len(sampler)))

    def val_dataloader(self) -> DataLoader[Sample]:
        """Return a loader of the validation rows."""
        return self.evaluation_loader("val")

    def evaluation_loader(
        self, part: str, rows: Int[np.ndarray, " k"] | None = None
    ) -> DataLoader[Sample]:
        """Return a loader of rows, not augmented; by default this rank's share, padded."""
        if rows is None:
            rows = shard_evaluation(len(self.rows(part)), *self._rank_and_world_size())
        keys: list[Key] = [(row, None) for row in rows.tolist()]
        return self.build_loader(self._dataset(part), keys, self.config.trainer.eval_batch_size)

    def build_loader(
        self, dataset: Dataset[Sample], keys: Iterable[Key], batch_size: int
    ) -> DataLoader[Sample]:
        """Return a loader whose number of worker processes fits the machine and the data."""
        if (workers := self.config.trainer.workers) is None:
            neighbours = self.trainer.num_devices if self.trainer else 1  # they share the cores
            workers = min(max(count_cores() // neighbours, 1), MAX_WORKERS)
        return SlotLoader(
            dataset,
            batch_size=batch_size,
            sampler=keys,
            num_workers=workers if self.decodes_images else 0,  # arrays need no processes
            pin=self.is_on_gpu,
            worker_init_fn=ignore_interrupts,
        )

    @property
    def is_on_gpu(self) -> bool:
        """Return whether the trainer runs on a GPU."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def state_dict(self) -> dict[str, int]:
        """Return the position of the training loader: epoch, finished steps, rows per step."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]  # called in training only
        epoch = loop.epoch_progress.current
        # After the last batch of an epoch the position is the first row of the next one.
        is_within = epoch.ready > epoch.processed
        steps = loop.epoch_loop.batch_progress.current.processed if is_within else 0
        rows = self.config.trainer.rows * self._rank_and_world_size()[1]
        return {"epoch": epoch.processed, "steps": steps, "rows": rows}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore a saved position, from which the next training loader continues."""
        trainer = self.config.trainer
        rows = trainer.rows * self._rank_and_world_size()[1]
        saved_rows = state_dict["rows"]
        if state_dict["steps"] and rows != saved_rows:
            raise InputError(
                f"to resume within an epoch, trainer.batch_size times the number of processes must "
                f"be {saved_rows}, as before; it is {rows}"
            )
        if rows != saved_rows and self._rank_and_world_size()[0] == 0:
            print_line(
                f"resumed with {rows} rows a step instead of {saved_rows} (trainer.batch_size "
                f"times the number of processes), trainer.accumulate={trainer.accumulate}"
            )
        self._start = (state_dict["epoch"], state_dict["steps"])

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _dataset(self, part: str) -> Dataset[Sample]:
        """Return the dataset of a part, the same in every epoch."""
        if part not in self._datasets:
            self._datasets[part] = self.build_dataset(self.rows(part))
        return self._datasets[part]


class LesionData(FoldData):
    """Images and records of one fold.

    Attributes:
        positive: classes that count as malignant.
        encoder: of the record, fitted on training rows alone.
        fitted_on: image ids of the rows that `encoder` was fitted on.
        steps: of preprocessing; the steps of a pack's images come first.
        finder: finds lesions, if `data.segmenter` names its checkpoint.
        features: cached features of the images of `used_rows`, instead of the images.
        inputs: inputs that the fusion block uses, of {image, record}; others are not loaded.
    """

    def __init__(self, config: Config, inputs: frozenset[str] | None = None) -> None:
        super().__init__(config)
        self.inputs = FUSIONS[config.fusion.name].inputs if inputs is None else inputs
        self.steps, self.finder = build_preprocessing(config.data)
        steps = tuple(config.data.preprocess)
        self._view = View(config.model.image_size, config.data.icc, steps, self.finder)
        self.features: Float32[np.ndarray, "n *tokens dim"] | None = None

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Read and split the cohort, and fit the record encoder; a second call does nothing."""
        if hasattr(self, "cohort"):
            return
        data = self.config.data
        cohort = require_images(load_cohort(data), data.missing, needed="image" in self.inputs)
        self.notes, table = cohort.notes, cohort.rows
        checks = image_checks(table, data, needed="image" in self.inputs)
        if data.unit == "lesion":
            table, notes = group_usable(table, checks, data)
            self.notes, checks = (*self.notes, *notes), []
        self.classes = list_classes(table, data)
        self.positive = list_positive_classes(self.classes, data)
        self.split_cohort(table, *checks)
        self.cohort = add_measurements(self.cohort, data.columns, self.finder, MAX_WORKERS)
        malignant = np.isin(self.targets, [self.classes.index(name) for name in self.positive])
        if data.split == "source":
            require_both_targets(self.cohort, malignant)
        self.cohort = cut_calibration(self.cohort, data.calibration, malignant, data.split_seed)
        training = self.cohort.iloc[self.rows("train")]
        columns = [*data.columns, *name_relative(data.relative)]
        self.encoder = RecordEncoder.fit(training, columns, cohort.units)
        self.fitted_on = training["image_id"].tolist()

    @property
    def used_rows(self) -> Int[np.ndarray, " n"]:
        """Ascending row numbers of all parts, without rows dropped by `data.limit`."""
        return np.flatnonzero((self.cohort["part"] != UNUSED).to_numpy())

    @property
    def record_widths(self) -> list[int]:
        """Number of encoded values of each record column."""
        return self.encoder.widths

    @property
    def empty_record(self) -> EmptyRecord:
        """Encoding of a record in which every value is missing."""
        return EmptyRecord(self.encoder.blank, self.record_widths)

    @property
    def decodes_images(self) -> bool:  # type: ignore[override]
        """Return whether loaders decode images."""
        return "image" in self.inputs and self.features is None

    def image_loader(self, rows: Int[np.ndarray, " n"] | None = None) -> DataLoader[Sample]:
        """Return a loader of the images of rows (`used_rows`); every rank loads all of them."""
        table = explode_images(self.cohort.iloc[self.used_rows if rows is None else rows])
        image_ids, paths = table["image_id"].tolist(), table["path"].tolist()
        targets = np.zeros(len(table), np.int64)
        dataset = LesionDataset(targets, image_ids, paths=paths, view=self._view)
        keys: list[Key] = [(row, None) for row in range(len(table))]
        return self.build_loader(dataset, keys, self.config.trainer.eval_batch_size)

    def build_dataset(self, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        """Return the samples of some rows of the cohort."""
        table, model = self.cohort.iloc[rows], self.config.model
        augment_on = self.config.trainer.augment_on
        augments_later = augment_on == "device" or (augment_on == "auto" and self.is_on_gpu)
        positions = np.searchsorted(self.used_rows, rows)
        options: dict[str, Any] = {
            "records": self.encoder.transform(table) if "record" in self.inputs else None,
            "view": self._view,
            "transform": None if augments_later else self.transform,
            "dropout": ModalityDropout(model.drop_image, model.drop_record, model.drop_columns),
            "empty": self.empty_record,
        }
        names = ("image_id", "path")
        if self.config.data.unit == "lesion":
            names = ("images", "paths")
            types, positions = locate_views(self.cohort, self.used_rows, rows)
            options |= {"types": types, "drop_views": model.drop_views}
        if self.features is not None:
            options["features"] = CachedFeatures(self.features, positions)
        image_ids, paths = (table[name].tolist() for name in names)
        options["paths"] = paths if "image" in self.inputs else None
        return DATASETS[self.config.data.unit](self.targets[rows], image_ids, **options)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
        """Augment images that the loader has not augmented, each with its row's seed."""
        seeds = batch.pop("seed", None)
        if seeds is not None:
            images = batch["image"].flatten(0, -4)
            pairs = zip(images, seeds.flatten().tolist(), strict=True)
            augmented = torch.stack([apply_seeded(self.transform, *pair) for pair in pairs])
            batch["image"] = augmented.view(*seeds.shape, *augmented.shape[1:])
        return batch


def count_folds(config: Config) -> int:
    """Return the number of folds: `data.folds`, or one per source with `data.split=source`."""
    data = config.data
    if data.split == "patients":
        return data.folds
    needed = "image" in FUSIONS[config.fusion.name].inputs
    return len(list_sources(require_images(load_cohort(data), data.missing, needed=needed).rows))
