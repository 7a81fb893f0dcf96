"""The format of checkpoints: the network's weights and a `Card` of plain data.

A checkpoint is the dictionary that Lightning saves, with the card under the key `skinmm`. It is
always loaded with `weights_only=True`, which executes no code. `save_compact` writes the same
content as a safetensors file with weights of 16 bits, such as the models of the package.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from skinmm.config.registry import require_sources
from skinmm.errors import InputError
from skinmm.files import atomic_write

SCHEMA: Final = 1
KEY: Final = "skinmm"
MEMBERS: Final = "members"
"""Key of an ensemble: the checkpoints of its models, each with a card and weights."""
PREFIX: Final = "network."  # attribute of the LightningModule
REMOVED: Final = ("patient_context", "metablock without a hidden layer")  # fusion blocks
COMPACT: Final = ".safetensors"
WEIGHTS: Final = "state_dict."  # prefix of the weights in such a file


class CheckpointError(InputError):
    """Unusable checkpoint, or a file of another kind."""


@dataclass(frozen=True)
class Card:
    """Description of a network, with all that prediction needs besides its weights.

    Attributes:
        config: configuration of the run as plain dictionaries.
        classes: names of the classes, in the order of the logits.
        positive: classes that count as malignant.
        encoder: state of the fitted record encoder.
        initialisation: origin of the weights that the image network started from.
        prior: class shares `trained` and `deployed`, for the closed-form correction.
        inverse: inverse of the training loss; None if it has none, or in older checkpoints.
        calibration: state of the fitted calibration; None before it is fitted.
        threshold: `value`, `rule` and `guaranteed` of the decision; None before it is chosen.
        band: state of the probabilities that are referred; None: the prediction sets decide.
        conformal: state of the prediction sets; None without them.
        call: state of the rule for the predicted class; None if the settings determine it.
        ood: state of the out-of-distribution score; None without it.
        preprocess: names of the preprocessing steps, in order.
        segmenter: state of the network that finds lesions for these steps; None if none needs it.
        summary: test metrics and counts for the model card.
        inputs: distributions of the training records, and of the outputs for the test rows.
        background: `image` features (bfloat16) and encoded `record` of a sample of validation rows,
            from which explanations start; empty in older checkpoints.
        index: names, diagnoses and embeddings of training images (`model.index`); None without.
        parts: kind, name and source of each component that is not of this package.
        adaptation: record of the adaptation to a site, see `skinmm adapt`; None: not adapted.
    """

    config: dict[str, Any]
    classes: list[str]
    positive: list[str]
    encoder: dict[str, Any]
    initialisation: str
    prior: dict[str, list[float]]
    inverse: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    threshold: dict[str, Any] | None = None
    band: dict[str, Any] | None = None
    conformal: dict[str, Any] | None = None
    call: dict[str, Any] | None = None
    ood: dict[str, Any] | None = None
    preprocess: list[str] = field(default_factory=list)
    segmenter: dict[str, Any] | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)
    background: dict[str, Tensor] = field(default_factory=dict)
    index: dict[str, Any] | None = None
    adaptation: dict[str, Any] | None = None
    parts: list[dict[str, str]] = field(default_factory=list)
    schema: int = SCHEMA


def load_card(path: Path) -> tuple[Card, dict[str, Tensor]]:
    """Load the card and the weights of a network, on the CPU."""
    content, card = _load(path)
    return card, strip_prefix(content["state_dict"], PREFIX)


def load_cards(path: Path) -> list[tuple[Card, dict[str, Tensor]]]:
    """Load card and weights of each network of an ensemble or of a single checkpoint."""
    return [
        (card, strip_prefix(member["state_dict"], PREFIX)) for member, card in _load_members(path)
    ]


def save_ensemble(
    paths: Sequence[Path],
    target: Path,
    changes: Callable[[int, Card], dict[str, Any]] | None = None,
    /,
    **facts: Any,
) -> None:
    """Write the networks of several checkpoints to one file, without training states.

    `facts` replace fields of every card. `changes` returns the fields to replace in the card of one
    network, given its number and its card.
    """
    members = list[dict[str, Any]]()
    for content, card in (member for path in paths for member in _load_members(path)):
        changed = facts | (changes(len(members), card) if changes else {})
        members.append({KEY: content[KEY] | changed, "state_dict": content["state_dict"]})
    save_checkpoint(members[0] if len(members) == 1 else {MEMBERS: members}, target)


def split_ensemble(path: Path, folder: Path) -> list[Path]:
    """Return one checkpoint per network: the file itself, or new files in a folder."""
    members = _load_members(path)
    if len(members) == 1:
        return [path]
    paths = [folder / f"{path.stem}.{number}.ckpt" for number in range(len(members))]
    for target, (content, _) in zip(paths, members, strict=True):
        save_checkpoint(content, target)
    return paths


def strip_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with a prefix, and remove it from their names."""
    return {name[len(prefix) :]: state[name] for name in state if name.startswith(prefix)}


def read_epochs(path: Path) -> list[int]:
    """Return the epochs, counted from 1, whose weights a checkpoint contains or averages."""
    content = _load(path)[0]
    return [epoch + 1 for epoch in content.get("epochs", [content["epoch"]])]


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of this package, without reading its tensors."""
    return _peek(path) is not None


def read_task(path: Path) -> str | None:
    """Return the task of a checkpoint, without reading its tensors; None for any other file."""
    config = (_peek(path) or {}).get("config")
    return str(config.get("task", "classification")) if isinstance(config, dict) else None


def is_calibrated(path: Path) -> bool:
    """Return whether a file is a checkpoint with a decision threshold, without reading tensors."""
    return bool((_peek(path) or {}).get("threshold"))


def _peek(path: Path) -> dict[str, Any] | None:
    """Return the stored card of a checkpoint, without reading tensors; None for other files."""
    try:
        if path.suffix == COMPACT:
            return _read_compact(path, with_weights=False).get(KEY)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # torch raises various errors for other and damaged files
        return None
    if not isinstance(content, dict):
        return None
    return (content.get(MEMBERS) or [content])[0].get(KEY)


def update_card(path: Path, **changes: Any) -> Card:
    """Change attributes of the card in a checkpoint file; return the new card."""
    content, card = _load(path)
    card = replace(card, **changes)
    save_checkpoint({**content, KEY: asdict(card)}, path)
    return card


def average_checkpoints(paths: Sequence[Path], target: Path) -> None:
    """Write a checkpoint with the mean weights of several checkpoints, and delete the latter.

    The mean of a run's last epochs is often better than each of them (Izmailov et al. 2018,
    arXiv:1803.05407). Statistics of BatchNorm are averaged too; all else is from the last one.
    """
    contents = [_load(path)[0] for path in paths]
    last, states = contents[-1], [content["state_dict"] for content in contents]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(dim=0)
        if value.is_floating_point()
        else value
        for name, value in last["state_dict"].items()
    }
    epochs = [content["epoch"] for content in contents]
    save_checkpoint({**last, "state_dict": mean, "epochs": epochs}, target)
    for path in paths:
        path.unlink()


def save_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: a reader never finds an incomplete file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("wb") as file:
        torch.save(content, file)


def save_compact(source: Path, target: Path, *, halve: bool = True, **changes: Any) -> None:
    """Write a checkpoint of one network as a safetensors file, which loads like any checkpoint.

    With `halve` matrices have 16 bits, vectors 32, as variances may be too small for 16. The header
    has the card as JSON, whose tensors are tensors of the file, with the attributes `changes`.
    """
    content, card = _load(source)
    pack = to_16_bits if halve else Tensor.contiguous
    tensors = {f"{WEIGHTS}{name}": pack(v) for name, v in content["state_dict"].items()}

    def extract(value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            tensors[name] = value.contiguous()
            return {KEY: name}
        if isinstance(value, dict):
            return {key: extract(item, f"{name}.{key}") for key, item in value.items()}
        return value

    header = json.dumps(extract(asdict(replace(card, **changes)), "card"))
    with atomic_write(target) as partial:
        save_file(tensors, partial, {KEY: header})


def to_16_bits(value: Tensor) -> Tensor:
    """Convert floating-point matrices to 16 bits; other tensors are unchanged."""
    is_matrix = value.is_floating_point() and value.ndim > 1
    return (value.half() if is_matrix else value).contiguous()


def _read_compact(path: Path, *, with_weights: bool = True) -> dict[str, Any]:
    """Read a file of `save_compact`, with its weights in 32 bits."""
    with safe_open(path, framework="pt") as file:

        def restore(value: Any) -> Any:
            if not isinstance(value, dict):
                return value
            if [*value] == [KEY]:
                return file.get_tensor(value[KEY])
            return {key: restore(item) for key, item in value.items()}

        header = (file.metadata() or {}).get(KEY)
        content = {KEY: restore(json.loads(header))} if header else {}
        if with_weights:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            content["state_dict"] = {
                name: value.float() if value.dtype is torch.float16 else value
                for name, value in strip_prefix(tensors, WEIGHTS).items()
            }
    return content


def _load(path: Path) -> tuple[dict[str, Any], Card]:
    """Return the whole content of a checkpoint, and its card."""
    members = _load_members(path)
    if len(members) > 1:
        raise CheckpointError(
            f"{path}: an ensemble of {len(members)} networks, where one is needed; choose the "
            "best.ckpt of one fold"
        )
    return members[0]


def _load_members(path: Path) -> list[tuple[dict[str, Any], Card]]:
    """Return content and card of each network of an ensemble or of a single checkpoint."""
    content = _read(path)
    members = content.get(MEMBERS) if isinstance(content, dict) else None
    return [(member, _parse_card(member, path)) for member in members or [content]]


def _parse_card(content: Any, path: Path) -> Card:
    card = content.get(KEY) if isinstance(content, dict) else None
    if not isinstance(card, dict):
        raise CheckpointError(f"{path}: not a skinmm checkpoint (it has no '{KEY}' entry)")
    if card.get("schema") != SCHEMA:
        raise CheckpointError(
            f"{path}: schema {card.get('schema')}; this version reads schema {SCHEMA}"
        )
    required = {i.name for i in fields(Card) if MISSING is i.default is i.default_factory}
    names = ", ".join(sorted(required - card.keys()))
    if names or not isinstance(content.get("state_dict"), dict):
        raise CheckpointError(f"{path}: the checkpoint lacks {names or 'state_dict'}")
    config = card["config"]
    fusion = config.get("fusion") if isinstance(config, dict) else None
    name = fusion.get("name") if isinstance(fusion, dict) else None
    # Earlier versions of metablock passed the gates' output to the head.
    if name == "metablock" and f"{PREFIX}fusion.reduce.0.weight" not in content["state_dict"]:
        name = "metablock without a hidden layer"
    if name in REMOVED:
        raise CheckpointError(
            f"{path}: trained with fusion={name}, which this version no longer has; use the skinmm "
            "that trained it, or train again with another fusion"
        )
    require_sources(path, card.get("parts", []))
    return Card(**{i.name: card[i.name] for i in fields(Card) if i.name in card})


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    try:
        if path.suffix == COMPACT:
            return _read_compact(path)
        with ZipFile(path) as archive:
            if damaged := archive.testzip():  # torch writes checksums and never compares them
                raise BadZipFile(f"{damaged} was changed")  # noqa: TRY301
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises various errors for damaged files
        reason = (str(error).strip().splitlines() or ["empty file"])[0][:120]
        raise CheckpointError(
            f"{path}: not a checkpoint, or damaged ({reason}); give a run folder or its best.ckpt"
        ) from error
