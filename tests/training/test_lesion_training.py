"""Training by lesion, from the table to the prediction files."""

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from lesion_cohorts import lesion_table, write_lesions
from PIL import Image
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train, train

from skinmm.evaluation.predictions import find_confident_mistakes
from skinmm.models.checkpoint import load_card
from skinmm.report import write_anonymous_report
from skinmm.report.blocks import thumbnail
from skinmm.report.inputs import read_run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    write_lesions(folder, lesion_table(75))
    return folder


def settings(root: Path) -> list[str]:
    return ["data=csv", f"data.root={root}", "data.unit=lesion", "trainer.workers=0"]


def test_a_run_has_one_prediction_per_lesion(root: Path, tmp_path: Path) -> None:
    more = ("views=gated", "model.drop_views=0.3", "model.drop_image=0.1")
    assert quick_train(tmp_path / "run", *settings(root), *more) == 0
    table = lesion_table(75)
    for part in ("val", "test"):
        rows, cohort = predictions_of(tmp_path / "run", part), cohort_of(tmp_path / "run", part)
        assert rows["image_id"].tolist() == rows["lesion_id"].tolist()
        assert rows["image_id"].tolist() == cohort["image_id"].tolist()
        expected = table.groupby("lesion_id")["image"].agg("|".join)
        assert rows["images"].tolist() == expected[rows["lesion_id"]].tolist()
    assert metrics_of(tmp_path / "run")["test"]["n"] == len(predictions_of(tmp_path / "run"))
    weights = load_card(best(tmp_path / "run"))[1]
    assert any(name.startswith("views.") for name in weights)


def test_the_report_has_all_images_of_a_mistake_side_by_side(root: Path, tmp_path: Path) -> None:
    assert quick_train(tmp_path / "run", *settings(root), "report.explain=false") == 0
    inputs = read_run(tmp_path / "run", pictures=True)
    page = (tmp_path / "run" / "report.html").read_text()
    rows = [*find_confident_mistakes(inputs.predictions, inputs.threshold).values()]
    images = inputs.predictions.images
    assert images is not None
    names = [name for row in np.concatenate(rows) for name in images[row].split("|")]
    assert len(names) > len(np.concatenate(rows))
    assert all(name in page for name in names)
    assert "(clinical)" in page
    paths = cohort_of(tmp_path / "run")["paths"].iloc[1].split("|")
    assert len(paths) > 1
    data = str(thumbnail(*paths)).partition(",")[2]
    widths = [
        Image.open(BytesIO(b64decode(d.partition(",")[2]))).width
        for d in [str(thumbnail(path)) for path in paths]
    ]
    assert Image.open(BytesIO(b64decode(data))).width == sum(widths)
    anonymous = write_anonymous_report(tmp_path / "run", tmp_path / "shared.html").read_text()
    assert not any(name in anonymous for name in names)


def test_folds_pool_one_row_per_lesion_with_cached_features(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ("data.fold=all", "data.folds=3", "model.freeze=true", "augment=none", "views=typed")
    assert quick_train(run, *settings(root), *more, "model.drop_views=0.5") == 0
    pooled = predictions_of(run)
    assert sorted(pooled["lesion_id"]) == sorted(f"L{n}" for n in range(75))
    assert pooled["images"].str.count(r"\|").sum() == 75  # a third each has 1, 2 and 3 images
    (file,) = (run / "features").glob("*.npy")
    assert len(np.load(file)) == 150


def test_cached_features_give_the_same_predictions(root: Path, tmp_path: Path) -> None:
    more = (*settings(root), "model.freeze=true", "augment=none", "views=attention")
    more = (*more, "trainer.precision=32")
    assert quick_train(tmp_path / "cached", *more) == 0
    # Two symmetries change the images in every step, so that nothing is cached.
    run = tmp_path / "decoded"
    assert quick_train(run, *more, "evaluation.views=2", "trainer.max_epochs=1") == 0
    assert not (run / "features").exists()
    states = [load_card(best(tmp_path / name))[1] for name in ("cached", "decoded")]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, atol=1e-5, rtol=1e-4)


def test_the_final_network_is_compared_with_the_features_of_each_fold(
    root: Path, tmp_path: Path
) -> None:
    more = ("data.fold=all", "data.folds=3", "final=true", "head=linear", "fusion=image_only")
    assert quick_train(tmp_path / "run", *settings(root), *more) == 0
    # The image network has random weights: features of others would be another file.
    assert len([*(tmp_path / "run" / "features").glob("*.npy")]) == 1
    assert metrics_of(tmp_path / "run")["final"]["rows"] == 75


def test_lesions_of_one_image_train_as_images_do(tmp_path: Path) -> None:
    write_lesions(tmp_path, lesion_table(60).drop(columns=["lesion_id", "view"]))
    frames = []
    for unit in ("image", "lesion"):
        more = (f"data.unit={unit}", "augment=none", "fusion=image_only")
        assert quick_train(tmp_path / unit, *settings(tmp_path), *more) == 0
        rows = predictions_of(tmp_path / unit)
        frames.append(rows.drop(columns=["lesion_id", "images", "unit"], errors="ignore"))
    pd.testing.assert_frame_equal(frames[0], frames[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("views=attention", "views.name=attention: not used by data.unit=image; remove it"),
        ("data.views=2", "data.views=2: not used by data.unit=image; remove it"),
        ("model.drop_views=0.5", "model.drop_views=0.5: not used by data.unit=image; remove it"),
    ],
)
def test_settings_of_views_need_the_unit(
    override: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(override) == 2
    assert message in capsys.readouterr().err


def test_mixing_is_refused_for_lesions(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("data.unit=lesion", "mix=cutmix") == 2
    assert "mix=cutmix: not available for data.unit=lesion; use none" in capsys.readouterr().err
