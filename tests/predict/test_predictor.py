"""Checkpoints to probabilities: those of the run itself, whatever the batch, alone or averaged."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from dicom_files import dicom
from PIL import Image
from quick_runs import best, cohort_of, predictions_of, quick_train

import skinmm
from skinmm.config.checkpoints import find_checkpoints
from skinmm.config.data_commands import PackConfig
from skinmm.errors import InputError
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.thresholds import Threshold, average_thresholds
from skinmm.images.base import MIN_SIDE
from skinmm.models.checkpoint import CheckpointError, load_card, update_card
from skinmm.models.sources import SMALLEST
from skinmm.predict import Predictor

P = ["p_benign", "p_malignant"]


def differ(one: pd.DataFrame, other: pd.DataFrame, columns: list[str] | None = None) -> float:
    """The largest difference of the probabilities."""
    there = other[columns or P].to_numpy()
    return float(np.abs(one[P].to_numpy() - there).max())


@pytest.fixture(scope="module")
def predictor(both: Path) -> Predictor:
    return Predictor.from_checkpoints(best(both))


@pytest.fixture(scope="module")
def predicted(predictor: Predictor, both: Path, pictures: Path) -> pd.DataFrame:
    return predictor.predict(cohort_of(both), pictures)


def test_the_package_exports_the_predictor_and_imports_torch_only_for_it() -> None:
    code = (
        "import sys, skinmm; assert 'torch' not in sys.modules; "
        "from skinmm import Predictor; assert Predictor is skinmm.predict.predictor.Predictor"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert skinmm.Predictor is Predictor
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        _ = skinmm.Predicter  # type: ignore[attr-defined]


def test_images_are_preprocessed_as_in_training(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    run = tmp_path / "run"
    assert quick_train(run, "data.limit=48", "data.preprocess=[border,hair,colour]") == 0
    own = predictions_of(run).head(24)
    patients = cohort_of(run).head(24)[["image_id", "age", "sex", "site"]]
    result = Predictor.from_checkpoints([best(run)]).predict(patients, images=pictures)
    assert np.abs(result["p_malignant"] - own["p_malignant"]).max() < 1e-6


def test_the_output_is_as_the_contract_says(predicted: pd.DataFrame, both: Path) -> None:
    assert predicted.columns.tolist() == [
        "image_id",
        "patient_id",
        "target",
        *P,
        "malignancy",
        "decision",
        "threshold",
        "error",
        "prediction_set",
        "ood",
        "missing",
        "lesion_id",
    ]
    for column in ("image_id", "patient_id", "target"):
        assert predicted[column].tolist() == cohort_of(both)[column].tolist()
    assert (predicted["error"] == "").all()
    np.testing.assert_allclose(predicted[P].sum(axis=1), 1)
    np.testing.assert_array_equal(predicted["malignancy"], predicted["p_malignant"])


def test_a_lesion_is_not_named_as_a_patient(
    predictor: Predictor, both: Path, pictures: Path, tmp_path: Path
) -> None:
    rows = cohort_of(both).head(4).assign(patient_id=["P1", "", "", ""])
    output = predictor.predict(rows.assign(lesion_id=["L1", "L1", "", "L2"]), pictures)
    assert output["patient_id"].tolist() == ["P1", "", "", ""]
    assert output["lesion_id"].tolist() == ["L1", "L1", "", "L2"]
    output.assign(target=[0, 1, 0, 1]).to_csv(tmp_path / "out.csv", index=False)
    read = read_predictions(tmp_path / "out.csv")
    assert read.list_units().tolist() == ["patient", "lesion", "image", "lesion"]
    assert read.patient_id.tolist() == ["P1", "L1", rows["image_id"].iloc[2], "L2"]


def test_the_test_rows_get_the_run_s_own_probabilities(
    predictor: Predictor, predicted: pd.DataFrame, both: Path, pictures: Path
) -> None:
    own = predictions_of(both)
    assert differ(predicted, own) < 1e-6
    raw = predictor.predict(cohort_of(both), pictures, probabilities="raw")
    assert differ(raw, own, ["raw_benign", "raw_malignant"]) < 1e-6
    assert differ(raw, predicted) > 1e-3


def test_the_test_rows_are_decided_as_in_the_run(predicted: pd.DataFrame, both: Path) -> None:
    own = predictions_of(both)
    assert predicted["decision"].tolist() == own["decision"].tolist()
    assert predicted["prediction_set"].tolist() == own["prediction_set"].tolist()
    np.testing.assert_allclose(predicted["ood"], own["ood"], rtol=1e-3)
    assert "refer" in set(own["decision"])


def test_the_threshold_decides_alone_where_nobody_is_referred(
    predictor: Predictor, predicted: pd.DataFrame, both: Path, pictures: Path
) -> None:
    card, _ = load_card(best(both))
    assert card.threshold is not None
    assert set(predicted["threshold"]) == {predictor.threshold}
    assert predictor.threshold == pytest.approx(card.threshold["value"], rel=1e-9)
    alone = Predictor.from_checkpoints([best(both)], referral=False)
    rows = alone.predict(cohort_of(both), pictures)
    above = np.where(predicted["malignancy"] >= predictor.threshold, "malignant", "benign")
    assert rows["decision"].tolist() == above.tolist()
    decided = predicted["decision"] != "refer"
    assert predicted["decision"][decided].tolist() == above[decided].tolist()
    rest = [name for name in predicted.columns if name != "decision"]
    pd.testing.assert_frame_equal(rows[rest], predicted[rest])
    wished = alone.predict(cohort_of(both).head(3), pictures, threshold=0.0)
    assert (wished["decision"] == "malignant").all()
    assert (wished["threshold"] == 0).all()


def test_raw_probabilities_change_no_decision(
    predictor: Predictor, predicted: pd.DataFrame, both: Path, pictures: Path
) -> None:
    raw = predictor.predict(cohort_of(both), pictures, probabilities="raw")
    same = ["decision", "prediction_set", "ood"]
    pd.testing.assert_frame_equal(raw[same], predicted[same])
    assert raw["threshold"].isna().all()  # it is not one of raw probabilities


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (33, 0), (500, 4)])
def test_batches_and_threads_change_nothing(
    predictor: Predictor,
    predicted: pd.DataFrame,
    both: Path,
    pictures: Path,
    batch_size: int,
    workers: int,
) -> None:
    rows = cohort_of(both).head(40)
    again = predictor.predict(rows, pictures, batch_size=batch_size, workers=workers)
    assert differ(again, predicted.head(40)) < 1e-6


def test_several_checkpoints_are_the_mean_of_single_calibrated_ones(
    predictor: Predictor,
    predicted: pd.DataFrame,
    both: Path,
    larger: Path,
    records: Path,
    pictures: Path,
) -> None:
    paths = [best(run) for run in (both, larger, records)]
    others = [Predictor.from_checkpoints([path]) for path in paths[1:]]
    single = [predicted, *(each.predict(cohort_of(both), pictures) for each in others)]
    together = Predictor.from_checkpoints(paths)
    mean = together.predict(cohort_of(both), pictures)
    np.testing.assert_allclose(mean[P], sum(each[P] for each in single) / 3, atol=1e-9)
    thresholds = [Threshold(each.threshold or 0.0, "", False) for each in (predictor, *others)]
    assert together.threshold == pytest.approx(average_thresholds(thresholds).value)
    assert together.inputs == {"image", "record"}
    np.testing.assert_allclose(mean["ood"], sum(each["ood"] for each in single) / 3, rtol=1e-5)
    for row, written in enumerate(mean["prediction_set"]):
        votes = Counter(name for each in single for name in each["prediction_set"][row].split("|"))
        kept = {name for name in ("benign", "malignant") if votes[name] >= 2}
        assert set(written.split("|")) - {"none"} == kept


def test_a_bad_row_loses_nothing_else(
    predictor: Predictor, predicted: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path
) -> None:
    names = cohort_of(both)["image_id"].head(8).tolist()
    files = [Path(shutil.copy(pictures / f"{name}.jpg", tmp_path)) for name in names]
    content = files[1].read_bytes()
    files[1].write_bytes(content[: len(content) // 2])
    files[2].write_text("not a picture")
    names[3:6] = ["", "nowhere", f"{names[5]}.jpg"]
    output = predictor.predict(cohort_of(both).head(8).assign(image_id=names), tmp_path)
    assert output["image_id"].tolist() == names
    bad = [1, 2, 3, 4]
    assert np.flatnonzero(output["error"] != "").tolist() == bad
    assert output["error"][3] == "no image named, and this model needs one"
    assert output["error"][4] == "image nowhere not found"
    assert output.loc[bad, [*P, "malignancy"]].isna().all(axis=None)
    assert (output.loc[bad, ["decision", "prediction_set"]] == "").all(axis=None)
    assert output.loc[bad, "ood"].isna().all()
    good = [0, 5, 6, 7]
    assert differ(output.loc[good], predicted.loc[good]) < 1e-6


@pytest.mark.parametrize(
    ("size", "error"),
    [
        ((1, 1), "1x1 pixels are too few: each side needs 16"),
        ((900, 15), "900x15 pixels are too few: each side needs 16"),
        ((16, 16), "the image has a single colour, so it shows no lesion"),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png", "dcm"])
def test_what_nobody_could_judge_is_an_error_of_its_row(
    predictor: Predictor, tmp_path: Path, size: tuple[int, int], error: str, kind: str
) -> None:
    plain = Image.new("RGB", size, "brown")
    (tmp_path / "a.dcm").write_bytes(dicom(np.asarray(plain)))
    if kind != "dcm":
        plain.save(tmp_path / f"a.{kind}")
    assert predictor.predict(pd.DataFrame({"image": [f"a.{kind}"]}), tmp_path)["error"][0] == error
    one_other = Image.new("RGB", (600, 16), "brown")
    one_other.putpixel((5, 9), (0, 0, 0))
    one_other.save(tmp_path / "b.png")
    assert predictor.predict(pd.DataFrame({"image": ["b"]}), tmp_path)["error"][0] == ""


def test_no_picture_of_a_size_that_models_are_trained_at_is_too_small() -> None:
    assert SMALLEST == MIN_SIDE
    assert PackConfig.__dataclass_fields__["size"].metadata["low"] == MIN_SIDE


def test_a_missing_record_is_predicted(predictor: Predictor, pictures: Path) -> None:
    table = pd.DataFrame({"image": ["ISIC_0000000.jpg"], "sex": ["divers"]})
    output = predictor.predict(table, pictures)
    assert output["error"].tolist() == [""]
    assert output["patient_id"].tolist() == [""]
    assert "target" not in output.columns


def test_no_row_gives_no_row(predictor: Predictor, predicted: pd.DataFrame) -> None:
    empty = predictor.predict(pd.DataFrame({"image": []}), ".")
    assert len(empty) == 0
    assert {*empty.columns} == {*predicted.columns} - {"target"}


def test_a_model_of_the_record_alone_asks_for_no_image(records: Path) -> None:
    predictor = Predictor.from_checkpoints([best(records)])
    rows = cohort_of(records)
    assert predictor.inputs == {"record"}
    assert differ(predictor.predict(rows), predictions_of(records)) < 1e-6
    nameless = predictor.predict(rows.drop(columns="image_id"), None)
    assert differ(nameless, predictions_of(records)) < 1e-6


def test_images_are_asked_for_where_they_are_needed(predictor: Predictor) -> None:
    table = pd.DataFrame({"image": ["a"]})
    with pytest.raises(InputError, match="these models need images: name their folder"):
        predictor.predict(table)
    with pytest.raises(InputError, match="nowhere: no such folder"):
        predictor.predict(table, "nowhere")


def test_a_checkpoint_that_was_never_calibrated_decides_nothing(
    both: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = both / "checkpoints" / "last.ckpt"
    refused = rf"last\.ckpt: never calibrated.*; use .*{re.escape(str(best(both)))}, or set uncal"
    with pytest.raises(CheckpointError, match=refused):
        Predictor.from_checkpoints([last])
    with pytest.raises(CheckpointError, match=r"last\.ckpt: never calibrated"):
        Predictor.from_checkpoints([best(both), last])
    shutil.copy(last, tmp_path / "best.ckpt")  # as an interrupted run leaves it
    with pytest.raises(CheckpointError, match=r"best\.ckpt: never.*; finish the training run, or"):
        Predictor.from_checkpoints([tmp_path / "best.ckpt"])

    predictor = Predictor.from_checkpoints([last], referral=False, uncalibrated=True)
    assert predictor.threshold is None
    assert "never calibrated; all its decisions are refer" in capsys.readouterr().err
    rows = cohort_of(both).head(4)
    rows.loc[3, "image_id"] = "nowhere"
    raw = predictor.predict(rows, pictures, probabilities="raw", threshold=0.5)
    predicted = predictor.predict(rows, pictures)
    assert differ(predicted.head(3), raw.head(3)) < 1e-12
    assert (predicted["prediction_set"] == "").all()
    assert predicted["ood"].isna().all()
    for table in (predicted, raw):
        assert table["decision"].tolist() == ["refer", "refer", "refer", ""]
    assert predicted["threshold"].isna().all()
    mixed = Predictor.from_checkpoints([best(both), last], uncalibrated=True)
    assert set(mixed.predict(rows.head(3), pictures)["decision"]) == {"refer"}


def changed(path: Path, copy: Path, **changes: Any) -> Path:
    shutil.copy(path, copy)
    update_card(copy, **changes)
    return copy


def test_members_must_predict_the_same(records: Path, tmp_path: Path) -> None:
    other = changed(best(records), tmp_path / "other.ckpt", positive=["benign"])
    with pytest.raises(InputError, match=r"have different classes: .*\(malignant: malignant\)"):
        Predictor.from_checkpoints([best(records), other])
    with pytest.raises(InputError, match="no checkpoint given"):
        Predictor.from_checkpoints([])


def test_a_checkpoint_that_does_not_fit_its_own_card_is_named(
    records: Path, tmp_path: Path
) -> None:
    card, _ = load_card(best(records))
    later = {**card.config, "invented": 1}
    wider = {**card.config, "tabular": {"name": "mlp", "args": {"hidden": [3]}}}
    for name, config in (("later", later), ("wider", wider)):
        path = changed(best(records), tmp_path / f"{name}.ckpt", config=config)
        with pytest.raises(CheckpointError, match=rf"{name}\.ckpt: not made by this version"):
            Predictor.from_checkpoints([path])


def test_a_run_folder_stands_for_its_checkpoint(records: Path, tmp_path: Path) -> None:
    whole, file = (Predictor.from_checkpoints(path) for path in (records, best(records)))
    assert whole.identity == file.identity
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(best(records), tmp_path / "checkpoints" / "best.ckpt")
    shutil.copy(best(records), tmp_path / "checkpoints" / "ensemble.ckpt")
    assert find_checkpoints(str(tmp_path)) == [tmp_path / "checkpoints" / "ensemble.ckpt"]
    with pytest.raises(InputError, match=r"a folder without checkpoints/best\.ckpt; give a run"):
        Predictor.from_checkpoints(tmp_path.parent)


def test_what_is_no_checkpoint_of_ours_is_named(records: Path, tmp_path: Path) -> None:
    whole = best(records).read_bytes()
    (tmp_path / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.ckpt").touch()
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    torch.save({"state_dict": {"weight": torch.zeros(1)}}, tmp_path / "lightning.ckpt")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.ckpt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickled.ckpt")
    for name in ("half", "empty", "text", "lightning", "weights", "pickled", "none"):
        with pytest.raises(CheckpointError, match=rf"{name}\.ckpt: ") as caught:
            Predictor.from_checkpoints([tmp_path / f"{name}.ckpt"])
        assert "\n" not in str(caught.value)
