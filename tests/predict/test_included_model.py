"""The model that comes with the package: found by name, used without a checkpoint, and told so."""

from pathlib import Path

import pandas as pd
import pytest
from quick_runs import quick_train

from skinmm.cli import main
from skinmm.config import DataConfig, ModelConfig
from skinmm.config.checkpoints import INCLUDED, ZOO, find_checkpoints
from skinmm.data.cohorts import load_cohort
from skinmm.data.splits import split
from skinmm.models.checkpoint import load_card
from skinmm.training.leak_guard import rows_seen_in_training

FILE = ZOO / "cc0.safetensors"
ROWS = pd.read_csv(FILE.with_suffix(".csv"), dtype=str)


def test_a_prediction_without_a_checkpoint_names_the_included_model(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(pictures.parent / "patients.csv").head(3)
    table.loc[1, ["age", "sex", "site"]] = None  # a record may be missing
    table.to_csv(tmp_path / "in.csv", index=False)
    job = (f"input={tmp_path / 'in.csv'}", f"images={pictures}")
    assert main.predict([*job, f"output={tmp_path / 'a.csv'}"]) == 0
    assert "model: zoo:cc0, which comes with skinmm" in capsys.readouterr().out
    assert main.predict([*job, f"output={tmp_path / 'b.csv'}", f"checkpoint={FILE}"]) == 0
    first, second = (pd.read_csv(tmp_path / name) for name in ("a.csv", "b.csv"))
    pd.testing.assert_frame_equal(first, second)
    assert first["malignancy"].between(0, 1).all()
    assert find_checkpoints(INCLUDED) == [FILE]
    foreign = table.assign(Bilddatei=table["image_name"].map("{}.jpg".format)).drop(
        columns="image_name"
    )
    foreign.to_csv(tmp_path / "in.csv", index=False)
    assert main.predict([job[0], f"output={tmp_path / 'c.csv'}"]) == 2  # not from the record alone
    assert "no image column; rename it to one of" in capsys.readouterr().err


def test_its_rows_are_divided_by_lesion() -> None:
    assert ROWS["image_id"].is_unique
    counts = ROWS.loc[ROWS["source"] == "isic_2017", "part"].value_counts()
    assert counts.to_dict() == {"train": 1259, "test": 467, "val": 424}
    assert (ROWS.groupby("patient_id")["part"].nunique() == 1).all()
    demo = load_cohort(DataConfig()).rows
    assert set(demo["image_id"]) <= set(ROWS["image_id"])


def test_what_it_was_trained_on_evaluates_no_network_that_starts_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cohort = split(load_cohort(DataConfig()).rows, 5, 0, 0)
    evaluated = cohort[cohort["part"].isin(["val", "test"])]
    used = ROWS.loc[ROWS["part"].isin(["train", "val"]), "image_id"]
    count = int(evaluated["image_id"].isin(used).sum())
    (sentence,) = rows_seen_in_training(ModelConfig(pretrained=INCLUDED), cohort)
    assert sentence.startswith(f"{count} of {len(evaluated)} validation and test rows")
    own = cohort[cohort["image_id"].isin(ROWS.loc[ROWS["part"] == "test", "image_id"])]
    assert rows_seen_in_training(ModelConfig(pretrained=INCLUDED), own) == []
    wish = ("model=effnet_lite0", "model.pretrained=zoo:cc0", f"hydra.run.dir={tmp_path / 'run'}")
    assert quick_train(tmp_path / "run", *wish) == 2
    assert f"the split leaks: {count} of" in capsys.readouterr().err


def test_it_carries_its_figures_and_no_path() -> None:
    card, _ = load_card(FILE)
    assert card.config["data"]["root"] is None
    assert "/" not in str(card.config["data"])
    metrics = card.summary["metrics"]["auroc"]
    page = FILE.with_suffix(".md").read_text(encoding="utf-8")
    assert f"{metrics['value']:.3f} ({metrics['low']:.3f} to {metrics['high']:.3f})" in page
