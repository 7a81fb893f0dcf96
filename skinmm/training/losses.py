"""Classification losses over logits; the training rows' class counts set their weights."""

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
        weights: factor of each class, (classes,), for the prior correction. Margins and foci have
            no closed form, and are left to calibration.
        corrects: name of its correction of class imbalance; empty if it has none.
    """

    weights: Tensor
    corrects: str = ""

    def __init__(self, weights: Float[Tensor, " classes"]) -> None:
        """Store the class weights."""
        super().__init__()
        # Derived from the cohort, not learned, so not part of the checkpoint.
        self.register_buffer("weights", weights.float(), persistent=False)

    @abstractmethod
    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss: the weighted sum over the number of rows."""


class CrossEntropy(Loss):
    """Cross-entropy."""

    def __init__(self, counts: Counts) -> None:
        """Initialise with equal weights."""
        super().__init__(torch.ones(len(counts)))

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss."""
        return functional.cross_entropy(logits, target)


class LabelSmoothing(Loss):
    """Cross-entropy against smoothed targets (Szegedy et al. 2016)."""

    def __init__(self, counts: Counts, smoothing: float = 0.1) -> None:
        """Initialise with the share of the target that is spread over all classes, 0 to 1."""
        _require_range("smoothing", smoothing, 1.0)
        super().__init__(torch.ones(len(counts)))
        self.smoothing = smoothing

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss."""
        return functional.cross_entropy(logits, target, label_smoothing=self.smoothing)


class WeightedCrossEntropy(Loss):
    """Cross-entropy with class weights (rows / (classes * count)) ** power."""

    def __init__(self, counts: Counts, power: float = 1.0) -> None:
        """Initialise with the power, 0 to 2: 0 is cross-entropy, 1 makes the classes equal."""
        _require_range("power", power, 2.0)
        super().__init__((counts.sum() / (len(counts) * counts.clamp(min=1))) ** power)
        self.corrects = "class weights" if power else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss: the weighted sum over the number of rows."""
        rows = functional.cross_entropy(logits, target, reduction="none")
        return (self.weights[target] * rows).mean()


class Focal(Loss):
    """Focal loss (Lin et al. 2017), -alpha (1 - p)^gamma log p of the true class."""

    def __init__(
        self, counts: Counts, gamma: float = 2.0, alpha: float | Sequence[float] | None = None
    ) -> None:
        """Initialise with focus and weights.

        Args:
            counts: rows of each class.
            gamma: focus on hard rows, 0 to 10; 0: cross-entropy.
            alpha: one weight a class, or the weight of the last of two classes; None: equal.
        """
        _require_range("gamma", gamma, 10.0)
        weights = _class_weights(alpha, len(counts))
        super().__init__(weights)
        self.gamma = gamma
        self.corrects = "focal alpha" if weights.max() > weights.min() else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss."""
        log_true = _log_true(logits, target)
        return -(
            self.weights[target] * _one_minus_probability(log_true) ** self.gamma * log_true
        ).mean()


class LDAM(Loss):
    """Cross-entropy with margins that are wider for rarer classes (Cao et al. 2019).

    "Learning imbalanced datasets with label-distribution-aware margin loss", arXiv:1906.07413.
    """

    margins: Tensor

    def __init__(self, counts: Counts, margin: float = 0.5, scale: float = 1.0) -> None:
        """Initialise with margin and scale.

        Args:
            counts: rows of each class.
            margin: of the rarest class, 0 to 10; others fall with the fourth root of their counts.
            scale: of the logits, above 0 and at most 100. The paper's 30 is for logits that are
                cosines; a linear head learns its own scale.
        """
        _require_range("margin", margin, 10.0)
        _require_range("scale", scale, 100.0)
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
        """Return the batch's mean loss."""
        margins = functional.one_hot(target, logits.shape[1]) * self.margins
        return functional.cross_entropy(self.scale * (logits - margins), target)


class Asymmetric(Loss):
    """Asymmetric loss: down-weights easy rows of the most frequent class (Ridnik et al. 2021).

    The most frequent class is the paper's negative, every other class is positive. For two classes
    this is the paper's loss of the difference of the logits.
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
        """Initialise with foci and margin; all 0: cross-entropy.

        Args:
            counts: rows of each class.
            gamma_negative: focus on hard rows of the most frequent class, 0 to 10.
            gamma_positive: focus on hard rows of the other classes, 0 to 10.
            margin: rows of the most frequent class have no loss if the probability of the other
                classes is below it, 0 to 1.
        """
        _require_range("gamma_negative", gamma_negative, 10.0)
        _require_range("gamma_positive", gamma_positive, 10.0)
        _require_range("margin", margin, 1.0)
        super().__init__(torch.ones(len(counts)))
        negative = torch.arange(len(counts)) == counts.argmax()
        gammas = torch.where(negative, gamma_negative, gamma_positive)
        self.register_buffer("gammas", gammas, persistent=False)
        self.register_buffer("margins", torch.where(negative, margin, 0.0), persistent=False)
        unequal = gamma_negative != gamma_positive or margin > 0
        self.corrects = "asymmetric focus" if unequal else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the batch's mean loss."""
        shifted = torch.logaddexp(_log_true(logits, target), self.margins[target].log())
        log_true = shifted.clamp(max=0)
        return -(_one_minus_probability(log_true) ** self.gammas[target] * log_true).mean()


LOSSES: Final[dict[str, type[Loss]]] = {
    "cross_entropy": CrossEntropy,
    "label_smoothing": LabelSmoothing,
    "weighted_cross_entropy": WeightedCrossEntropy,
    "focal": Focal,
    "ldam": LDAM,
    "asymmetric": Asymmetric,
}


def dice_bce(logits: Float[Tensor, "b h w"], mask: Bool[Tensor, "b h w"]) -> Mean:
    """Return pixel cross-entropy plus 1 - soft Dice of whole masks, in 32 bit.

    Dice as in Milletari et al. 2016 (arXiv:1606.04797), with one pixel added to numerator and
    denominator, so that it is defined for an image without a lesion.
    """
    logits, truth = logits.float(), mask.float()
    mask_probability = logits.sigmoid()
    overlap = (mask_probability * truth).sum(dim=(1, 2))
    area = (mask_probability + truth).sum(dim=(1, 2))
    dice = (2 * overlap + 1) / (area + 1)
    return functional.binary_cross_entropy_with_logits(logits, truth) + 1 - dice.mean()


def _log_true(logits: Logits, target: Targets) -> Float[Tensor, " b"]:
    """Return the log-probability of each row's class, in 32 bit."""
    return functional.log_softmax(logits.float(), dim=1).gather(1, target[:, None])[:, 0]


def _one_minus_probability(log_true: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return 1 - p, precise near p = 1, and above 0, where the slope of a power is infinite."""
    return (-torch.expm1(log_true)).clamp(min=torch.finfo(log_true.dtype).tiny)


def _class_weights(
    alpha: float | Sequence[float] | None, classes: int
) -> Float[Tensor, " classes"]:
    """Return one weight a class; a class with weight 0 would never be learned, so none may be 0."""
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
        raise InputError(f"loss focal: alpha={alpha} contains 0 or less; all must be above 0")
    return torch.tensor(alpha, dtype=torch.float32)


def _require_range(name: str, value: float, high: float) -> None:
    if not 0 <= value <= high:
        raise InputError(f"loss argument {name}={value}: must be between 0 and {high:g}")
