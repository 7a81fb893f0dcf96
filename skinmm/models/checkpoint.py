"""The one place that knows what a checkpoint holds: plain data, loaded with `weights_only=True`."""

from collections.abc import Sequence
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from skinmm.errors import InputError
from skinmm.files import atomic_write

SCHEMA: Final = 1
KEY: Final = "skinmm"
PREFIX: Final = "network."  # the LightningModule's attribute
REMOVED: Final = ("patient_context",)
"""Choices of `fusion=` that there were once."""


class CheckpointError(InputError):
    """A file that is not a usable checkpoint of ours."""


@dataclass(frozen=True)
class Card:
    """What a checkpoint says of its network, beside the weights.

    Attributes:
        config: the configuration as plain dictionaries.
        classes: names, in the order of the logits.
        positive: the classes that count as malignant.
        encoder: state of the fitted record encoder.
        initialisation: what the image network started from.
        prior: `trained` and `deployed` class shares, for the closed-form correction.
        calibration: state of the fitted calibration; None before it was fitted.
        threshold: `value`, `rule` and `guaranteed` of the decision; None before it was chosen.
        conformal: state of the prediction sets; None where there are none.
        ood: state of the out-of-distribution score; None where there is none.
        preprocess: names of the preprocessing steps, in order.
        segmenter: state of the network that finds lesions for them; None where no step needs it.
        summary: test metrics and counts, for a model card.
        inputs: how training records, and answers to test rows, were distributed.
    """

    config: dict[str, Any]
    classes: list[str]
    positive: list[str]
    encoder: dict[str, Any]
    initialisation: str
    prior: dict[str, list[float]]
    calibration: dict[str, Any] | None = None
    threshold: dict[str, Any] | None = None
    conformal: dict[str, Any] | None = None
    ood: dict[str, Any] | None = None
    preprocess: list[str] = field(default_factory=list)
    segmenter: dict[str, Any] | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA


def load_card(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Reads a checkpoint's card and the network's weights, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, not a checkpoint of this package, or of a
            network that it no longer has.
    """
    content, card = _checked(path)
    weights = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in content["state_dict"].items()
        if name.startswith(PREFIX)
    }
    return card, weights


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this package, without reading its tensors."""
    return read_task(path) is not None


def read_task(path: Path) -> str | None:
    """Return the task of a checkpoint, without reading its tensors; None of any other file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return str(content[KEY]["config"].get("task", "classification"))
    except Exception:  # damaged or foreign files make torch raise various errors
        return None


def update_card(path: Path, **changes: Any) -> Card:
    """Rewrites a checkpoint's card in place, atomically.

    Args:
        path: the checkpoint.
        changes: new values of the card's attributes.

    Returns:
        The new card.

    Raises:
        CheckpointError: as `load_card`.
    """
    content, card = _checked(path)
    card = replace(card, **changes)
    save_checkpoint({**content, KEY: asdict(card)}, path)
    return card


def average_checkpoints(paths: Sequence[Path], target: Path) -> None:
    """Writes a checkpoint with the mean of several checkpoints' weights, and removes those.

    The mean of a run's last epochs is often better than each (Izmailov et al. 2018,
    arXiv:1803.05407). BatchNorm's statistics are averaged too; the rest is the last one's.

    Raises:
        CheckpointError: as `load_card`.
    """
    *others, last = (_checked(path)[0] for path in paths)
    states = [content["state_dict"] for content in (*others, last)]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in last["state_dict"].items()
    }
    save_checkpoint({**last, "state_dict": mean}, target)
    for path in paths:
        path.unlink()


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Writes beside the target and renames: a half-written checkpoint is never seen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def _checked(path: Path) -> tuple[dict[str, Any], Card]:
    """A checkpoint's whole content, and its card."""
    content = _read(path)
    held = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(held, dict):
        raise CheckpointError(f"{path}: not a skinmm checkpoint (it holds no '{KEY}' entry)")
    if held.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: schema {held.get('schema')}; this version reads schema {SCHEMA}"
        )
    missing = {item.name for item in fields(Card) if _is_needed(item)} - set(held)
    if missing or not isinstance(content.get("state_dict"), dict):
        what = ", ".join(sorted(missing)) or "state_dict"
        raise CheckpointError(f"{path}: the checkpoint lacks {what}")
    if (fusion := _fusion(held["config"])) in REMOVED:
        raise CheckpointError(
            f"{path}: trained with fusion={fusion}, which this version no longer has; use the "
            "skinmm that trained it, or train again with another fusion"
        )
    return content, Card(**{i.name: held[i.name] for i in fields(Card) if i.name in held})


def _fusion(config: Any) -> Any:
    fusion = config.get("fusion") if isinstance(config, dict) else None
    return fusion.get("name") if isinstance(fusion, dict) else None


def _is_needed(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        _compare_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the readers raise whatever they like
        reason = (str(error).strip().splitlines() or ["empty file"])[0][:120]
        raise CheckpointError(f"{path}: not a checkpoint, or damaged ({reason})") from error


def _compare_checksums(path: Path) -> None:
    """Looks at the checksums that torch writes and never reads: a changed weight goes unseen."""
    with ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise BadZipFile(f"{damaged} was changed")
