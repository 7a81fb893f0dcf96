"""The record opens, closes or shifts the image's channels."""

import torch
from torch import nn

from skinmm.models.fusion.contract import Features, Fusion, Seen, both


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
