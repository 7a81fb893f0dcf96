"""Embedder: the image network of a model as a function from images to vectors, and their search.

An embedding is the output of the image network for the preprocessed image, float32 (dim,); the mean
over positions or tokens if the network passes these on.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Float64, Int64, UInt8
from torch import Tensor, nn

from skinmm import __version__
from skinmm.data.dataset import View
from skinmm.errors import InputError
from skinmm.evaluation.prediction_tables import TRUTH
from skinmm.files import import_parquet
from skinmm.models.backbone import Backbone
from skinmm.models.network import full_precision
from skinmm.predict.backends import TorchBackend
from skinmm.predict.ensemble import CalibratedModel, Ensemble
from skinmm.predict.inputs import Images
from skinmm.predict.pipeline import run_pipeline
from skinmm.vocabulary import Columns, Table

KEY: Final = b"skinmm"  # of the metadata of a file of embeddings
NAMES: Final = ("image_id", "patient_id", "lesion_id")
COMPARED: Final = ("network", "image_size", "icc", "preprocess", "segmenter")
"""Entries of the metadata that two embeddings must share to be compared."""
SIMILAR: Final = 5  # training images that an explanation shows
_QUERIES: Final = 16  # compared with the whole file at a time
_MARGIN: Final = 6.2 * 2**-8
"""Most by which rounding row, query and product to 16 bits can change a difference of cosines."""
_MOST_NEAR: Final = 0.02  # share of rows that is compared again; with more, all are


def pool_tokens(features: Float[Tensor, "n *tokens dim"]) -> Float[Tensor, "n dim"]:
    """Return one vector for each image: the mean over positions or tokens, if there are any."""
    return features.flatten(1, -2).mean(dim=1) if features.ndim > 2 else features  # noqa: PLR2004


class Embedder(Ensemble):
    """Image network with the interface of an ensemble; its scores are embeddings.

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
        self.finder, self.measured_columns, self.relative = None, [], {}
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
        """Return the embedder of a checkpoint with a single network."""
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
        data, columns_of_training = member.config.data, Ensemble([member]).column_names
        names = {p: name for p, name in columns_of_training.items() if name not in TRUTH}
        mapping = (data.args.get("columns") or {}) if data.name == "csv" else {}
        names |= {public: name for name, public in mapping.items() if name in columns}
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
            features = pool_tokens(self._network(batch))
        return features.double().cpu().numpy()

    def unseen_cells(self, rows: Columns) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty mapping: an embedder reads no record, so no value is unknown to it."""
        return {}

    def embed(
        self,
        tables: Iterable[Table],
        images: str | Path | Images | None,
        *,
        batch_size: int = 32,
        workers: int = 2,
    ) -> Iterator[pd.DataFrame]:
        """Yield one embedding row for each row of the tables, in order.

        The columns are `image_id`, `patient_id`, `lesion_id`, the copied columns, `error`, and
        float32 `e0`, `e1`, ..., which are NaN in rows with an error.
        """
        names = [f"e{i}" for i in range(self.score_width)]
        for batch in run_pipeline(self, tables, images, batch_size, workers):
            cells = {name: batch.cells[name] for name in (*NAMES, *self.columns)}
            texts = pd.DataFrame({**cells, "error": batch.errors}, dtype=object)
            yield pd.concat([texts, pd.DataFrame(batch.scores.astype("f4"), columns=names)], axis=1)


class EmbeddingIndex:
    """Embeddings in memory for an exact search by cosine; `table` has the other columns."""

    def __init__(
        self, vectors: Float32[np.ndarray, "n dim"], table: pd.DataFrame, metadata: dict[str, Any]
    ) -> None:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.maximum(lengths, np.finfo(np.float32).tiny)
        self.vectors, self.table, self.metadata = torch.from_numpy(vectors), table, metadata

    @classmethod
    def read(cls, path: Path) -> "EmbeddingIndex":
        """Read a file of `skinmm embed`, without its rows that have an error."""
        parquet = import_parquet(path)
        if not path.is_file():
            raise InputError(f"index={path}: no such file; write it with skinmm embed")
        try:
            file = parquet.ParquetFile(path)
        except (OSError, ValueError) as error:
            raise InputError(f"index={path}: not a Parquet file") from error
        metadata = json.loads((file.schema_arrow.metadata or {}).get(KEY, b"{}"))
        if "network" not in metadata:
            raise InputError(f"index={path}: not written by skinmm embed")
        names = [f"e{i}" for i in range(metadata["dim"])]
        others = [name for name in file.schema_arrow.names if name not in {*names}]
        parts, vectors = [], []
        for number in range(file.num_row_groups):
            group = file.read_row_group(number).to_pandas()
            is_good = (group["error"] == "").to_numpy()
            parts.append(group.loc[is_good, others])
            vectors.append(group.loc[is_good, names].to_numpy(np.float32))
        if not sum(map(len, parts)):
            raise InputError(f"index={path}: no row has an embedding")
        table = pd.concat(parts, ignore_index=True).drop(columns="error")
        return cls(np.concatenate(vectors), table, metadata)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "EmbeddingIndex":
        """Restore the index of a checkpoint, see `to_state`."""
        table = pd.DataFrame({name: state[name] for name in ("image_id", "diagnosis")})
        return cls(state["vectors"].float().numpy(), table, {})

    def to_state(self) -> dict[str, Any]:
        """Return the index as plain data, with vectors of 16 bits."""
        names = {str(name): cells.astype(str).tolist() for name, cells in self.table.items()}
        return {"vectors": self.vectors.half(), **names}

    def require_same_network(self, metadata: Mapping[str, Any]) -> None:
        """Raise InputError if embeddings are of another network or preprocessing."""
        if changed := [key for key in COMPARED if self.metadata.get(key) != metadata.get(key)]:
            pairs = (f"{key} {self.metadata.get(key)} and {metadata.get(key)}" for key in changed)
            raise InputError(
                f"embeddings of the index and of the images differ: {', '.join(pairs)}; use the "
                "checkpoint or model.name of the index"
            )

    def search(
        self, queries: Float32[np.ndarray, "q dim"], count: int
    ) -> tuple[Int64[np.ndarray, "q k"], Float32[np.ndarray, "q k"]]:
        """Return the most similar rows of each query, and their cosines in descending order.

        The time of a single query is that to read the rows from memory. So all are compared in 16
        bits, and in 32 bits those that can be among the most similar in spite of the rounding.
        """
        scaled = nn.functional.normalize(torch.from_numpy(queries), dim=1)
        count = min(count, len(self.vectors))
        blocks = [self._search_block(part, count) for part in torch.split(scaled, _QUERIES)]
        cosines, rows = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return rows.numpy(), cosines.numpy()

    def _search_block(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the highest cosines of each query, and their rows."""
        if len(queries) == 1:
            rough = queries.bfloat16() @ self._rounded.T
            least = rough.topk(count, dim=1).values[0, -1].float() - _MARGIN
            near = (rough[0] >= least).nonzero()[:, 0]
            if count <= len(near) <= _MOST_NEAR * len(self.vectors):
                cosines, best = (queries @ self.vectors[near].T).topk(count, dim=1)
                return cosines, near[best]
        cosines, rows = (queries @ self.vectors.T).topk(count, dim=1)
        return cosines, rows

    @cached_property
    def _rounded(self) -> Tensor:
        return self.vectors.bfloat16()

    def list_similar(self, queries: Float[Tensor, "q dim"], count: int) -> list[dict[str, Any]]:
        """Return the `count` rows with the highest similarity to any of the queries."""
        rows, cosines = self.search(queries.float().cpu().numpy(), count)
        best = dict[int, float]()
        for row, cosine in zip(rows.ravel().tolist(), cosines.ravel().tolist(), strict=True):
            best[row] = max(cosine, best.get(row, cosine))
        names = [str(name) for name in self.table]
        ranked = sorted(best.items(), key=lambda pair: -pair[1])[:count]
        return [
            dict(zip(names, self.table.iloc[row], strict=True)) | {"similarity": round(cosine, 4)}
            for row, cosine in ranked
        ]

    def describe(self, table: pd.DataFrame, count: int) -> pd.DataFrame:
        """Return `count` rows for each row of embeddings, and one for each row with an error."""
        is_good = (table["error"] == "").to_numpy()
        vectors = table.filter(regex=r"^e\d+$").to_numpy(np.float32)[is_good]
        rows, cosines = self.search(np.ascontiguousarray(vectors), count)
        similar = self.table.iloc[rows.ravel()].add_prefix("similar_")
        similar.insert(0, "similarity", cosines.ravel())
        similar.insert(0, "rank", np.tile(np.arange(1, rows.shape[1] + 1), len(rows)))
        repeats = np.where(is_good, rows.shape[1], 1)
        queries = table[["image_id", "error"]].iloc[np.repeat(np.arange(len(table)), repeats)]
        queries = queries.reset_index(drop=True)
        similar.index = queries.index[queries["error"] == ""]
        return queries.join(similar)[["image_id", *similar, "error"]]
