"""The one network class: image branch, record branch, fusion, head."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from skinmm.config import Config, build, verify
from skinmm.models.backbone import Backbone
from skinmm.models.fusion import FUSIONS, Fusion
from skinmm.models.tabular import TABULAR

Images = UInt8[Tensor, "b 3 h w"]
Records = Float[Tensor, "b columns"]


class Network(nn.Module):
    """Logits of a batch of lesions; a branch that the fusion block does not use is None."""

    def __init__(
        self,
        image: Backbone | None,
        record: nn.Module | None,
        fusion: Fusion,
        classes: int,
        *,
        dropout: float = 0.0,
        masks: int = 1,
    ) -> None:
        """Puts the fusion block's head behind it.

        Args:
            image: encoder of pictures.
            record: encoder of records.
            fusion: joins what they give.
            classes: number of classes.
            dropout: of the fused features.
            masks: how many draws of it are averaged in training (multi-sample dropout: Inoue 2019,
                arXiv:1905.09788; here their logits).
        """
        super().__init__()
        self._dropout, self._masks = dropout, masks
        self.image = image
        self.record = record
        self.fusion = fusion
        self.head = fusion.head(classes)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def embed(self, image: Images | None, record: Records | None) -> Float[Tensor, "b dim"]:
        """The fused features, before the head.

        Raises:
            InputError: an input is None that the fusion block needs.
        """
        pixels = None if self.image is None or image is None else self.image(image)
        columns = None if self.record is None or record is None else self.record(record)
        fused: Tensor = self.fusion(pixels, columns)
        return fused

    def forward(self, image: Images | None, record: Records | None) -> Float[Tensor, "b classes"]:
        """The logits of every class."""
        fused = self.embed(image, record)
        masks = self._masks if self.training else 1
        dropped = [functional.dropout(fused, self._dropout, self.training) for _ in range(masks)]
        logits: Tensor = self.head(torch.stack(dropped)).mean(dim=0)
        return logits

    def log_probabilities(
        self, image: Images | None, record: Records | None, views: int = 1
    ) -> Float[Tensor, "b classes"]:
        """The classes' log-probabilities, as `outcome` gives them."""
        return self.outcome(image, record, views)[0]

    def outcome(
        self, image: Images | None, record: Records | None, views: int = 1
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b dim"]]:
        """Log-probabilities and fused features of one pass, in 32 bit, averaged over views.

        Args:
            image: square uint8 RGB, or None.
            record: encoded records, or None.
            views: how many of the eight flips and transposes of a square are averaged, 1 to 8; a
                model without an image has one.
        """
        turned = [image] if image is None else islice(symmetries(image), views)
        with _full_precision(self.device.type):
            features = torch.stack([self.embed(view, record) for view in turned])
            seen = self.head(features).log_softmax(dim=2)
        return seen.logsumexp(dim=0) - math.log(len(seen)), features.mean(dim=0)


def symmetries(image: Images) -> Iterator[UInt8[Tensor, "b 3 _ _"]]:
    """The pictures themselves, then their seven other flips and quarter turns."""
    for flips in ((), (-1,), (-2,), (-1, -2)):
        yield image.flip(flips)
    for flips in ((), (-1,), (-2,), (-1, -2)):
        yield image.flip(flips).transpose(-1, -2)


def build_network(
    config: Config, widths: Sequence[int], classes: int, *, pretrained: bool
) -> Network:
    """Composes the network that a configuration names.

    Args:
        config: the whole configuration.
        widths: width of each record column's block (see `skinmm.models.tabular`).
        classes: number of classes.
        pretrained: look for pretrained weights; False where a checkpoint follows.

    Raises:
        InputError: an unknown component or argument, or weights that cannot be used.
    """
    verify(FUSIONS, "fusion", config.fusion, context=("image_dim", "record_dim"))
    block = FUSIONS[config.fusion.name]
    inputs, tokens = block.inputs, block.tokens
    image = None
    if "image" in inputs:
        image = Backbone(config.model, pretrained=pretrained, tokens=tokens)
    record = (
        build(TABULAR, "tabular", config.tabular, widths=widths) if "record" in inputs else None
    )
    fusion = build(
        FUSIONS,
        "fusion",
        config.fusion,
        image_dim=image.dim if image else 0,
        record_dim=int(record.dim) if record else 0,
    )
    options = config.model
    return Network(
        image, record, fusion, classes, dropout=options.head_dropout, masks=options.head_masks
    )


@contextmanager
def _full_precision(device: str) -> Iterator[None]:
    """Neither autocast nor the GPU's 19-bit TF32 convolutions, which torch allows by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
