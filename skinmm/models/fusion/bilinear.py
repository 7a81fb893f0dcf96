"""Every feature of the image times every feature of the record, at low rank."""

from torch import nn

from skinmm.models.fusion.contract import Features, Fusion, Seen, both


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
