"""What is trained of the image network: parameters, adapters, and their merge."""

from pathlib import Path
from typing import Any

import pytest
import torch
from micro_runs import micro_config, with_model
from quick_runs import best, cohort_of, predictions_of, quick_train, train
from torch import Tensor, nn

from skinmm.config import ModelConfig
from skinmm.config.load import check_settings
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.models.checkpoint import load_card
from skinmm.models.tuning import merge_adapters, split_adapters
from skinmm.predict.predictor import Predictor

PIXELS = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
NETWORKS = ["test_vit", "test_convnext", "test_efficientnet", "test_resnet"]


def tuned(name: str, tune: str, **settings: Any) -> Backbone:
    torch.manual_seed(0)
    config = ModelConfig(name=name, image_size=64, pretrained="false", tune=tune, **settings)
    return Backbone(config, pretrained=True)


def with_gradients(backbone: Backbone) -> set[str]:
    backbone.train()(PIXELS).square().sum().backward()
    return {name for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", NETWORKS)
def test_only_adapters_have_gradients_and_merged_equals_unmerged(name: str) -> None:
    pytest.importorskip("peft")
    plain, backbone = tuned(name, "all").eval(), tuned(name, "lora", lora_rank=2)
    assert torch.equal(plain(PIXELS), backbone.eval()(PIXELS))
    names = with_gradients(backbone)
    assert names == {name for name, _ in backbone.named_parameters() if ".lora_" in name}
    assert names
    share = sum(backbone.get_parameter(n).numel() for n in names)
    assert share < 0.35 * sum(p.numel() for p in plain.parameters())
    for n in names:
        nn.init.normal_(backbone.get_parameter(n), std=0.1)
    state = backbone.state_dict()
    expected = backbone.eval()(PIXELS)
    assert not torch.allclose(expected, plain(PIXELS), atol=1e-3)
    merged = merge_adapters(state)
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(PIXELS), expected, atol=1e-5, rtol=1e-5)
    again = split_adapters(merged, {n: state[n] for n in state if n not in merged})
    assert again.keys() == state.keys()
    assert all(torch.equal(again[n], state[n]) for n in state)
    # Weights without adapters replace the adapters.
    backbone.load_state_dict(merged)
    assert torch.equal(backbone.eval()(PIXELS), plain(PIXELS))


@pytest.mark.parametrize("name", NETWORKS)
def test_norm_trains_the_parameters_of_normalisation_only(name: str) -> None:
    backbone = tuned(name, "norm")
    expected = {
        f"{name}.{leaf}"
        for name, module in backbone.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
        for leaf in ("weight", "bias")
    }
    assert with_gradients(backbone) == expected
    assert expected


def statistics(backbone: Backbone) -> list[Tensor]:
    return [value.clone() for name, value in backbone.named_buffers() if "running" in name]


@pytest.mark.parametrize(("tune", "constant"), [("lora", True), ("norm", False), ("head", True)])
def test_statistics_of_batchnorm_are_constant_next_to_adapters(tune: str, constant: bool) -> None:
    if tune == "lora":
        pytest.importorskip("peft")
    backbone = tuned("test_efficientnet", tune)
    before = statistics(backbone)
    backbone.train()(PIXELS)
    assert all(map(torch.equal, before, statistics(backbone))) is constant


def test_head_is_freeze_and_contradictions_are_refused() -> None:
    for settings in ({"tune": "head"}, {"tune": "all", "freeze": True}):
        backbone = Backbone(ModelConfig(name="test_vit", image_size=64, **settings))
        assert not any(p.requires_grad for p in backbone.parameters())
        assert backbone.frozen
    with pytest.raises(InputError, match=r"freeze=true means tune=head, not model\.tune=lora"):
        check_settings(with_model(micro_config(), freeze=True, tune="lora"))


def test_an_impossible_rank_is_refused() -> None:
    pytest.importorskip("peft")
    with pytest.raises(InputError, match=r"no layer can have adapters of model\.lora_rank=999"):
        tuned("test_vit", "lora", lora_rank=999)


def test_adapters_wait_for_the_head_epochs() -> None:
    pytest.importorskip("peft")
    backbone = tuned("test_efficientnet", "lora")
    backbone.freeze(True)
    assert not any(p.requires_grad for p in backbone.parameters())
    backbone.freeze(False)
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert names == {name for name, _ in backbone.named_parameters() if ".lora_" in name}


@pytest.mark.parametrize("ema", ["0", "0.8"])
def test_a_resumed_run_with_adapters_ends_as_if_it_had_not_been_stopped(
    ema: str, tmp_path: Path, pictures: Path
) -> None:
    pytest.importorskip("peft")
    options: tuple[str, ...]
    options = ("model.tune=lora", "model.lora_rank=2", "data.limit=48", "trainer.patience=9")
    options = (*options, "schedule=constant", f"trainer.ema={ema}", "optimizer.head_epochs=1")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert quick_train(whole, *options, "trainer.max_epochs=2") == 0
    assert quick_train(broken, *options) == 0
    assert train(f"resume={broken}", "trainer.max_epochs=2") == 0
    one, other = (load_card(run / "checkpoints" / "last.ckpt")[1] for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("lora" in name or "base_layer" in name for name in one)
    again = Predictor.from_checkpoints([best(whole)]).predict(cohort_of(whole), pictures)
    written = predictions_of(whole)["p_malignant"].to_numpy()
    assert again["p_malignant"].to_numpy() == pytest.approx(written, abs=1e-5)
