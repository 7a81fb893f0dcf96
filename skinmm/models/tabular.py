"""The record branch: the encoded columns of a patient's record in, one feature vector out.

Every encoder is built from `widths`, the width of each column's block in the encoded record
(a number and its missing flag: 2; a category: its values and one slot for missing or unseen).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skinmm.errors import InputError

Record = Float[Tensor, "b columns"]


class Tabular(nn.Module, ABC):
    """Base of every encoder.

    Attributes:
        dim: width of the feature vector.
    """

    dim: int

    @abstractmethod
    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encodes a batch of encoded records."""


class MLP(Tabular):
    """Layers of linear, LayerNorm, GELU and dropout over the concatenated columns."""

    def __init__(
        self, widths: Sequence[int], hidden: Sequence[int] = (64, 64), dropout: float = 0.1
    ) -> None:
        """Builds the layers.

        Args:
            widths: width of each column's block.
            hidden: width of each layer; the last is the feature vector's.
            dropout: after every layer.

        Raises:
            InputError: no layer.
        """
        super().__init__()
        self.layers = _layers(sum(widths), hidden, dropout)
        self.dim = hidden[-1]

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encodes a batch of encoded records."""
        features: Tensor = self.layers(record)
        return features


class Embedding(Tabular):
    """A learned vector for each column's value, then layers over all of them.

    Guo & Berkhahn 2016, "Entity embeddings of categorical variables", arXiv:1604.06737; a number's
    vector is a linear function of it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int = 16,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.1,
    ) -> None:
        """Builds the embeddings and the layers.

        Args:
            widths: width of each column's block.
            width: of each column's vector.
            hidden: width of each layer; the last is the feature vector's.
            dropout: after every layer.

        Raises:
            InputError: no layer.
        """
        super().__init__()
        self.columns = _Columns(widths, width)
        self.layers = _layers(len(widths) * width, hidden, dropout)
        self.dim = hidden[-1]

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encodes a batch of encoded records."""
        features: Tensor = self.layers(self.columns(record).flatten(1))
        return features


class FTTransformer(Tabular):
    """Every column a token, a class token beside them, and pre-norm transformer layers.

    Gorishniy et al. 2021, "Revisiting deep learning models for tabular data", arXiv:2106.11959;
    with GELU for ReGLU.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        """Builds the layers.

        Args:
            widths: width of each column's block.
            width: of every token, and of the feature vector.
            layers: 1 or more.
            heads: they share the width evenly.
            dropout: in every layer.

        Raises:
            InputError: a width that the heads do not divide, or no layer.
        """
        super().__init__()
        if heads < 1 or width % heads or layers < 1:
            raise InputError(
                f"tabular ft_transformer: width={width} must be a multiple of heads={heads}, and "
                f"layers={layers} at least 1"
            )
        self.dim = width
        self.columns = _Columns(widths, width)
        self.summary = nn.Parameter(torch.randn(width) / width**0.5)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout, "gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(width)
        self.layers = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encodes a batch of encoded records: what the class token has become."""
        summary = self.summary.expand(record.shape[0], 1, -1)  # len would be fixed in ONNX
        tokens: Tensor = self.layers(torch.cat([summary, self.columns(record)], dim=1))
        return tokens[:, 0]


class _Columns(nn.Module):
    """A vector for each column: of a category a row of a table, of a number a linear function."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.each = nn.ModuleList(nn.Linear(block, width) for block in widths)

    def forward(self, record: Record) -> Float[Tensor, "b blocks width"]:
        blocks = torch.split(record, self.widths, dim=1)
        return torch.stack(
            [layer(block) for layer, block in zip(self.each, blocks, strict=True)], dim=1
        )


TABULAR: Final[dict[str, type[Tabular]]] = {
    "mlp": MLP,
    "embedding": Embedding,
    "ft_transformer": FTTransformer,
}


def _layers(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    if not hidden:
        raise InputError("tabular argument hidden=[]: give the width of one layer or more")
    layers: list[nn.Module] = []
    for before, after in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
