"""How image and record become one vector: the fusion contract and every block.

- `inputs` names what the block uses; what it does not name is neither built, read nor decoded;
- the constructor takes `image_dim` and `record_dim` (0 where unused) and its own arguments;
- `forward(image, record)` gives (batch, `dim`), each row from its own row alone.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skinmm.errors import InputError

Features = Float[Tensor, "b _"]


class Fusion(nn.Module, ABC):
    """Base of every block; see the module's contract."""

    inputs: ClassVar[frozenset[str]]
    dim: int

    @abstractmethod
    def forward(self, image: Features | None, record: Features | None) -> Features:
        """Fuses the features of a batch.

        Raises:
            InputError: one of `inputs` is None.
        """


class ImageOnly(Fusion):
    """The image's features alone: the baseline that fusion has to beat."""

    inputs = frozenset({"image"})

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Takes both widths, as every block; the record's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        image: Features | None,
        record: Features | None,  # noqa: ARG002
    ) -> Features:
        """Passes the image's features on."""
        return self.dropout(_given(image, "an image"))


class TabularOnly(Fusion):
    """The record's features alone: no image is asked for."""

    inputs = frozenset({"record"})

    def __init__(self, image_dim: int, record_dim: int) -> None:
        """Takes both widths, as every block; the image's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim

    def forward(
        self,
        image: Features | None,  # noqa: ARG002
        record: Features | None,
    ) -> Features:
        """Passes the record's features on."""
        return _given(record, "a record")


class Concat(Fusion):
    """Both feature vectors side by side, with dropout on the image's."""

    inputs = frozenset({"image", "record"})

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Adds up the widths."""
        super().__init__()
        self.dim = image_dim + record_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Features | None, record: Features | None) -> Features:
        """Concatenates."""
        return torch.cat(
            [self.dropout(_given(image, "an image")), _given(record, "a record")], dim=1
        )


FUSIONS: Final[dict[str, type[Fusion]]] = {
    "image_only": ImageOnly,
    "tabular_only": TabularOnly,
    "concat": Concat,
}


def _given(features: Features | None, what: str) -> Features:
    if features is None:
        raise InputError(f"this model needs {what}")
    return features
