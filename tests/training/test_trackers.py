"""MLflow as the logger, with files as its store, and the packages that loggers need."""

import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from micro_runs import micro_config
from mlflow.tracking import MlflowClient
from quick_runs import quick_train, train

from skinmm.config.outputs import LoggerConfig
from skinmm.errors import InputError, require_package
from skinmm.training import trackers
from skinmm.training.run_folder import read_metrics


def test_mlflow_has_the_numbers_of_the_run_and_no_identifiers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = tmp_path / "run"
    assert quick_train(folder, "logger=mlflow", "logger.project=lesions") == 0
    assert train(f"resume={folder}", "trainer.max_epochs=2") == 0  # the same MLflow run

    client = MlflowClient((folder / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("lesions")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run"
    assert run.info.status == "FINISHED"
    assert run.data.params["model/name"] == "test_efficientnet"
    for name, entry in read_metrics(folder)["test"]["metrics"].items():
        if entry["value"] is not None:
            assert run.data.metrics[f"test/{name}"] == pytest.approx(entry["value"])
    history = pd.read_csv(folder / "history.csv")
    losses = history.loc[history["name"] == "train/loss", "value"].tolist()
    tracked = client.get_metric_history(run.info.run_id, "train/loss")
    assert [each.value for each in tracked] == pytest.approx(losses, rel=1e-6)

    artifacts = {path.name: path for path in (folder / "mlruns").rglob("artifacts/**/*.*")}
    assert artifacts["best.ckpt"].read_bytes() == (folder / "checkpoints/best.ckpt").read_bytes()
    assert not {"image_id", "patient_id"} & {*pd.read_csv(artifacts["test.csv"]).columns}
    assert not re.search(r"ISIC_\d{7}", artifacts["report.html"].read_text())


def test_packages_are_required_before_data_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: set[str] = set()
    monkeypatch.setattr("skinmm.errors.find_spec", lambda name: None if name in absent else name)
    config = replace(micro_config(), logger=LoggerConfig("wandb"))
    trackers.require_packages(config)
    absent.add("wandb")
    with pytest.raises(InputError, match=r"logger=wandb needs wandb: .*'skinmm\[train\]'"):
        trackers.require_packages(config)
    absent.add("matplotlib")
    with pytest.raises(InputError, match=r"report .* needs matplotlib: .*'skinmm\[train\]'"):
        trackers.require_packages(micro_config())


def test_a_package_that_is_not_installed_is_named() -> None:
    require_package("json", "a feature", "extra")
    with pytest.raises(InputError, match=r"^a feature needs absent_package: .*'skinmm\[extra\]'$"):
        require_package("absent_package", "a feature", "extra")
