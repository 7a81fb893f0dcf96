"""The classifier: an image encoder and a record encoder, a fusion block and a head.

- image, uint8 (batch, 3, height, width) -> `Backbone` -> (batch, *tokens, image_dim)
- with `data.unit=lesion` (batch, views, 3, height, width) -> `Backbone`, then a block of `VIEWS`
- record, float (batch, columns) -> an encoder of `TABULAR` -> (batch, record_dim)
- both -> a block of `FUSIONS` -> (batch, dim) -> the head -> logits (batch, classes)
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from skinmm.config import Config, build_component, check_component
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.models.fusion import FUSIONS, Fusion
from skinmm.models.heads import HEADS, FittedHead, require_fixed_features
from skinmm.models.tabular import TABULAR
from skinmm.models.views import VIEWS, Views, encode_views

Images = UInt8[Tensor, "b *views 3 h w"] | Float[Tensor, "b *views features"]
"""RGB pixels, or image features that `Network.encode_image` returned earlier."""
HasImage = Bool[Tensor, " b"] | Int[Tensor, "b views"]
"""Rows with an image; for lesions with several images, a type code for each, 0 if it is missing."""
Records = Float[Tensor, "b columns"]


class Network(nn.Module):
    """Classifier of lesions by image, patient record or both.

    In every method, `image` and `record` are None if the fusion block does not use them, and
    `has_image` marks the rows with an image, None meaning all.

    Args:
        image: image encoder.
        record: record encoder.
        fusion: block that combines their features.
        head: module from the fused features to the logits of the classes.
        dropout: dropout on the fused features.
        dropout_samples: number of dropout masks whose logits are averaged in training
            (multi-sample dropout, Inoue 2019, arXiv:1905.09788).
        accepts_missing_image: learn features to use for a missing image.
        views: block that combines the images of a lesion; None: one image per row.
    """

    def __init__(  # noqa: PLR0913  (the parts and their options)
        self,
        image: Backbone | None,
        record: nn.Module | None,
        fusion: Fusion,
        head: nn.Module,
        *,
        dropout: float = 0.0,
        dropout_samples: int = 1,
        accepts_missing_image: bool = False,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        self._dropout, self._dropout_samples = dropout, dropout_samples
        self.image = image
        self.record = record
        self.views = views
        self.fusion = fusion
        self.head = head
        self.absent = None  # learned features of a missing image; None: every row needs an image
        if image and accepts_missing_image:
            self.absent = nn.Parameter(torch.randn(views.dim if views else image.dim) / 10)

    @property
    def device(self) -> torch.device:
        """Device of the parameters, or of the buffers if there are none."""
        return next(chain(self.parameters(), self.buffers())).device

    @property
    def fitted_head(self) -> FittedHead | None:
        """Head fitted to features, or None if the head is trained by gradients."""
        return self.head if isinstance(self.head, FittedHead) else None

    def forward(
        self, image: Images | None, record: Records | None, has_image: HasImage | None = None
    ) -> Float[Tensor, "b classes"]:
        """Return the logits of a batch."""
        fused = self.embed(image, record, has_image)
        samples = self._dropout_samples if self.training else 1
        dropped = [functional.dropout(fused, self._dropout, self.training) for _ in range(samples)]
        return self.head(torch.stack(dropped)).mean(dim=0)

    def embed(
        self, image: Images | None, record: Records | None, has_image: HasImage | None = None
    ) -> Float[Tensor, "b dim"]:
        """Return the fused features of a batch, the input of the head."""
        image_features = record_features = None
        if self.image is not None and image is not None:
            image_features = self.encode_image(image, has_image)
        if self.record is not None and record is not None:
            record_features = self.record(record)
        return self.fusion(image_features, record_features)

    def encode_image(
        self, image: Images, has_image: HasImage | None = None
    ) -> Float[Tensor, "b *tokens dim"]:
        """Return the image features of a batch.

        - Pixels are encoded; features given as `image` are not encoded again.
        - With `views`, the images of a lesion are then combined. `has_image` has their types; None
          means that no image is missing, or that features are combined already.
        """
        if self.views is not None and (has_image is not None or not image.is_floating_point()):
            return self._combine_views(self.views, image, has_image)
        features: Tensor = image if image.is_floating_point() else self.image(image)  # type: ignore[misc]
        if has_image is None:
            return features
        if self.absent is None:
            raise InputError(
                "this model needs an image for every row: it was trained with model.drop_image=0"
            )
        mask = has_image.view(-1, *[1] * (features.ndim - 1))
        return torch.where(mask, features, self.absent.to(features.dtype))

    def _combine_views(
        self, combine: Views, image: Images, types: HasImage | None
    ) -> Float[Tensor, "b *tokens dim"]:
        """Encode and combine the images of lesions; one without images has learned features."""
        features = image
        if not image.is_floating_point():
            features = encode_views(self.image, image, types)  # type: ignore[arg-type]
        if types is None:
            types = torch.ones(features.shape[:2], dtype=torch.int64, device=features.device)
        combined = combine(features, types)
        if self.absent is None:
            return combined
        has_any = (types > 0).any(dim=1).view(-1, *[1] * (combined.ndim - 1))
        return torch.where(has_any, combined, self.absent.to(combined.dtype))

    def predict(
        self,
        image: Images | None,
        record: Records | None,
        symmetries: int = 1,
        has_image: HasImage | None = None,
        *,
        at_once: bool = False,
    ) -> tuple[Float[Tensor, "b classes"], Float[Tensor, "b dim"]]:
        """Average over flips and rotations: return log-probabilities and fused features.

        Args:
            image: square uint8 RGB, image features, or None.
            record: encoded records, or None.
            symmetries: number of flips and rotations of the square image to average, 1 to 8;
                ignored without pixels.
            has_image: rows with an image; None: all.
            at_once: run the network once, on a batch of all flips and rotations.
        """
        turns: list[Images | None] = [image]
        if image is not None and not image.is_floating_point():
            turns = [*islice(iterate_symmetries(image), symmetries)]
        with full_precision(self.device.type):
            if at_once and image is not None:
                records, masks = (_repeat(values, len(turns)) for values in (record, has_image))
                features = self.embed(torch.cat(turns), records, masks)  # type: ignore[arg-type]
                features = features.reshape(len(turns), -1, features.shape[1])
            else:
                features = torch.stack([self.embed(turn, record, has_image) for turn in turns])
            logarithms = self.head(features).log_softmax(dim=2)  # (symmetries, batch, classes)
        mean = logarithms.logsumexp(dim=0) - math.log(len(logarithms))
        return mean, features.mean(dim=0)


def _repeat(values: Tensor | None, times: int) -> Tensor | None:
    return None if values is None else values.repeat(times, *[1] * (values.ndim - 1))


def iterate_symmetries(image: Images) -> Iterator[UInt8[Tensor, "b 3 _ _"]]:
    """Yield a batch of images and its seven other flips, transposes and quarter turns."""
    for turned in (image, image.transpose(-1, -2)):
        yield turned
        for flips in ((-1,), (-2,), (-1, -2)):
            yield turned.flip(flips)


def build_network(
    config: Config, widths: Sequence[int], classes: int, *, pretrained: bool
) -> Network:
    """Build the network of a configuration.

    `widths` are the numbers of encoded values of the record columns. `pretrained` loads the weights
    that `model.pretrained` names; it is not needed if a checkpoint is loaded afterwards.
    """
    check_component(FUSIONS, "fusion", config.fusion, context=("image_dim", "record_dim"))
    block = FUSIONS[config.fusion.name]
    image = record = None
    if "image" in block.inputs:
        image = Backbone(config.model, pretrained=pretrained, tokens=block.tokens)
    if "record" in block.inputs:
        record = build_component(TABULAR, "tabular", config.tabular, widths=widths)
    views = None
    if image and config.data.unit == "lesion":
        views = build_component(VIEWS, "views", config.views, image_dim=image.dim)
    image_dim = views.dim if views else image.dim if image else 0
    dims = {"image_dim": image_dim, "record_dim": record.dim if record else 0}
    fusion = build_component(FUSIONS, "fusion", config.fusion, **dims)
    parts = {"fusion": fusion, "classes": classes, "image_dim": dims["image_dim"]}
    network = Network(
        image,
        record,
        fusion,
        build_component(HEADS, "head", config.head, **parts),
        dropout=config.model.head_dropout,
        dropout_samples=config.model.head_masks,
        accepts_missing_image=config.model.drop_image > 0,
        views=views,
    )
    if network.fitted_head:
        require_fixed_features(network, config.head.name)
    return network


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Disable autocast and TF32 convolutions, which would reduce the precision."""
    allowed = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
