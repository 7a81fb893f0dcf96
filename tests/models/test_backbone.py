"""The image branch: every model of conf/, its normalisation, freezing, and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

from skinmm.config import ModelConfig
from skinmm.errors import InputError
from skinmm.models.backbone import CUSTOM, Backbone
from skinmm.models.sources import find_source
from skinmm.testing import check_backbone, check_rows, check_state, check_width

CONF = Path(__file__).parents[2] / "conf" / "model"
MODELS = {path.stem: path for path in sorted(CONF.glob("*.yaml"))}
MICRO = ["test_efficientnet", "test_resnet", "test_convnext", "test_vit", "simple_cnn"]
each_micro = pytest.mark.parametrize("name", MICRO)


def micro(name: str, size: int = 64, **settings: Any) -> ModelConfig:
    return ModelConfig(name=name, image_size=size, **settings)


def images(count: int, size: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("option", MODELS)
def test_every_model_of_conf_is_as_wide_as_declared(option: str, tokens: bool) -> None:
    config = ModelConfig(**yaml.safe_load(MODELS[option].read_text()))
    with torch.device("meta"):  # shapes alone: nothing is allocated or computed
        backbone = Backbone(config, tokens=tokens).eval()
        square = torch.empty(2, 3, config.image_size, config.image_size, dtype=torch.uint8)
    shape = backbone(square).shape
    assert (shape[0], shape[-1], len(shape)) == (2, backbone.dim, 3 if tokens else 2)


SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


@pytest.mark.parametrize(
    ("name", "args", "pool"),
    [
        ("test_efficientnet", {}, lambda places: places.mean(dim=1)),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, lambda places: places.mean(dim=1)),
        ("test_vit", {}, lambda places: places[:, 0]),  # the class token
    ],
)
def test_places_are_what_the_vector_is_pooled_from(
    name: str, args: dict[str, Any], pool: Callable[[Tensor], Tensor]
) -> None:
    """Convolutional maps, channels first or last, and a transformer's tokens."""
    torch.manual_seed(0)
    config = micro(name, args=args)
    vectors, places = Backbone(config).eval(), Backbone(config, tokens=True).eval()
    places.load_state_dict(vectors.state_dict())
    pixels = images(2)
    torch.testing.assert_close(pool(places(pixels)), vectors(pixels), rtol=1e-4, atol=1e-5)


def test_places_of_the_simple_network_are_its_last_map() -> None:
    backbone = Backbone(micro("simple_cnn", args={"widths": [4, 8]}), tokens=True).eval()
    assert [name for name, _ in backbone.named_parameters() if "weight" in name] == [
        f"net.{layer}.weight" for layer in (0, 1, 4, 5)
    ]
    pixels = images(1)
    normal = (pixels - backbone.mean) / backbone.std
    torch.testing.assert_close(backbone(pixels)[0, 17], backbone.net(normal)[0, :, 1, 1])


@each_micro
def test_a_network_keeps_the_contract_of_a_block(name: str) -> None:
    torch.manual_seed(0)
    config = micro(name)
    check_width(Backbone(config), [images(3)])
    check_rows(Backbone(config), [images(3)])
    check_state(lambda: Backbone(config), [images(3)])


def test_a_network_of_this_package_keeps_the_contract_of_plug_ins() -> None:
    check_backbone(CUSTOM["simple_cnn"])


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit"])
def test_normalisation_is_timm_s_own(name: str) -> None:
    backbone = Backbone(micro(name)).eval()
    pixels = images(1)
    expected = create_transform(
        input_size=(3, 64, 64),
        mean=backbone.net.pretrained_cfg["mean"],
        std=backbone.net.pretrained_cfg["std"],
        crop_pct=1.0,
    )(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()))
    seen: list[Tensor] = []
    backbone.net.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    backbone(pixels)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(seen[0][0], expected, rtol=0, atol=1e-5)


def statistics(network: nn.Module) -> list[Tensor]:
    return [value.clone() for name, value in network.named_buffers() if "running" in name]


@pytest.mark.parametrize("freeze", [True, False])
def test_a_frozen_network_keeps_weights_and_batchnorm_statistics(freeze: bool) -> None:
    backbone = Backbone(micro("test_efficientnet", freeze=freeze))
    before = statistics(backbone)
    assert before
    nn.Sequential(backbone).train()(images(4))
    kept = all(map(torch.equal, before, statistics(backbone)))
    trainable = any(parameter.requires_grad for parameter in backbone.parameters())
    assert (kept, trainable) == (freeze, not freeze)
    assert backbone.net.training is not freeze


def test_the_simple_network_is_built_as_told() -> None:
    backbone = Backbone(micro("simple_cnn", args={"widths": [4, 8], "dense": 6}))
    assert backbone(images(2, size=16)).shape == (2, 6)
    assert backbone.origin == "from scratch"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "effnet_b3"}, "unknown model.name 'effnet_b3'.*efficientnet_b3"),
        ({"name": "Xx"}, "unknown model.name 'Xx'.*simple_cnn"),
        ({"name": "test_vit.foo"}, "test_vit.foo: no such weights.*test_vit.r160_in1k"),
        ({"name": "test_resnet", "args": {"depth": 9}}, "model.args of test_resnet: .*depth"),
        (
            {"name": "test_resnet", "args": {"checkpoint_path": "/etc/passwd"}},
            "model.args of test_resnet: checkpoint_path is no argument",
        ),
        ({"name": "test_vit", "args": {"pretrained": True}}, "pretrained is no argument"),
        ({"name": "simple_cnn", "args": {"depth": 9}}, "model.args of simple_cnn: .*depth"),
        ({"name": "simple_cnn", "args": {"widths": []}}, "model.args of simple_cnn"),
        ({"name": "simple_cnn", "pretrained": "true"}, "simple_cnn has no pretrained weights"),
        ({"name": "test_vit", "size": 100}, "image_size=100: test_vit needs a multiple of 16"),
    ],
)
def test_what_cannot_be_built_is_refused_in_a_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        Backbone(micro(**settings))
    assert "\n" not in str(raised.value)


def test_names_with_and_without_a_tag_are_known() -> None:
    for name in ("simple_cnn", "efficientnet_b3", "efficientnet_b3.ra2_in1k"):
        find_source(name, CUSTOM)
        with pytest.raises(InputError, match=f"{name}x"):
            find_source(f"{name}x", CUSTOM)
