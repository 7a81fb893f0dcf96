"""Prediction and explanation of single cases: contributions of the inputs, and heat maps."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from skinmm import __version__
from skinmm.data.dataset import decode_image
from skinmm.images.decode import decode_within
from skinmm.images.source import FRAME, Source, fill_empty_cells
from skinmm.models.heads import TreeHead
from skinmm.predict.attribution import (
    Contributions,
    compute_contributions,
    compute_heat_map,
    mean_contributions,
)
from skinmm.predict.backends import OnnxBackend, TorchBackend
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.inputs import InMemoryImages
from skinmm.predict.pipeline import canonical_record, known_values, refuse_lesions
from skinmm.predict.predictor import Predictor, select_device
from skinmm.vocabulary import is_missing, match_columns

HeatMap = Float32[np.ndarray, "down across"]
Pixels = UInt8[np.ndarray, "height width 3"]

# Viridis at a few points: brighter is more, also for readers with red-green colour blindness.
_COLOURS: Final = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)
_OPACITY: Final = 0.65  # of the colour at the maximum of the map


def heat_map_to_png(heat: HeatMap) -> bytes:
    """Return a heat map as an 8-bit greyscale PNG with one pixel per cell, 255 at the maximum."""
    file = BytesIO()
    Image.fromarray(np.round(255 * heat).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def overlay(image: Pixels, heat: HeatMap) -> Pixels:
    """Draw a heat map over an image, transparent where the map is 0."""
    strength = _enlarge(heat, image.shape[:2]).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strength, steps, part) for part in _COLOURS.T], axis=-1)
    weight = (_OPACITY * np.sqrt(strength))[..., None]
    return np.round((1 - weight) * image + weight * colour).astype(np.uint8)


@dataclass(frozen=True)
class Explanation:
    """Explanation of one prediction.

    Attributes:
        contributions: contribution of each input.
        record: record values as the model read them, with those of a DICOM header.
        heat: where the image raises the malignancy, 0 to 1; None without an image, and for trees,
            which have no gradients.
        pixels: preprocessed image under the map; None if the map covers the whole image.
    """

    contributions: Contributions
    record: dict[str, Any]
    heat: HeatMap | None
    pixels: Pixels | None = None

    @classmethod
    def mean(cls, members: "Sequence[Explanation]") -> "Explanation":
        """Average the explanations of several checkpoints."""
        heats = [member.heat for member in members if member.heat is not None]
        finest = max((heat.shape for heat in heats), default=(0, 0))
        heat = np.mean([_enlarge(one, finest) for one in heats], axis=0) if heats else None
        record = {name: cell for member in members for name, cell in member.record.items()}
        pixels = next((m.pixels for m in members if m.pixels is not None), None)
        contributions = mean_contributions([member.contributions for member in members])
        return cls(contributions, record, heat, pixels)

    def draw(self, image: bytes, frame: int | None, max_side: int) -> Pixels | None:
        """Draw the heat map over the image it explains; None without a heat map."""
        if self.heat is None:
            return None
        if self.pixels is not None:
            return overlay(self.pixels, self.heat)
        return overlay(decode_within(image, max_side, frame), self.heat)


def _enlarge(heat: HeatMap, shape: tuple[int, ...]) -> Float32[np.ndarray, "_ _"]:
    if heat.shape == shape:
        return heat
    batch = torch.from_numpy(heat)[None, None]
    return torch.nn.functional.interpolate(batch, shape, mode="bilinear")[0, 0].numpy()


class Explainer:
    """Explanations of the predictions of one checkpoint.

    Args:
        member: the model, run by PyTorch, as exported models have no gradients.
        max_columns: number of record columns of all models whose explanations are averaged.
        probabilities: calibrated, or raw.
    """

    def __init__(
        self, member: CalibratedModel, max_columns: int = 0, probabilities: str = "calibrated"
    ) -> None:
        refuse_lesions(member.config, "explanations and single cases")
        self._max_columns, self._is_raw = max_columns, probabilities == "raw"
        self.member, self._backend = member, cast("TorchBackend", member.backend)

    @classmethod
    def for_predictor(
        cls,
        predictor: Predictor,
        checkpoints: Sequence[Path],
        accelerator: str,
        probabilities: str = "calibrated",
    ) -> "list[Explainer]":
        """Return one explainer per member; reload members as PyTorch models if any runs in ONNX."""
        members = predictor.ensemble.members
        if not all(isinstance(member.backend, TorchBackend) for member in members):
            device = select_device(accelerator)
            loaded = [load_models(path, device, uncalibrated=True) for path in checkpoints]
            members = [*chain.from_iterable(loaded)]
        return [cls(member, len(predictor.columns), probabilities) for member in members]

    def explain(
        self,
        image: bytes | None,
        record: Mapping[str, Any],
        frame: int | None = None,
        path: str = "",
    ) -> Explanation:
        """Explain one prediction; the name in `path` decides whether to read a DICOM header."""
        member, network = self.member, self._backend.network
        row = canonical_record(member.encoder.columns, image, record, path)
        if member.finder and member.measured_columns and image is not None:
            measured = member.finder.measure(Source(image, frame))
            row |= fill_empty_cells(row, [measured], member.measured_columns)
        pixels = tensor = None
        if view := member.view:
            blank = np.zeros((view.size, view.size, 3), np.uint8)
            pixels = blank if image is None else decode_image(Source(image, frame), view)
            tensor = torch.from_numpy(pixels).to(network.device).permute(2, 0, 1)[None]
        contributions = compute_contributions(
            network,
            member.encoder,
            self._malignancy,
            {name: cells[0] for name, cells in row.items()},
            tensor,
            views=self._backend.views,
            has_image=image is not None,
            max_columns=self._max_columns,
            background=member.card.background,
        )
        heat = None
        if tensor is not None and image is not None and not isinstance(network.head, TreeHead):
            encoded = torch.from_numpy(member.encoder.transform(row)).to(network.device)
            heat = compute_heat_map(network, tensor, encoded, positive=member.positive)
        under_map = pixels if member.card.preprocess else None
        return Explanation(contributions, known_values(row, member.columns), heat, under_map)

    def _malignancy(self, raw: np.ndarray) -> np.ndarray:
        probabilities = raw if self._is_raw else self.member.calibration.apply(raw)
        return probabilities[:, self.member.positive].sum(axis=1)


NOTICE: Final = (
    "Research use only. This is not a medical device and must not be used to decide on a "
    "patient's care."
)


class Case(NamedTuple):
    """One lesion: encoded image, record values by column, and DICOM frame, counted from 1."""

    image: bytes | None
    record: Mapping[str, str]
    frame: int | None = None


class CasePredictor:
    """Prediction and explanation of single cases, with the arguments of `from_checkpoints`.

    PyTorch computes the explanations, also if another backend predicts.

    Attributes:
        predictor: the models.
        needs_image: whether a case without an image is refused.
        concurrency: cases to predict at the same time: 2 with ONNX Runtime, so that one is decoded
            while the network runs on the other, and 1 with torch, which uses all threads for one.
        side: longest side of the network's input in pixels; 0 without an image branch.
        card: the model card, for /v1/model.
        reference: distributions of the first checkpoint (see `skinmm.evaluation.drift`).
    """

    def __init__(
        self,
        checkpoints: Sequence[Path],
        accelerator: str = "auto",
        *,
        referral: bool = True,
        backend: str = "auto",
        uncalibrated: bool = False,
    ) -> None:
        self.predictor = Predictor.from_checkpoints(
            checkpoints, accelerator, referral=referral, backend=backend, uncalibrated=uncalibrated
        )
        self._explainers = Explainer.for_predictor(self.predictor, checkpoints, accelerator)
        self._lock = Lock()  # explanations add hooks to a network that torch may predict with
        self._is_shared = "torch" in self.predictor.backend
        self.concurrency = 2 if self.predictor.backend == OnnxBackend.name else 1
        members = [explainer.member for explainer in self._explainers]
        self.needs_image = any(member.needs_image for member in members)
        self.side = max((member.view.size for member in members if member.view), default=0)
        self.card = build_card(self.predictor, members)
        self.reference = members[0].card.inputs

    def predict(self, case: Case) -> dict[str, Any]:
        """Predict one case, with the columns of `predict.py`."""
        cell = "image" if case.frame is None else f"image{FRAME}{case.frame}"
        row = {**case.record, "image": "" if case.image is None else cell}
        return self.predict_table([row], {} if case.image is None else {"image": case.image})[0]

    def predict_table(
        self, rows: Sequence[Mapping[str, str]], files: Mapping[str, bytes]
    ) -> list[dict[str, Any]]:
        """Predict several lesions."""
        names = dict.fromkeys(name for row in rows for name in row)
        table = {name: np.array([row.get(name) for row in rows], object) for name in names}
        with self._lock if self._is_shared else nullcontext():
            (predictions,) = self.predictor.stream(
                [table], InMemoryImages(files), batch_size=8, workers=2 if len(rows) > 1 else 0
            )
        columns = [cells.tolist() for cells in predictions.columns.values()]
        canonical = match_columns(names, self.predictor.columns)
        renamed = [{canonical.get(name, name): cell for name, cell in row.items()} for row in rows]
        return [
            self._format(cells, dict(zip(predictions.columns, values, strict=True)))
            for cells, values in zip(renamed, zip(*columns, strict=True), strict=True)
        ]

    def predict_and_explain(self, case: Case) -> tuple[dict[str, Any], Explanation | None]:
        """Predict and explain one case; the explanation is None if the row has an error."""
        row = self.predict(case)
        if row["error"]:
            return row, None
        args = (case.image, case.record, case.frame)
        with self._lock:
            return row, Explanation.mean([one.explain(*args) for one in self._explainers])

    def record_of(self, case: Case) -> tuple[str | None, dict[str, Any]]:
        """Return the patient of a case, None if unknown, and the record as the models read it."""
        columns = self.predictor.columns
        row = canonical_record(columns, case.image, case.record)
        values = known_values(row, columns)
        for member in self.predictor.ensemble.members:
            values |= member.encoder.read_numbers(values)
        return row["patient_id"][0], values

    def _format(self, cells: Mapping[str, Any], row: dict[str, Any]) -> dict[str, Any]:
        """Convert a row of the output to JSON types."""
        lists = {n: row[n].split("|") if row[n] else [] for n in ("prediction_set", "missing")}
        values = {name: None if pd.isna(value) else value for name, value in row.items()}
        probabilities = {name: values.pop(f"p_{name}") for name in self.predictor.classes}
        missing = [name for name in lists["missing"] if name in self.predictor.columns]
        return {
            **values,
            "probabilities": None if values["error"] else probabilities,
            **lists,
            "unknown": [name for name in missing if not is_missing(cells.get(name))],
            "notice": NOTICE,
        }


def build_card(predictor: Predictor, members: Sequence[CalibratedModel]) -> dict[str, Any]:
    """Return the model card of a predictor as plain data."""
    return {
        "skinmm": __version__,
        "intended_use": NOTICE,
        "classes": predictor.classes,
        "positive": predictor.positive,
        "inputs": sorted(predictor.inputs),
        "columns": predictor.columns,
        "threshold": predictor.threshold,
        "referral": predictor.referral,
        "members": [
            {
                "sha256": member.digest,
                "model": member.config.model.name,
                "image_size": member.config.model.image_size,
                "fusion": member.config.fusion.name,
                "initialisation": member.card.initialisation,
                "trained_on": member.config.data.name,
                "preprocess": member.card.preprocess,
                "prior": member.card.prior,
                "calibration": member.calibration.method if member.card.calibration else None,
                "threshold": member.card.threshold,
                "band": member.card.band,
                "prediction_sets": member.card.conformal,
                "knows_unfamiliar": member.ood_detector is not None,
                "test": member.card.summary,
            }
            for member in members
        ],
    }
