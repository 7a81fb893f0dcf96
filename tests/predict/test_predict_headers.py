"""What a DICOM header says about a patient reaches the model in prediction as in training."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom_from_jpeg
from quick_runs import best, cohort_of, predictions_of, quick_train

from skinmm.predict import Predictor

P = ["p_benign", "p_malignant"]
SEX = {"female": "F", "male": "M"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """DICOM files that hold age, sex, site and patient, and a table that does not."""
    root = tmp_path_factory.mktemp("dicom")
    table = pd.read_csv(pictures.parent / "cohort.csv").groupby("target").head(24)
    for number, row in enumerate(table.to_dict("records")):
        header = {"PatientID": f"P{number // 2}", "PatientSex": SEX.get(row["sex"], "O")}
        if row["age"] == row["age"]:
            header["PatientAge"] = f"{int(row['age']):03}Y"
        site = row["site"].partition("/")[0] if isinstance(row["site"], str) else "moon"
        stream = (pictures / f"{row['image_id']}.jpg").read_bytes()
        data = dicom_from_jpeg(stream, **header, BodyPartExamined=site.upper())
        (root / f"{row['image_id']}.dcm").write_bytes(data)
    # In the table one age is another than in its file: the table counts.
    ages = pd.Series([33.0], index=table.index[:1])
    table[["image_id", "target"]].assign(age=ages).to_csv(root / "cohort.csv", index=False)
    return root


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """A model of image and record, trained on them."""
    run = folder / "run"
    assert quick_train(run, "data=csv", f"data.root={folder}") == 0
    return run


def test_training_and_prediction_see_the_same_record(folder: Path, run: Path) -> None:
    cohort, own = cohort_of(run), predictions_of(run)
    assert cohort[["age", "sex", "site"]].notna().mean().min() > 0.5
    names = cohort[["image_id"]].merge(pd.read_csv(folder / "cohort.csv")[["image_id", "age"]])
    predicted = Predictor.from_checkpoints([best(run)]).predict(names, folder)
    np.testing.assert_allclose(predicted[P], own[P], atol=1e-6)
    assert predicted["patient_id"].tolist() == own["patient_id"].tolist()


def test_the_headers_have_a_say(folder: Path, run: Path, pictures: Path) -> None:
    """The same pictures as JPEG, of patients of whom nothing is known."""
    names = cohort_of(run)[["image_id"]]
    predictor = Predictor.from_checkpoints([best(run)])
    known, unknown = (predictor.predict(names, images) for images in (folder, pictures))
    assert np.abs(known[P].to_numpy() - unknown[P].to_numpy()).max() > 1e-3
    assert set(unknown["patient_id"]) == {""}


def test_a_record_alone_is_completed_or_the_row_says_why(
    folder: Path, records: Path, tmp_path: Path
) -> None:
    known = next(path for path in folder.glob("*.dcm") if b"TORSO" in path.read_bytes())
    (tmp_path / "a.dcm").write_bytes(b"no DICOM")
    (tmp_path / "b.jpg").write_bytes(b"never opened")
    (tmp_path / "c.dcm").write_bytes(known.read_bytes())
    table = pd.DataFrame({"image": ["a", "b", "c", "nowhere", ""]})
    predicted = Predictor.from_checkpoints([best(records)]).predict(table, tmp_path)
    assert predicted["error"].str.contains("DICOM").tolist() == [True, *[False] * 4]
    malignant = predicted["p_malignant"]
    assert malignant.isna().tolist() == [True, *[False] * 4]
    assert malignant[1] == malignant[3] == malignant[4] != malignant[2]
