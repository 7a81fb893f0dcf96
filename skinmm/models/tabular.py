"""The record branch: the encoded columns of a patient's record in, one feature vector out.

Every encoder is built from `widths`, the width of each column's block in the encoded record
(a number and its missing flag: 2; a category: its values and one slot for missing or unseen).
"""

from collections.abc import Sequence
from typing import Final

from jaxtyping import Float
from torch import Tensor, nn

from skinmm.errors import InputError


class MLP(nn.Module):
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
        if not hidden:
            raise InputError("tabular argument hidden=[]: give the width of one layer or more")
        layers: list[nn.Module] = []
        for before, after in zip((sum(widths), *hidden), hidden, strict=False):
            layers += [
                nn.Linear(before, after),
                nn.LayerNorm(after),
                nn.GELU(),
                nn.Dropout(dropout),
            ]
        self.layers = nn.Sequential(*layers)
        self.dim = hidden[-1]

    def forward(self, record: Float[Tensor, "b columns"]) -> Float[Tensor, "b dim"]:
        """Encodes a batch of encoded records."""
        features: Tensor = self.layers(record)
        return features


TABULAR: Final[dict[str, type[MLP]]] = {"mlp": MLP}
