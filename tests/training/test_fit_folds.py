"""All folds as one run: pooled results, one checkpoint, resumed folds, sources as folds."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import (
    CONTRACT,
    MISSING,
    QUICK,
    files_in,
    metrics_of,
    predictions_of,
    quick_train,
    tabular,
    train,
)
from sklearn.metrics import roc_auc_score

from skinmm.cli.main import predict
from skinmm.config import read_config
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.thresholds import fit_band
from skinmm.models.checkpoint import CheckpointError, load_card, load_cards
from skinmm.training import fit

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def pooled(record_table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All folds of a model that needs no image."""
    run = tmp_path_factory.mktemp("pooled") / "run"
    assert quick_train(run, *tabular(record_table), "data.folds=3", "data.fold=all") == 0
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


def test_a_sweep_makes_a_folder_a_run_and_survives_a_bad_one(
    record_table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [*QUICK, *tabular(record_table), "seed=0,1", "loss.name=cross_entropy,nonsense"]
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


def test_every_source_is_the_test_part_of_a_fold(record_table: Path, tmp_path: Path) -> None:
    table = pd.read_csv(record_table / "cohort.csv")
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
