"""Networks by any usual name, and files of other programs: outputs equal those of the program."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from skinmm.config import ModelConfig
from skinmm.errors import InputError
from skinmm.models.backbone import CUSTOM, Backbone
from skinmm.models.sources import find_source, resolve_image_size
from skinmm.predict.predictor import Predictor

State = dict[str, Tensor]
SIZE = 32
VIT: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
MODEL = ModelConfig(name="vit_small_patch16_224", image_size=SIZE, args=VIT)
PIXELS = torch.randint(0, 256, (2, 3, SIZE, SIZE), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def load(state: Any, folder: Path, model: ModelConfig = MODEL) -> Backbone:
    torch.save(state, folder / "weights.pth")
    settings = replace(model, pretrained=str(folder / "weights.pth"))
    return Backbone(settings, pretrained=True).eval()


def vit() -> nn.Module:
    torch.manual_seed(1)
    net: nn.Module = timm.create_model(MODEL.name, img_size=SIZE, **VIT)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def as_dino(state: State) -> Any:
    student = {f"module.backbone.{name}": torch.zeros_like(t) for name, t in state.items()}
    teacher = {f"module.backbone.{name}": t for name, t in state.items()}
    return {"student": student, "teacher": teacher | {"module.head.mlp.0.weight": torch.ones(9, 9)}}


def as_dinov2(state: State) -> Any:
    return {**state, "mask_token": torch.zeros(1, VIT["embed_dim"])}


def as_mae(state: State) -> Any:
    decoder = {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 32)}
    return {"model": {**state, **decoder, "decoder_pos_embed": torch.zeros(1, 5, 8)}, "epoch": 3}


def as_trained_mae(state: State) -> Any:
    return {
        "model": {k.replace("norm.", "fc_norm.") if k[0] == "n" else k: state[k] for k in state}
    }


def as_open_clip_timm(state: State) -> Any:
    trunk = {f"visual.trunk.{name}": tensor for name, tensor in state.items()}
    return {**trunk, "visual.head.proj.weight": torch.zeros(4, 32), "logit_scale": torch.ones(())}


def as_segmenter(state: State) -> Any:
    return {f"encoder.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    ("rename", "note"),
    [
        (dict, ""),
        (as_dino, "; not used: module.head.mlp.0.weight"),
        (as_dinov2, ""),
        (as_mae, "; not used: decoder_embed.weight, decoder_pos_embed"),
        (as_trained_mae, ""),
        (as_open_clip_timm, "; not used: visual.head.proj.weight, logit_scale"),
        (as_segmenter, ""),
    ],
)
def test_every_tensor_of_a_vision_transformer_is_loaded(
    rename: Callable[[State], Any], note: str, tmp_path: Path
) -> None:
    state = {k: t for k, t in vit().state_dict().items() if not k.startswith("head.")}
    backbone = load(rename(state), tmp_path)
    loaded = backbone.net.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    if rename is not as_open_clip_timm:  # which timm's own conversion leaves out
        assert backbone.origin == f"file weights.pth{note}"


def features(net: nn.Module, backbone: Backbone) -> Tensor:
    with torch.no_grad():
        return net((PIXELS - backbone.mean) / backbone.std)


def test_torchvision_s_transformer_has_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    net = models.VisionTransformer(SIZE, 16, 2, 2, 32, 128, num_classes=5)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    backbone = load(net.state_dict(), tmp_path)
    net.heads = nn.Identity()
    torch.testing.assert_close(backbone(PIXELS), features(net.eval(), backbone), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("theirs", "name"),
    [
        (lambda: models.mobilenet_v2(width_mult=0.5), "mobilenetv2_050"),
        (models.resnet18, "resnet18"),
        (models.mobilenet_v3_small, "tf_mobilenetv3_small_100"),
    ],
)
def test_torchvision_s_convolutions_have_the_same_features(
    theirs: Callable[[], nn.Module], name: str, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    net: Any = theirs()
    model = ModelConfig(name=name, image_size=SIZE)
    backbone = load(net.state_dict(), tmp_path, model)
    if name == "resnet18":
        net.fc = nn.Identity()
    else:
        net.classifier = net.classifier[:2] if len(net.classifier) > 2 else nn.Identity()
    expected = features(net.eval(), backbone)
    torch.testing.assert_close(backbone(PIXELS), expected, atol=1e-4, rtol=1e-3)


def deeper(state: State) -> State:
    layer = {k.replace("blocks.1", "blocks.2"): t for k, t in state.items() if "blocks.1" in k}
    return {**state, **layer}


def wider(state: State) -> State:
    return {k: torch.cat([t, t]) if "mlp.fc1" in k else t for k, t in state.items()}


@pytest.mark.parametrize(
    ("foreign", "message"),
    [
        (deeper, "not used: blocks.2.norm1.weight, blocks.2.norm1.bias, blocks.2.attn.qkv.weight"),
        (wider, "not in the file: blocks.0.mlp.fc1.weight, blocks.0.mlp.fc1.bias"),
        (
            lambda _: models.resnet18().state_dict(),
            r"100% of the values differ, at most 1% may \(not in the file: cls_token, pos_embed, "
            r"patch_embed.proj.weight and 27 others; not used: conv1.weight",
        ),
    ],
)
def test_a_file_of_another_network_is_refused_with_its_first_names(
    foreign: Callable[[State], State], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"does not fit vit_small_patch16_224: .*{message}"):
        load(foreign(dict(vit().state_dict())), tmp_path)


def test_a_tensor_below_the_limit_may_be_missing_and_is_named(tmp_path: Path) -> None:
    state = {k: t for k, t in vit().state_dict().items() if k != "norm.bias"}
    assert load(state, tmp_path).origin == "file weights.pth; not in the file: norm.bias"


def write_timm_folder(folder: Path) -> State:
    """A folder as timm's `save_for_hf` writes it."""
    settings = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, SIZE, SIZE]}
    content = {
        "architecture": MODEL.name,
        "model_args": VIT,
        "pretrained_cfg": {**settings, "fixed_input_size": True},
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(content))
    state = dict(vit().state_dict())
    save_file(state, folder / "model.safetensors")
    return state


@pytest.mark.parametrize("scheme", ["local-dir", "hf-hub"])
def test_a_folder_or_cached_repository_of_timm(scheme: str, tmp_path: Path) -> None:
    place, folder = str(tmp_path / "model"), tmp_path / "model"
    if scheme == "hf-hub":
        place, repository = "org/name", tmp_path / "hub" / "models--org--name"
        folder = repository / "snapshots" / "1a"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("1a")
    state = write_timm_folder(folder)
    name = f"{scheme}:{place}"
    model = ModelConfig(name=name, image_size=0)
    assert resolve_image_size(model, CUSTOM) == SIZE
    backbone = Backbone(replace(model, image_size=SIZE), pretrained=True).eval()
    assert backbone.origin == name
    assert backbone.mean.flatten().tolist() == pytest.approx([25.5, 51, 76.5])
    assert torch.equal(backbone.net.norm.weight, state["norm.weight"])
    # What a checkpoint stores builds the same network without the folder.
    again = Backbone(backbone.config).eval()
    again.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(again(PIXELS), backbone(PIXELS))
    assert ":" not in backbone.config.name


def write_clip_folder(folder: Path) -> nn.Module:
    """A folder as open_clip's `push_to_hf_hub` writes it."""
    open_clip = pytest.importorskip("open_clip")
    vision = {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 4, "vocab_size": 9, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(2)
    net: nn.Module = open_clip.CLIP(**config)
    folder.mkdir()
    content = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file(
        {k: t.clone() for k, t in net.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return net.eval()


def test_open_clip_s_image_network_gives_its_embedding(tmp_path: Path) -> None:
    theirs: Any = write_clip_folder(tmp_path / "clip")
    model = ModelConfig(name=f"open_clip:local-dir:{tmp_path / 'clip'}", image_size=SIZE)
    backbone = Backbone(model, pretrained=True).eval()
    expected = features(theirs.visual, backbone)
    torch.testing.assert_close(backbone(PIXELS), expected)
    assert (backbone.dim, backbone.config.name) == (24, "open_clip")
    again = Backbone(backbone.config, tokens=True).eval()
    again.load_state_dict(backbone.state_dict())
    assert again(PIXELS).shape == (2, 4, 32)
    with pytest.raises(InputError, match=r"image_size=64: .* needs 32"):
        Backbone(replace(model, image_size=64))


def test_open_clip_s_weights_fit_timm_s_network(tmp_path: Path) -> None:
    theirs: Any = write_clip_folder(tmp_path / "clip")
    model = replace(MODEL, name="vit_base_patch16_clip_224")
    backbone = load(theirs.state_dict(), tmp_path, model)
    theirs.visual.proj = None
    expected = features(theirs.visual, backbone)
    torch.testing.assert_close(backbone(PIXELS), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("local-dir:nowhere", "config.json cannot be read: the folder nowhere has no config.json"),
        ("hf-hub:org/name", "config.json is not cached, and HF_HUB_OFFLINE is set"),
        ("open_clip:ViT-B-33/openai", "open_clip has no such model. Similar: .*ViT-B-32"),
        ("open_clip:ViT-B-32/foo", "no such weights; choose ViT-B-32/TAG, TAG: openai"),
    ],
)
def test_a_name_without_a_network_is_refused(name: str, message: str) -> None:
    if name.startswith("open_clip"):
        pytest.importorskip("open_clip")
    with pytest.raises(InputError, match=message):
        find_source(name, CUSTOM)


def test_an_open_clip_tag_has_its_own_normalisation() -> None:
    pytest.importorskip("open_clip")
    source = find_source("open_clip:ViT-B-32/laion2b_s34b_b79k", CUSTOM)
    assert source.settings["input_size"] == (3, 224, 224)
    assert source.settings["mean"] == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    assert source.location == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert not source.args["quick_gelu"]
    assert find_source("open_clip:ViT-B-32/openai", CUSTOM).args["quick_gelu"]


@pytest.mark.parametrize(
    ("name", "side"), [("vit_small_patch16_224", 224), ("tf_efficientnet_lite1", 240)]
)
def test_the_size_of_the_weights_of_timm(name: str, side: int) -> None:
    assert resolve_image_size(ModelConfig(name=name, image_size=0), CUSTOM) == side
    assert resolve_image_size(ModelConfig(name=name, image_size=64), CUSTOM) == 64
    with pytest.raises(InputError, match="image_size=8: must be 0 or at least 16"):
        resolve_image_size(ModelConfig(name=name, image_size=8), CUSTOM)
    with pytest.raises(InputError, match="simple_cnn has no size of its own"):
        resolve_image_size(ModelConfig(name="simple_cnn", image_size=0), CUSTOM)


def test_a_run_of_a_folder_predicts_without_it(tmp_path: Path, pictures: Path) -> None:
    folder, run = tmp_path / "model", tmp_path / "run"
    write_timm_folder(folder)
    assert (
        quick_train(
            run, f"model.name=local-dir:{folder}", "model.image_size=0", "model.pretrained=auto"
        )
        == 0
    )
    assert metrics_of(run)["initialisation"] == f"local-dir:{folder}"
    shutil.rmtree(folder)
    predictor = Predictor.from_checkpoints([best(run)])
    again = predictor.predict(cohort_of(run), pictures)
    written = predictions_of(run)["p_malignant"]
    assert again["p_malignant"].to_numpy() == pytest.approx(written.to_numpy(), abs=1e-5)
