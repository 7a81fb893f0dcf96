"""The moving average of the weights is what is validated and kept, and a resumed run has it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from micro_runs import micro_config, parts
from quick_runs import quick_train, train
from torch import Tensor

from skinmm.config import Config
from skinmm.models.checkpoint import PREFIX, load_card
from skinmm.training.callbacks import AverageWeights


def weights_of(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    content = torch.load(path, weights_only=True)
    average, training = (
        {
            name.removeprefix(PREFIX): value
            for name, value in content[key].items()
            if name.startswith(PREFIX)
        }
        for key in ("state_dict", "current_model_state")
    )
    return average, training


@pytest.fixture
def averaged() -> Config:
    """Two epochs of two steps."""
    return micro_config(max_epochs=2, limit_batches=2, ema=0.5, checkpoint_minutes=0.0)


def test_the_average_is_the_recursion_over_steps_and_what_is_validated(
    averaged: Config, tmp_path: Path
) -> None:
    module, data, trainer = parts(averaged, tmp_path)
    seen: list[dict[str, Tensor]] = [_copy(module)]
    validated = []
    module.on_train_batch_end = lambda *_: seen.append(_copy(module))  # type: ignore[method-assign]
    module.on_validation_epoch_start = (  # type: ignore[method-assign]
        lambda: validated.append(_copy(module))
    )
    trainer.fit(module, data)
    expected = {name: value.double() for name, value in seen[0].items()}
    for number, weights in enumerate(seen[1:], start=1):
        decay = min(0.5, (1 + number) / (10 + number))
        expected = {
            name: decay * expected[name] + (1 - decay) * value.double()
            if value.is_floating_point()
            else value.double()
            for name, value in weights.items()
        }
    average, trained = weights_of(tmp_path / "checkpoints" / "last.ckpt")
    for name, value in expected.items():
        torch.testing.assert_close(average[name].double(), value, atol=1e-5, rtol=1e-4)
    assert all(torch.equal(trained[name], value) for name, value in seen[-1].items())
    assert all(torch.equal(average[name], value) for name, value in _copy(module).items())
    assert all(torch.equal(validated[-1][name], average[name]) for name in average)


def test_a_resumed_run_ends_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    steady = ["data.limit=48", "trainer.ema=0.8", "schedule=constant", "trainer.patience=9"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert quick_train(whole, *steady, "trainer.max_epochs=2") == 0
    assert quick_train(broken, *steady) == 0
    assert train(f"resume={broken}", "trainer.max_epochs=2") == 0
    for one, other in zip(
        weights_of(whole / "checkpoints" / "last.ckpt"),
        weights_of(broken / "checkpoints" / "last.ckpt"),
        strict=True,
    ):
        assert all(torch.equal(one[name], other[name]) for name in one)
    _, best = load_card(whole / "checkpoints" / "best.ckpt")
    assert best.keys() == weights_of(whole / "checkpoints" / "last.ckpt")[0].keys()


def _copy(module: object) -> dict[str, Tensor]:
    state: dict[str, Tensor] = module.network.state_dict()  # type: ignore[attr-defined]
    return {name: value.detach().clone() for name, value in state.items()}


def test_a_checkpoint_of_an_earlier_version_is_resumed(averaged: Config, tmp_path: Path) -> None:
    """Earlier versions saved the training weights under another key, and no number of steps."""
    module, data, trainer = parts(averaged, tmp_path)
    trainer.fit(module, data)
    last = tmp_path / "checkpoints" / "last.ckpt"
    average, training = weights_of(last)
    content = torch.load(last, weights_only=True)
    steps = content["global_step"]
    del content["current_model_state"], content["averaging_state"]
    content["callbacks"].pop("AverageWeights")
    torch.save({**content, "training_weights": training}, last)

    module, data, trainer = parts(replace(averaged, resume=str(tmp_path)), tmp_path)
    (callback,) = (each for each in trainer.callbacks if isinstance(each, AverageWeights))  # type: ignore[attr-defined]
    trainer.fit(module, data, ckpt_path=last, weights_only=True)
    assert callback._average_model is not None
    assert int(callback._average_model.n_averaged) == steps + 1
    restored = _copy(callback._average_model.module)
    assert all(torch.equal(value, average[name]) for name, value in restored.items())
    assert all(torch.equal(value, training[name]) for name, value in _copy(module).items())
