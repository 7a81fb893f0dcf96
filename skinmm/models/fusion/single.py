"""One branch alone: what fusion has to beat."""

from torch import nn

from skinmm.models.fusion.contract import Features, Fusion, Seen, given


class ImageOnly(Fusion):
    """The image's features alone."""

    inputs = frozenset({"image"})

    def __init__(self, image_dim: int, record_dim: int, dropout: float = 0.3) -> None:
        """Takes both widths, as every block; the record's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Seen | None, record: Features | None) -> Features:  # noqa: ARG002
        """Passes the image's features on."""
        return self.dropout(given(image, "an image"))


class TabularOnly(Fusion):
    """The record's features alone: no image is asked for."""

    inputs = frozenset({"record"})

    def __init__(self, image_dim: int, record_dim: int) -> None:
        """Takes both widths, as every block; the image's is 0."""
        super().__init__()
        self.dim = image_dim + record_dim

    def forward(self, image: Seen | None, record: Features | None) -> Features:  # noqa: ARG002
        """Passes the record's features on."""
        return given(record, "a record")
