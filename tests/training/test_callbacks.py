"""What watches a run: its history, its lines, and the checkpoints that an end leaves behind."""

import csv
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from micro_runs import micro_classifier, micro_config, read_data, table_cohort

from skinmm.errors import InputError, Terminated
from skinmm.models.checkpoint import load_card
from skinmm.training.callbacks import AtomicCheckpointIO, History
from skinmm.training.progress import format_duration
from skinmm.training.trainer import build_trainer, run_stage, silence_libraries


def test_the_history_has_a_line_for_every_value(tmp_path: Path) -> None:
    history = History(tmp_path / "history.csv")
    history.log_hyperparams({"seed": 1})
    history.log_metrics({"epoch": 0.0, "val/auroc": 0.123456789123, "val/loss": 1e-12}, step=4)
    History(tmp_path / "history.csv").log_metrics({"epoch": 1.0, "val/auroc": 1.0}, step=9)
    with (tmp_path / "history.csv").open(newline="") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["epoch", "step", "name", "value"],
        ["0", "4", "val/auroc", "0.123456789"],
        ["0", "4", "val/loss", "1e-12"],
        ["1", "9", "val/auroc", "1"],
    ]


def test_a_resumed_run_takes_the_place_of_what_it_repeats_in_the_history(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    killed = History(path)
    for epoch, step in ((0, 4), (1, 9), (2, 14)):
        killed.log_metrics({"epoch": float(epoch), "val/loss": 0.5}, step)
    killed.log_metrics({"epoch": 2.0, "test/auroc": 0.5}, 14)
    resumed = History(path)  # from within the second epoch
    resumed.log_metrics({"epoch": 1.0, "val/loss": 0.25}, 9)
    resumed.log_metrics({"epoch": 1.0, "test/auroc": 0.75}, 9)
    assert path.read_text().split() == [
        "epoch,step,name,value",
        "0,4,val/loss,0.5",
        "1,9,val/loss,0.25",
        "1,9,test/auroc,0.75",
    ]
    History(path).log_metrics({"epoch": 2.0, "val/loss": 0.125}, 14)  # with more epochs
    assert path.read_text().split()[2:] == ["1,9,val/loss,0.25", "2,14,val/loss,0.125"]
    assert [each.name for each in tmp_path.iterdir()] == ["history.csv"]


def test_a_run_that_had_stopped_early_is_not_trained_on(tmp_path: Path) -> None:
    silence_libraries()
    shown = []
    for patience in (2, 2, 4):  # the run, its resumption, and one with more patience
        config = micro_config(
            "tabular_only", table_cohort(tmp_path), max_epochs=20, patience=patience
        )
        config.optimizer.lr = 0.0  # nothing is ever better than the first epoch
        data = read_data(config, frozenset({"record"}))
        module, trainer = micro_classifier(config, data), build_trainer(config, tmp_path)
        last = tmp_path / "checkpoints" / "last.ckpt"
        trainer.fit(module, data, ckpt_path=last if last.exists() else None, weights_only=True)
        shown.append(trainer.current_epoch)
    assert shown == [3, 3, 5]


@pytest.mark.parametrize(
    ("monitor", "names"),
    [("val/auprc", "train/loss val/loss val/auprc"), ("val/loss", "train/loss val/loss")],
)
def test_an_epoch_is_a_line_with_each_value_once(
    monitor: str, names: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silence_libraries()
    watched = {"max_epochs": 2, "progress": True, "monitor": monitor}
    config = micro_config("tabular_only", table_cohort(tmp_path), **watched)
    data = read_data(config, frozenset({"record"}))
    trainer = build_trainer(config, tmp_path)
    trainer.fit(micro_classifier(config, data), data)
    lines = capsys.readouterr().out.splitlines()
    values = "  ".join(rf"{name} \d\.\d{{4}}" for name in names.split())
    assert len(lines) == 2
    for epoch, line in enumerate(lines, start=1):
        left = r", at most \d+ s left" if epoch == 1 else ""
        assert re.fullmatch(rf"epoch {epoch}/2  {values}  \d+ s{left}", line)
    assert f"val/loss {trainer.callback_metrics['val/loss']:.4f}" in lines[-1]


def test_a_terminal_has_one_bar_with_the_epoch_and_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silence_libraries()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    watched = {"max_epochs": 2, "progress": True, "monitor": "val/auprc"}
    config = micro_config("tabular_only", table_cohort(tmp_path), **watched)
    data = read_data(config, frozenset({"record"}))
    trainer = build_trainer(config, tmp_path)
    trainer.fit(micro_classifier(config, data), data)
    first, *states, last = re.split(r"[\r\n]+", capsys.readouterr().out.strip())
    assert first.startswith("epoch 1/2: 0%")
    assert all(state.startswith("epoch ") for state in states)
    assert re.match(r"epoch 2/2: 100%.* left, train/loss \d.\d{4}  val/loss", last)
    assert f"val/auprc {trainer.callback_metrics['val/auprc']:.4f}" in last


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (119.0, "119 s"), (120.0, "2 min"), (7200.0, "2.0 h")]
)
def test_durations_have_one_unit(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_a_value_that_one_class_does_not_define_is_not_shown_and_the_loss_steers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    silence_libraries()
    watched = {"max_epochs": 4, "progress": True, "monitor": "val/auroc", "limit_batches": 1}
    config = micro_config("tabular_only", table_cohort(tmp_path), **watched, eval_batch_size=2)
    data = read_data(config, frozenset({"record"}))
    trainer = build_trainer(config, tmp_path)
    trainer.fit(micro_classifier(config, data), data)
    said = capsys.readouterr()
    assert said.out.count("  val/auroc -  ") == 2  # the first and the last epoch
    assert said.err.count("val/auroc is undefined (one class in validation); val/loss") == 1
    with (tmp_path / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["name"] for row in rows} == {"train/loss", "val/loss", "val/balanced_accuracy"}
    losses = [float(row["value"]) for row in rows if row["name"] == "val/loss"]
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["epoch"] == losses.index(min(losses))


class EndAt(pl.Callback):
    """Ends a run in the middle of a step, by a signal or a fault."""

    def __init__(self, step: int, end: Callable[[], None]) -> None:
        """Takes the step and the end."""
        self._at = (step, end)

    def on_before_backward(self, trainer: pl.Trainer, *_: Any) -> None:
        """Counts."""
        step, end = self._at
        if trainer.global_step == step:
            end()


def fault() -> None:
    raise RuntimeError("a fault")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def end_by_sigterm() -> None:
    signal.raise_signal(signal.SIGTERM)


def press_it_twice() -> None:
    press_ctrl_c()
    press_ctrl_c()


@pytest.mark.parametrize(
    ("step", "end", "kept"),
    [
        (5, press_ctrl_c, 6),  # in the middle of the second epoch of four steps: it is finished
        (5, end_by_sigterm, 6),
        (5, press_it_twice, 4),
        (7, press_ctrl_c, 4),  # validation would be missed, so not after an epoch's last step
        (5, fault, 4),
        (0, press_it_twice, None),
    ],
)
def test_an_interrupt_keeps_where_the_run_was_and_a_fault_the_last_whole_epoch(
    step: int, end: Callable[[], None], kept: int | None, tmp_path: Path
) -> None:
    silence_libraries()
    config = micro_config("tabular_only", table_cohort(tmp_path), max_epochs=2)
    data = read_data(config, frozenset({"record"}))
    module, trainer = micro_classifier(config, data), build_trainer(config, tmp_path)
    trainer.callbacks.insert(0, EndAt(step, end))  # type: ignore[attr-defined]
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    expected = {end_by_sigterm: Terminated, fault: RuntimeError}.get(end, KeyboardInterrupt)
    with pytest.raises(expected):
        run_stage(trainer.fit, module, data)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert last.exists() == (kept is not None)
    if kept is not None:
        assert load_card(last)[0] == module.card
        assert torch.load(last, weights_only=True)["global_step"] == kept


@pytest.mark.parametrize("part", ["weights", "loss"])
def test_a_run_that_diverges_within_an_epoch_keeps_the_last_finite_checkpoint(
    part: str, tmp_path: Path
) -> None:
    silence_libraries()
    config = micro_config("tabular_only", table_cohort(tmp_path), checkpoint_minutes=0.0)
    data = read_data(config, frozenset({"record"}))
    module, trainer = micro_classifier(config, data), build_trainer(config, tmp_path)

    def diverge() -> None:
        if part == "weights":
            next(module.network.parameters()).data.fill_(torch.nan)
        else:
            module._losses += torch.inf

    trainer.callbacks.insert(0, EndAt(2, diverge))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"loss is not finite in epoch 1 \(step 3"):
        trainer.fit(module, data)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 2
    assert all(bool(value.isfinite().all()) for value in load_card(last)[1].values())


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 1}, str(path))
    with pytest.raises(Exception, match="lambda"):
        AtomicCheckpointIO().save_checkpoint({"epoch": lambda: 2}, path, storage_options=None)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert list(tmp_path.iterdir()) == [path]
