"""Explanation of single predictions: contributions of the inputs, and a heat map of each image."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from skinmm.config import name_relative
from skinmm.data.dataset import decode_image
from skinmm.data.lesions import UNSTATED
from skinmm.images.decode import decode_within
from skinmm.images.source import Source, fill_empty_cells
from skinmm.models.heads import TreeHead
from skinmm.models.network import full_precision
from skinmm.predict.attribution import (
    IMAGE,
    Contributions,
    compute_contributions,
    is_image,
    mean_contributions,
    name_inputs,
)
from skinmm.predict.backends import TorchBackend
from skinmm.predict.embedder import SIMILAR, EmbeddingIndex, pool_tokens
from skinmm.predict.ensemble import CalibratedModel, load_models
from skinmm.predict.heat_maps import HeatMap, Pixels, compute_heat_map, enlarge, overlay
from skinmm.predict.loading import CaseImage, decode_usable
from skinmm.predict.pipeline import canonical_record, known_values
from skinmm.predict.predictor import Predictor, select_device
from skinmm.vocabulary import VIEW_TYPES


@dataclass(frozen=True)
class Explanation:
    """Explanation of one prediction.

    Attributes:
        contributions: contribution of each input.
        record: record values as the model read them, also from a DICOM header.
        images: the images of the prediction; unusable images of a lesion are left out.
        heats: where each image raises the malignancy, 0 to 1; empty for trees, which have no
            gradients.
        pixels: preprocessed images under the maps; empty if the maps cover the whole images.
        similar: the most similar training images (`model.index`): `image_id`, `diagnosis` and
            `similarity`, the cosine of the embeddings; from the first of several checkpoints.
    """

    contributions: Contributions
    record: dict[str, Any]
    images: tuple[CaseImage, ...]
    heats: tuple[HeatMap, ...]
    pixels: tuple[Pixels, ...] = ()
    similar: tuple[dict[str, Any], ...] = ()

    @classmethod
    def mean(cls, members: "Sequence[Explanation]") -> "Explanation":
        """Average the explanations of several checkpoints."""
        maps = zip(*[member.heats for member in members if member.heats], strict=True)
        record = {name: cell for member in members for name, cell in member.record.items()}
        pixels = next((member.pixels for member in members if member.pixels), ())
        contributions = mean_contributions([member.contributions for member in members])
        similar = next((member.similar for member in members if member.similar), ())
        heats = tuple(map(_mean_map, maps))
        return cls(contributions, record, members[0].images, heats, pixels, similar)

    def draw(self, max_side: int) -> list[Pixels]:
        """Draw the heat maps over the images that they explain."""
        pictures: Sequence[Pixels] = self.pixels
        if self.heats and not pictures:
            pictures = [decode_within(one.data, max_side, one.frame) for one in self.images]
        return [overlay(*pair) for pair in zip(pictures, self.heats, strict=bool(self.heats))]


def _mean_map(heats: Sequence[HeatMap]) -> HeatMap:
    finest = max(heat.shape for heat in heats)
    mean: HeatMap = np.mean([enlarge(heat, finest) for heat in heats], axis=0)
    return mean


class Explainer:
    """Explainer of the predictions of one checkpoint.

    Args:
        member: the model, run by PyTorch, as exported models have no gradients.
        inputs: result of `name_inputs` for all models whose explanations are averaged; by default
            that of this one.
        probabilities: calibrated, or raw.

    Attributes:
        has_views: whether the model combines the images of a lesion.
        index: embeddings of training images; None if the checkpoint has none.
    """

    def __init__(
        self,
        member: CalibratedModel,
        inputs: Sequence[str] = (),
        probabilities: str = "calibrated",
    ) -> None:
        self.has_views = member.config.data.unit == "lesion"
        views = member.config.data.views if self.has_views else None
        self._inputs = inputs or name_inputs(member.columns, views)
        self._is_raw = probabilities == "raw"
        self.member, self._backend = member, cast("TorchBackend", member.backend)
        self.index = EmbeddingIndex.from_state(member.card.index) if member.card.index else None

    @classmethod
    def for_predictor(
        cls,
        predictor: Predictor,
        checkpoints: Sequence[Path],
        accelerator: str,
        probabilities: str = "calibrated",
    ) -> "list[Explainer]":
        """Return one explainer per member; members in ONNX are reloaded as PyTorch models."""
        ensemble = predictor.ensemble
        members = ensemble.members
        if not all(isinstance(member.backend, TorchBackend) for member in members):
            device = select_device(accelerator)
            loaded = [load_models(path, device, uncalibrated=True) for path in checkpoints]
            members = [*chain.from_iterable(loaded)]
        columns = [*ensemble.columns, *name_relative(ensemble.relative)]
        inputs = name_inputs(columns, ensemble.max_views if ensemble.has_views else None)
        return [cls(member, inputs, probabilities) for member in members]

    def explain(self, images: Sequence[CaseImage], record: Mapping[str, Any]) -> Explanation:
        """Explain one prediction.

        Args:
            images: none, one, or several of a lesion; their paths decide whether headers are read.
            record: record values by column.
        """
        member, network = self.member, self._backend.network
        row = canonical_record(member.encoder.columns, images, record)
        if member.finder and member.measured_columns and images:
            measured = member.finder.measure(Source(images[0].data, images[0].frame))
            row |= fill_empty_cells(row, [measured], member.measured_columns)
        pixels, tensor, types = self._decode(images)
        inputs = self._inputs
        if types is not None and IMAGE not in inputs:
            names = [image.name or f"{IMAGE} {n + 1}" for n, image in enumerate(images)]
            inputs = [*names, *(name for name in inputs if not is_image(name))]
        contributions = compute_contributions(
            network,
            member.encoder,
            self._malignancy,
            {name: cells[0] for name, cells in row.items()},
            tensor,
            symmetries=self._backend.symmetries,
            has_image=bool(images),
            types=types,
            inputs=inputs,
            background=member.card.background,
        )
        heats: Sequence[HeatMap] = ()
        if tensor is not None and images and not isinstance(network.head, TreeHead):
            encoded = torch.from_numpy(member.encoder.transform(row)).to(network.device)
            heat = compute_heat_map(network, tensor, encoded, positive=member.positive, types=types)
            heats = [heat] if types is None else [*heat]
        return Explanation(
            contributions,
            known_values(row, member.columns),
            tuple(images),
            tuple(heats),
            tuple(pixels) if member.card.preprocess and images else (),
            self._find_similar(tensor) if images else (),
        )

    def can_use(self, image: CaseImage) -> bool:
        """Return whether an image of a lesion can be used in a prediction."""
        try:
            if self.member.view:
                decode_usable(Source(image.data, image.frame), self.member.view)
        except Exception:  # whatever is wrong with one image, the others decide
            return False
        return True

    def _decode(
        self, images: Sequence[CaseImage]
    ) -> tuple[list[Pixels], torch.Tensor | None, torch.Tensor | None]:
        """Return pixels, the network's input, and the type of each image of a lesion."""
        view, device = self.member.view, self._backend.network.device
        if view is None:
            return [], None, None
        blank = np.zeros((view.size, view.size, 3), np.uint8)
        pixels = [decode_image(Source(one.data, one.frame), view) for one in images] or [blank]
        tensor = torch.from_numpy(np.stack(pixels)).to(device).permute(0, 3, 1, 2)
        if not self.has_views:
            return pixels, tensor, None
        types = [VIEW_TYPES.index(image.view or UNSTATED) for image in images] or [0]
        return pixels, tensor[None], torch.tensor([types], device=device)

    def _find_similar(self, images: torch.Tensor | None) -> tuple[dict[str, Any], ...]:
        if self.index is None or images is None:
            return ()
        encode = self._backend.network.get_submodule("image")
        with torch.inference_mode(), full_precision(images.device.type):
            embeddings = pool_tokens(encode(images.flatten(0, -4)))
        return tuple(self.index.list_similar(embeddings, SIMILAR))

    def _malignancy(self, raw: np.ndarray) -> np.ndarray:
        probabilities = raw if self._is_raw else self.member.calibration.apply(raw)
        return probabilities[:, self.member.positive].sum(axis=1)


def explain_case(
    explainers: Sequence[Explainer], images: Sequence[CaseImage], record: Mapping[str, Any]
) -> Explanation:
    """Return the mean explanation of several checkpoints.

    The images of a lesion are `image 1`, `image 2`, ...; those that cannot be used are left out, as
    in prediction.
    """
    if explainers[0].has_views:
        named = [image._replace(name=f"{IMAGE} {n + 1}") for n, image in enumerate(images)]
        images = [image for image in named if all(one.can_use(image) for one in explainers)]
    return Explanation.mean([one.explain(images, record) for one in explainers])
