"""Explanations of single predictions: heat maps as pictures, and contributions of the inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from skinmm.data.dataset import decode_image
from skinmm.images.decode import decode
from skinmm.images.source import (
    COLUMNS,
    Source,
    fill_empty_cells,
    has_empty_cell,
    may_be_dicom,
    read_header_record,
)
from skinmm.predict.attribution import (
    Contributions,
    compute_contributions,
    compute_heat_map,
    mean_contributions,
)
from skinmm.predict.backends import TorchBackend
from skinmm.predict.ensemble import CalibratedModel
from skinmm.predict.pipeline import TableBatch
from skinmm.predict.predictor import Predictor, select_device
from skinmm.vocabulary import Columns, is_missing

# Viridis at a few points: brighter is more, also for readers with red-green colour blindness.
_COLOURS: Final = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)
_OPACITY: Final = 0.65  # of the colour at the maximum of the map


def heat_map_to_png(heat: Float32[np.ndarray, "down across"]) -> bytes:
    """Return a heat map as an 8-bit greyscale PNG with one pixel per cell, 255 at the maximum."""
    file = BytesIO()
    Image.fromarray(np.round(255 * heat).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def overlay(
    image: UInt8[np.ndarray, "height width 3"], heat: Float32[np.ndarray, "down across"]
) -> UInt8[np.ndarray, "height width 3"]:
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
        heat: where the image raises the malignancy, 0 to 1; None without an image.
        pixels: preprocessed image under the map; None if the map covers the whole image.
    """

    contributions: Contributions
    record: dict[str, Any]
    heat: Float32[np.ndarray, "down across"] | None
    pixels: UInt8[np.ndarray, "s s 3"] | None = None

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

    def draw(
        self, image: bytes, frame: int | None, max_side: int
    ) -> UInt8[np.ndarray, "_ _ 3"] | None:
        """Draw the heat map over the image it explains; None without a heat map."""
        if self.heat is None:
            return None
        pixels = self.pixels
        if pixels is None:
            pixels = decode_for_display(image, frame, max_side)
        return overlay(pixels, self.heat)


def _enlarge(
    heat: Float32[np.ndarray, "down across"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "_ _"]:
    if heat.shape == shape:
        return heat
    map_ = torch.from_numpy(heat)[None, None]
    return torch.nn.functional.interpolate(map_, shape, mode="bilinear")[0, 0].numpy()


class Explainer:
    """Explains the predictions of one checkpoint.

    Attributes:
        member: the model, run by PyTorch, as exported models have no gradients.
        columns: its record columns.
    """

    def __init__(
        self, member: CalibratedModel, max_columns: int = 0, probabilities: str = "calibrated"
    ) -> None:
        """Store a model whose backend is torch."""
        self._max_columns, self._is_raw = max_columns, probabilities == "raw"
        self.member, self.columns = member, member.columns
        self._backend: Any = member.backend

    @classmethod
    def for_predictor(
        cls,
        predictor: Predictor,
        checkpoints: Sequence[Path],
        accelerator: str,
        probabilities: str = "calibrated",
    ) -> "list[Explainer]":
        """Return an explainer per member, loaded again if torch does not run the member."""
        device = select_device(accelerator)
        members = [
            member
            if isinstance(member.backend, TorchBackend)
            else CalibratedModel.load(path, device)
            for member, path in zip(predictor.ensemble.members, checkpoints, strict=True)
        ]
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
        pixels = self._load_pixels(image, frame)
        tensor = None
        if pixels is not None:
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
        )
        heat = None
        if tensor is not None and image is not None:
            encoded = torch.from_numpy(member.encoder.transform(row)).to(network.device)
            heat = compute_heat_map(network, tensor, encoded, positive=member.positive)
        under_map = pixels if member.card.preprocess else None
        return Explanation(contributions, known_values(row, self.columns), heat, under_map)

    def _malignancy(self, raw: np.ndarray) -> np.ndarray:
        probabilities = raw if self._is_raw else self.member.calibration.apply(raw)
        return probabilities[:, self.member.positive].sum(axis=1)

    def _load_pixels(
        self, image: bytes | None, frame: int | None
    ) -> UInt8[np.ndarray, "s s 3"] | None:
        view = self.member.view
        if view is None:
            return None
        if image is None:
            return np.zeros((view.size, view.size, 3), np.uint8)
        return decode_image(Source(image, frame), view)


def canonical_record(
    columns: Sequence[str], image: bytes | None, record: Mapping[str, Any], path: str = ""
) -> dict[str, np.ndarray]:
    """Return a record in canonical words, completed from a DICOM header, as in prediction."""
    table = {name: np.array([record.get(name)], object) for name in ("patient_id", *columns)}
    row = TableBatch(table, columns, needs_image=False).cells
    if image is None or not may_be_dicom(path) or not has_empty_cell(row, COLUMNS).any():
        return row
    return row | fill_empty_cells(row, [read_header_record(path, BytesIO(image))])


def known_values(row: Columns, columns: Sequence[str]) -> dict[str, Any]:
    """Return the values of a record that are not missing."""
    return {name: row[name].tolist()[0] for name in columns if not is_missing(row[name][0])}


def decode_for_display(
    image: bytes, frame: int | None, max_side: int
) -> UInt8[np.ndarray, "_ _ 3"]:
    """Decode an image, reduced to at most `max_side` pixels on its longer side."""
    pixels = decode(image, frame=frame)
    scale = min(1.0, max_side / max(pixels.shape[:2]))
    if scale == 1:
        return pixels
    size = tuple(max(1, round(scale * length)) for length in pixels.shape[:2])
    return decode(image, size=(size[0], size[1]), frame=frame)
