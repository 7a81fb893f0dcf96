"""Cached features of a frozen image network, computed once per image."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from skinmm.config import Config
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset import PIXELS
from skinmm.data.lesions import explode_images
from skinmm.errors import print_line
from skinmm.files import atomic_write
from skinmm.models.fusion import FUSIONS
from skinmm.models.network import Network, full_precision
from skinmm.training.run_folder import RunFolder
from skinmm.training.trainer import set_threads


def load_features(
    config: Config, data: LesionData, network: Network, trainer: pl.Trainer, run: RunFolder
) -> None:
    """Replace images by cached features if the features are equal in every epoch."""
    if network.image is None or not has_constant_features(config):
        return
    folder = Path(config.model.cache or run.root.path / "features")
    file = cache_features(config, data, network, trainer.strategy.root_device, folder)
    features = np.load(file, mmap_mode="r")
    data.features = features
    if features[0].ndim == 1:  # one vector per image, no tokens
        set_threads(has_images=False)


def has_constant_features(config: Config) -> bool:
    """Return whether the features of an image are equal in every epoch."""
    is_changed = config.augment.name != "none" or config.mix.name != "none"
    return config.model.trained == "head" and not is_changed and config.evaluation.views == 1


def cache_features(
    config: Config, data: LesionData, network: Network, device: torch.device, folder: Path
) -> Path:
    """Return the file with the features of all used rows; compute it if it is missing.

    Its name contains a digest of the network's weights, the settings and the image files.
    """
    model = network.image.config if network.image else config.model
    tokens = FUSIONS[config.fusion.name].tokens
    finder = data.finder.digest if data.finder else None
    pixels = [PIXELS, model.image_size, config.data.icc, config.data.preprocess, finder]
    paths = explode_images(data.cohort.iloc[data.used_rows])["path"].tolist()
    files = dict.fromkeys(path.partition("#")[0] for path in paths)
    states = [(os.stat(file).st_size, os.stat(file).st_mtime_ns) for file in files]  # noqa: PTH116
    settings = [model.name, model.args, *pixels, tokens]
    digest = hashlib.sha256(repr((settings, paths, states)).encode())
    for name, value in network.get_submodule("image").state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().tobytes())
    target = folder / f"{model.name}-{digest.hexdigest()[:16]}.npy"
    if target.is_file():
        return target
    print_line(f"features of {len(paths)} images: {target}")
    features: np.ndarray | None = None
    network.to(device)
    encode = network.get_submodule("image")
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as partial:
        for batch in data.image_loader():
            with torch.inference_mode(), full_precision(device.type):
                values = encode(batch["image"].to(device)).float().cpu().numpy()
            if features is None:
                shape = (len(paths), *values.shape[1:])
                features = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            features[batch["row"].numpy()] = values
    return target
