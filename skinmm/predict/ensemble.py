"""Ensemble of checkpoints: run and calibrate each one separately, then average."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import compress
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float64, Shaped, UInt8
from scipy.special import softmax
from torch import Tensor

from skinmm.config import Config, from_mapping, name_relative
from skinmm.data.dataset import View
from skinmm.data.lesion_finder import LesionFinder
from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError, one_line
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.predictions import BINARY
from skinmm.evaluation.referral import OODDetector
from skinmm.evaluation.thresholds import ReferralBand, Threshold
from skinmm.images.measure import MEASUREMENTS
from skinmm.images.preprocess import check_steps
from skinmm.models.checkpoint import Card, CheckpointError, is_calibrated, load_cards
from skinmm.models.fusion import FUSIONS
from skinmm.predict.backends import Backend, OnnxBackend, TorchBackend, load_exported
from skinmm.predict.inputs import list_training_names
from skinmm.predict.loading import stack_images
from skinmm.vocabulary import CONVERTERS, Columns, is_missing

_NAMED: Final = ("image_id", "patient_id", "lesion_id", "view", "target", "diagnosis")
TASK: Final = "classification"


class ModelOutput(NamedTuple):
    """Output of a calibrated model, or the mean of several.

    Attributes:
        raw: probabilities of the network.
        calibrated: calibrated probabilities.
        votes: share of prediction sets with each class; None without conformal calibration.
        ood: out-of-distribution score, 1 is the limit; None if no checkpoint has such a score.
    """

    raw: Float64[np.ndarray, "n classes"]
    calibrated: Float64[np.ndarray, "n classes"]
    votes: Shaped[np.ndarray, "n classes"] | None
    ood: Float64[np.ndarray, " n"] | None


@dataclass(frozen=True)
class CalibratedModel:
    """Network of one checkpoint with its calibration, threshold and record encoder.

    Attributes:
        backend: runs the network.
        digest: SHA-256 of the checkpoint.
        threshold: threshold of the decision; None: never calibrated, so every row is referred.
        band: probabilities that are referred; None: the prediction sets decide.
    """

    backend: Backend
    digest: str
    card: Card
    config: Config
    encoder: RecordEncoder
    calibration: Calibration
    threshold: Threshold | None
    band: ReferralBand | None
    conformal: ConformalPredictor | None
    ood_detector: OODDetector | None
    finder: LesionFinder | None = None

    @classmethod
    def load(cls, path: Path, device: torch.device) -> "CalibratedModel":
        """Load the checkpoint of one model, to run it with PyTorch."""
        models = load_models(path, device)
        if len(models) > 1:
            raise CheckpointError(f"{path}: an ensemble, where one model is needed")
        return models[0]

    @classmethod
    def build(
        cls,
        path: Path,
        card: Card,
        weights: dict[str, Tensor],
        digest: str,
        exported: OnnxBackend | None,
    ) -> "CalibratedModel":
        """Build a model on the CPU from a card, with the weights or with the exported model."""
        if (task := card.config.get("task", TASK)) != TASK:
            raise CheckpointError(f"{path}: checkpoint of task={task}; choose one of task={TASK}")
        try:
            config = from_mapping(Config, card.config)
            finder = LesionFinder(card.segmenter) if card.segmenter else None
            check_steps(card.preprocess, has_finder=finder is not None)
            encoder = RecordEncoder.from_state(card.encoder)
            sizes = (encoder.widths, len(card.classes))
            runner = exported or TorchBackend.build(config, *sizes, weights)
        except (InputError, RuntimeError, LookupError, TypeError) as error:
            message = f"{path}: not made by this version ({one_line(error)})"
            raise CheckpointError(message) from error
        return cls(
            runner,
            digest,
            card,
            config,
            encoder,
            Calibration(**card.calibration) if card.calibration else Calibration(),
            Threshold(**card.threshold) if card.threshold else None,
            ReferralBand.from_state(card.band) if card.band else None,
            ConformalPredictor(**card.conformal) if card.conformal else None,
            OODDetector.from_state(card.ood) if card.ood else None,
            finder,
        )

    @property
    def inputs(self) -> frozenset[str]:
        """Inputs of the network: image, record or both."""
        return FUSIONS[self.config.fusion.name].inputs

    @property
    def columns(self) -> list[str]:
        """Record columns of the network."""
        return list(self.encoder.columns) if "record" in self.inputs else []

    @property
    def positive(self) -> list[int]:
        """Indices of the malignant classes."""
        return [self.card.classes.index(name) for name in self.card.positive]

    @property
    def view(self) -> View | None:
        """Size, colour profile and preprocessing of the images; None without an image branch."""
        steps = tuple(self.card.preprocess)
        view = View(self.config.model.image_size, self.config.data.icc, steps, self.finder)
        return view if "image" in self.inputs else None

    @property
    def measured_columns(self) -> list[str]:
        """Record columns that are measured on the image."""
        return [name for name in self.columns if self.finder and name in MEASUREMENTS]

    @property
    def needs_image(self) -> bool:
        """Return whether every row needs an image."""
        return "image" in self.inputs and not self.backend.accepts_missing_image

    def run(
        self,
        rows: Columns,
        images: UInt8[np.ndarray, "b *views size size 3"] | None,
        has_image: Shaped[np.ndarray, "b *views"],
    ) -> Float64[np.ndarray, "b width"]:
        """Return the log-probabilities and the out-of-distribution score of each row of a batch."""
        record = self.encoder.transform(rows) if "record" in self.inputs else None
        log_probabilities, features = self.backend(images, record, has_image)
        ood = self.ood_detector.score(features) if self.ood_detector else np.zeros(len(has_image))
        ood *= self.backend.ood_scale
        if "image" in self.inputs:
            # The score was fitted on validation rows with images.
            ood[~has_image.reshape(len(ood), -1).any(axis=1)] = np.nan
        return np.hstack([log_probabilities.astype(np.float64), ood[:, None]])

    def calibrate(self, scores: Float64[np.ndarray, "b width"]) -> ModelOutput:
        """Calibrate scores returned by `run`."""
        raw = softmax(scores[:, :-1], axis=1)
        calibrated = self.calibration.apply(raw)
        sets = self.conformal.predict_sets(calibrated) if self.conformal else None
        return ModelOutput(raw, calibrated, sets, scores[:, -1] if self.ood_detector else None)


class Ensemble:
    """Models with the same classes.

    Attributes:
        members: the models, which fit together.
        columns: record columns of all members that a table may have.
        relative: encoder of each column from which the columns of `data.relative` are computed.
        inputs: inputs of all members, of {image, record}.
        needs_image: whether rows without an image cannot be predicted.
        views: how the members need their images.
        has_views: whether a row is a lesion with at most `max_views` images.
        finder: measures the `measured_columns` of lesions; None if no member uses any.
        column_names: names of the columns in the training table -> canonical names.
        score_width: number of scores per row, over all members.
        concurrency: number of batches to run at the same time.
    """

    def __init__(self, members: Sequence[CalibratedModel]) -> None:
        _require_compatible(members)
        self.members = members
        pairs = [(name, member) for member in members for name in member.columns]
        self.relative = {name: m.encoder for name, m in pairs if name in m.config.data.relative}
        self.columns = sorted({name for name, _ in pairs} - {*name_relative(self.relative)})
        self.column_names = list_training_names(
            [member.config for member in members], {*_NAMED, *self.columns}
        )
        self.inputs = frozenset[str]().union(*(member.inputs for member in members))
        self.needs_image = any(member.needs_image for member in members)
        self._member_views = [member.view for member in members]
        self.views = {view for view in self._member_views if view is not None}
        self.has_views = members[0].config.data.unit == "lesion"
        self.max_views = members[0].config.data.views
        self.finder = next((member.finder for member in members if member.measured_columns), None)
        self.measured_columns = sorted({n for member in members for n in member.measured_columns})
        self.score_width = len(members) * (len(members[0].card.classes) + 1)
        self.concurrency = min(member.backend.concurrency for member in members)

    def run(
        self,
        rows: Columns,
        images: Sequence[Mapping[View, UInt8[np.ndarray, "... _ _ 3"]]],
        types: Sequence[tuple[int, ...]] | None = None,
    ) -> Float64[np.ndarray, "g width"]:
        """Run all members on a batch; return their scores as columns, one row per lesion.

        `types` has the types of the images of each lesion, if the members combine views.
        """
        scores = [
            member.run(rows, *stack_images(view, images, types))
            for member, view in zip(self.members, self._member_views, strict=True)
        ]
        return np.hstack(scores)

    def calibrate(self, scores: Float64[np.ndarray, "g width"]) -> ModelOutput:
        """Calibrate each member's scores and average them."""
        parts = np.split(scores, len(self.members), axis=-1)
        outputs = [m.calibrate(part) for m, part in zip(self.members, parts, strict=True)]
        columns = zip(*outputs, strict=True)
        raw, calibrated, votes, ood = ([v for v in values if v is not None] for values in columns)
        # A row without an image has no score from members with an image network.
        score = np.ma.masked_where(np.isnan(ood), ood).mean(0).filled(np.nan) if ood else None
        shares = np.mean(votes, axis=0) if votes else None
        return ModelOutput(np.mean(raw, axis=0), np.mean(calibrated, axis=0), shares, score)

    def unseen_cells(self, rows: Columns) -> dict[str, Bool[np.ndarray, " n"]]:
        """Return a mask per extra column: cells whose value no member was trained on."""
        masks = {}
        for name in [n for n in self.columns if n not in CONVERTERS]:  # those have a vocabulary
            encoders = [member.encoder for member in self.members if name in member.columns]
            masks[name] = np.logical_and.reduce([e.unknown(name, rows[name]) for e in encoders])
        return {name: mask for name, mask in masks.items() if mask.any()}

    def missing_inputs(self, rows: Columns, has_image: Sequence[bool]) -> list[str]:
        """Return the inputs that each row lacks, separated by `|`."""
        columns = [*self.columns, *name_relative(self.relative)]
        no_image = [bool(self.views) and not has for has in has_image]
        empty = [no_image, *([is_missing(cell) for cell in rows[name]] for name in columns)]
        return ["|".join(compress(("image", *columns), row)) for row in zip(*empty, strict=True)]


def load_models(
    path: Path,
    device: torch.device,
    backend: str = "torch",
    concurrency: int = 1,
    *,
    uncalibrated: bool = False,
) -> list[CalibratedModel]:
    """Load the model of a checkpoint or all models of an ensemble, exported ones if available.

    The exported models of `ensemble.ckpt` are `ensemble.0.onnx`, `ensemble.1.onnx` and so on. A
    checkpoint without a threshold, such as `last.ckpt`, is refused unless `uncalibrated`.
    """
    cards, digest = load_cards(path), sha256(path.read_bytes()).hexdigest()
    models = []
    for number, (card, weights) in enumerate(cards):
        is_other_task = card.config.get("task", TASK) != TASK  # `build` refuses it
        if not (card.threshold or uncalibrated or is_other_task):
            best = path.with_name("best.ckpt")
            advice = f"use {best}" if is_calibrated(best) else "finish the training run"
            raise CheckpointError(
                f"{path}: never calibrated, so it has no decision threshold; {advice}, or set "
                "uncalibrated=true, which refers every row"
            )
        target = path.with_suffix(f".{number}.onnx" if len(cards) > 1 else ".onnx")
        exported = load_exported(path, target, digest, backend, device.type, concurrency)
        model = CalibratedModel.build(path, card, weights, digest, exported)
        if isinstance(model.backend, TorchBackend):
            model.backend.network.to(device)
        models.append(model)
    return models


def _require_compatible(members: Sequence[CalibratedModel]) -> None:
    if not members:
        raise InputError("no checkpoint given")
    first = members[0].card
    for member in members[1:]:
        if (member.card.classes, member.card.positive) != (first.classes, first.positive):
            raise InputError(
                f"the checkpoints have different classes: {', '.join(first.classes)} "
                f"(malignant: {', '.join(first.positive)}), but {', '.join(member.card.classes)} "
                f"(malignant: {', '.join(member.card.positive)}); use checkpoints with equal ones"
            )
    for name in ("unit", "views"):
        _require_equal(f"data.{name}", [getattr(m.config.data, name) for m in members])
    units = {(name, m.encoder.units.get(name)) for m in members for name in m.columns}
    if len(units) > len(names := {name for name, _ in units}):
        which = next(n for n in sorted(names) if sum(name == n for name, _ in units) > 1)
        raise InputError(
            f"the checkpoints were trained with column '{which}' in different units; choose "
            "checkpoints with one unit"
        )
    if tuple(first.classes) != BINARY:
        _require_equal("evaluation.call", [m.config.evaluation.call for m in members])
    if len({member.finder for member in members if member.measured_columns}) > 1:
        raise InputError("the checkpoints measure lesions with different segmenters; use one")


def _require_equal(setting: str, values: Sequence[Any]) -> None:
    if len({*values}) > 1:
        listed = " and ".join(sorted(map(str, {*values})))
        raise InputError(f"the checkpoints were trained with {setting}={listed}; use one value")
