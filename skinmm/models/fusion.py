"""What every fusion block answers.

- `inputs` names what the block uses; what it does not name is neither built, read nor decoded;
- `tokens` says whether the image comes as one vector or as a vector a place (of a convolutional
  network's last map, or a transformer's tokens);
- the constructor takes `image_dim` and `record_dim` (0 where unused) and its own arguments;
- `forward(image, record)` gives (batch, `dim`), each row from its own row alone;
- `head(classes)` makes what turns that into logits.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

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


class ImageOnly(Fusion):
    """The image's features alone."""

    inputs = frozenset({"image"})

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Takes both widths, as every block; the record's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Seen | None, record: Features | None) -> Features:  # noqa: ARG002
        """Passes the image's features on."""
        return self.dropout(given(image, "an image"))


class TabularOnly(Fusion):
    """The record's features alone: no image is asked for."""

    inputs = frozenset({"record"})

    def __init__(self, image_dim: int, record_dim: int) -> None:
        """Takes both widths, as every block; the image's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim

    def forward(self, image: Seen | None, record: Features | None) -> Features:  # noqa: ARG002
        """Passes the record's features on."""
        return given(record, "a record")


class Concat(Fusion):
    """Both feature vectors side by side, with dropout on the image's."""

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Adds up the widths."""
        super().__init__()
        self.dim = image_dim + record_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Concatenates."""
        pixels, columns = both(image, record)
        return torch.cat([self.dropout(pixels), columns], dim=1)


class Late(Concat):
    """A head for each branch, and a learned convex combination of their probabilities.

    The weighted sum rule of Kittler et al. 1998, "On combining classifiers", doi:10.1109/34.667881.
    """

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Keeps the widths for the head."""
        super().__init__(image_dim, record_dim, dropout)
        self._widths = (image_dim, record_dim)

    def head(self, classes: int) -> nn.Module:
        """The two heads and their weight."""
        return _Mixture(*self._widths, classes)


class _Mixture(nn.Module):
    """Log-probabilities of the mixture, which are logits; the weight starts at one half."""

    def __init__(self, image_dim: int, record_dim: int, classes: int) -> None:
        super().__init__()
        self.widths = [image_dim, record_dim]
        self.image = nn.Linear(image_dim, classes)
        self.record = nn.Linear(record_dim, classes)
        self.balance = nn.Parameter(torch.zeros(()))  # log odds of the image's weight

    def forward(self, features: Float[Tensor, "*b _"]) -> Float[Tensor, "*b classes"]:
        pixels, columns = torch.split(features, self.widths, dim=-1)
        parts = (
            self.image(pixels).log_softmax(dim=-1) + logsigmoid(self.balance),
            self.record(columns).log_softmax(dim=-1) + logsigmoid(-self.balance),
        )
        return torch.stack(parts).logsumexp(dim=0)  # ONNX has no logaddexp


class Gated(Fusion):
    """Gated multimodal unit: a learned share of each, feature by feature.

    Arevalo et al. 2017, "Gated multimodal units for information fusion", arXiv:1702.01992; with
    LayerNorm on both inputs, so that no network's scale saturates the gate.
    """

    def __init__(
        self, image_dim: int, record_dim: int, width: int = 128, dropout: float = 0.3
    ) -> None:
        """Takes the width of the output and the dropout on the image."""
        super().__init__()
        self.dim = width
        self.norms = nn.ModuleList([nn.LayerNorm(image_dim), nn.LayerNorm(record_dim)])
        self.dropout = nn.Dropout(dropout)
        self.image = nn.Linear(image_dim, width)
        self.record = nn.Linear(record_dim, width)
        self.gate = nn.Linear(image_dim + record_dim, width)

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Mixes the two, each through tanh."""
        given = both(image, record)
        pixels, columns = (norm(each) for norm, each in zip(self.norms, given, strict=True))
        pixels = self.dropout(pixels)
        share = self.gate(torch.cat([pixels, columns], dim=1)).sigmoid()
        return share * self.image(pixels).tanh() + (1 - share) * self.record(columns).tanh()


class FiLM(Fusion):
    """Feature-wise linear modulation: the record scales and shifts each channel.

    Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer", arXiv:1709.07871.
    On the pooled vector, where it is what it would be on the map: pooling is linear too.
    """

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Takes the dropout on the image."""
        super().__init__()
        self.dim = image_dim
        self.dropout = nn.Dropout(dropout)
        self.modulate = nn.Linear(record_dim, 2 * image_dim)

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Scales by one and a little, and shifts."""
        pixels, columns = both(image, record)
        scale, shift = self.modulate(columns).chunk(2, dim=1)
        return self.dropout(pixels) * (1 + scale) + shift


class MetaNet(Fusion):
    """The record opens and closes each channel by a factor between 0 and 1.

    Li et al. 2020, "Fusing metadata and dermoscopy images for skin disease diagnosis",
    doi:10.1109/ISBI45749.2020.9098645. On the pooled vector, where it is what it would be on the
    map: pooling is linear.
    """

    def __init__(
        self, image_dim: int, record_dim: int, width: int = 128, dropout: float = 0.3
    ) -> None:
        """Takes the width of the hidden layer and the dropout on the image."""
        super().__init__()
        self.dim = image_dim
        self.dropout = nn.Dropout(dropout)
        self.gate = nn.Sequential(
            nn.Linear(record_dim, width), nn.ReLU(), nn.Linear(width, image_dim), nn.Sigmoid()
        )

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Multiplies."""
        pixels, columns = both(image, record)
        opened: Features = self.dropout(pixels) * self.gate(columns)
        return opened


class MetaBlock(Fusion):
    """The record scales and shifts the image's map as an LSTM's gates would, then it is pooled.

    Pacheco & Krohling 2021, "An attention-based mechanism to combine images and metadata in deep
    learning models applied to skin cancer classification", doi:10.1109/JBHI.2021.3062002; with
    LayerNorm for BatchNorm, so that a patient's output does not hang on the batch.
    """

    tokens = True

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Takes the dropout on the output."""
        super().__init__()
        self.dim = image_dim
        self.dropout = nn.Dropout(dropout)
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(record_dim, image_dim), nn.LayerNorm(image_dim))
            for _ in range(2)
        )

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """sigmoid(tanh(scale * map) + shift), averaged over the map."""
        pixels, columns = both(image, record)
        scale, shift = self.scale(columns)[:, None], self.shift(columns)[:, None]
        return self.dropout(((pixels * scale).tanh() + shift).sigmoid().mean(dim=1))


class CrossAttention(Fusion):
    """The record's vector attends to the image's places, beside their mean.

    Multi-head attention of Vaswani et al. 2017, arXiv:1706.03762, from record to image as in the
    mutual attention of Cai et al. 2023, "A multimodal transformer to fuse images and metadata for
    skin disease classification", doi:10.1007/s00371-022-02492-4. The way back, from one record to
    many places, would add the same to each and is left out.
    """

    tokens = True

    def __init__(
        self,
        image_dim: int,
        record_dim: int,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.3,
    ) -> None:
        """Takes the shape of the attention.

        Args:
            image_dim: of each place.
            record_dim: of the record.
            width: of queries, keys and values; the output is twice as wide.
            heads: they share the width evenly.
            dropout: on the places' mean.

        Raises:
            InputError: a width that the heads do not divide.
        """
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"fusion cross_attention: width={width} is not divided by {heads=}")
        self.dim = 2 * width
        self.image = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, width))
        self.record = nn.Sequential(nn.LayerNorm(record_dim), nn.Linear(record_dim, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """The record with what it found, and the places' mean."""
        pixels, columns = both(image, record)
        places, query = self.image(pixels), self.record(columns)
        found, _ = self.attention(query[:, None], places, places, need_weights=False)
        return torch.cat([query + found[:, 0], self.dropout(places.mean(dim=1))], dim=1)


class Bilinear(Fusion):
    """Low-rank bilinear pooling: the product of two projections, feature by feature.

    Kim et al. 2017, "Hadamard product for low-rank bilinear pooling", arXiv:1610.04325, equation 9;
    the paper's last projection is the head. With LayerNorm on both inputs.
    """

    def __init__(
        self, image_dim: int, record_dim: int, rank: int = 128, dropout: float = 0.3
    ) -> None:
        """Takes the rank, which is the width of the output, and the dropout on the image."""
        super().__init__()
        self.dim = rank
        self.image = nn.Sequential(
            nn.LayerNorm(image_dim), nn.Dropout(dropout), nn.Linear(image_dim, rank), nn.Tanh()
        )
        self.record = nn.Sequential(
            nn.LayerNorm(record_dim), nn.Linear(record_dim, rank), nn.Tanh()
        )

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """Multiplies the projections."""
        pixels, columns = both(image, record)
        fused: Features = self.image(pixels) * self.record(columns)
        return fused


__all__ = ["FUSIONS", "Fusion"]

FUSIONS: Final[dict[str, type[Fusion]]] = {
    "image_only": ImageOnly,
    "tabular_only": TabularOnly,
    "concat": Concat,
    "late": Late,
    "gated": Gated,
    "film": FiLM,
    "metanet": MetaNet,
    "metablock": MetaBlock,
    "cross_attention": CrossAttention,
    "bilinear": Bilinear,
}
