"""Both vectors side by side: judged by one head, or each by its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from skinmm.models.fusion.contract import Features, Fusion, Seen, both


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
