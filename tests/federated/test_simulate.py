"""A federation in one process: equal to a plain run where it has to be, and refused elsewhere."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from micro_runs import micro_config
from safetensors.numpy import load_file

from skinmm.config import Config
from skinmm.config.remote_commands import FederateClientConfig, FederateSimulateConfig
from skinmm.models.checkpoint import load_card
from skinmm.training.fit import fit

pytest.importorskip("flwr")  # imported here: its warnings are not those of a test
federated = pytest.importorskip("skinmm.federated")


def simulated(config: Config, folder: Path, **settings: Any) -> FederateSimulateConfig:
    """The settings of a simulated federation from those of a run."""
    plain = {item.name: getattr(config, item.name) for item in fields(Config)}
    return FederateSimulateConfig(**plain, output=str(folder), **settings)


def quick(**trainer: Any) -> Config:
    """A micro-run with little to evaluate."""
    config = micro_config(accelerator="cpu", **trainer)
    report = replace(config.report, explain=False, pictures=False)
    evaluation, data = replace(config.evaluation, resamples=0), replace(config.data, limit=80)
    return replace(config, evaluation=evaluation, report=report, data=data)


def test_one_client_equals_a_plain_run_to_the_bit(tmp_path: Path) -> None:
    config = quick(max_epochs=2)
    fit(config, tmp_path / "plain")
    settings = simulated(config, tmp_path / "federation", rounds=2)
    assert federated.simulate(settings) == 0

    log = (tmp_path / "federation" / "log.txt").read_text()
    assert " round 0: 1 centre (demo), 2 classes, " in log

    _, expected = load_card(tmp_path / "plain" / "checkpoints" / "last.ckpt")
    arrays = load_file(tmp_path / "federation" / "federation.safetensors")
    shared = {name.removeprefix("arrays."): value for name, value in arrays.items()}
    for name, value in shared.items():
        np.testing.assert_array_equal(value, expected[name].numpy(), err_msg=name)
    constant = expected.keys() - shared.keys()
    assert constant == {"image.mean", "image.std"}

    run = tmp_path / "federation" / "clients" / "demo"
    card, weights = load_card(run / "checkpoints" / "best.ckpt")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert card.calibration is not None
    assert card.threshold is not None
    assert (run / "report.html").is_file()
    assert not (run / "federation").exists()


def test_a_client_that_was_started_again_neither_waits_nor_trains_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from skinmm.federated.agreement import Federation
    from skinmm.federated.centre import Centre, Round

    settings = simulated(quick(), tmp_path / "federation", rounds=1)
    assert federated.simulate(settings) == 0
    state = Federation(settings, tmp_path / "federation")
    state.load()
    own = FederateClientConfig(name="demo", output=str(tmp_path / "again"), workers=0)
    task = Round(1, state.arrays, state.agreement)
    capsys.readouterr()
    answers = [Centre(own).train(task)[0] for _ in range(2)]  # without `describe`
    lines = capsys.readouterr().out
    assert lines.count("round 1: trained to epoch") == 1
    assert lines.count("round 1: already trained") == 1
    for name, array in answers[0].items():
        np.testing.assert_array_equal(array.numpy(), answers[1][name].numpy())
