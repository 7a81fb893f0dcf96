"""Encoder-decoders: shapes, weights that a classifier would start from, and their loss."""

from pathlib import Path

import pytest
import torch
from segmentation_models_pytorch.losses import DiceLoss
from torch.nn.functional import binary_cross_entropy_with_logits

from skinmm.config import Component, Config, ModelConfig
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.models.segmentation import SEGMENTERS, Segmenter, build_segmenter
from skinmm.segmentation.train import dice_bce

SIDE = 64
PICTURES = torch.randint(0, 256, (3, 3, SIDE, SIDE), dtype=torch.uint8)


def config(segmenter: str, **model: object) -> Config:
    settings = {"name": "test_efficientnet", "image_size": SIDE, "pretrained": False, **model}
    return Config(model=ModelConfig(**settings), segmenter=Component(segmenter))  # type: ignore[arg-type]


def network(segmenter: str, **model: object) -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(config(segmenter, **model), pretrained=True)


@pytest.mark.parametrize("name", SEGMENTERS)
def test_every_network_draws_each_pixel_of_each_row_alone(name: str) -> None:
    net = network(name)
    assert net.training
    net(PICTURES).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    net.eval()
    with torch.inference_mode():
        logits = net(PICTURES)
        assert logits.shape == (3, SIDE, SIDE)
        torch.testing.assert_close(net(PICTURES[1:2]), logits[1:2])
    fresh = build_segmenter(config(name), pretrained=False)
    fresh.load_state_dict(net.state_dict())
    with torch.inference_mode():
        assert torch.equal(fresh.eval()(PICTURES), logits)


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_convnext"])
def test_the_encoder_starts_from_a_classifier_s_weights(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = Backbone(ModelConfig(name=name, image_size=SIDE, pretrained=False)).net
    torch.save(whole.state_dict(), tmp_path / "weights.pt")
    net = network("unet", name=name, pretrained=str(tmp_path / "weights.pt"))
    assert net.origin == "file weights.pt"
    given = {name.replace(".", "_"): value for name, value in whole.state_dict().items()}
    taken = net.net.encoder.model.state_dict()  # type: ignore[union-attr]
    assert len(taken) > 10
    for key, value in taken.items():
        assert torch.equal(value, given[key.replace(".", "_")]), key


def test_a_network_that_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(InputError, match="simple_cnn"):
        network("unet", name="simple_cnn")
    with pytest.raises(InputError, match="needs a multiple of 32"):
        build_segmenter(config("autoencoder", image_size=60 + 2), pretrained=False)


def test_the_loss_is_cross_entropy_and_dice() -> None:
    torch.manual_seed(2)
    logits, mask = torch.randn(1, 32, 32), torch.rand(1, 32, 32) > 0.7
    dice = DiceLoss("binary", smooth=0.5)(logits[:, None], mask[:, None].float())
    both = dice + binary_cross_entropy_with_logits(logits, mask.float())
    torch.testing.assert_close(dice_bce(logits, mask), both)
    pair = dice_bce(torch.cat([logits, -logits]), torch.cat([mask, mask]))
    torch.testing.assert_close(pair, (dice_bce(logits, mask) + dice_bce(-logits, mask)) / 2)
    sure = torch.where(mask, 20.0, -20.0)
    assert dice_bce(sure, mask) < 1e-6
    nothing = torch.zeros_like(mask)
    assert dice_bce(torch.full((1, 32, 32), -20.0), nothing) < 1e-4
