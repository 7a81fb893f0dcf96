"""Predictions of rows that lack their image, their record, or some of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, cohort_of, quick_train

from skinmm.cli.main import main
from skinmm.errors import InputError
from skinmm.predict import Predictor


@pytest.fixture(scope="module")
def tolerant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose training rows lacked images, records and columns."""
    run = tmp_path_factory.mktemp("runs") / "tolerant"
    drops = ("model.drop_image=0.4", "model.drop_record=0.1", "model.drop_columns=0.3")
    assert quick_train(run, "data.limit=48", *drops) == 0
    return run


def test_a_row_says_what_it_lacked_and_is_predicted(tolerant: Path, pictures: Path) -> None:
    rows = cohort_of(tolerant).dropna(subset=["age", "sex", "site"]).head(4)
    rows = rows[["image_id", "age", "sex", "site"]].astype(object).reset_index(drop=True)
    whole = Predictor.from_checkpoints([best(tolerant)]).predict(rows, pictures)
    assert list(whole.columns)[-2:] == ["missing", "lesion_id"]
    assert set(whole["missing"]) == {""}
    rows.loc[1, "image_id"] = ""
    rows.loc[2, ["age", "sex", "site"]] = None
    rows.loc[3, ["image_id", "sex"]] = ["", None]
    lacking = Predictor.from_checkpoints([best(tolerant)]).predict(rows, pictures)
    assert lacking["missing"].tolist() == ["", "image", "age|sex|site", "image|sex"]
    assert set(lacking["error"]) == {""}
    assert lacking["malignancy"].notna().all()
    moved = (lacking["malignancy"] - whole["malignancy"]).abs()
    assert moved[0] < 1e-6
    assert (moved[1:] > 0).all()


def test_a_table_without_an_image_column_is_refused_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "list.csv"
    job = ["predict", f"input={table}", f"output={tmp_path / 'out.csv'}"]
    for header, extra in (
        ("Datei;Nummer", []),
        ("Datei;age", []),  # its cells name images
        ("Datei;age", [f"images={tmp_path}"]),
    ):
        table.write_text(f"{header}\na.jpg;50\n", encoding="utf-8")
        assert main([*job, *extra]) == 2
        error = capsys.readouterr().err
        assert "no image column; rename it to one of image_id, image_name, isic_id" in error
        assert f"(it has: {header.replace(';', ', ')})" in error
    table.write_text("Nummer;age\n7;50\n", encoding="utf-8")
    assert main(job) == 0
    assert pd.read_csv(tmp_path / "out.csv")["missing"].tolist() == ["image|sex|site"]


def test_a_further_column_s_unknown_values_are_missing_and_counted(tmp_path: Path) -> None:
    lines = [f"I{n};P{n};{n % 7},5;{'abc'[n % 3]};{n % 2}" for n in range(60)]
    head = "image_id;Fall;Breite;grade;target"
    (tmp_path / "cohort.csv").write_text("\n".join([head, *lines]), encoding="utf-8")
    told = (f"data.root={tmp_path}", "data.columns=[width_mm,grade]", "fusion=tabular_only")
    mapped = "+data.args.columns={patient_id: Fall, width_mm: Breite}"
    assert quick_train(tmp_path / "run", "data=csv", *told, mapped) == 0
    rows = pd.DataFrame({"width_mm": ["1,5", "1.5", "wide", ""], "grade": ["a", "a", "d", "b"]})
    predictor = Predictor.from_checkpoints([best(tmp_path / "run")])
    (prediction,) = predictor.stream([rows])
    found = prediction.table
    assert found["malignancy"][0] == found["malignancy"][1]
    assert found["missing"].tolist() == ["", "", "grade|width_mm", "width_mm"]
    assert prediction.unknown == {"width_mm": 1, "grade": 1}
    # A table like that of training is read as that one; a column of the model's own name is not it.
    theirs = rows.rename(columns={"width_mm": "Breite"}).assign(Fall="P1", width_mm=9)
    again = predictor.predict(theirs)
    assert again["patient_id"].tolist() == ["P1"] * 4
    pd.testing.assert_series_equal(again["malignancy"], found["malignancy"])


def test_another_unit_than_in_training_is_an_error_of_the_row(tmp_path: Path) -> None:
    lines = [f"I{n},P{n},{n % 7}.5 mm,{n % 2}" for n in range(60)]
    text = "\n".join(["image_id,patient_id,size,target", *lines])
    (tmp_path / "cohort.csv").write_text(text, encoding="utf-8")
    settings = (f"data.root={tmp_path}", "data.columns=[size]", "fusion=tabular_only")
    assert quick_train(tmp_path / "run", "data=csv", *settings) == 0
    predictor = Predictor.from_checkpoints([best(tmp_path / "run")])
    rows = pd.DataFrame({"size": ["3.5 mm", "3.5", "3,5mm", "0.35 cm", "1,033", "3.5 apples"]})
    (prediction,) = predictor.stream([rows])
    table = prediction.table
    assert table["malignancy"].iloc[:3].nunique() == 1
    assert table["error"].tolist() == [
        *["", "", ""],
        "column 'size': '0.35 cm', but the numbers of training are in mm",
        "column 'size': '1,033' can mean 1033 or 1.033; write numbers without thousands separators",
        "",
    ]
    assert table["malignancy"].isna().tolist() == [False, False, False, True, True, False]
    assert prediction.unknown == {"size": 1}
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "cohort.csv").write_text(text.replace(" mm", ""), encoding="utf-8")
    assert quick_train(plain / "run", "data=csv", f"data.root={plain}", *settings[1:]) == 0
    with pytest.raises(InputError, match="trained with column 'size' in different units"):
        Predictor.from_checkpoints([best(tmp_path / "run"), best(plain / "run")])


def test_no_folder_and_no_image_column_are_no_hindrance(tolerant: Path) -> None:
    rows = pd.DataFrame({"age": [40, 60], "sex": ["male", "female"]})
    predicted = Predictor.from_checkpoints([best(tolerant)]).predict(rows)
    assert predicted["missing"].tolist() == ["image|site"] * 2
    assert np.isfinite(predicted["malignancy"]).all()


def test_a_named_image_that_is_not_there_is_still_an_error(tolerant: Path, pictures: Path) -> None:
    rows = pd.DataFrame({"image_name": ["nowhere"], "age": [40]})
    predicted = Predictor.from_checkpoints([best(tolerant)]).predict(rows, pictures)
    assert predicted["error"].tolist() == ["image nowhere not found"]


def test_among_several_models_the_most_demanding_decides(tolerant: Path, both: Path) -> None:
    rows = pd.DataFrame({"age": [40]})
    with pytest.raises(InputError, match="no image column"):
        Predictor.from_checkpoints([best(tolerant), best(both)]).predict(rows)


def test_a_model_of_images_alone_lacks_no_column(larger: Path, pictures: Path) -> None:
    predictor = Predictor.from_checkpoints([best(larger)])
    predicted = predictor.predict(pd.DataFrame({"image_name": ["ISIC_0000000"]}), pictures)
    assert predicted["missing"].tolist() == [""]
    assert predictor.columns == []  # so that it adds none to those of others, either
