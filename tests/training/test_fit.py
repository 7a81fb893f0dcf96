"""Training through the command line, end to end: the run folder and every way to get there."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from micro_runs import micro_config, read_data, table_cohort
from quick_runs import (
    QUICK,
    ROOT,
    best,
    cohort_of,
    command,
    files_in,
    metrics_of,
    predictions_of,
    quick_train,
    train,
)
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from skinmm.cli.main import predict
from skinmm.config import Config, read_config
from skinmm.config.outputs import LoggerConfig
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.thresholds import fit_band
from skinmm.models.checkpoint import CheckpointError, load_card, load_cards
from skinmm.report.inputs import read_run
from skinmm.report.sections.headline import collect_warnings
from skinmm.training import fit
from skinmm.training import fold as training_fold
from skinmm.training.run_folder import write_config

Said = pytest.CaptureFixture[str]

MISSING = {f"predictions/missing_{count}_of_3.csv" for count in (1, 2, 3)}
CONTRACT = MISSING | {
    "config.yaml",
    "checkpoints/best.ckpt",
    "checkpoints/last.ckpt",
    "predictions/val.csv",
    "predictions/test.csv",
    "metrics.json",
    "history.csv",
    "cohort.csv",
    "audit.json",
    "environment.json",
    "report.html",
    "card.md",
}
STRANGE = "Läsionen (1) = a, b [neu] #2"  # what a person may call a folder
LIMIT = "data.limit=48"  # as `both` has it
TWO = (  # processes on this machine
    "trainer=ddp",
    "trainer.devices=2",
    "trainer.accelerator=cpu",
    "trainer.batch_size=16",
    "trainer.workers=0",
)


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


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded cohort's table without a single image."""
    root = tmp_path_factory.mktemp("records") / STRANGE
    root.mkdir()
    table = pd.read_csv(ROOT / "skinmm" / "demo" / "cohort.csv")
    table.to_csv(root / "cohort.csv", index=False)
    return root


def tabular(root: Path) -> list[str]:
    return ["data=csv", f"data.root={root}", "fusion=tabular_only"]


@pytest.fixture(scope="module")
def pooled(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All folds of a model that needs no image."""
    run = tmp_path_factory.mktemp("pooled") / "run"
    assert quick_train(run, *tabular(records), "data.folds=3", "data.fold=all") == 0
    return run


def test_all_folds_are_pooled_into_the_parent(pooled: Path) -> None:
    folds = [pooled / f"fold_{number}" for number in range(3)]
    assert all(files_in(fold) == CONTRACT for fold in folds)
    own = MISSING | {
        "config.yaml",
        "metrics.json",
        "report.html",
        "card.md",
        "predictions/test.csv",
        "checkpoints/ensemble.ckpt",
    }
    assert {name for name in files_in(pooled) if not name.startswith("fold_")} == own
    rows = predictions_of(pooled)
    assert len(rows) == rows["image_id"].nunique() == 700
    for number, fold in enumerate(folds):
        part = rows[rows["fold"] == number].drop(columns="fold").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, predictions_of(fold))


def test_the_pooled_metrics_are_those_of_the_pooled_rows(pooled: Path) -> None:
    metrics, rows = metrics_of(pooled), predictions_of(pooled)
    expected = roc_auc_score(rows["target"], rows["p_malignant"])
    assert metrics["test"]["metrics"]["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
    assert metrics["test"]["n"] == 700
    alone = [metrics_of(pooled / f"fold_{number}") for number in range(3)]
    assert [each["test"] for each in metrics["folds"]] == [each["test"] for each in alone]
    logits = [np.log(t / (1 - t)) for t in (each["threshold"]["value"] for each in alone)]
    assert metrics["threshold"]["value"] == pytest.approx(1 / (1 + np.exp(-np.mean(logits))))
    assert read_config(pooled / "config.yaml").data.fold == "all"


def test_all_folds_become_one_checkpoint(pooled: Path, tmp_path: Path) -> None:
    ensemble = pooled / "checkpoints" / "ensemble.ckpt"
    table = tmp_path / "patients.csv"
    table.write_text("image,age,sex,site\nI1,50,male,torso\nI2,70,female,head/neck\n")
    outputs = []
    for name, files in (("one", ensemble), ("each", pooled / "fold_*" / "checkpoints/best.ckpt")):
        outputs.append(tmp_path / f"{name}.csv")
        job = [f"checkpoint={files}", f"input={table}", f"output={outputs[-1]}"]
        assert predict([*job, "referral=false"]) == 0  # the band alone differs
    assert outputs[0].read_text() == outputs[1].read_text()
    rows = read_predictions(pooled / "predictions" / "test.csv")
    facts = rows.malignancy, rows.malignant, rows.patient_id
    band = fit_band(*facts, miss_rate=0.01, false_alarm_rate=0.1)
    assert {json.dumps(card.band) for card, _ in load_cards(ensemble)} == {json.dumps(asdict(band))}
    assert metrics_of(pooled)["band"] == asdict(band)
    assert "'checkpoint=checkpoints/ensemble.ckpt'" in (pooled / "card.md").read_text()
    with pytest.raises(CheckpointError, match=r"an ensemble of 3 networks, where one is needed"):
        load_card(ensemble)


def test_resuming_all_folds_repeats_none_that_is_finished(
    pooled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def interrupts(_: Path) -> None:
        raise KeyboardInterrupt

    run = tmp_path / "moved"
    shutil.copytree(pooled, run)
    (run / "metrics.json").unlink()
    with monkeypatch.context() as patched:
        patched.setattr(fit, "write_report", interrupts)
        assert train(f"resume={run}") == 130
    assert files_in(pooled) - files_in(run) == {"report.html", "card.md"}
    (run / "fold_2" / "metrics.json").unlink()
    (run / "fold_1" / "report.html").unlink()
    assert train(f"resume={run}") == 0
    assert re.findall(r"fold (\d) of 3", capsys.readouterr().out) == ["2"]
    assert files_in(run) == files_in(pooled)
    pd.testing.assert_frame_equal(predictions_of(run), predictions_of(pooled))
    assert train(f"resume={run}", "trainer.max_epochs=20") == 0
    assert "finished folds are not trained again" in capsys.readouterr().err


def test_ctrl_c_before_the_report_leaves_a_finished_run(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    def interrupts(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(training_fold, "write_report", interrupts)
        assert quick_train(tmp_path, *tabular(records)) == 130
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


def test_a_sweep_makes_a_folder_a_run_and_survives_a_bad_one(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*QUICK, *tabular(records), "seed=0,1", "loss.name=cross_entropy,nonsense"]
    assert train("-m", *overrides) == 2
    errors = capsys.readouterr().err.splitlines()
    errors = [line for line in errors if not line.startswith(("[HYDRA]", "WARNING: "))]
    assert len(errors) == 2
    assert all(line.startswith("error: unknown loss 'nonsense'; choose from ") for line in errors)
    (sweep,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_sweep", sweep.name)
    runs = sorted(path for path in sweep.iterdir() if path.is_dir())
    assert [path.name for path in runs] == ["0", "2"]
    assert all(files_in(run) == CONTRACT for run in runs)
    assert [read_config(run / "config.yaml").seed for run in runs] == [0, 1]


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
    records: Path, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    steady = [*tabular(records), "schedule=constant", "trainer.patience=9"]
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


def test_a_run_that_augments_on_its_device_is_the_same_run(tmp_path: Path) -> None:
    for where in ("workers", "device"):
        settings = (f"trainer.augment_on={where}", "mix=mixup", "data.limit=48")
        assert quick_train(tmp_path / where, *settings) == 0
    one, other = ((tmp_path / where / "history.csv").read_text() for where in ("workers", "device"))
    assert one == other


def test_calibration_rows_fit_the_decision_and_early_stopping_never_uses_them(
    records: Path, tmp_path: Path
) -> None:
    runs = {share: tmp_path / f"run_{share}" for share in ("0.4", "auto")}
    for share, run in runs.items():
        assert quick_train(run, *tabular(records), f"data.calibration={share}") == 0
    run, plain = runs["0.4"], runs["auto"]
    assert files_in(plain) == CONTRACT  # 28 malignant rows are too few to divide
    assert files_in(run) == CONTRACT | {"predictions/calibration.csv"}
    rows, val, former = (
        predictions_of(run, "calibration"),
        predictions_of(run, "val"),
        predictions_of(plain, "val"),
    )
    assert set(rows["image_id"]) | set(val["image_id"]) == set(former["image_id"])
    assert len(rows) + len(val) == len(former)
    assert len(rows) == pytest.approx(0.4 * len(former), abs=2)
    assert set(cohort_of(run, "calibration")["image_id"]) == set(rows["image_id"])
    metrics = metrics_of(run)
    assert (metrics["fitted_on"], metrics_of(plain)["fitted_on"]) == ("calibration", "val")
    assert metrics["calibration"]["method"] == "temperature"
    malignant = rows.loc[rows["target"] == 1, "p_malignant"]
    threshold = metrics["threshold"]
    assert threshold["patients"] == len(malignant)
    assert threshold["found"] == (malignant >= threshold["value"]).sum()
    # Clopper and Pearson's lower bound: at this sensitivity, as many are found in 5 % of samples.
    at_bound = binom.sf(threshold["found"] - 1, threshold["patients"], threshold["bound"])
    assert at_bound == pytest.approx(0.05)
    texts = [(each / "card.md").read_text(encoding="utf-8") for each in (run, plain)]
    shared = f"{threshold['found']} of {threshold['patients']} malignant cases"
    assert shared in texts[0]
    assert "calibration and threshold the calibration part only" in texts[0]
    assert ["The epoch was selected on the same rows" in text for text in texts] == [False, True]
    assert train(f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false") == 0
    assert len(predictions_of(run, "calibration")) == len(rows)


def test_a_run_that_is_older_than_calibration_rows_has_none(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    write_config(file, Config())
    assert read_config(file).data.calibration == "auto"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    del content["data"]["calibration"]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    assert read_config(file).data.calibration == 0


@pytest.mark.parametrize("share", ["half", "0.95", "-0.1"])
def test_a_share_for_calibration_is_auto_or_below_one(
    share: str, tmp_path: Path, capsys: Said
) -> None:
    assert quick_train(tmp_path / "run", f"data.calibration={share}") == 2
    assert "must be auto, or between 0 and 0.9" in capsys.readouterr().err


@pytest.mark.parametrize(("smoothing", "window"), [("auto", 3), ("1", 1)])
def test_the_best_epoch_has_the_highest_mean_over_the_latest_epochs(
    records: Path, tmp_path: Path, smoothing: str, window: int
) -> None:
    settings = ["trainer.max_epochs=12", "trainer.patience=4", "optimizer.lr=0.05"]
    settings += ["schedule=constant", f"trainer.smoothing={smoothing}", "seed=2"]
    assert quick_train(tmp_path / "run", *tabular(records), *settings) == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    values = history.loc[history["name"] == "val/auroc", "value"]
    means = values.rolling(window, min_periods=1).mean().to_numpy()
    epoch = int(means.argmax()) + 1  # the first of equal ones
    assert len(means) == epoch + 4  # early stopping uses the same means
    selection = metrics_of(tmp_path / "run")["selection"]
    assert selection == {"monitor": "val/auroc", "window": window, "epochs": [epoch]}
    assert epoch != int(values.to_numpy().argmax()) + 1 or window == 1
    card = (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    assert ("by the mean of val/auroc over the latest 3 epochs" in card) == (window == 3)
    assert ("weights of the best epoch by val/auroc." in card) == (window == 1)


def test_the_metric_is_smoothed_with_fewer_than_100_malignant_lesions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = micro_config(data=table_cohort(tmp_path))
    data = read_data(config, frozenset({"record"}))
    lesions = data.cohort["image_id"].where(data.targets == 1)[data.rows("val")].nunique()
    windows = []
    for few in (lesions, lesions + 1):
        monkeypatch.setattr(training_fold, "FEW", few)
        windows.append(training_fold.choose_window(config, data))
    assert windows == [1, 3]
    # Two images of a lesion count once.
    data.cohort["lesion_id"] = "the same"
    assert training_fold.choose_window(config, data) == 3


def test_a_run_is_resumed_with_its_smoothing_alone(
    records: Path, tmp_path: Path, capsys: Said
) -> None:
    run = tmp_path / "run"
    assert quick_train(run, *tabular(records)) == 0
    more = [f"resume={run}", "trainer.max_epochs=2", "trainer.progress=false"]
    assert train(*more, "trainer.smoothing=1") == 2
    message = "by the mean over 3 epochs, now over 1; set trainer.smoothing=3 to resume"
    assert message in capsys.readouterr().err
    content = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    del content["trainer"]["smoothing"]
    (run / "config.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    assert read_config(run / "config.yaml").trainer.smoothing == 1  # of an older run
    last = run / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    del state["monitored"]
    torch.save(state, last)
    assert train(*more) == 0
    assert metrics_of(run)["selection"]["window"] == 1


@pytest.mark.parametrize("value", ["0", "most"])
def test_smoothing_is_a_number_of_epochs(value: str, tmp_path: Path, capsys: Said) -> None:
    assert quick_train(tmp_path / "run", f"trainer.smoothing={value}") == 2
    assert f"trainer.smoothing={value}: must be" in capsys.readouterr().err


def test_every_source_is_the_test_part_of_a_fold(records: Path, tmp_path: Path) -> None:
    table = pd.read_csv(records / "cohort.csv")
    table.assign(clinic=np.resize(["North", "South", "West"], len(table))).to_csv(
        tmp_path / "cohort.csv", index=False
    )
    run, source = tmp_path / "run", "+data.args.columns.source=clinic"
    by_source = (*tabular(tmp_path), source, "data.split=source", "data.fold=all")
    assert quick_train(run, *by_source) == 0
    rows = predictions_of(run)
    assert rows.groupby("fold")["source"].unique().map(list).tolist() == [
        ["North"],
        ["South"],
        ["West"],
    ]
    measured = metrics_of(run)["test"]
    aurocs = {entry["source"]: entry for entry in measured["sources"]["aurocs"]}
    pairs = {name: e["positives"] * (e["n"] - e["positives"]) for name, e in aurocs.items()}
    within = sum(aurocs[name]["value"] * pairs[name] for name in pairs) / sum(pairs.values())
    assert measured["metrics"]["within_source_auroc"]["value"] == pytest.approx(within)
    assert measured["sources"]["random_effects"] is not None
    page = (run / "report.html").read_text()
    assert "fold 1: South" in page
    assert "The test part of each fold is one source (centre)" in page
