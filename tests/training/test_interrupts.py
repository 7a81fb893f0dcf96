"""Ctrl-C and SIGTERM: the run folder that is left, and the run that continues from it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from quick_runs import (
    CONTRACT,
    LIMIT,
    QUICK,
    ROOT,
    files_in,
    quick_train,
    tabular,
    train,
)

from skinmm.config import read_config
from skinmm.models.checkpoint import load_card

Said = pytest.CaptureFixture[str]


TWO = (  # processes on this machine
    "trainer=ddp",
    "trainer.devices=2",
    "trainer.accelerator=cpu",
    "trainer.batch_size=16",
    "trainer.workers=0",
)


def wait_for(path: Path, process: "subprocess.Popen[str]") -> None:
    for _ in range(3000):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise TimeoutError(f"{path} never came")


def interrupted(
    run: Path, *overrides: str, everyone: bool, number: signal.Signals = signal.SIGINT
) -> None:
    """Starts an endless run, and sends a signal once it has a checkpoint."""
    endless = ["trainer.max_epochs=5000", "trainer.patience=5000", f"hydra.run.dir={run}"]
    process = subprocess.Popen(
        [sys.executable, "train.py", *QUICK, *endless, *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(run / "checkpoints" / "last.ckpt", process)
    (os.killpg if everyone else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=300)
    is_sigterm = number == signal.SIGTERM
    assert process.returncode == (143 if is_sigterm else 130), errors
    word = "terminated" if is_sigterm else "interrupted"
    assert errors.splitlines()[-1] == f"{word}; to resume: python train.py resume={run}"
    assert not [line for line in errors.splitlines()[:-1] if "WARNING: " not in line]
    assert "Traceback" not in errors
    assert not list(run.rglob("*.part"))


def test_an_interrupted_run_leaves_a_checkpoint_and_is_resumed(
    tmp_path: Path, capsys: Said
) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    # As a terminal does it: Ctrl-C reaches the loaders as well.
    interrupted(run, LIMIT, "seed=3", "trainer.workers=1", everyone=True)
    load_card(last)
    reached = torch.load(last, weights_only=True)["epoch"]

    changes = [f"trainer.max_epochs={reached + 2}", "trainer.workers=0"]
    assert train(f"resume={run}", *changes) == 0
    assert f"run folder: {run}" in capsys.readouterr().out
    assert files_in(run) == CONTRACT
    config = read_config(run / "config.yaml")
    assert (config.seed, config.trainer.patience) == (3, 5000)
    assert config.trainer.max_epochs == reached + 2
    history = pd.read_csv(run / "history.csv")
    epochs = history.loc[history["name"] == "val/auroc", "epoch"].tolist()
    assert epochs == sorted(set(epochs))
    assert epochs[-1] == reached + 1


def test_a_run_that_was_killed_between_epochs_ends_as_if_it_had_not_been(
    record_table: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steady = [*tabular(record_table), "schedule=constant", "trainer.patience=9"]
    assert quick_train(whole, *steady, "trainer.max_epochs=2") == 0
    assert quick_train(broken, *steady) == 0
    assert train(f"resume={broken}", "trainer.max_epochs=2") == 0
    weights = [load_card(run / "checkpoints" / "last.ckpt")[1] for run in (whole, broken)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("everyone", [True, False])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(
    tmp_path: Path, everyone: bool, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    interrupted(run, LIMIT, *TWO, everyone=everyone, number=number)
    card, _ = load_card(run / "checkpoints" / "last.ckpt")
    assert card.calibration is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=1"], "only trainer.*, logger.*, final and plugins may be given, not seed"),
        (["hydra.run.dir=elsewhere"], "not hydra.run.dir"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    both: Path, tmp_path: Path, capsys: Said, overrides: list[str], message: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((both / "config.yaml").read_bytes())
    assert train(f"resume={run}", *overrides) == 2
    assert message in capsys.readouterr().err
    assert files_in(run) == {"config.yaml"}
