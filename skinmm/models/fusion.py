"""Fusion blocks: combination of the features of image and record.

To add a block, write a class with the contract of `Fusion`, add it to `FUSIONS` and add a YAML file
to `conf/fusion/`; `tests/models/test_fusion.py` checks the contract for every block of the table.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm, logsigmoid

from skinmm.config import Registry
from skinmm.errors import InputError

Features = Float[Tensor, "b _"]
ImageFeatures = Float[Tensor, "b *tokens _"]


class Fusion(nn.Module, ABC):
    """Base class of the fusion blocks.

    The constructor of a block takes `image_dim` and `record_dim`, 0 for a branch that is not used,
    and the arguments that `fusion.args` may set.

    Attributes:
        inputs: branches that the block uses; the other one is not built, read or decoded.
        tokens: if True, image features are (batch, tokens, image_dim), a vector for each position
            of the last feature map, or transformer token; if False, they are pooled, (batch,
            image_dim). Record features are always (batch, record_dim).
        dim: width of the fused features.
    """

    inputs: ClassVar[frozenset[str]] = frozenset({"image", "record"})
    tokens: ClassVar[bool] = False

    def __init__(self, dim: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dim = dim
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Return the fused features, (batch, dim); each row depends on its own inputs only."""

    def head(self, classes: int) -> nn.Module:
        """Return the layer from fused features to logits, (..., dim) -> (..., classes)."""
        return nn.Linear(self.dim, classes)


def _require(features: Tensor | None, name: str) -> Tensor:
    if features is None:
        raise InputError(f"this model needs {name}")
    return features


def _require_both(image: Tensor | None, record: Tensor | None) -> tuple[Tensor, Tensor]:
    return _require(image, "an image"), _require(record, "a record")


class ImageOnly(Fusion):
    """Image features with dropout; the record is not used."""

    inputs = frozenset({"image"})

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        super().__init__(image_dim + record_dim, dropout)

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:  # noqa: ARG002
        """Apply dropout: (batch, image_dim) -> (batch, image_dim)."""
        return self.dropout(_require(image, "an image"))


class TabularOnly(Fusion):
    """Record features; the image is not used."""

    inputs = frozenset({"record"})

    def __init__(self, image_dim: int, record_dim: int) -> None:
        super().__init__(image_dim + record_dim)  # image_dim is 0: the network has no image part

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:  # noqa: ARG002
        """Return the record's features: (batch, record_dim) -> (batch, record_dim)."""
        return _require(record, "a record")


class Concat(Fusion):
    """Concatenation of both feature vectors, with dropout of the image features."""

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        super().__init__(image_dim + record_dim, dropout)

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Concatenate to (batch, image_dim + record_dim): image first, as fitted heads expect."""
        image, record = _require_both(image, record)
        return torch.cat([self.dropout(image), record], dim=1)


class Late(Concat):
    """Late fusion: one head per branch, and a learned convex combination of their probabilities.

    This is the weighted sum rule of Kittler et al. 1998, "On combining classifiers",
    doi:10.1109/34.667881.
    """

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        super().__init__(image_dim, record_dim, dropout)
        self._widths = (image_dim, record_dim)

    def head(self, classes: int) -> nn.Module:
        """Return the two heads with their weight."""
        return _MixtureHead(*self._widths, classes)


class _MixtureHead(nn.Module):
    """Log-probabilities, which serve as logits, of a mixture of two classifiers."""

    def __init__(self, image_dim: int, record_dim: int, classes: int) -> None:
        super().__init__()
        self.widths = [image_dim, record_dim]
        self.image = nn.Linear(image_dim, classes)
        self.record = nn.Linear(record_dim, classes)
        self.balance = nn.Parameter(torch.zeros(()))  # log odds of the image's weight

    def forward(self, features: Float[Tensor, "*b _"]) -> Float[Tensor, "*b classes"]:
        image, record = torch.split(features, self.widths, dim=-1)
        parts = (
            self.image(image).log_softmax(dim=-1) + logsigmoid(self.balance),
            self.record(record).log_softmax(dim=-1) + logsigmoid(-self.balance),
        )
        return torch.stack(parts).logsumexp(dim=0)  # ONNX has no logaddexp


class Gated(Fusion):
    """Gated multimodal unit: for each of `width` features, a learned mean of image and record.

    Arevalo et al. 2017, "Gated multimodal units for information fusion", arXiv:1702.01992. Both
    inputs pass LayerNorm first, so that the scale of no branch saturates the gate.
    """

    def __init__(
        self, image_dim: int, record_dim: int, width: int = 128, dropout: float = 0.3
    ) -> None:
        super().__init__(width, dropout)
        self.norms = nn.ModuleList([nn.LayerNorm(image_dim), nn.LayerNorm(record_dim)])
        self.image = nn.Linear(image_dim, width)
        self.record = nn.Linear(record_dim, width)
        self.gate = nn.Linear(image_dim + record_dim, width)

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Return the weighted mean: (batch, image_dim), (batch, record_dim) -> (batch, width)."""
        image, record = _require_both(image, record)
        image, record = self.dropout(self.norms[0](image)), self.norms[1](record)
        weight = self.gate(torch.cat([image, record], dim=1)).sigmoid()  # (batch, width)
        return weight * self.image(image).tanh() + (1 - weight) * self.record(record).tanh()


class FiLM(Fusion):
    """Feature-wise linear modulation: the record scales and shifts each channel of the image.

    Perez et al. 2018, "FiLM: visual reasoning with a general conditioning layer", arXiv:1709.07871.
    It is applied to the pooled vector; pooling the modulated map is equal, as both are linear.
    """

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        super().__init__(image_dim, dropout)
        self.modulate = nn.Linear(record_dim, 2 * image_dim)

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Modulate the image: (batch, image_dim), (batch, record_dim) -> (batch, image_dim)."""
        image, record = _require_both(image, record)
        scale, shift = self.modulate(record).chunk(2, dim=1)  # each (batch, image_dim)
        return self.dropout(image) * (1 + scale) + shift


class MetaNet(Fusion):
    """Multiplication of each image channel by a factor in (0, 1) computed from the record.

    Li et al. 2020, "Fusing metadata and dermoscopy images for skin disease diagnosis",
    doi:10.1109/ISBI45749.2020.9098645. It is applied to the pooled vector; pooling the scaled
    map is equal. `width` is the width of the hidden layer.
    """

    def __init__(
        self, image_dim: int, record_dim: int, width: int = 128, dropout: float = 0.3
    ) -> None:
        super().__init__(image_dim, dropout)
        self.gate = nn.Sequential(
            nn.Linear(record_dim, width), nn.ReLU(), nn.Linear(width, image_dim), nn.Sigmoid()
        )

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Scale the image: (batch, image_dim), (batch, record_dim) -> (batch, image_dim)."""
        image, record = _require_both(image, record)
        return self.dropout(image) * self.gate(record)


class _BatchNorm(nn.BatchNorm1d):
    """BatchNorm that uses its running statistics for a batch of one row, also in training."""

    def forward(self, features: Features) -> Features:
        if len(features) > 1:
            return super().forward(features)
        statistics = (self.running_mean, self.running_var, self.weight, self.bias)
        return batch_norm(features, *statistics, eps=self.eps)


class MetaBlock(Fusion):
    """LSTM-like gates: the record scales and shifts each image channel; then a hidden layer.

    Pacheco & Krohling 2021, "An attention-based mechanism to combine images and metadata in deep
    learning models applied to skin cancer classification", doi:10.1109/JBHI.2021.3062002, with the
    layers of the authors' networks (github.com/paaatcha/MetaBlock): pooled features, block, linear
    layer of `width` features, BatchNorm, ReLU, dropout. They gate groups of 32 channels together.
    """

    def __init__(
        self, image_dim: int, record_dim: int, width: int = 256, dropout: float = 0.5
    ) -> None:
        super().__init__(width, dropout)
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(record_dim, image_dim), _BatchNorm(image_dim)) for _ in range(2)
        )
        self.reduce = nn.Sequential(
            nn.Linear(image_dim, width), _BatchNorm(width), nn.ReLU(), self.dropout
        )

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Gate and reduce: (batch, image_dim), (batch, record_dim) -> (batch, width)."""
        image, record = _require_both(image, record)
        return self.reduce(((image * self.scale(record)).tanh() + self.shift(record)).sigmoid())


class CrossAttention(Fusion):
    """Attention from the record to the image tokens, concatenated with the mean token.

    Multi-head attention of Vaswani et al. 2017, arXiv:1706.03762, from record to image as in the
    mutual attention of Cai et al. 2023, "A multimodal transformer to fuse images and metadata for
    skin disease classification", doi:10.1007/s00371-022-02492-4. The opposite direction is left
    out: attention to a single record vector would add the same vector to every token. Queries, keys
    and values have the width `width`, a multiple of `heads`.
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
        super().__init__(2 * width, dropout)
        if heads < 1 or width % heads:
            raise InputError(
                f"fusion cross_attention: width={width} must be a multiple of heads={heads}, "
                "and heads at least 1"
            )
        self.image = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, width))
        self.record = nn.Sequential(nn.LayerNorm(record_dim), nn.Linear(record_dim, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Attend: (batch, tokens, image_dim), (batch, record_dim) -> (batch, 2 * width)."""
        image, record = _require_both(image, record)
        tokens, query = self.image(image), self.record(record)  # query: (batch, width)
        attended, _ = self.attention(query[:, None], tokens, tokens, need_weights=False)
        return torch.cat([query + attended[:, 0], self.dropout(tokens.mean(dim=1))], dim=1)


class Bilinear(Fusion):
    """Low-rank bilinear pooling: the elementwise product of two projections.

    Kim et al. 2017, "Hadamard product for low-rank bilinear pooling", arXiv:1610.04325, equation 9;
    the paper's last projection is the head. Both inputs pass LayerNorm first.
    """

    def __init__(
        self, image_dim: int, record_dim: int, rank: int = 128, dropout: float = 0.3
    ) -> None:
        super().__init__(rank)
        self.image = nn.Sequential(
            nn.LayerNorm(image_dim), nn.Dropout(dropout), nn.Linear(image_dim, rank), nn.Tanh()
        )
        self.record = nn.Sequential(
            nn.LayerNorm(record_dim), nn.Linear(record_dim, rank), nn.Tanh()
        )

    def forward(self, image: ImageFeatures | None, record: Features | None) -> Features:
        """Multiply the projections: (batch, image_dim), (batch, record_dim) -> (batch, rank)."""
        image, record = _require_both(image, record)
        return self.image(image) * self.record(record)


FUSIONS: Final[Registry[type[Fusion]]] = Registry(
    "fusion",
    image_only=ImageOnly,
    tabular_only=TabularOnly,
    concat=Concat,
    late=Late,
    gated=Gated,
    film=FiLM,
    metanet=MetaNet,
    metablock=MetaBlock,
    cross_attention=CrossAttention,
    bilinear=Bilinear,
)
"""The fusion blocks by the name that `fusion=` selects."""
