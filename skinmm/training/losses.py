"""Losses over logits: each takes the training rows' class counts, and gives a batch's mean."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
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
        weights: what each class is multiplied by, (classes,), for the prior correction. What else
            a loss does to favour a class has no closed form, and is left to calibration.
        corrects: its name where it favours a class, else empty: two corrections are too many.
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
        log_true = _log_true(logits, target)
        return -(self.weights[target] * _hardness(log_true) ** self.gamma * log_true).mean()


class LDAM(Loss):
    """Cross-entropy with a margin for each class, the wider the fewer its rows (Cao et al. 2019).

    "Learning imbalanced datasets with label-distribution-aware margin loss", arXiv:1906.07413.
    """

    margins: Tensor

    def __init__(self, counts: Counts, margin: float = 0.5, scale: float = 1.0) -> None:
        """Takes margins and scale.

        Args:
            counts: rows of each class.
            margin: of the rarest class, 0 to 10; the others' fall with the fourth root of their
                rows. 0 is cross-entropy.
            scale: of the logits, above 0 to 100. The paper's 30 goes with a head of unit vectors,
                whose logits are cosines; a linear head finds its own scale.
        """
        _within("margin", margin, 10.0)
        _within("scale", scale, 100.0)
        if scale == 0:
            raise InputError("loss argument scale=0: must be above 0")
        super().__init__(torch.ones(len(counts)))
        present = counts > 0
        widths = torch.where(present, counts.clamp(min=1).float() ** -0.25, 0)
        margins = margin * widths / widths.max().clamp(min=torch.finfo(widths.dtype).tiny)
        self.register_buffer("margins", margins, persistent=False)
        self.scale = scale
        unequal = len(set(margins[present].tolist())) > 1
        self.corrects = "LDAM margins" if unequal else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss."""
        own = functional.one_hot(target, logits.shape[1]) * self.margins
        return functional.cross_entropy(self.scale * (logits - own), target)


class Asymmetric(Loss):
    """Asymmetric loss: easy rows of the commonest class fade away (Ridnik et al. 2021).

    The commonest class is the paper's negative, at its focus and with its margin; every other is
    positive. For two classes this is the paper's loss of the difference of the logits.
    "Asymmetric loss for multi-label classification", arXiv:2009.14119.
    """

    gammas: Tensor
    margins: Tensor

    def __init__(
        self,
        counts: Counts,
        gamma_negative: float = 4.0,
        gamma_positive: float = 1.0,
        margin: float = 0.05,
    ) -> None:
        """Takes the foci and the margin; all 0 is cross-entropy.

        Args:
            counts: rows of each class.
            gamma_negative: focus on the hard rows of the commonest class, 0 to 10.
            gamma_positive: focus on the hard rows of the others, 0 to 10.
            margin: a row of the commonest class costs nothing once its other classes' probability
                is below it, 0 to 1.
        """
        _within("gamma_negative", gamma_negative, 10.0)
        _within("gamma_positive", gamma_positive, 10.0)
        _within("margin", margin, 1.0)
        super().__init__(torch.ones(len(counts)))
        negative = torch.arange(len(counts)) == counts.argmax()
        gammas = torch.where(negative, gamma_negative, gamma_positive)
        self.register_buffer("gammas", gammas, persistent=False)
        self.register_buffer("margins", torch.where(negative, margin, 0.0), persistent=False)
        unequal = gamma_negative != gamma_positive or margin > 0
        self.corrects = "asymmetric focus" if unequal else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """The batch's mean loss."""
        shifted = torch.logaddexp(_log_true(logits, target), self.margins[target].log())
        log_true = shifted.clamp(max=0)
        return -(_hardness(log_true) ** self.gammas[target] * log_true).mean()


LOSSES: Final[dict[str, type[Loss]]] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": Focal,
    "ldam": LDAM,
    "asymmetric": Asymmetric,
}


def dice_bce(logits: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Mean:
    """Cross-entropy of pixels and soft Dice of pictures, added, in 32 bit.

    Dice as in Milletari et al. 2016 (arXiv:1606.04797), with a pixel added above and below, so that
    a picture without a lesion has one.
    """
    logits, truth = logits.float(), mask.float()
    shown = logits.sigmoid()
    overlap, area = (shown * truth).sum(dim=(1, 2)), (shown + truth).sum(dim=(1, 2))
    dice = (2 * overlap + 1) / (area + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice.mean()


def _log_true(logits: Logits, target: Targets) -> Float[Tensor, " b"]:
    """Log-probability of each row's class, in 32 bit."""
    return functional.log_softmax(logits.float(), dim=1).gather(1, target[:, None])[:, 0]


def _hardness(log_true: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """1 - p: expm1 keeps its precision where p is nearly 1; a power's slope at 0 is infinite."""
    return (-torch.expm1(log_true)).clamp(min=torch.finfo(log_true.dtype).tiny)


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
