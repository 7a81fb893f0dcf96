"""A run that is killed and resumed is the run that never stopped: to the bit, in every file."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from micro_runs import micro_config, read_data
from quick_runs import QUICK, ROOT, command, files_in, train

from skinmm.models.checkpoint import load_card

# All that draws or remembers: dropout, augmentation, mixing, a sampler that repeats rows, loaders
# that read ahead, a rate that waits for the metric, averaged weights.
SETTINGS = (
    *QUICK,
    "trainer.limit_batches=12",
    "trainer.max_epochs=3",
    "trainer.workers=1",
    "schedule=plateau",
    "schedule.patience=0",
    "trainer.ema=0.9",
    "mix=mixup",
    "sampler=weighted",
    "+model.args.drop_rate=0.3",
    "data.limit=128",
    "trainer.checkpoint_minutes=0",
)
SAME_FILES = ("metrics.json", "history.csv", "predictions/val.csv", "predictions/test.csv")


def killed(run: Path, moment: Callable[[], bool], *overrides: str) -> None:
    """Starts a run and kills it, without a chance to save anything, when the moment has come."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *overrides],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not moment():
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # the loaders too
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (-signal.SIGKILL, 0), errors
    if (run / "checkpoints" / "last.ckpt").exists():
        load_card(run / "checkpoints" / "last.ckpt")  # never half written


def assert_same(run: Path, whole: Path) -> None:
    """Both runs have the same files, figures, weights and states of optimiser and schedule."""
    assert files_in(run) == files_in(whole)
    for name in SAME_FILES:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    for name in ("best.ckpt", "last.ckpt"):
        (card, weights), (card_of_whole, expected) = (
            load_card(each / "checkpoints" / name) for each in (run, whole)
        )
        assert card.summary == card_of_whole.summary
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[key], expected[key]) for key in weights)
    last, of_whole = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True) for each in (run, whole)
    )
    assert last.keys() == of_whole.keys()
    for key in ("epoch", "global_step", "lr_schedulers", "epoch_losses", "callbacks", "LesionData"):
        assert str(last[key]) == str(of_whole[key]), key
    assert all(
        torch.equal(value, of_whole["current_model_state"][name])
        for name, value in last["current_model_state"].items()
    )
    assert last["averaging_state"] == of_whole["averaging_state"]
    moments, expected_moments = (
        checkpoint["optimizer_states"][0]["state"] for checkpoint in (last, of_whole)
    )
    assert moments.keys() == expected_moments.keys()
    for parameter, state in moments.items():
        assert all(
            torch.equal(value, expected_moments[parameter][name]) for name, value in state.items()
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that is never interrupted."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train(*SETTINGS, f"hydra.run.dir={run}") == 0
    return run


def test_a_run_killed_within_an_epoch_ends_as_if_it_had_not_been(
    whole: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    killed(run, last.exists, *SETTINGS, f"hydra.run.dir={run}")
    stopped = torch.load(last, weights_only=True)
    assert 0 < stopped["global_step"] < 12
    assert stopped["LesionData"] == {"epoch": 0, "steps": stopped["global_step"], "rows": 8}
    (last.parent / "last.ckpt.1.part").write_bytes(b"half of a checkpoint")
    assert train(f"resume={run}") == 0
    assert_same(run, whole)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    killed(run, (run / "config.yaml").exists, *SETTINGS, f"hydra.run.dir={run}")
    assert not (run / "checkpoints" / "last.ckpt").exists()
    (run / "history.csv").write_text("epoch,step,name,value\n0,11,val/loss,9\n")
    assert train(f"resume={run}") == 0
    assert "training starts from the beginning" in capsys.readouterr().out
    assert_same(run, whole)


def test_a_run_killed_before_its_metrics_is_judged_without_a_trace(whole: Path) -> None:
    before = {name: (whole / name).read_bytes() for name in SAME_FILES}
    (whole / "metrics.json").unlink()
    assert train(f"resume={whole}") == 0
    assert {name: (whole / name).read_bytes() for name in SAME_FILES} == before


def test_a_run_whose_rows_stand_in_other_parts_now_is_not_gone_on_with(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "metrics.json").unlink()
    cohort = (run / "cohort.csv").read_text()
    (run / "cohort.csv").write_text(cohort.replace(",test,", ",train,", 1))
    assert train(f"resume={run}") == 2
    assert "1 of them in another part" in capsys.readouterr().err


def test_a_finished_run_is_said_to_be_one_and_lacks_no_report(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, before = whole / "report.html", (whole / "predictions" / "test.csv").stat().st_mtime_ns
    page.unlink()
    assert train(f"resume={whole}", "trainer.max_epochs=2", "trainer.workers=0") == 0
    assert capsys.readouterr().out == f"{whole}: this run is finished; its report: {page}\n"
    assert page.is_file()
    assert (whole / "predictions" / "test.csv").stat().st_mtime_ns == before


def test_steps_within_an_epoch_keep_their_size(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    (run / "config.yaml").write_bytes((whole / "config.yaml").read_bytes())
    checkpoint = torch.load(whole / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["LesionData"]["steps"] = 5
    torch.save(checkpoint, last)
    assert train(f"resume={run}", "trainer.batch_size=4") == 2
    said = capsys.readouterr().err
    assert "within an epoch, trainer.batch_size times the number of processes must be 8" in said
    assert "it is 4" in said


def test_between_epochs_another_size_of_a_step_is_stated(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = read_data(micro_config(batch_size=16, accumulate=2), frozenset({"image"}))
    data.load_state_dict({"epoch": 1, "steps": 0, "rows": 16})
    assert capsys.readouterr().out == ""
    data.load_state_dict({"epoch": 1, "steps": 0, "rows": 32})  # of two processes
    assert capsys.readouterr().out == (
        "resumed with 16 rows a step instead of 32 (trainer.batch_size times the number of "
        "processes), trainer.accumulate=2\n"
    )


@pytest.mark.slow
def test_ten_kills_at_random_moments_change_nothing(whole: Path, tmp_path: Path) -> None:
    run, draw = tmp_path / "run", random.Random(0)  # noqa: S311
    overrides = [*SETTINGS, f"hydra.run.dir={run}"]
    facts = run / "environment.json"  # written when everything is ready to train
    for _ in range(10):

        def moment(began: float = time.time(), wait: float = draw.uniform(0.0, 2.5)) -> bool:
            return facts.exists() and began < facts.stat().st_mtime < time.time() - wait

        killed(run, moment, *overrides)
        overrides = [f"resume={run}"]
    done = command("train.py", f"resume={run}")
    assert done.returncode == 0, done.stderr
    assert_same(run, whole)
