"""Blocks that combine the images of a lesion: features of views -> features of the lesion.

They stand between the image encoder and the fusion block if `data.unit=lesion`. To add a block,
write a class with the contract of `Views`, add it to `VIEWS` and add a YAML file to `conf/views/`;
`tests/models/test_views.py` checks the contract for every block of the table.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from skinmm.config import Registry
from skinmm.vocabulary import VIEW_TYPES

Features = Float[Tensor, "b views *tokens dim"]
Types = Int[Tensor, "b views"]
Combined = Float[Tensor, "b *tokens _"]


class Views(nn.Module, ABC):
    """Base class of the blocks.

    The constructor takes `image_dim`, the width of the features of an image, and the arguments
    that `views.args` may set.

    Attributes:
        dim: width of the features of a lesion.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    @abstractmethod
    def forward(self, features: Features, types: Types) -> Combined:
        """Combine the views of each lesion.

        Args:
            features: of each view, (batch, views, *tokens, image_dim).
            types: code of each view in `VIEW_TYPES`, (batch, views); 0: no image, ignored.

        Returns:
            Features, (batch, *tokens, dim), that do not depend on the order of views, nor on
            places without an image. A lesion without any image has finite features.
        """


class Mean(Views):
    """Mean over the views."""

    def __init__(self, image_dim: int) -> None:
        super().__init__(image_dim)

    def forward(self, features: Features, types: Types) -> Combined:
        """Average: (batch, views, *tokens, dim) -> (batch, *tokens, dim)."""
        return _average(features, types > 0)


class Max(Views):
    """Maximum of each feature over the views."""

    def __init__(self, image_dim: int) -> None:
        super().__init__(image_dim)

    def forward(self, features: Features, types: Types) -> Combined:
        """Take the maximum: (batch, views, *tokens, dim) -> (batch, *tokens, dim)."""
        present = _align(types > 0, features)
        highest = features.masked_fill(~present, torch.finfo(features.dtype).min).amax(dim=1)
        return torch.where(present.any(dim=1), highest, torch.zeros_like(highest))


class Attention(Views):
    """Mean of the views with weights learned from their content.

    Ilse et al. 2018, "Attention-based deep multiple instance learning", arXiv:1802.04712, equation
    8. `width` is that of the hidden layer. Features pass LayerNorm before the weights.
    """

    def __init__(self, image_dim: int, width: int = 128) -> None:
        super().__init__(image_dim)
        self.hidden = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, width), nn.Tanh())
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, features: Features, types: Types) -> Combined:
        """Weigh: (batch, views, *tokens, dim) -> (batch, *tokens, dim)."""
        return (features * _align(self.weigh(features, types), features)).sum(dim=1)

    def weigh(self, features: Features, types: Types) -> Float[Tensor, "b views"]:
        """Return the weight of each view; they sum to 1 over a lesion, or to 0 without an image."""
        content = features.flatten(2, -2).mean(dim=2) if features.ndim > 3 else features  # noqa: PLR2004
        scores = self._score(content, types).squeeze(-1)
        lowest = torch.finfo(scores.dtype).min
        present = types > 0
        return scores.masked_fill(~present, lowest).softmax(dim=1) * present

    def _score(self, content: Float[Tensor, "b views dim"], types: Types) -> Tensor:  # noqa: ARG002
        return self.score(self.hidden(content))


class Gated(Attention):
    """Mean of the views with weights gated by their content and type.

    Equation 9 of Ilse et al. 2018, with an embedding of the type of the view added to the gate.
    """

    def __init__(self, image_dim: int, width: int = 128) -> None:
        super().__init__(image_dim, width)
        self.gate = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, width))
        self.kind = nn.Embedding(len(VIEW_TYPES), width)

    def _score(self, content: Float[Tensor, "b views dim"], types: Types) -> Tensor:
        gate = (self.gate(content) + self.kind(types)).sigmoid()
        return self.score(self.hidden(content) * gate)


class Typed(Views):
    """Concatenation of one projection per type of view.

    Views of one type are averaged; a learned vector stands in for a type without an image. `width`
    is that of each projection.
    """

    def __init__(self, image_dim: int, width: int = 128) -> None:
        types = VIEW_TYPES[1:]
        super().__init__(len(types) * width)
        self.projections = nn.ModuleList(nn.Linear(image_dim, width) for _ in types)
        self.absent = nn.Parameter(torch.randn(len(types), width) / 10)

    def forward(self, features: Features, types: Types) -> Combined:
        """Project: (batch, views, *tokens, image_dim) -> (batch, *tokens, dim)."""
        parts = []
        for code, (project, absent) in enumerate(zip(self.projections, self.absent, strict=True)):
            is_type = types == code + 1
            projected = project(_average(features, is_type))
            present = _align(is_type.any(dim=1), projected)
            parts.append(torch.where(present, projected, absent.to(projected.dtype)))
        return torch.cat(parts, dim=-1)


VIEWS: Final[Registry[type[Views]]] = Registry(
    "views", mean=Mean, max=Max, attention=Attention, gated=Gated, typed=Typed
)
"""The blocks by the name that `views=` selects."""


def encode_views(
    encode: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "b views 3 h w"],
    types: Types | None,
) -> Features:
    """Encode the images of lesions; the features of absent views are 0.

    Args:
        encode: image encoder, (n, 3, height, width) -> (n, *tokens, dim).
        images: uint8 RGB.
        types: code of each view; None: all are present.
    """
    shape = images.shape[:2]
    if types is None or torch.onnx.is_in_onnx_export():
        features = encode(images.flatten(0, 1))
        return features.view(*shape, *features.shape[1:])
    used = types > 0
    used[:, 0] |= ~used.any(dim=1)  # never an empty batch, which BatchNorm refuses
    values = encode(images[used])
    features = values.new_zeros((*shape, *values.shape[1:]))
    features[used] = values
    return features * _align(types > 0, features)


def _align(values: Tensor, features: Tensor) -> Tensor:
    """Append dimensions to values until they broadcast against features."""
    return values.reshape(*values.shape, *[1] * (features.ndim - values.ndim))


def _average(features: Features, used: Bool[Tensor, "b views"]) -> Combined:
    """Return the mean over the present views; 0 without a view."""
    total = (features * _align(used, features)).sum(dim=1)
    count = used.sum(dim=1).clamp(min=1)
    return total / _align(count, total)
