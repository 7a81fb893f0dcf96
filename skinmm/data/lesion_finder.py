"""Lesion finder: a trained segmentation network that outlines and measures lesions."""

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

from skinmm.config import Config, DataConfig, from_mapping
from skinmm.data.bucket import find_pack
from skinmm.data.packed import load_packed_steps
from skinmm.errors import InputError, one_line, print_line
from skinmm.images.base import resize
from skinmm.images.decode import decode, probe
from skinmm.images.measure import MEASUREMENTS, measure
from skinmm.images.preprocess import MASK_STEPS, check_steps, preprocess
from skinmm.images.source import Source, read_source
from skinmm.models.checkpoint import CheckpointError, load_card
from skinmm.models.segmentation import build_segmenter

SIDE: Final = 256  # shorter side of the image on which lesions are measured, in pixels


class LesionFinder:
    """Trained segmentation network on the CPU; finders of the same checkpoint are equal.

    Args:
        state: `config`, `weights` and `digest` as plain data, which are also part of the checkpoint
            of a classifier whose preprocessing uses them.

    Attributes:
        digest: SHA-256 of the checkpoint.
        size: side of the square input of the network, in pixels.
        icc: treatment of embedded colour profiles in its training (see `decode`).
    """

    def __init__(self, state: dict[str, Any]) -> None:
        self.state, self.digest = state, str(state["digest"])
        try:
            config = from_mapping(Config, state["config"])
            self._network = build_segmenter(config, pretrained=False)
            self._network.load_state_dict(state["weights"])
        except (InputError, RuntimeError, LookupError, TypeError) as error:
            raise CheckpointError(f"unreadable segmenter ({one_line(error)})") from error
        self._network.to(memory_format=torch.channels_last).eval().requires_grad_(False)
        self.size = config.model.image_size
        self.icc: Any = config.data.icc
        self._steps = tuple(config.data.preprocess)

    @classmethod
    def load(cls, path: Path) -> "LesionFinder":
        """Load a checkpoint of `task=segmentation`; raise `CheckpointError` for any other file."""
        card, weights = load_card(path)
        if card.config.get("task") != "segmentation":
            raise CheckpointError(f"{path}: a classifier; use a checkpoint of task=segmentation")
        digest = sha256(path.read_bytes()).hexdigest()
        return cls({"config": card.config, "weights": weights, "digest": digest})

    def __eq__(self, other: object) -> bool:
        """Return whether both finders have the same checkpoint."""
        return isinstance(other, LesionFinder) and self.digest == other.digest

    def __hash__(self) -> int:
        """Return the hash of the checkpoint's digest."""
        return hash(self.digest)

    def __call__(
        self, image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int] | None = None
    ) -> Bool[np.ndarray, "_ _"]:
        """Return the mask of the lesion.

        Args:
            image: whole image of any size.
            size: (height, width) of the mask; None: that of the image.
        """
        square = (self.size, self.size)
        height, width, _ = image.shape
        small = image if (height, width) == square else resize(image, square, (height, width))
        small = preprocess(small, self._steps)
        pixels = torch.from_numpy(np.ascontiguousarray(small)).permute(2, 0, 1)[None]
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            logits = self._network(pixels)[:, None]
            resized = interpolate(logits, size or (height, width), mode="bilinear")
        return (resized[0, 0] > 0).numpy()

    def measure(self, source: Source) -> dict[str, float]:
        """Return the `MEASUREMENTS` of the lesion in an image."""
        info = probe(source.data)
        scale = min(1.0, SIDE / min(info.width, info.height))
        size = (max(round(info.height * scale), 1), max(round(info.width * scale), 1))
        pixels = decode(source.data, size=size, frame=source.frame, icc=self.icc)
        return measure(pixels, self(pixels))


def build_preprocessing(data: DataConfig) -> tuple[tuple[str, ...], LesionFinder | None]:
    """Return the preprocessing steps, with the steps of a pack first, and the lesion finder."""
    finder = LesionFinder.load(Path(data.segmenter)) if data.segmenter else None
    is_pack = data.name == "packed"
    done, digest = load_packed_steps(find_pack(data)) if is_pack else ((), None)
    steps = (*done, *data.preprocess)
    check_steps(steps, has_finder=finder is not None)
    measures = bool({*data.columns} & {*MEASUREMENTS})
    if finder and digest and finder.digest != digest:
        raise InputError(
            f"data.segmenter={data.segmenter}: {data.root} was packed with another checkpoint, "
            f"whose SHA-256 is {digest}"
        )
    if done and measures:
        raise InputError(
            f"data.root={data.root}: the packed images were preprocessed ({', '.join(done)}), but "
            "measurements need original images; pack without these steps, or remove the "
            "measurements from data.columns"
        )
    if finder and not {*steps} & {*MASK_STEPS} and not measures:
        raise InputError(
            f"data.segmenter={data.segmenter}: no step or column uses the lesion's mask; add a "
            f"step ({', '.join(MASK_STEPS)}) or a column ({', '.join(MEASUREMENTS)})"
        )
    return steps, finder


def add_measurements(
    table: pd.DataFrame, columns: Sequence[str], finder: LesionFinder | None, workers: int
) -> pd.DataFrame:
    """Add the columns of `MEASUREMENTS` that a cohort lacks; NaN for rows without an image.

    Without a finder nothing is added. `columns` are the record columns of the model.
    """
    names = [name for name in columns if name in MEASUREMENTS and name not in table]
    if not names or finder is None:
        return table

    def measure_row(image: tuple[str, str | None]) -> list[float]:
        image_id, path = image
        try:
            values = _measure_cached(finder, path, _file_state(path)) if path else {}
        except (OSError, InputError) as error:
            raise InputError(f"image {image_id} ({path}): {error}") from error
        return [values.get(name, math.nan) for name in names]

    print_line(f"measuring {len(table)} lesions: {', '.join(names)}")
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        rows = list(pool.map(measure_row, zip(table["image_id"], table["path"], strict=True)))
    return table.assign(**dict(zip(names, np.array(rows).T, strict=True)))


@lru_cache(maxsize=1 << 16)
def _measure_cached(finder: LesionFinder, path: str, _: tuple[int, int]) -> dict[str, float]:
    """Measure a lesion; reuse the result in all folds unless the file changes."""
    return finder.measure(read_source(path))


def _file_state(path: str) -> tuple[int, int]:
    """Return size and time of a file, or of the container `FILE` of a location `FILE#NAME`."""
    file = Path(path)
    status = (file if file.exists() else Path(path.partition("#")[0])).stat()
    return status.st_size, status.st_mtime_ns
