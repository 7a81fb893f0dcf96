"""Embedder: the image network of a model as a function from images to vectors.

An embedding is the output of the image network for the preprocessed image, float32 (dim,); the mean
over positions or tokens if the network passes these on.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float64, UInt8

from skinmm import __version__
from skinmm.data.dataset import View
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.models.network import full_precision
from skinmm.predict.backends import TorchBackend
from skinmm.predict.ensemble import CalibratedModel, Ensemble
from skinmm.predict.inputs import Images
from skinmm.predict.pipeline import run_pipeline
from skinmm.vocabulary import Columns, Table

NAMES: Final = ("image_id", "patient_id", "lesion_id")


class Embedder(Ensemble):
    """Image network that the prediction pipeline runs like an ensemble; its scores are embeddings.

    Args:
        network: the image network.
        view: size, colour profile and preprocessing of its images.
        name: name of the image network.
        columns: further columns of the table to copy.
        column_names: names of the columns in the training table -> canonical names.

    Attributes:
        metadata: what the file of embeddings records.
    """

    def __init__(
        self,
        network: Backbone,
        view: View,
        name: str,
        columns: Sequence[str] = (),
        column_names: Mapping[str, str] | None = None,
    ) -> None:
        self._network, self._view = network.eval(), view
        self.members, self.columns, self.column_names = (), list(columns), dict(column_names or {})
        self.inputs, self.needs_image, self.views = frozenset({"image"}), True, {view}
        self.finder, self.measured_columns = None, []
        self.has_views, self.max_views = False, 1  # an embedding for each image
        self.score_width, self.concurrency = network.dim, 1
        digest = sha256()
        for key, value in network.state_dict().items():
            digest.update(key.encode() + value.cpu().contiguous().numpy().tobytes())
        self.metadata = {
            "skinmm": __version__,
            "model": name,
            "dim": network.dim,
            "network": digest.hexdigest(),
            "image_size": view.size,
            "icc": view.icc,
            "preprocess": list(view.steps),
            "segmenter": view.find.digest if view.find else None,
        }

    @classmethod
    def from_model(
        cls, members: Sequence[CalibratedModel], columns: Sequence[str] = ()
    ) -> "Embedder":
        """Return the embedder of the one network of a checkpoint."""
        if len(members) != 1:
            raise InputError(
                f"embeddings of {len(members)} networks cannot be compared; choose the checkpoint "
                "of one fold, best.ckpt"
            )
        (member,) = members
        if member.view is None:
            raise InputError("this model has no image network, so images have no embeddings")
        if not isinstance(member.backend, TorchBackend):
            raise InputError("embeddings need backend=torch")
        network = cast("Backbone", member.backend.network.image)
        names = Ensemble([member]).column_names
        return cls(network, member.view, member.config.model.name, columns, names)

    def run(
        self,
        rows: Columns,  # noqa: ARG002
        images: Sequence[Mapping[View, UInt8[np.ndarray, "_ _ 3"]]],
        types: Sequence[tuple[int, ...]] | None = None,  # noqa: ARG002
    ) -> Float64[np.ndarray, "g dim"]:
        """Return the embeddings of a batch."""
        pixels = np.stack([image[self._view] for image in images])
        device = next(self._network.buffers()).device
        with torch.inference_mode(), full_precision(device.type):
            batch = torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2)
            features = self._network(batch)
        features = features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features  # noqa: PLR2004
        return features.double().cpu().numpy()

    def unseen_cells(self, rows: Columns) -> dict[str, Any]:  # noqa: ARG002
        """Return nothing: copied columns have no vocabulary."""
        return {}

    def embed(
        self,
        tables: Iterable[Table],
        images: str | Path | Images | None,
        *,
        batch_size: int = 32,
        workers: int = 2,
    ) -> Iterator[pd.DataFrame]:
        """Yield one row for each row of the tables, in order.

        The columns are `image_id`, `patient_id`, `lesion_id`, the copied columns, `error`, and
        float32 `e0`, `e1`, ..., which are NaN in rows with an error.
        """
        names = [f"e{i}" for i in range(self.score_width)]
        for batch in run_pipeline(self, tables, images, batch_size, workers):
            cells = {name: batch.cells[name] for name in (*NAMES, *self.columns)}
            texts = pd.DataFrame({**cells, "error": batch.errors}, dtype=object)
            yield pd.concat([texts, pd.DataFrame(batch.scores.astype("f4"), columns=names)], axis=1)
