"""Several processes: one run, exact whatever their number, ended by the first that fails."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import pytest
import torch
from micro_runs import micro_config
from quick_runs import CONTRACT, QUICK, ROOT, command, files_in, metrics_of, predictions_of, train
from timm.layers.norm_act import SyncBatchNormAct
from torch.nn.modules.batchnorm import _BatchNorm

from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import read_predictions
from skinmm.models.backbone import Backbone, synchronise_batchnorm
from skinmm.models.checkpoint import load_card

TESTED: Final = 101  # a prime: no number of processes divides it
MINUTE: Final = 60.0
TWO: Final = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "trainer.workers=0")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and records of the included cohort with a split of our own."""
    root = tmp_path_factory.mktemp("cohort")
    demo = ROOT / "skinmm" / "demo"
    table = pd.read_csv(demo / "cohort.csv").drop(columns=["lesion_id", "diagnosis"])
    table = table.sample(frac=1, random_state=0)[: 64 + 40 + TESTED]
    table["part"] = ["train"] * 64 + ["val"] * 40 + ["test"] * TESTED
    table.to_csv(root / "cohort.csv", index=False)
    (root / "images").symlink_to(demo / "images")
    return root


def of(cohort: Path) -> tuple[str, ...]:
    return (*QUICK, "data=csv", f"data.root={cohort}")


def test_two_processes_are_one_with_twice_the_batch(cohort: Path, tmp_path: Path) -> None:
    """Losses, rows, metrics and the W&B run, without BatchNorm and dropout, in 32 bit."""
    settings = [
        *of(cohort),
        "model.name=test_vit",
        "tabular.args.dropout=0.0",
        "fusion.args.dropout=0.0",
        "trainer.precision=32",
        "trainer.max_epochs=20",  # of a single step, so that the history holds every loss
        "trainer.patience=20",
        "trainer.limit_batches=1",
    ]
    offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    ddp = [*TWO, "trainer.batch_size=8", "logger=wandb"]
    ddp += ["trainer.max_epochs=20", "trainer.limit_batches=1"]
    done = command("train.py", *settings, *ddp, cwd=tmp_path, environment=offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run folder: ") == 1
    assert train(*settings, "trainer.batch_size=16", f"hydra.run.dir={tmp_path / 'one'}") == 0
    (two,) = (tmp_path / "runs").iterdir()
    one = tmp_path / "one"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}_tiny_concat", two.name)
    assert {name for name in files_in(two) if not name.startswith("wandb/")} == files_in(one)
    assert len([*(two / "wandb").glob("offline-run-*")]) == 1

    losses = []
    for run in (one, two):
        history = pd.read_csv(run / "history.csv")
        assert not history.duplicated(["epoch", "name"]).any()
        losses.append(history.loc[history["name"] == "train/loss", "value"].to_numpy())
    assert len(losses[0]) == 20
    np.testing.assert_allclose(losses[1], losses[0], atol=1e-6, rtol=0)

    rows = predictions_of(two)
    assert rows["image_id"].nunique() == len(rows) == TESTED
    assert rows["image_id"].tolist() == predictions_of(one)["image_id"].tolist()
    for part in ("val", "test"):
        told = [metrics_of(run)[part]["metrics"] for run in (one, two)]
        again = read_predictions(two / "predictions" / f"{part}.csv", positive=["malignant"])
        for name, entry in told[0].items():
            assert told[1][name]["value"] == pytest.approx(entry["value"], abs=1e-6), name
        threshold = metrics_of(two)["threshold"]["value"]
        judged = evaluate(again, threshold=threshold, resamples=0)
        for name, entry in judged["metrics"].items():
            digits = 1e-6  # of the file; what was gathered is exact, see test_module.py
            assert told[1][name]["value"] == pytest.approx(entry["value"], abs=digits), name


def nodes(folder: Path, *overrides: str) -> "list[subprocess.Popen[str]]":
    """Two simulated machines with a process each, started in different places by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(2):
        place = folder / f"node_{rank}"
        place.mkdir()
        torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        meeting = [f"--node-rank={rank}", "--master-addr=127.0.0.1", f"--master-port={port}"]
        started.append(
            subprocess.Popen(
                [sys.executable, *torchrun, *meeting, str(ROOT / "train.py"), *overrides],
                cwd=place,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
    return started


def test_two_nodes_make_one_run_after_the_other(cohort: Path, tmp_path: Path) -> None:
    shutil.copytree(cohort, tmp_path / "node_0_data", symlinks=True)
    relative = "../node_0_data"  # as rank 0 sees it
    overrides = ["-m", *of(Path(relative)), "fusion=tabular_only", "seed=0,1"]
    said = [each.communicate(timeout=600) for each in nodes(tmp_path, *overrides)]
    assert "report: " in said[0][0], said
    assert [*(tmp_path / "node_1").iterdir()] == []
    (sweep,) = (tmp_path / "node_0" / "runs").iterdir()
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [run.name for run in runs] == ["0", "1"]
    for run in runs:
        assert files_in(run) >= CONTRACT
        assert predictions_of(run)["image_id"].nunique() == TESTED


def endless(folder: Path, cohort: Path) -> tuple[str, ...]:
    longer = ("trainer.max_epochs=100000", "trainer.patience=100000")
    return (*of(cohort), *longer, "fusion=tabular_only", f"hydra.run.dir={folder / 'run'}")


def wait_for_epochs(run: Path) -> None:
    for _ in range(3000):
        if (run / "checkpoints" / "last.ckpt").exists():
            return
        time.sleep(0.1)
    raise TimeoutError("no checkpoint")


@pytest.mark.slow
def test_a_killed_node_ends_the_other_with_a_word(cohort: Path, tmp_path: Path) -> None:
    alive, killed = nodes(tmp_path, *endless(tmp_path, cohort), "trainer.timeout=0.5")
    wait_for_epochs(tmp_path / "run")
    for child in children(killed.pid):
        os.kill(child, signal.SIGKILL)
    os.killpg(killed.pid, signal.SIGKILL)
    began = time.monotonic()
    _, errors = alive.communicate(timeout=600)
    killed.communicate()
    assert time.monotonic() - began < MINUTE
    assert alive.returncode != 0
    assert "error: RuntimeError: another process was killed, or did not answer" in errors
    assert "resume=RUN continues from the last checkpoint" in errors
    load_card(tmp_path / "run" / "checkpoints" / "last.ckpt")


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(each) for each in listed]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["child", "parent"])
def test_a_killed_process_ends_the_others(cohort: Path, tmp_path: Path, victim: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "train.py", *endless(tmp_path, cohort), *TWO],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for_epochs(tmp_path / "run")
    (child,) = children(process.pid)
    os.kill(child if victim == "child" else process.pid, signal.SIGKILL)
    began = time.monotonic()
    _, errors = process.communicate(timeout=600)  # until both have let go of the pipe
    assert time.monotonic() - began < MINUTE
    assert process.returncode != 0
    assert "another process was killed, or did not answer" in errors
    assert (
        not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text()
    )
    load_card(tmp_path / "run" / "checkpoints" / "last.ckpt")


def test_the_process_that_fails_says_why(cohort: Path, tmp_path: Path) -> None:
    """A picture that only one of them meets is broken."""
    root = tmp_path / "cohort"
    shutil.copytree(cohort, root)
    table = pd.read_csv(root / "cohort.csv")
    name = table.loc[table["part"] == "train", "image_id"].iloc[7]
    picture = root / "images" / f"{name}.jpg"
    data = picture.read_bytes()
    picture.write_bytes(data[: len(data) // 2])
    began = time.monotonic()
    done = command("train.py", *of(root), *TWO, "trainer.limit_batches=9", cwd=tmp_path)
    assert time.monotonic() - began < 3 * MINUTE
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert name in done.stderr


def test_started_by_srun_in_several_processes_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert train(*QUICK) == 2
    assert "docker/slurm.sh" in capsys.readouterr().err
    assert (ROOT / "docker" / "slurm.sh").is_file()


def test_batchnorm_that_is_shared_stays_the_same_function() -> None:
    """Torch's conversion would drop the activations that timm's layers hold."""
    torch.manual_seed(0)
    backbone = Backbone(micro_config().model, pretrained=False).eval()
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    before = backbone(pictures)
    synchronise_batchnorm(backbone)
    norms = [each for each in backbone.modules() if isinstance(each, _BatchNorm)]
    assert {type(each) for each in norms} == {SyncBatchNormAct}
    assert torch.equal(backbone(pictures), before)


def test_shared_batchnorm_needs_gpus(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = f"hydra.run.dir={tmp_path / 'run'}"
    assert train(*QUICK, *TWO, "trainer.sync_batchnorm=true", run) == 2
    assert "trainer.sync_batchnorm=true: needs GPUs; set it to false" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
