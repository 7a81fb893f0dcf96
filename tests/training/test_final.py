"""The network that is trained on all rows after the folds."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from quick_runs import cohort_of, files_in, metrics_of, predictions_of, quick_train, train

from skinmm.cli.main import main, predict
from skinmm.config import Config, read_config
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.thresholds import choose_threshold
from skinmm.models.checkpoint import load_card, read_epochs
from skinmm.training import final as training_final
from skinmm.training.calibrate import SplitOutputs
from skinmm.training.leak_guard import rows_seen_in_training
from skinmm.training.optimizer import rate
from skinmm.training.trainer import build_trainer

FOLDS = ("data.folds=3", "data.fold=all", "trainer.max_epochs=6", "trainer.patience=3")


def tabular(root: Path) -> list[str]:
    return ["data=csv", f"data.root={root}", "fusion=tabular_only", "optimizer.lr=0.01", *FOLDS]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The included cohort as a table without images, a patient for every two rows."""
    root = tmp_path_factory.mktemp("records")
    table = pd.read_csv(Path(__file__).parents[2] / "skinmm" / "demo" / "cohort.csv")
    table["patient_id"] = [f"P{row // 2}" for row in range(len(table))]
    table.to_csv(root / "cohort.csv", index=False)
    return root


@pytest.fixture(scope="module")
def run(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("final") / "run"
    assert quick_train(folder, *tabular(records), "final=true") == 0
    return folder


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_card(run / "checkpoints" / "final.ckpt")[1]


def assert_same_network(one: Path, other: Path) -> None:
    first, second = weights_of(one), weights_of(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    cards = [load_card(each / "checkpoints" / "final.ckpt")[0] for each in (one, other)]
    assert cards[0].threshold == cards[1].threshold
    assert cards[0].ood == cards[1].ood


def test_one_network_is_trained_on_all_rows_for_the_median_best_epoch(run: Path) -> None:
    names = {f"final/{name}" for name in ("config.yaml", "cohort.csv", "history.csv")}
    assert names <= files_in(run)
    assert len(cohort_of(run / "final", "train")) == 700
    best = [read_epochs(run / f"fold_{fold}" / "checkpoints/best.ckpt")[0] for fold in range(3)]
    median = sorted(best)[1]
    state = torch.load(run / "final" / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["epoch"] + 1 == median
    assert state["global_step"] == 2 * median  # trainer=debug: two steps an epoch
    # Warm-up and cosine of the six epochs of the folds, not of the epochs that were trained.
    config = read_config(run / "config.yaml")
    expected = 0.01 * rate(2 * median, config=config.schedule, steps=2 * 6)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == pytest.approx(expected)
    history = pd.read_csv(run / "final" / "history.csv")
    assert history["name"].unique().tolist() == ["train/loss"]
    assert history["epoch"].tolist() == list(range(median))
    metrics = metrics_of(run)["final"]
    assert (metrics["epochs"], metrics["rows"]) == (median, 700)


def test_the_predictions_of_the_folds_calibrate_it(run: Path) -> None:
    card, _ = load_card(run / "checkpoints" / "final.ckpt")
    rows = predictions_of(run)
    assert card.calibration is not None
    assert card.threshold is not None
    assert card.conformal is not None
    raw = rows[["raw_benign", "raw_malignant"]].to_numpy()
    p = Calibration(**card.calibration).apply(raw)[:, 1]
    malignant = rows["target"].to_numpy() == 1
    threshold = choose_threshold(p, malignant, rows["patient_id"].to_numpy())
    assert threshold.guaranteed  # 140 malignant rows would be enough of the same network
    assert card.threshold["value"] == pytest.approx(threshold.value, rel=1e-5)
    assert not card.threshold["guaranteed"]
    assert metrics_of(run)["final"]["band"] == card.band
    # The limit of a class is the k-th lowest of its probabilities, k = floor(.1 (n + 1)).
    rank = int(0.1 * (malignant.sum() + 1))
    limit = np.sort(p[malignant])[rank - 1]
    assert card.conformal["limits"]["malignant"] == pytest.approx(limit, rel=1e-5)
    found = (p >= card.threshold["value"])[malignant].mean()
    assert card.summary["metrics"]["sensitivity"]["value"] == pytest.approx(found)
    assert card.summary["n"] == len(rows) == 700
    assert "Figures of the folds" in card.summary["note"]
    text = (run / "card.md").read_text(encoding="utf-8")
    assert "checkpoints/final.ckpt is one network, trained afterwards on all 700 rows" in text
    assert "the figures here are those of the folds" in text
    assert "'checkpoint=checkpoints/final.ckpt'" in text


def test_it_is_accepted_like_any_checkpoint(run: Path, tmp_path: Path) -> None:
    checkpoint, output = run / "checkpoints" / "final.ckpt", tmp_path / "out.csv"
    table = tmp_path / "patients.csv"
    table.write_text("image,age,sex,site\nI1,50,male,torso\nI2,70,female,head/neck\n")
    arguments = [f"checkpoint={checkpoint}", f"input={table}"]
    assert predict([*arguments, f"output={output}"]) == 0
    rows = pd.read_csv(output)
    assert rows["decision"].isin(["benign", "malignant", "refer"]).all()
    assert rows["prediction_set"].notna().all()
    assert (rows["ood"] > 0).all()
    copy = shutil.copy(checkpoint, tmp_path / "copy.ckpt")
    assert main(["export", f"checkpoint={copy}"]) == 0
    again = tmp_path / "onnx.csv"
    assert predict([f"checkpoint={copy}", f"input={table}", f"output={again}", "backend=onnx"]) == 0
    pd.testing.assert_frame_equal(pd.read_csv(again), rows, rtol=1e-4)


@pytest.mark.parametrize("name", ["fold_1/checkpoints/best.ckpt", "checkpoints/ensemble.ckpt"])
def test_the_networks_of_the_folds_predict_too(run: Path, tmp_path: Path, name: str) -> None:
    table = tmp_path / "patients.csv"
    table.write_text("image,age,sex,site\nI1,50,male,torso\n")
    arguments = [f"checkpoint={run / name}", f"input={table}", f"output={tmp_path / 'out.csv'}"]
    assert predict(arguments) == 0


def test_a_run_that_starts_from_it_knows_its_rows(run: Path) -> None:
    config = Config()
    config.model.pretrained = str(run / "checkpoints" / "final.ckpt")
    cohort = cohort_of(run / "fold_0")
    (sentence,) = rows_seen_in_training(config.model, cohort)
    assert sentence.startswith(f"{len(cohort)} of {len(cohort)} validation and test rows share")


class EndAt(pl.Callback):
    """Ends the training on all rows after a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Ends it."""
        if trainer.global_step == self._step:
            raise KeyboardInterrupt


def test_an_interrupted_final_training_continues(
    run: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    plain = ["trainer.checkpoint_minutes=0", *tabular(records)]
    assert quick_train(folder, *plain) == 0
    assert not (folder / "final").exists()

    def build_interrupted(config: Config, path: Path, epochs: int | None = None) -> pl.Trainer:
        trainer = build_trainer(config, path, epochs)
        trainer.callbacks.append(EndAt(3))  # type: ignore[attr-defined]
        return trainer

    with monkeypatch.context() as patch:
        patch.setattr(training_final, "build_trainer", build_interrupted)
        assert train(f"resume={folder}", "final=true") == 130
    assert not (folder / "checkpoints" / "final.ckpt").exists()
    assert not (folder / "metrics.json").exists()
    before = (folder / "fold_0" / "metrics.json").stat().st_mtime_ns
    assert train(f"resume={folder}") == 0  # final=true was stored
    assert (folder / "fold_0" / "metrics.json").stat().st_mtime_ns == before
    assert_same_network(folder, run)
    assert metrics_of(folder)["final"] == metrics_of(run)["final"]
    assert train(f"resume={folder}") == 0
    assert json.loads((folder / "metrics.json").read_text()) == metrics_of(folder)


def test_the_middle_of_several_averaged_epochs_is_the_median() -> None:
    config = Config()
    assert training_final.count_epochs([[4], [9], [5]], config) == 5
    assert training_final.count_epochs([[4], [9], [5], [6]], config) == 6
    config.trainer.average_best = 3
    assert training_final.count_epochs([[2, 4, 5], [6, 7, 8], [5, 6, 9]], config) == 7
    assert training_final.count_epochs([[9, 10, 8]] * 3, config) == 10


def test_the_limit_of_familiarity_allows_for_memorised_rows() -> None:
    rng = np.random.default_rng(0)
    cohort = pd.DataFrame({"patient_id": [f"P{row}" for row in range(4000)]})

    def draw(scale: float) -> SplitOutputs:
        features = (scale * rng.normal(size=(4000, 3))).astype(np.float32)
        return SplitOutputs(cohort, np.zeros(4000, int), np.zeros((4000, 2)), features)

    stretch = training_final.compare_distances(draw(1), draw(2))
    assert stretch == pytest.approx(4, rel=0.1)  # squared distances
    detector = training_final.fit_corrected_detector(draw(1), [stretch, None, stretch])
    assert detector is not None
    new = draw(2).features
    assert new is not None
    assert (detector.score(new) > 1).mean() == pytest.approx(0.05, abs=0.015)
    assert training_final.fit_corrected_detector(draw(1), [None]) is None


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.fold=0"], "final=true: needs data.fold=all"),
        (["data.limit=100"], "trains on all rows, data.limit=100 on a part"),
        (["schedule=plateau"], "schedule=plateau needs validation rows"),
        (["task=segmentation", "data.fold=0"], "final=True: not used by task=segmentation"),
    ],
)
def test_what_cannot_have_a_final_network_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], message: str
) -> None:
    assert quick_train(tmp_path / "run", "data.fold=all", "final=true", *overrides) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
