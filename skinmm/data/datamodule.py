"""Which rows a fold trains on, their classes as numbers, and how frequent those are."""

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from skinmm.config import Config, DataConfig, build_component
from skinmm.data.augment import AUGMENTS, apply_seeded
from skinmm.data.cohorts import list_classes, list_positive_classes, load_cohort, require_images
from skinmm.data.dataset import Blank, Kept, Key, LesionDataset, Sample, View, Withholding
from skinmm.data.loader import SlotLoader
from skinmm.data.packed import load_packed_steps
from skinmm.data.record import RecordEncoder
from skinmm.data.sampling import SAMPLERS, EpochSampler, shard_evaluation
from skinmm.data.splits import UNUSED, split
from skinmm.errors import InputError
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.preprocess import MASK_STEPS, check_steps
from skinmm.models.lesion_finder import LesionFinder, add_measurements


def codes(target: "pd.Series[Any]", classes: tuple[str, ...]) -> Int[np.ndarray, " n"]:
    """Class indices; a target of numbers holds them already."""
    if pd.api.types.is_integer_dtype(target):
        return target.to_numpy(dtype=np.int64)
    return pd.Categorical(target, categories=list(classes)).codes.astype(np.int64)


def limited(
    rows: Int[np.ndarray, " n"], targets: Int[np.ndarray, " all"], limit: int | None, seed: int
) -> Int[np.ndarray, " k"]:
    """At most `limit` rows, as equal in classes as the rows allow, in their order.

    Raises:
        InputError: fewer rows than there are classes.
    """
    if limit is None or limit >= len(rows):
        return rows
    classes = len(np.unique(targets[rows]))
    if limit < classes:
        raise InputError(f"data.limit={limit}: {classes} classes need {classes} rows at least")
    shuffled = np.random.default_rng(seed).permutation(rows)
    # A row's place within its class: taking the lowest places takes from every class in turn.
    place = pd.Series(targets[shuffled]).groupby(targets[shuffled]).cumcount().to_numpy()
    return np.sort(shuffled[np.argsort(place, kind="stable")[:limit]])


def shares_in_use(
    cohort: pd.DataFrame,
    rows: Int[np.ndarray, " n"],
    targets: Int[np.ndarray, " all"],
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """Class shares of the training rows from the sources that are judged.

    A class that only another cohort brought counts one row: it is learned, so it may come.

    Args:
        cohort: canonical rows with their `part`.
        rows: places of the training rows.
        targets: class index of every row.
        classes: how many there are.
    """
    judged = cohort.loc[cohort["part"].isin(("val", "test")), "source"].unique()
    native = rows[cohort["source"].iloc[rows].isin(judged).to_numpy()]
    known = np.bincount(targets[rows], minlength=classes) > 0
    counts = np.maximum(np.bincount(targets[native], minlength=classes), known)
    return counts / max(counts.sum(), 1)


def preprocessing(data: DataConfig) -> tuple[tuple[str, ...], LesionFinder | None]:
    """All steps, those that a pack's images have been through first, and what finds the lesion.

    Raises:
        InputError: steps that cannot be taken, a checkpoint that draws no masks or is not the
            pack's, or one that nothing asks for; measurements of a pack's changed pictures.
    """
    finder = LesionFinder.load(Path(data.segmenter)) if data.segmenter else None
    packed = data.name == "packed"
    done, digest = load_packed_steps(Path(data.root or "")) if packed else ((), None)
    steps = (*done, *data.preprocess)
    check_steps(steps, has_finder=finder is not None)
    if finder and digest and finder.digest != digest:
        raise InputError(
            f"data.segmenter={data.segmenter}: {data.root} was packed with another checkpoint, "
            f"whose SHA-256 is {digest}"
        )
    if done and {*data.columns} & {*MEASUREMENTS}:
        raise InputError(
            f"data.root={data.root}: its pictures went through {', '.join(done)} before they were "
            f"packed, prediction would measure them as they came: leave the measurements out of "
            "data.columns, or the steps out of the pack"
        )
    if finder and not {*steps} & {*MASK_STEPS} and not {*data.columns} & {*MEASUREMENTS}:
        raise InputError(
            f"data.segmenter={data.segmenter}: nothing asks where the lesion is; name a step of "
            f"{', '.join(MASK_STEPS)} or a column of {', '.join(MEASUREMENTS)}"
        )
    return steps, finder


MAX_WORKERS: Final = 8


class LesionData(pl.LightningDataModule):
    """One fold of a cohort, ready to be loaded.

    Attributes:
        cohort: canonical rows with the columns `fold` and `part`, in the table's order.
        classes: names, in the order of the logits.
        positive: the classes that count as malignant.
        targets: class index of every row.
        natural_prior: class shares of the training part, before any limit or sampling, and without
            the rows of other cohorts (`data.extra`): those of use.
        encoder: fitted on training rows alone.
        fitted_on: the names of their images.
        sampler: what draws the training rows.
        steps: of preprocessing, those that a pack's images have been through first.
        finder: what finds lesions, where `data.segmenter` names it.
        features: of the images of `used_rows`, to be given instead of them; None: images are.
    """

    features: Float32[np.ndarray, "n *places dim"] | None = None

    def __init__(self, config: Config, inputs: frozenset[str]) -> None:
        """Reads and splits the cohort; what can be refused without data is refused before.

        Args:
            config: the whole configuration.
            inputs: what the fusion block uses, of {image, record}; nothing else is asked for.

        Raises:
            InputError: an argument of the sampler or the augmentation out of bounds, a missing
                root, table, column or image, an empty cohort, or a single class.
        """
        super().__init__()
        size = config.model.image_size
        self.sampler = build_component(SAMPLERS, "sampler", config.sampler)
        self._transform = build_component(AUGMENTS, "augment", config.augment, size=size)
        self._config = config
        self._inputs = inputs
        self.steps, self.finder = preprocessing(config.data)
        own = tuple(config.data.preprocess)
        self._view = View(size, config.data.icc, own, self.finder)
        table = self._read(config)
        fold = int(config.data.fold)
        self.cohort = split(table, config.data.folds, fold, config.data.split_seed)
        self.targets = codes(self.cohort["target"], self.classes)
        whole = self.rows("train")
        self.natural_prior = shares_in_use(self.cohort, whole, self.targets, len(self.classes))
        kept = limited(whole, self.targets, config.data.limit, config.seed)
        self.cohort.loc[self.cohort.index[np.setdiff1d(whole, kept)], "part"] = UNUSED
        training = self.cohort.iloc[kept]
        self.encoder = RecordEncoder.fit(training, config.data.columns)
        self.fitted_on = training["image_id"].tolist()
        self._datasets: dict[str, Dataset[Sample]] = {}
        self._start = (0, 0)

    def _read(self, config: Config) -> pd.DataFrame:
        """The rows that can be used; says what their classes are."""
        needed = "image" in self._inputs
        table = require_images(load_cohort(config.data), config.data.missing, needed=needed)
        self.classes = list_classes(table, config.data)
        self.positive = list_positive_classes(self.classes, config.data)
        return add_measurements(table, config.data.columns, self.finder, MAX_WORKERS)

    @property
    def used_rows(self) -> Int[np.ndarray, " n"]:
        """Row numbers of all parts, rising; a limit leaves training rows out."""
        return np.flatnonzero((self.cohort["part"] != UNUSED).to_numpy())

    @property
    def training_targets(self) -> Int[np.ndarray, " n"]:
        """Class index of every training row."""
        return self.targets[self.rows("train")]

    @property
    def training_groups(self) -> Int[np.ndarray, " n"]:
        """A number for the patient of every training row."""
        return pd.factorize(self.cohort["patient_id"].iloc[self.rows("train")])[0]

    @property
    def record_widths(self) -> list[int]:
        """Width of each record column's block."""
        return [column.stop - column.start for column in self.encoder.layout]

    @property
    def blank(self) -> Blank:
        """The encoded record of a patient of whom nothing is known."""
        return Blank(self.encoder.blank, self.record_widths)

    def rows(self, part: str) -> Int[np.ndarray, " n"]:
        """Row numbers of a part in the cohort's order."""
        return np.flatnonzero((self.cohort["part"] == part).to_numpy())

    def train_dataloader(self) -> DataLoader[Sample]:
        """Augmented training batches of this process, drawn by the sampler."""
        rank, world_size = self._place()
        sampler = EpochSampler(
            self.sampler,
            self.training_targets,
            self.training_groups,
            seed=self._config.seed,
            batch_size=self._config.trainer.batch_size,
            rank=rank,
            world_size=world_size,
        )
        sampler.start_at(*self._start)
        batch_size = min(self._config.trainer.batch_size, len(sampler))
        return self._loader(self._dataset("train", self.rows("train")), sampler, batch_size)

    def on_after_batch_transfer(
        self,
        batch: dict[str, Tensor],
        dataloader_idx: int,  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """Augments the pictures that the loader's processes have not, each by its row's seed."""
        seeds = batch.pop("seed", None)
        if seeds is not None:
            pairs = zip(batch["image"], seeds.tolist(), strict=True)
            batch["image"] = torch.stack([apply_seeded(self._transform, *pair) for pair in pairs])
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where the training draw is: an epoch, its steps that have been made, rows of a step."""
        loop: Any = self.trainer.fit_loop  # type: ignore[union-attr]  # asked while it trains
        epoch = loop.epoch_progress.current
        # After an epoch's last batch the next one is due, from its first row.
        within = epoch.ready > epoch.processed
        steps = loop.epoch_loop.batch_progress.current.processed if within else 0
        return {"epoch": epoch.processed, "steps": steps, "rows": self._rows_of_a_step()}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Goes on there, in the loader that is made next.

        Raises:
            InputError: within an epoch that was begun with steps of another size.
        """
        rows, before = self._rows_of_a_step(), state_dict["rows"]
        if state_dict["steps"] and rows != before:
            raise InputError(
                f"the run stopped within an epoch of {before} rows a step: trainer.batch_size "
                f"times the number of processes is {rows} now, and must be {before} to resume it"
            )
        self._start = (state_dict["epoch"], state_dict["steps"])

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every validation row."""
        return self.evaluation_loader("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Every test row."""
        return self.evaluation_loader("test")

    def evaluation_loader(self, part: str) -> DataLoader[Sample]:
        """Every row of a part, unaugmented; under DDP this process's share.

        Shares are padded to one length: whoever gathers keeps each `row` once.
        """
        own = self.rows(part)
        rows = shard_evaluation(len(own), *self._place())
        return self._in_order(self._dataset(part, own), rows.tolist())

    def image_loader(self) -> DataLoader[Sample]:
        """Every used row's image, unaugmented, on each process: `row` is the place among them."""
        rows = self.used_rows
        table = self.cohort.iloc[rows]
        dataset = LesionDataset(
            self.targets[rows],
            table["image_id"].tolist(),
            paths=table["path"].tolist(),
            view=self._view,
        )
        return self._in_order(dataset, range(len(rows)))

    def _rows_of_a_step(self) -> int:
        return self._config.trainer.batch_size * self._place()[1]

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _dataset(self, part: str, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        if part not in self._datasets:
            self._datasets[part] = self._lesions(rows)
        return self._datasets[part]

    def _lesions(self, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        table, model = self.cohort.iloc[rows], self._config.model
        return LesionDataset(
            self.targets[rows],
            table["image_id"].tolist(),
            records=self.encoder.transform(table) if "record" in self._inputs else None,
            paths=table["path"].tolist() if "image" in self._inputs else None,
            view=self._view,
            transform=None if self._augments_later() else self._transform,
            withholding=Withholding(model.drop_image, model.drop_record, model.drop_columns),
            blank=self.blank,
            features=self._features_of(rows),
        )

    def _augments_later(self) -> bool:
        """Whether pictures are augmented where the network is."""
        wish = self._config.trainer.augment_on
        return wish == "device" or (wish == "auto" and self._on_gpu())

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _features_of(self, rows: Int[np.ndarray, " n"]) -> Kept | None:
        if self.features is None:
            return None
        return Kept(self.features, np.searchsorted(self.used_rows, rows))

    def _in_order(self, dataset: Dataset[Sample], rows: Iterable[int]) -> DataLoader[Sample]:
        """Some rows of a dataset, unaugmented."""
        keys: list[Key] = [(row, None) for row in rows]
        return self._loader(dataset, keys, self._config.trainer.eval_batch_size)

    def _loader(
        self, dataset: Dataset[Sample], sampler: Iterable[Key], batch_size: int
    ) -> DataLoader[Sample]:
        return SlotLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self._workers(),
            pin=self._on_gpu(),
            worker_init_fn=_leave_interrupts,
        )

    def _workers(self) -> int:
        # Rows of an array: processes would only cost.
        if "image" not in self._inputs or self.features is not None:
            return 0
        wish = self._config.trainer.workers
        if wish is not None:
            return wish
        neighbours = self.trainer.num_devices if self.trainer else 1  # they share the cores
        return min(max(len(os.sched_getaffinity(0)) // neighbours, 1), MAX_WORKERS)


def _leave_interrupts(_: int) -> None:
    """Ctrl-C reaches loader processes too, whose batch is still needed to end the step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
