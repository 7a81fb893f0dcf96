"""Weights of another run: what that one has seen is not judged again without a word."""

from pathlib import Path

import pandas as pd
import pytest
from quick_runs import best, cohort_of, metrics_of, quick_train

from skinmm.config import ModelConfig
from skinmm.training_pretrained import seen_before

Said = pytest.CaptureFixture[str]
LIMIT = "data.limit=64"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("first") / "run"
    assert quick_train(run, LIMIT) == 0
    return run


def test_rows_left_out_by_a_limit_are_unused_in_the_run_s_cohort(first: Path) -> None:
    parts = pd.read_csv(first / "cohort.csv")["part"].value_counts()
    assert parts.to_dict() == {"unused": 420 - 64, "train": 64, "val": 140, "test": 140}


def test_another_fold_is_refused_until_the_leak_is_allowed(
    first: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(first)
    wish = ("model.pretrained=checkpoints/best.ckpt", "data.fold=1", LIMIT)
    assert quick_train(tmp_path / "run", *wish) == 2
    # Of fold 1 the test part is fold 0's validation part.
    trained = set(cohort_of(first, "train")["image_id"])
    said = capsys.readouterr().err
    count = int(said.split("the split leaks: ")[1].split(" of 280 rows to validate or test")[0])
    assert 140 < count < 140 + len(trained)
    assert quick_train(tmp_path / "run", *wish, "data.allow_leaks=true") == 0
    assert "itself from: " in metrics_of(tmp_path / "run")["initialisation"]
    assert f"{count} of 280 rows" in (tmp_path / "run" / "audit.json").read_text()
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"pretrained: {best(first)}" in config, "a run is gone on with from any folder"


def test_what_a_run_has_seen_is_counted_by_image_and_by_owner_within_a_source(first: Path) -> None:
    model = ModelConfig(pretrained=str(best(first)))
    cohort = cohort_of(first, "test")
    assert seen_before(model, cohort) == []
    train = cohort_of(first, "train").head(3)
    assert seen_before(model, pd.concat([cohort, train.assign(part="test")]))[0].startswith("3 of")
    alike = train.assign(part="test", image_id=["a", "b", "c"])
    assert seen_before(model, alike)[0].startswith("3 of 3")
    assert seen_before(model, alike.assign(source="elsewhere")) == []
    assert seen_before(ModelConfig(pretrained="auto"), alike) == []


def test_a_checkpoint_without_its_run_may_have_seen_anything(first: Path, tmp_path: Path) -> None:
    path = tmp_path / "moved" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(best(first).read_bytes())
    (said,) = seen_before(ModelConfig(pretrained=str(path)), cohort_of(first))
    assert "is not known" in said
