"""Training through the command line, end to end: the run folder and every way to get there."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from quick_runs import (
    CONTRACT,
    LIMIT,
    QUICK,
    ROOT,
    best,
    cohort_of,
    command,
    files_in,
    metrics_of,
    predictions_of,
    quick_train,
    tabular,
    train,
)
from sklearn.metrics import roc_auc_score

from skinmm.config import read_config
from skinmm.config.outputs import LoggerConfig
from skinmm.models.checkpoint import load_card
from skinmm.report.inputs import read_run
from skinmm.report.sections.headline import collect_warnings
from skinmm.training import fold as training_fold
from skinmm.training.run_folder import write_config

Said = pytest.CaptureFixture[str]


STRANGE = "Läsionen (1) = a, b [neu] #2"  # what a person may call a folder


def test_the_run_folder_holds_what_the_contract_says_and_nothing_else(both: Path) -> None:
    assert files_in(both) == CONTRACT


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_prediction_file_holds_every_row_of_its_part_once(both: Path, part: str) -> None:
    file = both / "predictions" / f"{part}.csv"
    header, *lines = file.read_text().splitlines()
    names = "p_benign,p_malignant,raw_benign,raw_malignant"
    assert header == f"image_id,patient_id,unit,target,{names},decision,prediction_set,ood"
    numbers = lines[0].split(",")[4:8]
    assert all(len(re.sub(r"\D", "", cell.lstrip("0."))) <= 9 for cell in numbers)
    predictions, cohort = predictions_of(both, part), cohort_of(both, part)
    for column in ("image_id", "patient_id", "target"):
        assert predictions[column].tolist() == cohort[column].tolist()
    for kind in ("p", "raw"):
        total = predictions[[f"{kind}_benign", f"{kind}_malignant"]].sum(axis=1)
        np.testing.assert_allclose(total, 1, atol=1e-8)


def test_the_parts_are_folds_of_whole_patients(both: Path) -> None:
    cohort = pd.read_csv(both / "cohort.csv")
    assert len(cohort) == 700
    assert (cohort.groupby("patient_id")["part"].nunique() == 1).all()
    assert set(cohort.groupby("part")["fold"].unique().map(lambda folds: tuple(sorted(folds)))) == {
        (0,),
        (1,),
        (2, 3, 4),
    }


def test_the_metrics_are_those_of_the_files(both: Path) -> None:
    metrics = metrics_of(both)
    assert metrics["schema"] == 1
    assert metrics["initialisation"].startswith("from scratch")
    assert (metrics["classes"], metrics["positive"]) == (["benign", "malignant"], ["malignant"])
    bound = {"patients", "found", "bound"}
    assert metrics["threshold"].keys() == {"value", "rule", "guaranteed", *bound}
    for part in ("val", "test"):
        predictions, judged = predictions_of(both, part), metrics[part]
        assert (judged["n"], judged["positives"]) == (140, predictions["target"].sum())
        auroc = judged["metrics"]["auroc"]
        expected = roc_auc_score(predictions["target"], predictions["p_malignant"])
        assert auroc["value"] == pytest.approx(expected, abs=1e-6)
        assert auroc["low"] < auroc["value"] < auroc["high"]


def test_the_threshold_finds_the_malignant_of_validation(both: Path) -> None:
    val = predictions_of(both, "val")
    malignant = val.loc[val["target"] == 1, "p_malignant"]
    assert (malignant >= metrics_of(both)["threshold"]["value"]).mean() >= 0.95


def test_the_history_has_a_line_a_value_and_epoch(both: Path) -> None:
    history = pd.read_csv(both / "history.csv")
    assert history.columns.tolist() == ["epoch", "step", "name", "value"]
    assert not history.duplicated(["epoch", "name"]).any()
    assert {"train/loss", "val/loss", "val/auroc"} <= set(history["name"])


def test_the_record_of_the_run_repeats_it(both: Path) -> None:
    config = read_config(both / "config.yaml")
    assert (config.model.name, config.data.limit, config.resume) == ("test_efficientnet", 48, None)
    environment = yaml.safe_load((both / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.partition("+")[0] or (
        environment["packages"]["torch"] == torch.__version__
    )
    audit = yaml.safe_load((both / "audit.json").read_text())
    assert (audit["leaks"], audit["allow_leaks"]) == ([], False)


def test_the_checkpoint_knows_what_follows_the_network(both: Path) -> None:
    card, weights = load_card(both / "checkpoints" / "best.ckpt")
    metrics = metrics_of(both)
    assert card.threshold == metrics["threshold"]
    assert card.calibration == metrics["calibration"]
    assert card.summary.pop("probabilities")
    assert card.summary == metrics["test"]
    assert card.config["model"]["image_size"] == 32
    assert not any(name.startswith(("network.", "_orig_mod.")) for name in weights)
    last = torch.load(both / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["skinmm"]["classes"] == card.classes
    assert str(ROOT) not in str(last["callbacks"])
    assert str(both) not in str(last["callbacks"])


def test_the_same_seed_gives_the_same_probabilities_from_any_folder(
    both: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / STRANGE
    elsewhere.mkdir()
    shown = [*QUICK, LIMIT, "trainer.progress=true"]
    done = command("train.py", *shown, f"hydra.run.dir={STRANGE}/run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    warnings = collect_warnings(read_run(elsewhere / "run", pictures=False))
    lines = [f"WARNING: {warning}".replace("\N{NO-BREAK SPACE}", " ") for warning in warnings]
    assert done.stderr.splitlines() == lines
    said = done.stdout.splitlines()
    assert said[0] == "cohort: 48 rows to train, 140 to validate, 140 to test; classes: " + (
        "benign, malignant"
    )
    before = said.index(next(line for line in said if line.startswith("epoch 1/1  train/loss ")))
    assert re.fullmatch(
        r"expected duration: at most \d+ s to train, \d+ s for the whole run", said[before - 1]
    )
    stages = ["testing: 140 rows", "resampling: intervals from 20 resamples", "writing the report"]
    assert [line for line in said[before:] if line in stages] == stages
    assert "interval" in said[said.index(stages[-1]) + 1]
    assert f"run folder: {elsewhere / 'run'}" in said
    assert files_in(elsewhere) == {f"run/{name}" for name in CONTRACT}
    pd.testing.assert_frame_equal(predictions_of(elsewhere / "run"), predictions_of(both))


def test_a_run_is_not_replaced_unasked(both: Path, capsys: Said) -> None:
    before = {name: (both / name).read_bytes() for name in files_in(both)}
    assert quick_train(both, LIMIT) == 2
    assert f"{both} contains a run" in capsys.readouterr().err
    # Nor, when asked, before everything that can be refused has been.
    for mistake in ("loss.name=nonsense", "data.name=siim_isic", "model.name=nonsense"):
        assert quick_train(both, LIMIT, "overwrite=true", mistake) == 2
    assert {name: (both / name).read_bytes() for name in files_in(both)} == before


def test_ctrl_c_before_the_report_leaves_a_finished_run(
    record_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def interrupts(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_fold, "write_report", interrupts)
        assert quick_train(tmp_path, *tabular(record_table)) == 130
    summary = load_card(best(tmp_path))[0].summary
    assert summary.pop("probabilities")
    assert summary == metrics_of(tmp_path)["test"]
    assert train(f"resume={tmp_path}") == 0
    assert "this run is finished" in capsys.readouterr().out
    assert files_in(tmp_path) == CONTRACT

    # Gone on with, and stopped at the same moment: no page of the shorter run is left.
    with monkeypatch.context() as patched:
        patched.setattr(training_fold, "write_report", interrupts)
        assert train(f"resume={tmp_path}", "trainer.max_epochs=2") == 130
    assert files_in(tmp_path) == CONTRACT - {"report.html", "card.md"}
    config = read_config(tmp_path / "config.yaml")
    write_config(tmp_path / "config.yaml", replace(config, logger=LoggerConfig("wandb")))
    assert train(f"resume={tmp_path}") == 0
    assert "to upload it to W&B again" in capsys.readouterr().out


def test_a_run_that_augments_on_its_device_is_the_same_run(tmp_path: Path) -> None:
    for where in ("workers", "device"):
        settings = (f"trainer.augment_on={where}", "mix=mixup", "data.limit=48")
        assert quick_train(tmp_path / where, *settings) == 0
    one, other = ((tmp_path / where / "history.csv").read_text() for where in ("workers", "device"))
    assert one == other
