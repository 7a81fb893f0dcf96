"""Settings of the trainer that are chosen by measurement, and what they leave unchanged."""

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_runs import micro_config, parts

from skinmm.config import Config, from_mapping
from skinmm.errors import InputError
from skinmm.models.network import Network
from skinmm.training import autotune
from skinmm.training.autotune import (
    LR_STEPS,
    StepClock,
    Variant,
    choose_lr,
    choose_variant,
    describe_choice,
    suggest_lr,
    tune,
)
from skinmm.training.progress import describe_duration
from skinmm.training.run_folder import RunFolder

ALONE = Variant("32", channels_last=True)
BF16 = Variant("bf16", channels_last=True)
TWO = Variant("32", channels_last=True, processes=2)


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({ALONE: 1.0}, ALONE),
        ({ALONE: 1.0, BF16: 0.99}, ALONE),  # within the noise
        ({ALONE: 1.0, BF16: 0.6}, BF16),
        ({ALONE: 1.0, TWO: 0.95}, ALONE),
        ({ALONE: 1.0, TWO: 0.8}, TWO),
        ({ALONE: 1.0, BF16: 0.6, TWO: 0.58}, BF16),  # more processes need a larger gain
    ],
)
def test_the_fastest_variant_is_chosen(seconds: dict[Variant, float], chosen: Variant) -> None:
    assert choose_variant(ALONE, seconds) == chosen


def test_one_line_names_the_choice_and_the_times() -> None:
    assert describe_choice(ALONE, TWO, {ALONE: 1.0, BF16: 1.5, TWO: 0.8}) == (
        "chosen by measurement: trainer.precision=32 trainer.channels_last=true trainer.devices=2, "
        "which share each batch (0.80 s a step instead of 1.00 s; other settings: 1.50 to 1.50 s)"
    )


def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config, best: Variant) -> str:
    """The printed line of a tuned micro-run on two cores, in which one variant is the fastest."""
    lines: list[str] = []
    monkeypatch.setattr(autotune, "print_line", lines.append)
    monkeypatch.setattr(autotune, "count_cores", lambda: 2)
    monkeypatch.setattr(autotune, "LEAST_STEPS", 1)
    monkeypatch.setattr(
        StepClock, "time", lambda _, *variants: {v: 100.0 - 50 * (v == best) for v in variants}
    )
    module, data, trainer = parts(config, tmp_path)
    tune(module, data, trainer, RunFolder(tmp_path, config, starts_processes=True))
    assert module.card.config["trainer"]["channels_last"] == config.trainer.channels_last
    return "".join(lines)


def test_the_choice_replaces_auto_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config(precision="auto", channels_last="auto")
    best = Variant("32", channels_last=False, processes=2)
    line = measured(tmp_path, monkeypatch, config, best)
    options = config.trainer
    assert (options.precision, options.channels_last, options.devices) == ("32", False, 2)
    assert options.batch_size == 8  # half of the batch
    assert "trainer.devices=2" in line


def test_settings_of_the_user_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config(precision="32", channels_last=True, devices=1)
    assert measured(tmp_path, monkeypatch, config, TWO) == ""
    assert config.trainer.devices == 1


def test_a_short_run_reads_no_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = micro_config(precision="auto", channels_last="auto")
    module, data, trainer = parts(config, tmp_path)
    monkeypatch.delattr("skinmm.data.dataset.LesionDataset.__getitem__")
    assert tune(module, data, trainer, RunFolder(tmp_path, config)) is None
    assert config.trainer.precision == "auto"
    assert capsys.readouterr().out == ""


def test_measuring_changes_neither_draws_nor_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[type] = []
    deepcopy = copy.deepcopy

    def count_copies(*arguments: Any) -> Any:
        copies.append(type(arguments[0]))
        return deepcopy(*arguments)

    monkeypatch.setattr(copy, "deepcopy", count_copies)
    config = micro_config()
    module, data, _ = parts(config, tmp_path)
    weights = {name: value.clone() for name, value in module.network.state_dict().items()}
    first = next(iter(data.train_dataloader()))
    state, drawn = torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["pos"]  # noqa: NPY002
    seconds = StepClock(module, data, torch.device("cpu")).time(ALONE, BF16, TWO)
    assert all(value > 0 for value in seconds.values())
    assert copies.count(Network) == 2  # as many as processes, for all variants together
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state(legacy=False)["state"]["pos"] == drawn  # noqa: NPY002
    assert torch.get_num_threads() == 1
    second = next(iter(data.train_dataloader()))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(value, weights[n]) for n, value in module.network.state_dict().items())


def test_the_expected_duration_is_that_of_the_measured_step(tmp_path: Path) -> None:
    config = micro_config(max_epochs=10)
    _, data, trainer = parts(config, tmp_path)
    step = autotune.StepTime(batches=100, rows=16, seconds=1.0)
    text = describe_duration(data, trainer, config, folds=0, step=step)
    assert text == "at most 17 min to train"  # 1,000 steps, and 10 * 140 / 16 / 4 s to validate


def test_channels_last_accepts_no_other_word() -> None:
    with pytest.raises(InputError, match=re.escape("must be true, false, or auto")):
        from_mapping(Config, {"trainer": {"channels_last": "maybe"}})


def test_the_suggested_rate_is_in_the_middle_of_the_fall() -> None:
    rates = np.logspace(-6, 0, LR_STEPS)
    position = np.log10(rates)
    falling = np.clip(-4 - position, -3, 0)  # from 1e-4 to 1e-1
    losses = 5 + falling + 3 * np.maximum(position + 1, 0)
    step = rates[1] / rates[0]
    rate = suggest_lr(rates.tolist(), losses.tolist())
    assert rate == pytest.approx(10**-2.5, rel=step - 1)
    noise = np.random.default_rng(0).normal(0, 0.02, LR_STEPS)
    assert 2e-4 < suggest_lr(rates.tolist(), (losses + noise).tolist()) < 1e-2


@pytest.mark.parametrize("losses", [[float("nan")] * 20, [1.0] * 20, np.arange(20.0).tolist()])
def test_a_loss_that_never_falls_needs_a_number(losses: list[float]) -> None:
    with pytest.raises(InputError, match="give a number"):
        suggest_lr(np.logspace(-6, 0, 20).tolist(), losses)


def test_a_range_test_replaces_auto_and_changes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autotune, "LR_STEPS", 30)
    config = micro_config()
    module, data, trainer = parts(config, tmp_path)
    config.optimizer.lr = "auto"
    state = torch.get_rng_state()
    weights = {name: value.clone() for name, value in module.network.state_dict().items()}
    choose_lr(module, data, trainer, RunFolder(tmp_path, config))
    assert 1e-6 < float(config.optimizer.lr) < 1
    assert f"optimizer.lr={config.optimizer.lr:g}" in capsys.readouterr().out
    assert module.card.config["optimizer"]["lr"] == config.optimizer.lr
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[n]) for n, value in module.network.state_dict().items())


def test_the_rate_accepts_no_other_word() -> None:
    with pytest.raises(InputError, match=re.escape("must be a number, e.g. 0.001, or auto")):
        from_mapping(Config, {"optimizer": {"lr": "fast"}})
    task = {"task": "segmentation", "trainer": {"monitor": "val/dice"}}
    with pytest.raises(InputError, match="trains one fold with given settings: choose numbers"):
        from_mapping(Config, {"optimizer": {"lr": "auto"}, **task})
