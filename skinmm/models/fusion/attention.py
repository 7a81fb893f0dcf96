"""The record asks, the places of the image answer."""

import torch
from torch import nn

from skinmm.errors import InputError
from skinmm.models.fusion.contract import Features, Fusion, Seen, both


class CrossAttention(Fusion):
    """The record's vector attends to the image's places, beside their mean.

    Multi-head attention of Vaswani et al. 2017, arXiv:1706.03762, from record to image as in the
    mutual attention of Cai et al. 2023, "A multimodal transformer to fuse images and metadata for
    skin disease classification", doi:10.1007/s00371-022-02492-4. The way back, from one record to
    many places, would add the same to each and is left out.
    """

    tokens = True

    def __init__(
        self,
        image_dim: int,
        record_dim: int,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.3,
    ) -> None:
        """Takes the shape of the attention.

        Args:
            image_dim: of each place.
            record_dim: of the record.
            width: of queries, keys and values; the output is twice as wide.
            heads: they share the width evenly.
            dropout: on the places' mean.

        Raises:
            InputError: a width that the heads do not divide.
        """
        super().__init__()
        if heads < 1 or width % heads:
            raise InputError(f"fusion cross_attention: width={width} is not divided by {heads=}")
        self.dim = 2 * width
        self.image = nn.Sequential(nn.LayerNorm(image_dim), nn.Linear(image_dim, width))
        self.record = nn.Sequential(nn.LayerNorm(record_dim), nn.Linear(record_dim, width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)

    def forward(self, image: Seen | None, record: Features | None) -> Features:
        """The record with what it found, and the places' mean."""
        pixels, columns = both(image, record)
        places, query = self.image(pixels), self.record(columns)
        found, _ = self.attention(query[:, None], places, places, need_weights=False)
        return torch.cat([query + found[:, 0], self.dropout(places.mean(dim=1))], dim=1)
