"""A frozen image network looks at every image once: its features are kept in a file."""

import hashlib
import os
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from skinmm.config import Config
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import PIXELS
from skinmm.files import atomic_write
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import Network, full_precision

UNCHANGING: Final = "none"  # the augmentation and the mixing that leave images alone


def keeps_features(config: Config) -> bool:
    """Whether the image network gives a row the same features in every epoch."""
    changed = (config.augment.name, config.mix.name) != (UNCHANGING, UNCHANGING)
    return config.model.freeze and not changed and config.evaluation.views == 1


def keep_features(
    config: Config, data: LesionData, network: Network, device: torch.device, folder: Path
) -> None:
    """Lets the data hand out features for images, from the file that holds them or is made now.

    The file's name is a digest of the network's weights and settings and of the image files: other
    weights or other files are another name.

    Args:
        config: the whole configuration.
        data: whose rows are looked at.
        network: whose image network is frozen.
        device: where it runs.
        folder: of the file.

    Raises:
        ImageError: an image cannot be read.
    """
    if network.image is None or not keeps_features(config):
        return
    file = folder / f"{config.model.name}-{_digest(config, data, network.image)}.npy"
    if not file.is_file():
        print(f"features of {len(data.used_rows)} images: {file}", flush=True)  # noqa: T201
        _write(file, data, network.to(device), device)
    data.features = np.load(file, mmap_mode="r")


def _write(file: Path, data: LesionData, network: Network, device: torch.device) -> None:
    """Looks at all rows, and renames the file once it is whole."""
    kept: np.ndarray | None = None
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        for batch in data.image_loader():
            with torch.inference_mode(), full_precision(device.type):
                seen = network.encode_image(batch["image"].to(device)).float().cpu().numpy()
            if kept is None:
                shape = (len(data.used_rows), *seen.shape[1:])
                kept = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            kept[batch["row"].numpy()] = seen


def _digest(config: Config, data: LesionData, image: nn.Module) -> str:
    """Of everything that the features are a function of."""
    digest = hashlib.sha256()
    model = config.model
    tokens = FUSIONS[config.fusion.name].tokens
    finder = data.finder.digest if data.finder else None
    pixels = [PIXELS, model.image_size, config.data.icc, config.data.preprocess, finder]
    said: list[Any] = [model.name, model.args, *pixels, tokens]
    paths = data.cohort["path"].iloc[data.used_rows].tolist()
    files = dict.fromkeys(path.partition("#")[0] for path in paths)
    states = [(os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]  # noqa: PTH116
    digest.update(repr((said, paths, states)).encode())
    for name, value in image.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
