"""What every fusion block answers.

- `inputs` names what the block uses; what it does not name is neither built, read nor decoded;
- `tokens` says whether the image comes as one vector or as a vector a place (of a convolutional
  network's last map, or a transformer's tokens);
- the constructor takes `image_dim` and `record_dim` (0 where unused) and its own arguments;
- `forward(image, record)` gives (batch, `dim`), each row from its own row alone;
- `head(classes)` makes what turns that into logits.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from skinmm.errors import InputError

Features = Float[Tensor, "b _"]
Seen = Float[Tensor, "b *places _"]


class Fusion(nn.Module, ABC):
    """Base of every block; see the module's contract."""

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "record"})
    tokens: ClassVar[bool] = False
    dim: int

    @abstractmethod
    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Fuses the features of a batch.

        Raises:
            InputError: one of `inputs` is None.
        """

    def head(self, classes: int) -> nn.Module:
        """A linear layer, unless the block keeps its branches apart to the end."""
        return nn.Linear(self.dim, classes)


def both(image: Seen | None, record: Features | None) -> tuple[Tensor, Tensor]:
    """Image and record.

    Raises:
        InputError: one of them is None.
    """
    return given(image, "an image"), given(record, "a record")


def given(features: Tensor | None, what: str) -> Tensor:
    """Features that are there.

    Raises:
        InputError: they are not.
    """
    if features is None:
        raise InputError(f"this model needs {what}")
    return features
