"""The second stage: a lesion among others of its patient, on what a plain run made of each."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from skinmm import runs
from skinmm.checkpoint import Card, load_card
from skinmm.config import CONTEXT, Component, Config, below
from skinmm.data.datamodule import LesionData
from skinmm.data.dataset_context import Embedded
from skinmm.errors import InputError
from skinmm.models.network import Network
from skinmm.segmentation import LesionFinder


def first_stage(config: Config, run: Path) -> Config | None:
    """The plain run that has to come first, in a folder of its own; None: there is one."""
    folder = run / runs.PLAIN
    if config.fusion.args.get("base") or (config.resume and (folder / "metrics.json").is_file()):
        return None
    begun = config.resume and (folder / "config.yaml").is_file()
    return replace(config, fusion=below(config.fusion), resume=str(folder) if begun else None)


def second_stage(config: Config, run: Path) -> Config:
    """The configuration over a plain run; the settings that shaped that one stay in it.

    Raises:
        InputError: that run lies where it would be cleared away.
    """
    own = run / runs.PLAIN
    base = config.fusion.args.get("base") or str(own)
    place = Path(base).resolve()
    if place != own.resolve() and place.is_relative_to(run.resolve()):
        raise InputError(
            f"fusion.args.base={base} lies in the run's own folder; choose another hydra.run.dir"
        )
    args = {**config.fusion.args, "base": base, "plain": asdict(below(config.fusion))}
    return replace(config, fusion=replace(config.fusion, args=args))


def acting(config: Config) -> Config:
    """The settings that a stage trains by: in the second one no image is looked at, or changed."""
    if config.fusion.name != CONTEXT:
        return config
    still = Component("none")
    return replace(
        config, augment=still, mix=still, optimizer=replace(config.optimizer, head_epochs=0)
    )


def base_of(config: Config) -> Path:
    """The plain run of a configuration's fold."""
    base = Path(config.fusion.args["base"])
    fold = runs.fold_folder(base, int(config.data.fold))
    return fold if fold.is_dir() else base


def refuse_another_finder(config: Config, run: Path) -> None:
    """All stages, folds and epochs of a run find its lesions with one and the same network.

    Args:
        config: of a fold.
        run: the folder of all folds.

    Raises:
        InputError: the checkpoint that `data.segmenter` names is another one by now.
    """
    if not config.data.segmenter:
        return
    begun = sorted(run.rglob("last.ckpt"))[:1] if config.resume else []
    if config.fusion.name == CONTEXT:
        begun.append(base_of(config) / "checkpoints" / "best.ckpt")
    found = LesionFinder.load(Path(config.data.segmenter)).digest
    for card in (load_card(path)[0] for path in begun):
        if card.segmenter and card.segmenter["digest"] != found:
            raise InputError(
                f"data.segmenter={config.data.segmenter}: the run was begun with another "
                f"checkpoint, whose SHA-256 is {card.segmenter['digest']}; put that one there again"
            )


def take_over(base: Path, network: Network, card: Card, data: LesionData) -> Card:
    """Gives a network the plain run's weights, frozen, and its data the plain run's encoder.

    Returns:
        The card, with what rows that stay alone are judged by.

    Raises:
        InputError: the plain run is not finished, or was split otherwise.
    """
    plain, weights = load_card(base / "checkpoints" / "best.ckpt")
    if plain.calibration is None or not (base / "metrics.json").is_file():
        raise InputError(f"{base}: the run is not finished; train.py resume={base} goes on with it")
    columns = ["image_id", "part"]
    seen = pd.read_csv(base / "cohort.csv", usecols=columns, dtype=str)[columns]
    if not np.array_equal(seen.to_numpy(), data.cohort[columns].astype(str).to_numpy()):
        raise InputError(f"{base}: the cohort has changed since, or is split otherwise")
    data.encoder = data.encoder.from_state(plain.encoder)
    lacking, foreign = network.load_state_dict(weights, strict=False)
    if foreign or any(not name.startswith("context.") for name in lacking):
        raise InputError(f"{base}: its network is another one than its config.yaml says")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("context."))
    return replace(
        card,
        encoder=plain.encoder,
        initialisation=plain.initialisation,
        alone=plain.calibration,
    )


def embed(config: Config, data: LesionData, network: Network, device: torch.device) -> Embedded:
    """Looks at every used row once, alone.

    Raises:
        ImageError: an image cannot be read.
    """
    if network.context is None:
        raise ValueError("a network without context")
    network.to(device).eval()
    parts = []
    for batch in data.whole_loader():
        image, record = (
            batch[name].to(device) if name in batch else None for name in ("image", "record")
        )
        with torch.inference_mode():
            seen = network.outcome(image, record, config.evaluation.views)
        parts.append([each.cpu().numpy() for each in seen])
    plain, features = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Embedded(plain, features, data.neighbours(network.context.others))
