"""Rows for calibration alone, and the mean over epochs that selects the best one."""

from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from micro_runs import micro_config, read_data, table_cohort
from quick_runs import (
    CONTRACT,
    cohort_of,
    files_in,
    metrics_of,
    predictions_of,
    quick_train,
    tabular,
    train,
)
from scipy.stats import binom

from skinmm.config import Config, read_config
from skinmm.training import fold as training_fold
from skinmm.training.run_folder import write_config

Said = pytest.CaptureFixture[str]


def test_calibration_rows_fit_the_decision_and_early_stopping_never_uses_them(
    record_table: Path, tmp_path: Path
) -> None:
    runs = {share: tmp_path / f"run_{share}" for share in ("0.4", "auto")}
    for share, run in runs.items():
        assert quick_train(run, *tabular(record_table), f"data.calibration={share}") == 0
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
    assert "the calibration uses calibration rows only" in texts[0]
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
    record_table: Path, tmp_path: Path, smoothing: str, window: int
) -> None:
    settings = ["trainer.max_epochs=12", "trainer.patience=4", "optimizer.lr=0.05"]
    settings += ["schedule=constant", f"trainer.smoothing={smoothing}", "seed=2"]
    assert quick_train(tmp_path / "run", *tabular(record_table), *settings) == 0
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    values = history.loc[history["name"] == "val/auroc", "value"]
    means = values.rolling(window, min_periods=1).mean().to_numpy()
    epoch = int(means.argmax()) + 1  # the first of equal ones
    assert len(means) == epoch + 4  # early stopping uses the same means
    selection = metrics_of(tmp_path / "run")["selection"]
    assert selection == {"monitor": "val/auroc", "window": window, "epochs": [epoch]}
    assert epoch != int(values.to_numpy().argmax()) + 1 or window == 1
    card = (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    assert ("by val/auroc (its mean over the latest 3 epochs" in card) == (window == 3)
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
    record_table: Path, tmp_path: Path, capsys: Said
) -> None:
    run = tmp_path / "run"
    assert quick_train(run, *tabular(record_table)) == 0
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
