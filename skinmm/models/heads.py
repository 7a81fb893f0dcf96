"""Heads of the network: a neural layer, or a model fitted to fixed features.

A fitted head is a module of arrays, so that prediction, calibration, ONNX and the service run it
like any layer. `skinmm.training.fitted_heads` fits it.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from skinmm.config import Registry
from skinmm.errors import InputError
from skinmm.models.fusion import Fusion

ABSENT: Final = -100.0
"""Logit of a class without a training row."""
_ADVICE: Final = {
    "image.": "set model.freeze=true",
    "record.": "set tabular=raw",
    "views.": "choose views=mean or max",
    "fusion.": "choose fusion=image_only, tabular_only or concat",
    "absent": "set model.drop_image=0",
}


def build_neural(fusion: Fusion, classes: int, image_dim: int) -> nn.Module:  # noqa: ARG001
    """Return the fusion block's default head, a module trained by gradients."""
    return fusion.head(classes)


class LinearHead(nn.Linear):
    """Multinomial logistic regression on standardised features.

    Image features are reduced to principal components first. All steps are linear, so the weights
    contain them.

    The features are `image_dim` of the image (0 without one), then the encoded record; there are at
    most `components` principal components.
    """

    def __init__(self, fusion: Fusion, classes: int, image_dim: int, components: int = 256) -> None:
        _require_plain(fusion, components)
        super().__init__(fusion.dim, classes)
        self.image_dim, self.components = image_dim, components
        self.requires_grad_(requires_grad=False)


class TreeHead(nn.Module):
    """Gradient-boosted trees on the principal components of the image features and the record.

    The trees are arrays with an entry for each node. A row moves from node to node of all trees at
    the same time; a leaf leads to itself. The checkpoint decides the lengths of the arrays.

    Args:
        fusion: block whose features are the input: first of the image, then the encoded record.
        classes: number of classes.
        image_dim: width of the image features, 0 without an image.
        components: largest number of principal components of the image features.
        rounds: largest number of boosting rounds, each with a tree for each class.
        learning_rate: factor of the values of each tree.

    Attributes:
        mean, axes: of the principal components, (image_dim,) and (components, image_dim).
        roots: root of each tree, the trees of a round next to each other.
        feature, threshold, left, right, value: of each node.
        spread: (outputs, classes), from the sums of the trees to the logits.
        offset: logits before the first tree, (classes,).
    """

    mean: Tensor
    axes: Tensor
    roots: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    spread: Tensor
    offset: Tensor
    depth: Tensor

    def __init__(
        self,
        fusion: Fusion,
        classes: int,
        image_dim: int,
        components: int = 32,
        rounds: int = 200,
        learning_rate: float = 0.05,
    ) -> None:
        _require_plain(fusion, components)
        super().__init__()
        self.image_dim, self.components = image_dim, components
        self.rounds, self.learning_rate = rounds, learning_rate
        numbers = {"roots": 0, "feature": 0, "left": 0, "right": 0, "depth": 1}
        for name, length in numbers.items():
            self.register_buffer(name, torch.zeros(length, dtype=torch.int64))
        shapes = {"mean": (image_dim,), "axes": (0, image_dim), "threshold": (0,), "value": (0,)}
        for name, shape in {**shapes, "spread": (1, classes), "offset": (classes,)}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self._depth = 0

    def forward(self, features: Float[Tensor, "*b dim"]) -> Float[Tensor, "*b classes"]:
        """Return the logits of rows of features."""
        rows = self.reduce(features.reshape(-1, features.shape[-1]))
        logits = self.sum_trees(rows) @ self.spread + self.offset
        return logits.to(features.dtype).reshape(*features.shape[:-1], -1)

    def reduce(self, features: Float[Tensor, "n dim"]) -> Float64[Tensor, "n columns"]:
        """Replace the image features by their principal components; keep the record features."""
        if not self.image_dim:
            return features.double()
        image, record = features[:, : self.image_dim], features[:, self.image_dim :]
        return torch.cat([(image.double() - self.mean) @ self.axes.T, record.double()], dim=1)

    def sum_trees(self, rows: Float64[Tensor, "n columns"]) -> Float64[Tensor, "n outputs"]:
        """Return the sums of the trees' values."""
        nodes = self.roots.expand(rows.shape[0], -1)  # len() would fix the batch size in ONNX
        for _ in range(self._depth):
            is_left = rows.gather(1, self.feature[nodes]) <= self.threshold[nodes]
            nodes = torch.where(is_left, self.left[nodes], self.right[nodes])
        return self.value[nodes].reshape(rows.shape[0], -1, len(self.spread)).sum(dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        for name, buffer in self.named_buffers(recurse=False):
            stored = state_dict.get(f"{prefix}{name}")
            if stored is not None and stored.ndim == buffer.ndim:
                self.register_buffer(name, torch.zeros_like(stored, dtype=buffer.dtype))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._depth = int(self.depth)


FittedHead = LinearHead | TreeHead

HEADS: Final[Registry[Callable[..., nn.Module]]] = Registry(
    "head", neural=build_neural, linear=LinearHead, boosting=TreeHead
)
"""The heads by the name that `head=` selects."""


def require_fixed_features(network: nn.Module, head: str) -> None:
    """Raise InputError if a fitted head would get features that depend on trained weights."""
    names = [name for name, value in network.named_parameters() if value.requires_grad]
    for prefix, advice in _ADVICE.items():
        if any(name.startswith(prefix) for name in names):
            raise InputError(
                f"head={head}: fitted to features that stay the same, and "
                f"{prefix.rstrip('.')} has weights to train; {advice}, or use head=neural"
            )


def _require_plain(fusion: Fusion, components: int) -> None:
    if type(fusion).head is not Fusion.head:
        raise InputError(f"this fusion block has a head of its own; {_ADVICE['fusion.']}")
    if components < 1:
        raise InputError(f"components={components}: must be at least 1")
