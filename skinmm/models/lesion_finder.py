"""A trained network of masks at work: it finds the lesion of any picture."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, UInt8
from torch.nn.functional import interpolate

from skinmm.config import Config, from_mapping
from skinmm.errors import InputError
from skinmm.images.base import resize
from skinmm.images.decode import decode, probe
from skinmm.images.measure import MEASUREMENTS, measure
from skinmm.images.preprocess import preprocess
from skinmm.images.source import Source, read_source
from skinmm.models.checkpoint import CheckpointError, load_card
from skinmm.models.segmentation import build_segmenter

TASK: Final = "segmentation"
SIDE: Final = 256
"""Shorter side of the picture that a lesion is measured on, pixels."""


class LesionFinder:
    """Draws lesions' masks, on the CPU; equal to another one of the same checkpoint.

    Attributes:
        digest: SHA-256 of the checkpoint.
        size: side of the square that the network looks at, pixels.
        icc: what it was trained to do with embedded colour profiles.
    """

    def __init__(self, state: dict[str, Any]) -> None:
        """Builds the network that `state` describes.

        Args:
            state: `config`, `weights` and `digest`: plain data, as a classifier's checkpoint holds
                the network that its images were preprocessed with.

        Raises:
            CheckpointError: no state of this version.
        """
        self.state, self.digest = state, str(state["digest"])
        try:
            config = from_mapping(Config, state["config"])
            self._network = build_segmenter(config, pretrained=False)
            self._network.load_state_dict(state["weights"])
        except (InputError, RuntimeError, LookupError, TypeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"segmenter: not made by this version ({reason})") from error
        self._network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.size = config.model.image_size
        self.icc: Any = config.data.icc
        self._steps = tuple(config.data.preprocess)

    @classmethod
    def load(cls, path: Path) -> "LesionFinder":
        """Reads a checkpoint of `task=segmentation`.

        Raises:
            CheckpointError: it is not there, damaged, or a classifier's.
        """
        card, weights = load_card(path)
        if card.config.get("task") != TASK:
            raise CheckpointError(f"{path}: this checkpoint classifies; name one of task={TASK}")
        digest = sha256(path.read_bytes()).hexdigest()
        return cls({"config": card.config, "weights": weights, "digest": digest})

    def __eq__(self, other: object) -> bool:
        """Whether both draw the same masks."""
        return isinstance(other, LesionFinder) and self.digest == other.digest

    def __hash__(self) -> int:
        """Of the checkpoint."""
        return hash(self.digest)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None = None
    ) -> Bool[np.ndarray, "_ _"]:
        """Where the lesion is.

        Args:
            image: the whole picture, at any size.
            size: (height, width) of the mask; None: the image's.
        """
        square = (self.size, self.size)
        height, width, _ = image.shape
        small = image if (height, width) == square else resize(image, square, (height, width))
        small = preprocess(small, self._steps)
        pixels = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None]
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            logits = self._network(pixels)[:, None]
            drawn = interpolate(logits, size or (height, width), mode="bilinear")
        mask: np.ndarray = (drawn[0, 0] > 0).numpy()
        return mask

    def measure(self, source: Source) -> dict[str, float]:
        """The `MEASUREMENTS` of a picture's lesion.

        Raises:
            InputError: the bytes are no picture that can be used.
        """
        info = probe(source.data)
        scale = min(1.0, SIDE / min(info.width, info.height))
        size = (max(round(info.height * scale), 1), max(round(info.width * scale), 1))
        pixels = decode(source.data, size=size, frame=source.frame, icc=self.icc)
        return measure(pixels, self(pixels))


def add_measurements(
    table: pd.DataFrame, columns: Sequence[str], finder: LesionFinder | None, workers: int
) -> pd.DataFrame:
    """Adds the columns among `MEASUREMENTS` that a cohort lacks; NaN where there is no image.

    Args:
        table: canonical rows.
        columns: of the record.
        finder: draws the masks.
        workers: threads.

    Raises:
        InputError: an image that cannot be read, by its name.
    """
    wanted = [name for name in columns if name in MEASUREMENTS and name not in table]
    if not wanted or finder is None:
        return table

    def row(place: tuple[str, str | None]) -> list[float]:
        image_id, path = place
        try:
            found = _measured_before(finder, path, _state(path)) if path else {}
        except (OSError, InputError) as error:
            raise InputError(f"image {image_id} ({path}): {error}") from error
        return [found.get(name, math.nan) for name in wanted]

    print(f"measuring {len(table)} lesions: {', '.join(wanted)}", flush=True)  # noqa: T201
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        rows = list(pool.map(row, zip(table["image_id"], table["path"], strict=True)))
    return table.assign(**dict(zip(wanted, np.array(rows).T, strict=True)))


@lru_cache(maxsize=1 << 16)
def _measured_before(finder: LesionFinder, path: str, _: tuple[int, int]) -> dict[str, float]:
    """What `finder` measures of a file in this state; each fold of a run asks again."""
    return finder.measure(read_source(path))


def _state(path: str) -> tuple[int, int]:
    """Size and time of a file, or of the container that `FILE#NAME` lies in."""
    file = Path(path)
    status = (file if file.exists() else Path(path.partition("#")[0])).stat()
    return status.st_size, status.st_mtime_ns


class MaskCheckpointError(CheckpointError):
    """A checkpoint of `task=segmentation`, where one that classifies was asked for."""
