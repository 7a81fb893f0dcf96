"""The one network class: image branch, record branch, fusion, head."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from skinmm.config import Config, build_component, check_component
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.models.fusion import FUSIONS, Fusion
from skinmm.models.tabular import TABULAR

Images = UInt8[Tensor, "b 3 h w"] | Float[Tensor, "b *places features"]
"""Pixels, or what the image network made of them: features pass it by."""
HasImage = Bool[Tensor, " b"]
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
        stands_in: bool = False,
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
            stands_in: learn features that stand in for an image that is not there.
        """
        super().__init__()
        self._dropout, self._masks = dropout, masks
        self.image = image
        self.record = record
        self.fusion = fusion
        self.head = fusion.head(classes)
        self.absent = nn.Parameter(torch.randn(image.dim) / 10) if image and stands_in else None

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.parameters()).device

    def encode_image(
        self, image: Images, has_image: HasImage | None = None
    ) -> Float[Tensor, "b *places dim"]:
        """The image's features, before fusion.

        Args:
            image: square uint8 RGB, or features already.
            has_image: which rows have an image; None: all.

        Raises:
            InputError: one has none, and the network has not learned what stands in for it.
        """
        seen: Tensor = image if image.is_floating_point() else self.image(image)  # type: ignore[misc]
        if has_image is None:
            return seen
        if self.absent is None:
            raise InputError("this model needs an image: it was trained with model.drop_image=0")
        return torch.where(
            has_image.view(-1, *[1] * (seen.ndim - 1)), seen, self.absent.to(seen.dtype)
        )

    def embed(
        self, image: Images | None, record: Records | None, has_image: HasImage | None = None
    ) -> Float[Tensor, "b dim"]:
        """The fused features, before the head.

        Raises:
            InputError: an input is None that the fusion block needs.
        """
        pixels = (
            None if self.image is None or image is None else self.encode_image(image, has_image)
        )
        columns = None if self.record is None or record is None else self.record(record)
        fused: Tensor = self.fusion(pixels, columns)
        return fused

    def forward(
        self, image: Images | None, record: Records | None, has_image: HasImage | None = None
    ) -> Float[Tensor, "b classes"]:
        """The logits of every class."""
        fused = self.embed(image, record, has_image)
        masks = self._masks if self.training else 1
        dropped = [functional.dropout(fused, self._dropout, self.training) for _ in range(masks)]
        logits: Tensor = self.head(torch.stack(dropped)).mean(dim=0)
        return logits

    def log_probabilities(
        self, image: Images | None, record: Records | None, views: int = 1
    ) -> Float[Tensor, "b classes"]:
        """The classes' log-probabilities, as `predict` gives them."""
        return self.predict(image, record, views)[0]

    def predict(
        self,
        image: Images | None,
        record: Records | None,
        views: int = 1,
        has_image: HasImage | None = None,
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b dim"]]:
        """Log-probabilities and fused features of one pass, in 32 bit, averaged over views.

        Args:
            image: square uint8 RGB, features, or None.
            record: encoded records, or None.
            views: how many of the eight flips and transposes of a square are averaged, 1 to 8; a
                model without an image has one, and so have features.
            has_image: which rows have an image; None: all.
        """
        if image is None or image.is_floating_point():
            turned: Iterable[Images | None] = [image]
        else:
            turned = islice(iterate_symmetries(image), views)
        with full_precision(self.device.type):
            features = torch.stack([self.embed(view, record, has_image) for view in turned])
            seen = self.head(features).log_softmax(dim=2)
        return seen.logsumexp(dim=0) - math.log(len(seen)), features.mean(dim=0)


def iterate_symmetries(image: Images) -> Iterator[UInt8[Tensor, "b 3 _ _"]]:
    """The pictures themselves, then their seven other flips and quarter turns."""
    for turned in (image, image.transpose(-1, -2)):
        yield turned
        for flips in ((-1,), (-2,), (-1, -2)):
            yield turned.flip(flips)


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
    check_component(FUSIONS, "fusion", config.fusion, context=("image_dim", "record_dim"))
    block = FUSIONS[config.fusion.name]
    inputs, tokens = block.inputs, block.tokens
    image = None
    if "image" in inputs:
        image = Backbone(config.model, pretrained=pretrained, tokens=tokens)
    record = (
        build_component(TABULAR, "tabular", config.tabular, widths=widths)
        if "record" in inputs
        else None
    )
    fusion = build_component(
        FUSIONS,
        "fusion",
        config.fusion,
        image_dim=image.dim if image else 0,
        record_dim=int(record.dim) if record else 0,
    )
    options = config.model
    return Network(
        image,
        record,
        fusion,
        classes,
        dropout=options.head_dropout,
        masks=options.head_masks,
        stands_in=options.drop_image > 0,
    )


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Neither autocast nor the GPU's 19-bit TF32 convolutions, which torch allows by default."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
