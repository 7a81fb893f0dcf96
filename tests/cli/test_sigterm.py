"""SIGTERM ends every command within five seconds, in every stage, with one line and status 143."""

import ctypes
import importlib
import multiprocessing
import os
import signal
import sys
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from threading import Timer
from typing import Any, Final

import pytest
import torch
from quick_runs import QUICK, best, train

from skinmm.cli.main import main
from skinmm.models.checkpoint import load_card

LIMIT: Final = 5.0  # seconds from the signal to the end of the process
CONTEXT: Final[ForkServerContext] = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["skinmm.training.fit", "skinmm.predict.job"])
HEADER: Final = "image_name,age_approx,sex,anatom_site_general_challenge\n"

# Functions that a stage calls: module, name, and whether it is native code that Python waits for.
STAGES: Final = {
    "reading": ("skinmm.data.datamodule", "load_cohort", False),
    "validation": ("skinmm.training.module", "validation_metrics", False),
    "testing": ("skinmm.training.module", "Classifier.test_step", False),
    "calibration": ("skinmm.training.fold", "fit_decision", False),
    "resampling": ("skinmm.training.calibrate", "evaluate", False),
    "native code": ("skinmm.training.calibrate", "evaluate", True),
    "report": ("skinmm.training.fold", "write_report", False),
}
COMMANDS: Final = {
    "predict": ("skinmm.predict.ensemble", "Ensemble.run", False),
    "export": ("skinmm.predict.export_onnx", "_verify", False),
    "audit": ("skinmm.data.audit", "audit", False),
    "report": ("skinmm.report", "write_report", False),
    "pack": ("skinmm.data.pack", "_write_in_processes", False),
}


def wait_in_native_code(marker: str) -> None:
    """Lock a mutex twice: no signal ends that, and Python does not get to its handlers.

    A thread creates the marker, because a signal before the lock would be answered in Python.
    """
    Timer(0.5, Path(marker).touch).start()
    mutex = ctypes.create_string_buffer(64)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def run_with_slow_stage(
    stage: tuple[str, str, bool] | None, marker: str, errors: str, argv: list[str]
) -> None:
    """Run a command whose stage creates the marker and lasts a minute; exit with its status."""
    error_file = os.open(errors, os.O_CREAT | os.O_WRONLY)
    os.dup2(error_file, sys.stderr.fileno())
    os.setsid()
    if stage:
        module_name, name, is_native = stage
        owner: Any = importlib.import_module(module_name)
        *parents, attribute = name.split(".")
        for parent in parents:
            owner = getattr(owner, parent)

        def slow(*_: Any, **__: Any) -> None:
            if is_native:
                wait_in_native_code(marker)
            Path(marker).touch()
            time.sleep(60)

        assert hasattr(owner, attribute)
        setattr(owner, attribute, slow)
    sys.exit(main(argv))


class Stopped:
    """A command that got SIGTERM: its exit status, seconds to the end, and lines on stderr."""

    def __init__(
        self,
        folder: Path,
        argv: list[str],
        stage: tuple[str, str, bool] | None = None,
        *,
        marker: Path | None = None,
        everyone: bool = False,
    ) -> None:
        """Starts it, and sends the signal when the marker exists, perhaps to its group."""
        errors, marker = folder / "errors.txt", marker or folder / "marker"
        given = stage, str(marker), str(errors), argv
        process = CONTEXT.Process(target=run_with_slow_stage, args=given)
        process.start()
        while not marker.exists():
            assert process.is_alive(), errors.read_text()
            time.sleep(0.01)
        assert process.pid
        started = time.monotonic()
        (os.killpg if everyone else os.kill)(process.pid, signal.SIGTERM)
        process.join(60)
        self.seconds = time.monotonic() - started
        self.status = process.exitcode
        process.kill()
        self.lines = errors.read_text().splitlines()

    def check(self, line: str = "terminated") -> None:
        """Requires the status, one line, and the time."""
        print(f"{self.seconds:.1f} s, status {self.status}, {len(self.lines)} lines")  # noqa: T201
        assert self.lines[-1:] == [line]
        assert not [text for text in self.lines[:-1] if "WARNING: " not in text]
        assert self.status == 143
        assert self.seconds < LIMIT


@pytest.fixture(autouse=True)
def few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a record alone."""
    run = tmp_path_factory.mktemp("finished")
    assert train(*QUICK, "fusion=tabular_only", f"hydra.run.dir={run}") == 0
    return run


@pytest.mark.parametrize("name", STAGES)
def test_a_run_ends_in_every_stage_and_is_resumed(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    argv = ["train", *QUICK, "fusion=tabular_only", f"hydra.run.dir={run}"]
    hint = f"terminated; to resume: python train.py resume={run}"
    expected = "terminated" if name in ("reading", "native code") else hint
    Stopped(tmp_path, argv, STAGES[name]).check(expected)
    assert not list(run.rglob("*.part"))
    if name not in ("reading", "validation"):
        load_card(run / "checkpoints" / "last.ckpt")
    if name in ("validation", "resampling"):
        assert train(f"resume={run}") == 0
        assert (run / "report.html").is_file()


def test_a_training_run_with_loaders_saves_its_last_step(tmp_path: Path) -> None:
    """The signal reaches the loaders too, as systemd and a batch system send it."""
    run = tmp_path / "run"
    endless = ["trainer.max_epochs=5000", "trainer.patience=5000", "trainer.limit_batches=null"]
    argv = ["train", *QUICK, *endless, "trainer.workers=1", "trainer.checkpoint_minutes=0"]
    last = run / "checkpoints" / "last.ckpt"
    stopped = Stopped(tmp_path, [*argv, f"hydra.run.dir={run}"], marker=last, everyone=True)
    stopped.check(f"terminated; to resume: python train.py resume={run}")
    assert torch.load(last, weights_only=True)["global_step"] > 0
    load_card(last)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends(name: str, finished: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    table.write_text(f"{HEADER}I1,50,male,torso\n")
    arguments = {
        "predict": [f"checkpoint={best(finished)}", f"input={table}", f"output={tmp_path}/p.csv"],
        "export": [f"checkpoint={best(finished)}"],
        "audit": ["data=demo", f"output={tmp_path}/audit.html"],
        "report": [str(finished)],
        "pack": ["data=demo", f"out={tmp_path}/pack"],
    }
    Stopped(tmp_path, [name, *arguments[name]], COMMANDS[name]).check()
    assert not list(tmp_path.rglob("*.part"))
