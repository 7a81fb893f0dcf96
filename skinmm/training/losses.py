"""Classification losses over logits, weighted by class counts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from skinmm.config import Registry
from skinmm.errors import InputError
from skinmm.evaluation.correction import Inverse

Counts = Int[Tensor, " classes"]
Logits = Float[Tensor, "b classes"]
Targets = Int[Tensor, " b"]
Mean = Float[Tensor, ""]


class Loss(nn.Module, ABC):
    """Base class of losses; `counts` is the number of training rows of each class.

    Attributes:
        weights: factor of each class, (classes,), for the prior correction.
        inverse: from the probabilities that minimise the loss to those of the classes, as an
            argument of `invert_loss`; None if several probabilities have the same minimum.
        corrects: name of its correction of class imbalance; empty if it has none.
    """

    weights: Tensor
    inverse: Inverse | None
    corrects: str = ""

    def __init__(self, weights: Float[Tensor, " classes"]) -> None:
        super().__init__()
        # Derived from the cohort, not learned, so not part of the checkpoint.
        self.register_buffer("weights", weights.float(), persistent=False)
        self.inverse = {}  # that of cross-entropy, also with weights, which are part of the prior

    @abstractmethod
    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch: the weighted sum divided by the number of rows."""


class CrossEntropy(Loss):
    """Cross-entropy."""

    smoothing = 0.0

    def __init__(self, counts: Counts) -> None:
        super().__init__(torch.ones(len(counts)))

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch."""
        return functional.cross_entropy(logits, target, label_smoothing=self.smoothing)


class LabelSmoothing(CrossEntropy):
    """Cross-entropy against smoothed targets (Szegedy et al. 2016).

    Args:
        smoothing: share of the target that is spread over all classes, 0 to 1.
    """

    def __init__(self, counts: Counts, smoothing: float = 0.1) -> None:
        _require_at_most(1, smoothing=smoothing)
        super().__init__(counts)
        self.smoothing = smoothing
        if smoothing:
            self.inverse = None if smoothing == 1 else {"kind": "smoothing", "smoothing": smoothing}


class WeightedCrossEntropy(Loss):
    """Cross-entropy with class weights (rows / (classes * count)) ** power.

    Args:
        power: 0 to 2; 0 is cross-entropy, 1 makes the classes equal.
    """

    def __init__(self, counts: Counts, power: float = 1.0) -> None:
        _require_at_most(2, power=power)
        super().__init__((counts.sum() / (len(counts) * counts.clamp(min=1))) ** power)
        self.corrects = "class weights" if power else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch."""
        rows = functional.cross_entropy(logits, target, reduction="none")
        return (self.weights[target] * rows).mean()


class Focal(Loss):
    """Focal loss (Lin et al. 2017), -alpha (1 - p)^gamma log p of the true class.

    Args:
        gamma: focus on hard rows, 0 to 10; 0: cross-entropy.
        alpha: one weight per class, or the weight of the last of two classes; None: equal.
    """

    def __init__(
        self, counts: Counts, gamma: float = 2.0, alpha: float | Sequence[float] | None = None
    ) -> None:
        _require_at_most(10, gamma=gamma)
        weights = _class_weights(alpha, len(counts))
        super().__init__(weights)
        self.gamma = gamma
        if gamma:
            zeros = [0.0] * len(counts)
            self.inverse = {"kind": "focus", "gammas": [gamma] * len(counts), "margins": zeros}
        self.corrects = "focal alpha" if weights.max() > weights.min() else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch."""
        log_true = _log_true(logits, target)
        focus = _one_minus_probability(log_true) ** self.gamma
        return -(self.weights[target] * focus * log_true).mean()


class LDAM(Loss):
    """Cross-entropy with margins that are wider for rarer classes (Cao et al. 2019).

    "Learning imbalanced datasets with label-distribution-aware margin loss", arXiv:1906.07413.

    Args:
        margin: of the rarest class, 0 to 10; others fall with the fourth root of their counts.
        scale: of the logits, above 0 and at most 100. The paper's 30 is for logits that are
            cosines; a linear head learns its own scale.
    """

    margins: Tensor

    def __init__(self, counts: Counts, margin: float = 0.5, scale: float = 1.0) -> None:
        _require_at_most(10, margin=margin)
        _require_at_most(100, scale=scale)
        if scale == 0:
            raise InputError("loss argument scale=0: must be above 0")
        super().__init__(torch.ones(len(counts)))
        present = counts > 0
        widths = torch.where(present, counts.clamp(min=1).float() ** -0.25, 0)
        margins = margin * widths / widths.max().clamp(min=torch.finfo(widths.dtype).tiny)
        self.register_buffer("margins", margins, persistent=False)
        self.scale = scale
        self.inverse = {"kind": "margins", "scale": scale, "margins": margins.tolist()}
        self.corrects = "LDAM margins" if len(set(margins[present].tolist())) > 1 else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch."""
        margins = functional.one_hot(target, logits.shape[1]) * self.margins
        return functional.cross_entropy(self.scale * (logits - margins), target)


class Asymmetric(Loss):
    """Asymmetric loss: down-weights easy rows of the most frequent class (Ridnik et al. 2021).

    The most frequent class is the paper's negative, every other class is positive. For two classes
    this is the paper's loss of the difference of the logits; if all arguments are 0, cross-entropy.
    "Asymmetric loss for multi-label classification", arXiv:2009.14119.

    Args:
        gamma_negative: focus on hard rows of the most frequent class, 0 to 10.
        gamma_positive: focus on hard rows of the other classes, 0 to 10.
        margin: rows of the most frequent class have no loss if the probability of the other
            classes is below it, 0 to 1.
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
        _require_at_most(10, gamma_negative=gamma_negative, gamma_positive=gamma_positive)
        _require_at_most(1, margin=margin)
        super().__init__(torch.ones(len(counts)))
        negative = torch.arange(len(counts)) == counts.argmax()
        gammas = torch.where(negative, gamma_negative, gamma_positive)
        self.register_buffer("gammas", gammas, persistent=False)
        self.register_buffer("margins", torch.where(negative, margin, 0.0), persistent=False)
        if margin == 1 or (margin and not gamma_negative):
            self.inverse = None  # the loss of the most frequent class has a kink at its minimum
        elif gamma_negative or gamma_positive:
            arguments = {"gammas": self.gammas.tolist(), "margins": self.margins.tolist()}
            self.inverse = {"kind": "focus", **arguments}
        unequal = gamma_negative != gamma_positive or margin > 0
        self.corrects = "asymmetric focus" if unequal else ""

    def forward(self, logits: Logits, target: Targets) -> Mean:
        """Return the mean loss of the batch."""
        margins = self.margins[target].log()
        log_true = torch.logaddexp(_log_true(logits, target), margins).clamp(max=0)
        return -(_one_minus_probability(log_true) ** self.gammas[target] * log_true).mean()


def distillation_loss(logits: Logits, soft: Logits, temperature: float) -> Mean:
    """Return the mean divergence from the softened probabilities, times the squared temperature.

    The factor gives its gradient the scale of that of the labels.
    """
    log_p = functional.log_softmax(logits / temperature, dim=1)
    return functional.kl_div(log_p, soft, reduction="batchmean") * temperature**2


LOSSES: Final[Registry[type[Loss]]] = Registry(
    "loss",
    cross_entropy=CrossEntropy,
    label_smoothing=LabelSmoothing,
    weighted_cross_entropy=WeightedCrossEntropy,
    focal=Focal,
    ldam=LDAM,
    asymmetric=Asymmetric,
)


def _log_true(logits: Logits, target: Targets) -> Float[Tensor, " b"]:
    """Return the log-probability of each row's class, in at least 32 bit."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return functional.log_softmax(logits, dim=1, dtype=dtype).gather(1, target[:, None])[:, 0]


def _one_minus_probability(log_true: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
    """Return 1 - p, precise near p = 1 and always above 0, where a power has an infinite slope."""
    return (-torch.expm1(log_true)).clamp(min=torch.finfo(log_true.dtype).tiny)


def _class_weights(
    alpha: float | Sequence[float] | None, classes: int
) -> Float[Tensor, " classes"]:
    """Return one weight per class, all above 0."""
    if alpha is None:
        return torch.ones(classes)
    weights = [1 - alpha, alpha] if isinstance(alpha, int | float) else alpha
    if len(weights) != classes:
        kind = "is for two classes" if weights is not alpha else f"has {len(weights)} weights"
        raise InputError(f"loss focal: alpha={alpha} {kind}; give a list of {classes} weights")
    if min(weights) <= 0:
        raise InputError(f"loss focal: alpha={weights} contains 0 or less; all must be above 0")
    return torch.tensor(weights, dtype=torch.float32)


def _require_at_most(high: int, **arguments: float) -> None:
    for name, value in arguments.items():
        if not 0 <= value <= high:
            raise InputError(f"loss argument {name}={value}: must be between 0 and {high}")
