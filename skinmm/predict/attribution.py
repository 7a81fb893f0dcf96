"""Attribution of a prediction to its inputs: Shapley values, and a heat map over the image."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int, UInt8
from torch import Tensor

from skinmm.data.record import RecordEncoder
from skinmm.models.network import Network, Records, full_precision, iterate_symmetries
from skinmm.models.views import encode_views
from skinmm.predict.shapley import (
    compute_shapley_values,
    estimate_shapley_values,
    list_subsets,
)
from skinmm.vocabulary import is_missing

IMAGE: Final = "image"
_IMAGES: Final = re.compile(rf"{IMAGE} \d+")
MAX_COLUMNS: Final = 10
"""Inputs besides an image up to which values are exact, as every subset needs a prediction."""
SHOWN: Final = 10  # contributions on a page
_BATCH: Final = 256  # rows per forward pass

Malignancy = Callable[[Float64[np.ndarray, "n c"]], Float64[np.ndarray, " n"]]
"""Maps the network's class probabilities to the probability that is explained."""


@dataclass(frozen=True)
class Contributions:
    """Contributions to the probability of malignancy, which is `start` plus the sum of `added`.

    Attributes:
        start: mean probability of the background rows; without these, that of an empty input.
        added: Shapley value of each input that is present.
        is_average: whether `start` is the mean of background rows.
        errors: standard error of each value that is estimated; empty if they are exact.
    """

    start: float
    added: dict[str, float]
    is_average: bool = False
    errors: dict[str, float] = field(default_factory=dict)

    def largest(self) -> dict[str, float]:
        """Return the largest values, in descending order, and the sum of the others."""
        ranked = sorted(self.added.items(), key=lambda item: -abs(item[1]))
        others = [value for _, value in ranked[SHOWN:]]
        return dict(ranked[:SHOWN]) | ({f"{len(others)} others": sum(others)} if others else {})

    def share(self, name: str) -> float | None:
        """Return the share of an input in the absolute contributions; `image`: of all images."""
        total = sum(map(abs, self.added.values()))
        parts = [n for n in self.added if n == name or (name == IMAGE and is_image(n))]
        return sum(abs(self.added[part]) for part in parts) / total if total else None


def is_image(name: str) -> bool:
    """Return whether an input is the image of a row, or one image of a lesion."""
    return name == IMAGE or bool(_IMAGES.fullmatch(name))


def name_inputs(columns: Sequence[str], views: int | None = None) -> list[str]:
    """Return the inputs that get a contribution, given the columns of all models.

    Args:
        columns: record columns.
        views: images of a lesion at most: `image 1`, `image 2`, ..., or `image` if these are too
            many; None: one image.
    """
    images = [IMAGE]
    if views is not None and views <= MAX_COLUMNS:
        images = [f"{IMAGE} {number + 1}" for number in range(views)]
    return [*images, *columns]


def mean_contributions(members: Sequence[Contributions]) -> Contributions:
    """Average the contributions of the models in an ensemble."""
    names = dict.fromkeys(name for member in members for name in member.added)
    added, errors = (
        {name: float(np.mean([part.get(name, 0.0) for part in parts])) for name in names}
        for parts in zip(*[(member.added, member.errors) for member in members], strict=True)
    )
    start = float(np.mean([member.start for member in members]))
    is_average = all(member.is_average for member in members)
    return Contributions(start, added, is_average, errors if any(errors.values()) else {})


def compute_contributions(  # noqa: PLR0913  (three repeat options of prediction)
    network: Network,
    encoder: RecordEncoder,
    malignancy: Malignancy,
    row: Mapping[str, Any],
    image: UInt8[Tensor, "1 *views 3 h w"] | None,
    *,
    symmetries: int = 1,
    has_image: bool = True,
    types: Int[Tensor, "1 views"] | None = None,
    inputs: Sequence[str] = (),
    background: Mapping[str, Tensor] | None = None,
) -> Contributions:
    """Compute Shapley values of the image and of each record column.

    Every subset of the inputs is predicted (Shapley 1953; Lundberg and Lee 2017, arXiv:1705.07874)
    with the other inputs taken from each of the background rows in turn, and the probabilities are
    averaged (Janzing et al. 2020, arXiv:1910.13413). Inputs that the row lacks are missing from
    the background rows too, so they contribute nothing. The values of more inputs than
    `MAX_COLUMNS` besides an image are estimated, see `estimate_shapley_values`.

    Without background rows, a column outside the subset is missing, as in training, and an image
    is replaced by the features that the network learned for a missing image, or, without these, by
    an image of the mean colour.

    Images of a lesion outside the subset are withheld, as `model.drop_views` does in training; in a
    subset without any image, the features of the lesion are replaced like those of a single image.

    Args:
        network: in evaluation mode.
        encoder: encoder of its records.
        malignancy: maps the network's probabilities to the explained one.
        row: one canonical record, a cell by column.
        image: square uint8 RGB, or several of a lesion, if the network has an image branch.
        symmetries: number of flips and transposes, as in prediction.
        has_image: False if `image` is blank because the row has none.
        types: type of each image of a lesion; None: `image` is a single one.
        inputs: result of `name_inputs` for all models whose contributions are averaged, so that
            all have the same inputs; by default that for this encoder.
        background: `image` features and encoded `record` of background rows; empty or None for
            checkpoints without them.
    """
    columns = [] if network.record is None else encoder.columns
    present = [name for name in columns if not is_missing(row[name])]
    inputs = inputs or name_inputs(columns, None if types is None else types.shape[1])
    background = background or {}
    stages: Sequence[Sequence[Tensor | None]] = [[None]]
    if image is not None:
        if types is None:
            types = torch.tensor([int(has_image)], device=image.device)
        as_one = IMAGE in inputs
        stages = _encode_subsets(network, image, types, symmetries, background, as_one=as_one)
    count = len(next(iter(background.values()))) if background else 1
    records = background.get("record", torch.from_numpy(encoder.blank)[None])
    images = len(stages).bit_length() - 1  # a stage has the features of one subset of the images
    names = [*present, *[name for name in inputs if is_image(name)][:images]]
    game = _Game(network, encoder, malignancy, row, present, stages, records, count)
    if len(names) <= MAX_COLUMNS + 1:
        values, errors = game.play(list_subsets(len(names)), slice(None)), np.zeros(0)
        start, added = float(values[0]), compute_shapley_values(values)
    else:
        start, added, errors = estimate_shapley_values(game.play, len(names), count)
    return Contributions(
        start,
        dict(zip(names, added.tolist(), strict=True)),
        bool(background),
        dict(zip(names, errors.tolist(), strict=False)),
    )


@dataclass(frozen=True)
class _Game:
    """Value of a subset of the inputs: the mean probability over the background rows.

    Attributes:
        present: columns that the row has.
        stages: features for each subset of the images, see `_encode_subsets`.
        records: encoded records of the background rows.
        count: number of background rows.
    """

    network: Network
    encoder: RecordEncoder
    malignancy: Malignancy
    row: Mapping[str, Any]
    present: Sequence[str]
    stages: Sequence[Sequence[Tensor | None]]
    records: Tensor
    count: int

    def play(self, subsets: Bool[np.ndarray, "s inputs"], rows: slice) -> Float64[np.ndarray, " s"]:
        """Return the value of each subset, over some of the background rows."""
        columns, of_images = np.split(subsets, [len(self.present)], axis=1)
        stage_of = of_images @ (1 << np.arange(of_images.shape[1]))
        values, record = np.empty(len(subsets)), None
        for number in np.unique(stage_of):
            at = np.flatnonzero(stage_of == number)
            if self.network.record is not None:
                chosen = (self.present, columns[at], self.records[rows])
                record = _mix_records(self.encoder, self.row, *chosen).to(self.network.device)
            features = [
                some if some is None or len(some) < self.count else some[rows]
                for some in self.stages[number]
            ]
            size = len(at) * len(range(self.count)[rows])
            outputs = self.malignancy(_predict(self.network, features, record, size))
            values[at] = outputs.reshape(len(at), -1).mean(axis=1)
        return values


def _encode_subsets(
    network: Network,
    image: UInt8[Tensor, "1 *views 3 h w"],
    types: Int[Tensor, "1 *views"],
    symmetries: int,
    background: Mapping[str, Tensor],
    *,
    as_one: bool,
) -> list[list[Tensor]]:
    """Return features for each subset of the images of a row (`as_one`: all or none).

    `types` has the type of each image of a lesion, or 1 for a single image; 0: no image.
    """
    is_lesion, count = types.ndim > 1, int((types > 0).sum())

    def encode(turned: Tensor) -> Tensor:
        if is_lesion:
            return encode_views(network.image, turned, types)  # type: ignore[arg-type]
        return network.encode_image(turned)

    def combine(features: Tensor, part: Tensor) -> Tensor:
        if is_lesion:
            return network.encode_image(features, part)
        return network.encode_image(features, None if part.all() else part > 0)

    with torch.inference_mode(), full_precision(network.device.type):
        encoded = [encode(turned) for turned in islice(iterate_symmetries(image), symmetries)]
        if not count:
            return [[combine(one, types) for one in encoded]]
        if "image" in background:
            none = [background["image"].to(network.device).float()]
        elif network.absent is None:
            colour = image.double().mean(dim=(-2, -1), keepdim=True).round().to(torch.uint8)
            none = [combine(encode(colour.expand_as(image)), types)] * symmetries
        else:
            none = [combine(one, 0 * types) for one in encoded]
        subsets = torch.from_numpy(list_subsets(count)).to(types.device)[1:]
        parts = [types * subset for subset in (subsets[-1:] if as_one else subsets)]
        return [none, *([combine(one, part) for one in encoded] for part in parts)]


def _mix_records(
    encoder: RecordEncoder,
    row: Mapping[str, Any],
    names: Sequence[str],
    subsets: Bool[np.ndarray, "subsets inputs"],
    background: Float32[Tensor, "k encoded"],
) -> Float32[Tensor, "rows encoded"]:
    """Copy the columns of each subset, and missing ones, from `row` to all background records."""
    cells = {name: np.array([row[name]], object) for name in encoder.columns}
    record = torch.from_numpy(encoder.transform(cells))
    is_of_row = torch.ones(len(subsets), record.shape[1], dtype=torch.bool)
    slices = dict(zip(encoder.columns, encoder.layout, strict=True))
    for name, is_member in zip(names, subsets.T, strict=True):
        cut = slice(slices[name].start, slices[name].stop)
        is_of_row[:, cut] = torch.from_numpy(is_member.copy())[:, None]
    return torch.where(is_of_row[:, None], record[None], background.float()[None]).flatten(0, 1)


def _predict(
    network: Network,
    features: Sequence[Tensor | None],
    records: Records | None,
    rows: int,
) -> Float64[np.ndarray, "rows classes"]:
    """Predict rows with repeated image features; average the views."""
    outputs = []
    with torch.inference_mode():
        for start in range(0, rows, _BATCH):
            numbers = torch.arange(start, min(start + _BATCH, rows), device=network.device)
            record = None if records is None else records[start : start + _BATCH]
            views = [view if view is None else view[numbers % len(view)] for view in features]
            logits = [network.predict(view, record)[0] for view in views]
            probabilities = [values.double().softmax(dim=1) for values in logits]
            outputs.append(torch.stack(probabilities).mean(dim=0))
    return torch.cat(outputs).cpu().numpy()
