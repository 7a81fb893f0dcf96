"""Training of a segmentation network on one fold: data, module and evaluation."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision.tv_tensors import Image, Mask

from skinmm.config import Config, to_mapping
from skinmm.data.cohorts import load_cohort, require_images, require_masks
from skinmm.data.datamodule import FoldData
from skinmm.data.dataset import (
    ImageError,
    Key,
    LesionDataset,
    Sample,
    Transform,
    View,
    apply_seeded,
)
from skinmm.data.file_checks import FileCheck, image_checks
from skinmm.data.lesion_finder import build_preprocessing
from skinmm.errors import InputError, print_line
from skinmm.images.base import resize
from skinmm.images.decode import decode_mask, probe
from skinmm.images.preprocess import ALIGNED_STEPS
from skinmm.images.source import read_source
from skinmm.models.checkpoint import Card, update_card
from skinmm.models.network import full_precision
from skinmm.models.segmentation import Segmenter, build_segmenter
from skinmm.segmentation.results import mean_overlaps, overlaps, write_mask_page
from skinmm.training.calibrate import METRICS_SCHEMA
from skinmm.training.distributed import open_run
from skinmm.training.fit import TASKS
from skinmm.training.fold import load_best, write_cohort_and_environment
from skinmm.training.leak_guard import require_same_split
from skinmm.training.memory import require_memory
from skinmm.training.module import BaseModule, RowCollector
from skinmm.training.run_folder import RunFolder, write_json
from skinmm.training.trainer import build_trainer, log_test, run_stage

EVALUATION_SIZE: Final = 256
"""Side of the square on which masks are compared, pixels."""
AREAS: Final = ("overlap", "predicted", "true")
"""Pixels in both masks, in the network's mask, and in the true one."""


def train_masks(config: Config, run: RunFolder) -> dict[str, Any]:
    """Train one fold with `task=segmentation`, and evaluate it on validation and test images.

    A resumed run continues from the last checkpoint in its folder. The result is the content of
    metrics.json, which is empty on other processes than rank 0.
    """
    pl.seed_everything(config.seed, workers=False, verbose=False)
    trainer = build_trainer(config, run.path)
    data = MaskData(config)
    data.setup()
    if run.is_resumed:
        require_same_split(run.path / "cohort.csv", data.cohort, "part")
    network = build_segmenter(config, pretrained=True)
    require_memory(network, config, trainer)
    settings = to_mapping(replace(config, resume=None, overwrite=False))
    card = Card(settings, [], [], {}, network.origin, {}, preprocess=[*config.data.preprocess])
    module = MaskModule(network, card, config)

    open_run(run, config.trainer.timeout)
    if trainer.is_global_zero:
        write_cohort_and_environment(run, data.cohort, trainer)
        sizes = [len(data.rows(part)) for part in ("train", "val", "test")]
        print_line("cohort: {} rows to train, {} to validate, {} to test".format(*sizes))
        for note in data.notes:
            print_line(f"cohort: {note}")
        print_line(f"{config.segmenter.name}: {card.initialisation}")
    run_stage(trainer.fit, module, data, ckpt_path=run.last_checkpoint, weights_only=True)
    load_best(trainer, module, run)
    scores = {part: evaluate_part(trainer, module, data, part) for part in ("val", "test")}
    if not trainer.is_global_zero:
        return {}

    facts = {"task": config.task, "initialisation": card.initialisation}
    metrics: dict[str, Any] = {"schema": METRICS_SCHEMA, **facts}
    (run.path / "predictions").mkdir(exist_ok=True)
    for part, table in scores.items():
        table.to_csv(run.path / "predictions" / f"{part}.csv", index=False, float_format="%.9g")
        metrics[part] = mean_overlaps(
            table[["dice", "jaccard"]],
            table["patient_id"].to_numpy(),
            resamples=config.evaluation.resamples,
            confidence=config.evaluation.confidence,
        )
    update_card(run.best_checkpoint, summary=metrics["test"])
    log_test(trainer, metrics["test"])
    write_json(run.path / "metrics.json", metrics)
    write_mask_page(run.path)
    return metrics


def evaluate_part(
    trainer: pl.Trainer, module: "MaskModule", data: "MaskData", part: str
) -> pd.DataFrame:
    """Return Dice, Jaccard, and both areas as shares of the image, for every row of a part."""
    run_stage(trainer.test, module, data.evaluation_loader(part), verbose=False)
    areas = [values.cpu().numpy().astype(np.float64) for values in module.test_areas]
    cohort = data.cohort.iloc[data.rows(part)].reset_index(drop=True)
    _, predicted, true = (area / EVALUATION_SIZE**2 for area in areas)
    table = pd.concat([cohort[["image_id", "patient_id"]], overlaps(*areas)], axis=1)
    return table.assign(area=predicted, area_true=true)


class MaskDataset(LesionDataset):
    """Images with their masks; samples without a seed have masks of `EVALUATION_SIZE`."""

    def __init__(
        self,
        image_ids: list[str],
        paths: list[str],
        masks: list[str],
        view: View,
        transform: Transform,
    ) -> None:
        super().__init__(np.zeros(len(paths), np.int64), image_ids, paths=paths, view=view)
        self._sources = list(zip(paths, masks, strict=True))
        self._augment = transform

    def __getitem__(self, key: Key) -> Sample:
        """Return the sample of one row."""
        row, seed = key
        path, mask_path = self._sources[row]
        image = Image(self._load_image(self._image_ids[row], path, None))
        size = EVALUATION_SIZE if seed is None else self._view.size
        try:
            mask = Mask(torch.from_numpy(load_mask(mask_path, path, size)))
        except (OSError, InputError) as error:
            raise ImageError(f"mask of {self._image_ids[row]} ({mask_path}): {error}") from error
        if seed is not None:
            image, mask = apply_seeded(self._augment, (image, mask), seed)
        inside = mask.as_subclass(torch.Tensor)[0].bool()
        return Sample(row=row, image=image.as_subclass(torch.Tensor), mask=inside)


def load_mask(path: str, image_path: str, size: int) -> UInt8[np.ndarray, "1 size size"]:
    """Load a mask (1 inside the lesion), and check that its aspect ratio is that of the image."""
    data = Path(path).read_bytes()
    mask, image = probe(data), probe(read_source(image_path).data)
    sides = (mask.width, mask.height, image.width, image.height)
    if abs(mask.width * image.height - mask.height * image.width) > max(sides):
        raise InputError(
            "{}x{} pixels, but its image has {}x{}: both need the same aspect ratio".format(*sides)
        )
    inside = decode_mask(data)
    pixels = np.repeat(inside[..., None] * np.uint8(255), 3, axis=2)
    return resize(pixels, (size, size), inside.shape)[None, ..., 0] // 128


def check_mask(path: str) -> None:
    """Decode a mask; refuse an empty or a full one."""
    inside = decode_mask(Path(path).read_bytes())
    if inside.all() or not inside.any():
        state = "full" if inside.any() else "empty"
        raise InputError(f"{path}: the mask is {state}: draw the lesion, or remove the file")


class MaskData(FoldData):
    """Data module of the images with a mask; targets only stratify the split."""

    def __init__(self, config: Config) -> None:
        data = config.data
        if moving := set(data.preprocess) - ALIGNED_STEPS:
            raise InputError(
                f"data.preprocess={data.preprocess}: task=segmentation allows only steps that do "
                f"not move pixels ({', '.join(sorted(ALIGNED_STEPS))}); remove "
                f"{', '.join(sorted(moving))}"
            )
        if config.augment.name == "randaugment":
            raise InputError("augment=randaugment cannot augment masks; use standard or strong")
        super().__init__(config)
        steps, finder = build_preprocessing(data)
        if steps != (*data.preprocess,):
            raise InputError(
                f"data.root={data.root}: task=segmentation needs original images, but this pack "
                f"contains preprocessed ones ({', '.join(steps)})"
            )
        self._view = View(config.model.image_size, data.icc, steps, finder)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002
        """Read and split the cohort; a second call does nothing."""
        if hasattr(self, "cohort"):
            return
        data = self.config.data
        cohort = require_images(load_cohort(data, labelled=False), data.missing)
        self.classes = tuple(map(str, sorted(cohort.rows["target"].unique())))
        self.notes = cohort.notes
        table = require_masks(cohort.rows, data)
        masks = FileCheck(("mask",), check_mask, "masks")
        self.split_cohort(table, *image_checks(table, data), masks)

    def build_dataset(self, rows: Int[np.ndarray, " n"]) -> Dataset[Sample]:
        """Return the samples of some rows of the cohort."""
        table = self.cohort.iloc[rows]
        image_ids, paths, masks = (table[name].tolist() for name in ("image_id", "path", "mask"))
        return MaskDataset(image_ids, paths, masks, self._view, self.transform)


def dice_bce(logits: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Float[Tensor, ""]:
    """Return pixel cross-entropy plus 1 - soft Dice of whole masks, in 32 bit.

    Dice as in Milletari et al. 2016 (arXiv:1606.04797), with one pixel added to numerator and
    denominator, so that it is defined for an image without a lesion.
    """
    logits, truth = logits.float(), mask.float()
    mask_probability = logits.sigmoid()
    overlap = (mask_probability * truth).sum(dim=(1, 2))
    area = (mask_probability + truth).sum(dim=(1, 2))
    dice = (2 * overlap + 1) / (area + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice.mean()


class MaskModule(BaseModule):
    """Training of a `Segmenter`; `test_areas` are `AREAS` of the last test, each (n,)."""

    network: Segmenter
    test_areas: tuple[Tensor, ...]

    def __init__(self, network: Segmenter, card: Card, config: Config) -> None:
        super().__init__(network, card, config)
        self._collector = RowCollector((*AREAS, "loss"))

    def forward(self, batch: dict[str, Tensor]) -> Float[Tensor, "b h w"]:
        """Return the logits of a batch, interpolated to the size of its masks."""
        image, side = batch["image"], batch["mask"].shape[-1]
        if self._config.trainer.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.network(image)
        if logits.shape[-1] != side:
            logits = functional.interpolate(logits[:, None].float(), (side, side), mode="bilinear")
            logits = logits[:, 0]
        return logits

    def training_step(self, batch: dict[str, Tensor]) -> Float[Tensor, ""]:
        """Return the loss of a batch in 32 bit, regardless of the network's precision."""
        return self.accumulate_loss(dice_bce(self(batch), batch["mask"]), len(batch["mask"]))

    def validation_step(self, batch: dict[str, Tensor]) -> None:
        """Collect areas and losses in training precision; they only select the epoch."""
        logits, true = self(batch), batch["mask"]
        losses = [dice_bce(row[None], mask[None]) for row, mask in zip(logits, true, strict=True)]
        predicted = logits > 0
        areas = [mask.sum(dim=(1, 2)).float() for mask in (predicted & true, predicted, true)]
        self._collector.update(batch["row"], *areas, torch.stack(losses))

    def on_validation_epoch_end(self) -> None:
        """Log the means of the whole validation split, equal on all ranks."""
        overlap, predicted, true, loss = self._collector.take()
        total = predicted + true
        dice = torch.where(total > 0, 2 * overlap / total.clamp(min=1), 1)
        self.log_validation({"dice": dice.mean(), "loss": loss.mean()})

    def test_step(self, batch: dict[str, Tensor]) -> None:
        """Collect areas in 32 bit, regardless of the training precision."""
        with full_precision(self.device.type):
            self.validation_step(batch)

    def on_test_epoch_end(self) -> None:
        """Gather the rows of all ranks before the devices are released."""
        self.test_areas = self._collector.take()[: len(AREAS)]


TASKS["segmentation"] = train_masks
