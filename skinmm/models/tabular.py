"""Record encoders: encoded columns of a patient's record -> feature vector.

Every encoder takes `widths`, the number of values that encode each column of the record: 2 for a
number (the value and its missing flag), and for a category the number of its values plus one for
missing or unseen. A record is the concatenation of all columns, (batch, sum(widths)).
"""

from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skinmm.config import Registry
from skinmm.errors import InputError

Record = Float[Tensor, "b columns"]


class Tabular(nn.Module):
    """Base class of the record encoders, (batch, sum(widths)) -> (batch, dim).

    Arguments of the encoders, besides `widths`: `hidden`, the width of each layer, the last one
    that of the feature vector; `width` of each embedding or token; `dropout` in every layer.
    """

    dim: int


class MLP(Tabular):
    """Multilayer perceptron over all columns: linear, LayerNorm, GELU and dropout in each layer."""

    def __init__(
        self, widths: Sequence[int], hidden: Sequence[int] = (64, 64), dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.layers = _layers(sum(widths), hidden, dropout)
        self.dim = hidden[-1]

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encode a batch of records."""
        return self.layers(record)


class Raw(Tabular):
    """The encoded record unchanged, for fitted heads."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.dim = sum(widths)

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Return the batch of records."""
        return record


class Embedding(Tabular):
    """Learned embedding of each column, then a multilayer perceptron over all embeddings.

    Guo & Berkhahn 2016, "Entity embeddings of categorical variables", arXiv:1604.06737; the
    embedding of a number is a linear function of it.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int = 16,
        hidden: Sequence[int] = (64,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.columns = _Columns(widths, width)
        self.layers = _layers(len(widths) * width, hidden, dropout)
        self.dim = hidden[-1]

    def forward(self, record: Record) -> Float[Tensor, "b dim"]:
        """Encode a batch of records."""
        return self.layers(self.columns(record).flatten(1))


class FTTransformer(Tabular):
    """Transformer over one token for each column and a class token.

    Gorishniy et al. 2021, "Revisiting deep learning models for tabular data", arXiv:2106.11959;
    with GELU instead of ReGLU. `heads`, the number of attention heads, divides `width`.
    """

    def __init__(
        self,
        widths: Sequence[int],
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
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
        """Encode a batch of records: return the class token of the last layer."""
        # shape[0]: len() would fix the batch size in ONNX.
        summary = self.summary.expand(record.shape[0], 1, -1)
        tokens: Tensor = self.layers(torch.cat([summary, self.columns(record)], dim=1))
        return tokens[:, 0]


class _Columns(nn.Module):
    """Linear embedding of each column; for a category it is a row of the weight matrix."""

    def __init__(self, widths: Sequence[int], width: int) -> None:
        super().__init__()
        self.widths = list(widths)
        self.each = nn.ModuleList(nn.Linear(block, width) for block in widths)

    def forward(self, record: Record) -> Float[Tensor, "b n_columns width"]:
        columns = zip(self.each, torch.split(record, self.widths, dim=1), strict=True)
        return torch.stack([layer(column) for layer, column in columns], dim=1)


TABULAR: Final[Registry[type[Tabular]]] = Registry(
    "tabular", mlp=MLP, raw=Raw, embedding=Embedding, ft_transformer=FTTransformer
)
"""The record encoders by the name that `tabular=` selects."""


def _layers(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    if not hidden:
        raise InputError("tabular argument hidden=[]: give the width of at least one layer")
    layers: list[nn.Module] = []
    for before, after in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)
