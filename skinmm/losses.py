"""Losses over logits: each takes the training rows' class counts, and gives a batch's mean."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skinmm.errors import InputError

BINARY: Final = 2

Counts = Int[Tensor, " classes"]
Logits = Float[Tensor, "b classes"]
Targets = Int[Tensor, " b"]
Mean = Float[Tensor, ""]


class Loss(nn.Module, ABC):
    """Base of every loss.

    Attributes:
        weights: what each class is multiplied by, (classes,), for the prior correction.
        corrects: its name where the weights differ, else empty: two corrections are too many.
    """

    weights: Tensor
    corrects: str = ""

    def __init__(self, weights: Float[Tensor, " classes"]) -> None:
        """Keeps the weights."""
        super().__init__()
        # Derived from the cohort, not learned: kept out of the checkpoint.
        self.register_buffer("weights", weights.float(), persistent=False)

    @abstractmethod
    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss: weighted rows over the number of rows."""


class CrossEntropy(Loss):
    """Cross-entropy."""

    def __init__(self, counts: Counts) -> None:
        """Weighs every class alike."""
        super().__init__(torch.ones(len(counts)))

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss."""
        return functional.cross_entropy(logits, target)


class LabelSmoothing(Loss):
    """Cross-entropy against targets that every class has a share of (Szegedy et al. 2016)."""

    def __init__(self, counts: Counts, smoothing: float = 0.1) -> None:
        """Takes the share, 0 to 1, of the target that is spread over all classes; 0 is none."""
        _within("smoothing", smoothing, 1.0)
        super().__init__(torch.ones(len(counts)))
        self.smoothing = smoothing

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss."""
        return functional.cross_entropy(logits, target, label_smoothing=self.smoothing)


class WeightedCrossEntropy(Loss):
    """Cross-entropy with class weights (rows / (classes * count)) ** power."""

    def __init__(self, counts: Counts, power: float = 1.0) -> None:
        """Takes the power: 0 is plain cross-entropy, 1 makes the classes equal, at most 2."""
        _within("power", power, 2.0)
        super().__init__((counts.sum() / (len(counts) * counts.clamp(min=1))) ** power)
        self.corrects = "class weights" if power else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss, weighted rows over the number of rows."""
        rows = functional.cross_entropy(logits, target, reduction="none")
        return (self.weights[target] * rows).mean()


class Focal(Loss):
    """Focal loss (Lin et al. 2017), -alpha (1 - p)^gamma log p of the true class."""

    def __init__(
        self, counts: Counts, gamma: float = 2.0, alpha: float | Sequence[float] | None = None
    ) -> None:
        """Takes the focus and the weights.

        Args:
            counts: rows of each class.
            gamma: focus on hard rows, 0 to 10; 0 is cross-entropy.
            alpha: none, the weight of the last class in a binary task, or one weight a class.
        """
        _within("gamma", gamma, 10.0)
        weights = _alpha(alpha, len(counts))
        super().__init__(weights)
        self.gamma = gamma
        self.corrects = "focal alpha" if weights.max() > weights.min() else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss."""
        log_p = functional.log_softmax(logits.float(), dim=1)
        log_true = log_p.gather(1, target[:, None])[:, 0]
        # expm1 keeps the precision of 1 - p where p is nearly 1; a power's slope at 0 is infinite.
        hardness = (-torch.expm1(log_true)).clamp(min=torch.finfo(log_true.dtype).tiny)
        return -(self.weights[target] * hardness**self.gamma * log_true).mean()


LOSSES: Final[dict[str, type[Loss]]] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": Focal,
}


def _alpha(alpha: float | Sequence[float] | None, classes: int) -> Float[Tensor, " classes"]:
    """One weight a class; none may be 0, as that class would not be learned at all."""
    if alpha is None:
        return torch.ones(classes)
    if isinstance(alpha, int | float):
        if classes != BINARY:
            raise InputError(
                f"loss focal: alpha={alpha} is for two classes; give a list of {classes} weights"
            )
        alpha = [1 - alpha, alpha]
    if len(alpha) != classes:
        raise InputError(f"loss focal: alpha has {len(alpha)} weights for {classes} classes")
    if min(alpha) <= 0:
        raise InputError(f"loss focal: alpha={alpha} gives a class no weight; all must be above 0")
    return torch.tensor(alpha, dtype=torch.float32)


def _within(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise InputError(f"loss argument {name}={value}: must be between 0 and {high:g}")
