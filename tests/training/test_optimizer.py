"""Who learns how fast: parameter groups, rates over a run, and a network that learns in stages."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from micro_runs import micro_config, parts, with_model
from quick_runs import quick_train

from skinmm.config import OptimizerConfig, ScheduleConfig
from skinmm.models.backbone import Backbone
from skinmm.models.checkpoint import load_card
from skinmm.training.callbacks import SELECTION
from skinmm.training.optimizer import OPTIMIZERS, build_schedule, parameter_groups, rate


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_matrices_decay_and_the_image_network_has_its_own_rate(name: str, tmp_path: Path) -> None:
    options = OptimizerConfig(name=name, lr=0.1, weight_decay=0.3, backbone_lr_scale=0.5)
    module, _, _ = parts(replace(micro_config(), optimizer=options), tmp_path)
    make: Any = OPTIMIZERS[name]
    optimizer = make(parameter_groups(module.network, options))
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            seen.append(names[id(parameter)])
            of_image, matrix = seen[-1].startswith("image."), parameter.ndim > 1
            assert group["lr"] == (0.05 if of_image else 0.1)
            assert group["weight_decay"] == (0.3 if matrix else 0.0)
    assert sorted(seen) == sorted(names.values())


def test_a_frozen_network_is_not_in_the_optimiser(tmp_path: Path) -> None:
    module, _, _ = parts(with_model(micro_config(), freeze=True), tmp_path)
    trained = {
        id(each)
        for group in parameter_groups(module.network, OptimizerConfig())
        for each in group["params"]
    }
    assert trained.isdisjoint(map(id, module.network.image.parameters()))  # type: ignore[union-attr]
    assert id(module.network.head.weight) in trained


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50)
def test_a_rate_warms_up_to_the_highest_and_falls_to_the_last(
    steps: int, warmup: float, final: float
) -> None:
    config = ScheduleConfig(warmup=warmup, final=final)
    rates = np.array([rate(step, config=config, steps=steps) for step in range(steps + 1)])
    peak = int(warmup * steps)
    assert (rates > 0).all() or final == 0
    assert rates.max() <= 1
    assert (np.diff(rates[: peak + 1]) >= 0).all()
    assert (np.diff(rates[peak:]) <= 1e-12).all()
    constant = replace(config, name="constant")
    assert rate(steps, config=constant, steps=steps) == 1


def test_the_cosine_is_torch_s() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20, eta_min=0.1)
    config = ScheduleConfig(warmup=0.0, final=0.1)
    for step in range(21):
        assert rate(step, config=config, steps=20) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def test_the_one_cycle_is_torch_s() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=41, pct_start=11 / 41, final_div_factor=4
    )
    config = ScheduleConfig(name="one_cycle", warmup=0.25, final=0.01)
    for step in range(41):
        assert rate(step, config=config, steps=40) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("name", ["test_efficientnet", "test_vit", "simple_cnn"])
def test_earlier_layers_learn_slower(name: str) -> None:
    backbone = Backbone(with_model(micro_config(), name=name).model)
    depths = backbone.layer_depths()
    assert depths.keys() == dict(backbone.named_parameters()).keys()
    assert min(depths.values()) == 0
    first, *_, last = depths.values()
    assert (first, last) == (max(depths.values()), 0)


def test_a_layer_s_rate_is_the_next_one_s_times_the_decay(tmp_path: Path) -> None:
    module, _, _ = parts(micro_config(), tmp_path)
    options = OptimizerConfig(lr=0.1, backbone_lr_scale=0.5, layer_decay=0.5)
    image = module.network.image
    assert image is not None
    depths = {f"image.{name}": depth for name, depth in image.layer_depths().items()}
    names = {id(parameter): name for name, parameter in module.network.named_parameters()}
    for group in parameter_groups(module.network, options):
        for name in (names[id(parameter)] for parameter in group["params"]):
            assert group["lr"] == (0.05 * 0.5 ** depths[name] if name in depths else 0.1)


@pytest.mark.parametrize(("monitor", "worse"), [("val/loss", 1.0), ("val/auroc", -1.0)])
def test_a_plateau_lowers_the_rate_when_its_patience_is_over(monitor: str, worse: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    config = ScheduleConfig(name="plateau", factor=0.5, patience=1)
    schedule = build_schedule(optimizer, config, 10, monitor)
    assert (schedule["interval"], schedule["monitor"]) == ("epoch", SELECTION)
    rates: list[float] = []
    for epoch in range(4):
        optimizer.step()
        schedule["scheduler"].step(worse * epoch)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == [1.0, 1.0, 0.5, 0.5]


def test_the_head_learns_first_and_then_everything(tmp_path: Path) -> None:
    config = micro_config(max_epochs=2, limit_batches=2)
    config = replace(config, optimizer=replace(config.optimizer, head_epochs=1))
    module, data, trainer = parts(config, tmp_path)
    image = module.network.image
    assert image is not None
    states = [{name: value.clone() for name, value in image.state_dict().items()}]
    head = [module.network.head.get_parameter("weight").detach().clone()]

    def keep(*_: Any) -> None:
        states.append({name: value.clone() for name, value in image.state_dict().items()})
        head.append(module.network.head.get_parameter("weight").detach().clone())

    module.on_train_epoch_end = keep  # type: ignore[method-assign]
    trainer.fit(module, data)
    same = [
        all(torch.equal(before[name], after[name]) for name in before)
        for before, after in pairwise(states)
    ]
    assert same == [True, False]  # BatchNorm's statistics among it
    assert not torch.equal(head[0], head[1])


RECIPES = {
    "souped": ["trainer.average_best=2"],
    "masked": ["model.head_dropout=0.5", "model.head_masks=4"],
    "staged": ["optimizer.head_epochs=1", "optimizer.layer_decay=0.8", "schedule=one_cycle"],
    "averaged": ["trainer.ema=0.9", "schedule=plateau", "augment=strong", "mix=mixup"],
    "steady": ["trainer.accumulate=2", "trainer.clip=0.5", "augment=randaugment", "mix=cutmix"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_from_the_command_line(recipe: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert quick_train(run, "data.limit=48", "trainer.max_epochs=2", *RECIPES[recipe]) == 0
    load_card(run / "checkpoints" / "best.ckpt")
