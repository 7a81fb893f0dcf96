"""Weights of another run: what that one has seen is not judged again without a word."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from quick_runs import LIMIT, best, cohort_of, metrics_of, quick_train

from skinmm.config import ModelConfig, read_config
from skinmm.errors import InputError
from skinmm.models.backbone import Backbone
from skinmm.training.leak_guard import (
    find_overlaps,
    require_same_split,
    rows_seen_in_training,
)
from skinmm.training.run_folder import write_cohort, write_config

Said = pytest.CaptureFixture[str]


def test_rows_left_out_by_a_limit_are_unused_in_the_run_s_cohort(both: Path) -> None:
    parts = pd.read_csv(both / "cohort.csv")["part"].value_counts()
    assert parts.to_dict() == {"unused": 420 - 48, "train": 48, "val": 140, "test": 140}


def test_another_fold_is_refused_until_the_leak_is_allowed(
    both: Path, tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(both)
    wish = ("model.pretrained=checkpoints/best.ckpt", "data.fold=1", LIMIT)
    assert quick_train(tmp_path / "run", *wish) == 2
    # Of fold 1 the test part is fold 0's validation part.
    trained = set(cohort_of(both, "train")["image_id"])
    said = capsys.readouterr().err
    count = int(said.split("the split leaks: ")[1].split(" of 280 validation and test rows")[0])
    assert 140 < count < 140 + len(trained)
    assert quick_train(tmp_path / "run", *wish, "data.allow_leaks=true") == 0
    assert "itself from: " in metrics_of(tmp_path / "run")["initialisation"]
    assert (
        f"{count} of 280 validation and test rows" in (tmp_path / "run" / "audit.json").read_text()
    )
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert f"pretrained: {best(both)}" in config, "a run is gone on with from any folder"


def test_what_a_run_has_seen_is_counted_by_image_and_by_owner_within_a_source(both: Path) -> None:
    model = ModelConfig(pretrained=str(best(both)))
    cohort = cohort_of(both, "test")
    assert rows_seen_in_training(model, cohort) == []
    train = cohort_of(both, "train").head(3)
    assert rows_seen_in_training(model, pd.concat([cohort, train.assign(part="test")]))[
        0
    ].startswith("3 of")
    alike = train.assign(part="test", image_id=["a", "b", "c"])
    assert rows_seen_in_training(model, alike)[0].startswith("3 of 3")
    assert rows_seen_in_training(model, alike.assign(cohort="elsewhere")) == []
    assert rows_seen_in_training(ModelConfig(pretrained="auto"), alike) == []


def test_a_checkpoint_without_its_run_may_have_seen_anything(both: Path, tmp_path: Path) -> None:
    path = tmp_path / "moved" / "checkpoints" / "best.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(best(both).read_bytes())
    (said,) = rows_seen_in_training(ModelConfig(pretrained=str(path)), cohort_of(both))
    assert "are unknown" in said


def test_a_run_has_seen_what_the_run_had_that_it_began_from(both: Path, tmp_path: Path) -> None:
    later = tmp_path / "later"
    (later / "checkpoints").mkdir(parents=True)
    best(later).write_bytes(best(both).read_bytes())
    settings = read_config(both / "config.yaml")
    began = replace(settings.model, pretrained=str(best(both)))
    write_config(later / "config.yaml", replace(settings, model=began))
    other = cohort_of(both, "train").assign(image_id=lambda rows: "other" + rows["image_id"])
    write_cohort(later, other.assign(cohort="elsewhere"))
    model = ModelConfig(pretrained=str(best(later)))
    assert rows_seen_in_training(model, cohort_of(both, "test")) == []
    judged = cohort_of(both, "train").head(3).assign(part="test")
    assert rows_seen_in_training(model, judged)[0].startswith("3 of 3")
    write_config(
        later / "config.yaml",
        replace(settings, model=replace(began, pretrained=str(tmp_path / "gone" / "best.ckpt"))),
    )
    assert "are unknown" in rows_seen_in_training(model, judged)[0]


def test_a_run_goes_on_with_the_rows_and_parts_that_it_began_with(both: Path) -> None:
    file = both / "cohort.csv"
    cohort = pd.read_csv(file)
    require_same_split(file, cohort.sample(frac=1, random_state=0), "part")
    require_same_split(file, cohort.assign(part=cohort["part"].replace("unused", "train")), "part")
    require_same_split(both / "none.csv", cohort, "part")
    moved = cohort.assign(fold=cohort["fold"].mask(cohort.index == 0, 9))
    require_same_split(file, moved, "part")
    with pytest.raises(InputError, match="700 rows; now there are 700, 1 of them in another part"):
        require_same_split(file, moved, "fold")
    with pytest.raises(InputError, match="started with 700 rows; now there are 699, 0 of them"):
        require_same_split(file, cohort.iloc[1:], "part")


def test_a_checkpoint_is_read_once(both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    glances, load = [], torch.load

    def noted(*args: Any, **options: Any) -> Any:
        glances.append(options.get("mmap", False))
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", noted)
    model = ModelConfig(name="test_efficientnet", pretrained=str(best(both)), image_size=32)
    assert rows_seen_in_training(model, cohort_of(both)) == []
    assert Backbone(model, pretrained=True).origin.startswith("best.ckpt of demo")
    assert glances.count(False) == 1


def test_a_lesion_of_the_isic_archive_is_the_same_in_each_of_its_datasets() -> None:
    def table(image: str, lesion: str, cohort: str) -> pd.DataFrame:
        row = {"image_id": image, "patient_id": None, "lesion_id": lesion}
        return pd.DataFrame([row | {"cohort": cohort, "source": cohort}])

    trained = table("ISIC_1", "HAM_0000007", "isic_2019")
    assert find_overlaps(table("ISIC_2", "HAM_0000007", "ham10000"), trained).all()
    for name in ("7", "IP_001"):
        assert not find_overlaps(table("ISIC_2", name, "ham10000"), table("x", name, "csv")).any()
