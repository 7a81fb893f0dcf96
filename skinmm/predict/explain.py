"""Heat maps as pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image

from skinmm.data.dataset import picture
from skinmm.images.decode import decode
from skinmm.images.source import (
    COLUMNS,
    Source,
    fill_empty_cells,
    has_empty_cell,
    may_be_dicom,
    read_header_record,
)
from skinmm.predict.attribution import Contributions, contributions, heat_map, mean_contributions
from skinmm.predict.model import CalibratedModel
from skinmm.predict.predictor import Predictor, device_of
from skinmm.predict.reader import canonical_patients
from skinmm.vocabulary import Columns, is_missing

# Viridis at a few points: lighter is more, also for who cannot tell red from green.
_COLOURS: Final = np.array(
    [(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], np.float32
)
_STRENGTH: Final = 0.65  # of the colour where the map is strongest


def heat_map_to_png(heat: Float32[np.ndarray, "down across"]) -> bytes:
    """The map itself as an 8-bit grey PNG: a pixel a place of the network, 255 where strongest."""
    file = BytesIO()
    Image.fromarray(np.round(255 * heat).astype(np.uint8)).save(file, "png")
    return file.getvalue()


def overlay(
    picture: UInt8[np.ndarray, "height width 3"], heat: Float32[np.ndarray, "down across"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The map over the picture: clear where nothing speaks for malignancy."""
    strong = enlarged(heat, picture.shape[:2]).clip(0, 1)
    steps = np.linspace(0, 1, len(_COLOURS))
    colour = np.stack([np.interp(strong, steps, part) for part in _COLOURS.T], axis=-1)
    weight = (_STRENGTH * np.sqrt(strong))[..., None]
    return np.round((1 - weight) * picture + weight * colour).astype(np.uint8)


@dataclass(frozen=True)
class Explanation:
    """Why a case has its probability.

    Attributes:
        contributions: what each input added.
        record: the columns as the model read them, those of a DICOM header included.
        heat: where the image speaks for malignancy, 0 to 1; None without an image.
        seen: what the map lies over, where that is not simply the whole picture.
    """

    contributions: Contributions
    record: dict[str, Any]
    heat: Float32[np.ndarray, "down across"] | None
    seen: UInt8[np.ndarray, "s s 3"] | None = None

    @classmethod
    def mean(cls, members: "Sequence[Explanation]") -> "Explanation":
        """Of several checkpoints."""
        heats = [each.heat for each in members if each.heat is not None]
        finest = max((heat.shape for heat in heats), default=(0, 0))
        record = {name: cell for each in members for name, cell in each.record.items()}
        heat = np.mean([enlarged(each, finest) for each in heats], axis=0) if heats else None
        seen = next((each.seen for each in members if each.seen is not None), None)
        return cls(mean_contributions([each.contributions for each in members]), record, heat, seen)


def enlarged(
    heat: Float32[np.ndarray, "down across"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "_ _"]:
    """A map between whose places is interpolated."""
    if heat.shape == shape:
        return heat
    map_ = torch.from_numpy(heat)[None, None]
    return torch.nn.functional.interpolate(map_, shape, mode="bilinear")[0, 0].numpy()


class Explainer:
    """A checkpoint's own network, and what its probabilities go through.

    Attributes:
        member: run by torch, whatever predicts: an exported network tells no gradients.
        columns: of the record, that it uses.
    """

    def __init__(
        self, member: CalibratedModel, among: int = 0, probabilities: str = "calibrated"
    ) -> None:
        """Takes a member whose backend is torch.

        Args:
            member: what is explained.
            among: how many columns it and those averaged with it have.
            probabilities: which of its are explained, as for `Predictor.predict`.
        """
        self._among, self._raw = among, probabilities == "raw"
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
        """Explainers of a predictor's members, loaded once more where torch does not run them.

        Raises:
            CheckpointError: a file is not a usable checkpoint.
        """
        device, among = device_of(accelerator), len(predictor.columns)
        return [
            cls(
                member if member.backend.name == "torch" else CalibratedModel.load(path, device),
                among,
                probabilities,
            )
            for member, path in zip(predictor.ensemble.members, checkpoints, strict=True)
        ]

    def explain(
        self,
        image: bytes | None,
        record: Mapping[str, Any],
        frame: int | None = None,
        path: str = "",
    ) -> Explanation:
        """Why a case that can be predicted has its probability; `path` names the image's file."""
        member, network = self.member, self._backend.network
        calibration = member.calibration
        row = canonical_record(member.encoder.columns, image, record, path)
        if member.finder and member.measured and image is not None:
            found_there = member.finder.measure(Source(image, frame))
            row |= fill_empty_cells(row, [found_there], member.measured)
        cells = {name: held[0] for name, held in row.items()}
        positive = [member.card.classes.index(name) for name in member.card.positive]
        pixels = self._pixels(image, frame)
        seen = None if pixels is None else torch.from_numpy(pixels).to(network.device)
        seen = None if seen is None else seen.permute(2, 0, 1)[None]
        found = contributions(
            network,
            member.encoder,
            lambda raw: (raw if self._raw else calibration.apply(raw))[:, positive].sum(axis=1),
            cells,
            seen,
            views=self._backend.views,
            shown=image is not None,
            among=self._among,
        )
        heat = None
        if seen is not None and image is not None:
            encoded = torch.from_numpy(member.encoder.transform(row)).to(network.device)
            heat = heat_map(network, seen, encoded, positive=positive)
        seen_as = pixels if member.card.preprocess else None
        return Explanation(found, known_values(row, self.columns), heat, seen_as)

    def _pixels(self, image: bytes | None, frame: int | None) -> UInt8[np.ndarray, "s s 3"] | None:
        view = self.member.view
        if view is None:
            return None
        if image is None:
            return np.zeros((view.size, view.size, 3), np.uint8)
        return picture(Source(image, frame), view)


def canonical_record(
    columns: Sequence[str], image: bytes | None, record: Mapping[str, Any], path: str = ""
) -> dict[str, np.ndarray]:
    """A record in canonical words, completed from a DICOM header, as in prediction."""
    given = {name: np.array([record.get(name)], object) for name in ("patient_id", *columns)}
    row = canonical_patients(given, columns, needs_image=False).cells
    if image is None or not may_be_dicom(path) or not has_empty_cell(row, COLUMNS).any():
        return row
    return row | fill_empty_cells(row, [read_header_record(path, BytesIO(image))])


def known_values(row: Columns, columns: Sequence[str]) -> dict[str, Any]:
    """What a record holds."""
    return {name: row[name].tolist()[0] for name in columns if not is_missing(row[name][0])}


def decode_for_display(image: bytes, frame: int | None, side: int) -> UInt8[np.ndarray, "_ _ 3"]:
    """An image as a person wants to see it: as large as asked for on its longer side.

    Raises:
        DecodeError: it cannot be used.
    """
    pixels = decode(image, frame=frame)
    scale = min(1.0, side / max(pixels.shape[:2]))
    if scale == 1:
        return pixels
    size = tuple(max(1, round(scale * length)) for length in pixels.shape[:2])
    return decode(image, size=(size[0], size[1]), frame=frame)
