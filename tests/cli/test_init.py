"""A table and images of a stranger become a data configuration, which training reads."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

import skinmm
from skinmm.cli.main import main, train
from skinmm.data.mapping import infer_columns

DEMO = Path(skinmm.__file__).parent / "demo"
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def clinic(tmp_path: Path) -> Path:
    """A folder with a table under foreign names, with semicolons, and images."""
    folder = tmp_path / "My Clinic"
    (folder / "photos").mkdir(parents=True)
    rows = pd.read_csv(DEMO / "cohort.csv").groupby("target").head(20)
    for name in rows["image_id"]:
        shutil.copy(DEMO / "images" / f"{name}.jpg", folder / "photos")
    table = {
        "Photo": rows["image_id"] + ".jpg",
        "case no": range(len(rows)),
        "Years": rows["age"],
        "geschlecht": rows["sex"],
        "Where": rows["site"],
        "result": rows["target"],
        "smoker": ["yes", "no"] * 20,
    }
    pd.DataFrame(table).to_csv(folder / "list.csv", sep=";", index=False)
    return folder


def test_a_foreign_table_is_mapped_and_audited(clinic: Path, capsys: Captured) -> None:
    assert main(["init", str(clinic)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (
        "image_id <- Photo, patient_id <- case no, lesion_id <- (none), age <- Years, "
        "sex <- geschlecht, site <- Where, diagnosis <- (none), target <- result"
    ) in printed.out
    assert "not used: smoker (" in printed.out
    assert "first of 40 rows (20 malignant):" in printed.out
    file = clinic / "conf" / "data" / "my_clinic.yaml"
    settings = yaml.safe_load(file.read_text())
    assert settings["args"]["images"] == ["photos"]
    assert settings["args"]["columns"]["age"] == "Years"
    used = ["--config-dir", str(clinic / "conf"), "data=my_clinic"]
    output = clinic / "audit"
    assert main(["audit", *used, f"output={output}"]) == 0
    cohort = pd.read_csv(DEMO / "cohort.csv").groupby("target").head(20)
    assert "40" in (output / "audit.html").read_text()
    assert cohort["target"].sum() == 20
    assert main(["init", str(clinic)]) == 2
    assert "my_clinic.yaml exists" in capsys.readouterr().err


@pytest.mark.parametrize("separator", ["/", "\\"])
def test_images_in_the_folders_that_cells_name_are_found(
    clinic: Path, separator: str, capsys: Captured
) -> None:
    (clinic / "photos" / "2024").mkdir()
    table = pd.read_csv(clinic / "list.csv", sep=";")
    for name in table["Photo"]:
        shutil.move(clinic / "photos" / name, clinic / "photos" / "2024")
    table["Photo"] = f"2024{separator}" + table["Photo"]
    table.to_csv(clinic / "list.csv", sep=";", index=False)
    assert main(["init", str(clinic)]) == 0
    used = ["--config-dir", str(clinic / "conf"), "data=my_clinic"]
    assert main(["audit", *used, f"output={clinic / 'audit'}"]) == 0
    assert capsys.readouterr().err == ""
    settings = yaml.safe_load((clinic / "conf" / "data" / "my_clinic.yaml").read_text())
    assert settings["args"]["images"] == ["photos"]


def test_the_variable_names_the_folder_of_configurations(
    clinic: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert main(["init", str(clinic), "name=mine"]) == 0
    assert main(["explore", "data=mine", f"output={clinic / 'a.html'}"]) == 2
    assert "unknown data 'mine'; choose from csv" in capsys.readouterr().err
    monkeypatch.setenv("SKINMM_CONF", str(clinic / "conf"))
    assert main(["explore", "data=mine", f"output={clinic / 'a.html'}"]) == 0
    assert main(["train", "data=mine", "--help"]) == 0
    assert "|mine|" in capsys.readouterr().out
    monkeypatch.setenv("SKINMM_CONF", "nowhere")
    capsys.readouterr()
    error = "error: --config-dir or SKINMM_CONF: nowhere: no such folder\n"
    for extra in ([], ["--help"]):
        assert main(["train", "data=mine", *extra]) == 2
        assert capsys.readouterr().err.replace(f"{Path.cwd()}/", "") == error


def test_what_a_folder_lacks_is_named(clinic: Path, capsys: Captured) -> None:
    assert main(["init", str(clinic / "nowhere")]) == 2
    assert "nowhere: no such folder" in capsys.readouterr().err
    shutil.copy(clinic / "list.csv", clinic / "other.csv")
    assert main(["init", str(clinic)]) == 2
    error = capsys.readouterr().err
    assert "several tables; choose one: table=list.csv or table=other.csv" in error
    for name in ("list.csv", "other.csv"):
        (clinic / name).unlink()
    (clinic / "naevus").mkdir()
    shutil.copy(next((clinic / "photos").iterdir()), clinic / "naevus")
    assert main(["init", str(clinic)]) == 2
    error = capsys.readouterr().err
    assert "no table (.csv, .tsv" in error
    assert "for a folder per class (naevus, photos) use data=image_folder" in error


def test_a_table_without_labels_gets_a_configuration_to_complete(
    clinic: Path, capsys: Captured
) -> None:
    pd.read_csv(clinic / "list.csv", sep=";").drop(columns="result").to_csv(clinic / "list.csv")
    assert main(["init", str(clinic)]) == 3
    printed = capsys.readouterr()
    assert "no column target or diagnosis" in printed.err
    choices = "`target: COLUMN` (1 is malignant) or `diagnosis: COLUMN` (names of diagnoses)"
    assert f"add {choices} to `columns` in" in printed.err
    assert "to use: data.columns" not in printed.out
    assert "afterwards:" in printed.out
    assert (clinic / "conf" / "data" / "my_clinic.yaml").is_file()


def test_a_wrong_cell_does_not_make_the_configuration_incomplete(
    clinic: Path, capsys: Captured
) -> None:
    table = pd.read_csv(clinic / "list.csv", sep=";")
    table.assign(geschlecht=["divers", *table["geschlecht"][1:]]).to_csv(clinic / "list.csv")
    assert main(["init", str(clinic)]) == 3
    printed = capsys.readouterr()
    assert "'divers'" in printed.err
    assert "which cannot be used as it is" in printed.out
    table.to_csv(clinic / "list.csv")
    assert main(["init", str(clinic), "overwrite=true"]) == 0
    used = ["--config-dir", str(clinic / "conf"), "data=my_clinic", f"output={clinic / 'audit'}"]
    assert main(["audit", *used, "+data.args.table=x.csv"]) == 2
    message = "data.args.table is set already; without the +: data.args.table='x.csv'"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "factor", "expected"),
    [
        ("Age (months)", 12, "column 'Age (months)': divide ages in months by"),
        ("Age in months", 1, "column 'Age in months': divide ages in months by"),
        ("Years", 12, "is not recognised (40 such rows: "),
    ],
)
def test_ages_in_months_are_refused(
    clinic: Path, capsys: Captured, name: str, factor: int, expected: str
) -> None:
    file = clinic / "list.csv"
    table = pd.read_csv(file, sep=";", dtype=str)
    table["Years"] = str(factor * 50)
    table.loc[5, "geschlecht"] = "divers"
    table.rename(columns={"Years": name}).to_csv(file, sep=";", index=False)
    assert main(["init", str(clinic)]) == 3
    error = capsys.readouterr().err
    assert expected in error
    advice = "divide ages in months by 12, or name another column: +data.args.columns.age=COLUMN"
    assert advice in error
    if name == "Years":  # all columns are named, not the first alone
        assert f"{advice}; row 7 (" in error
        assert "sex 'divers' is not recognised (1 such row: 'divers' (1))" in error


def test_a_column_that_is_read_but_no_input_is_named(clinic: Path, capsys: Captured) -> None:
    assert main(["init", str(clinic)]) == 0
    used = ["--config-dir", str(clinic / "conf"), "data=my_clinic", "data.columns=[sex,site]"]
    assert main(["audit", *used, f"output={clinic / 'audit'}"]) == 0
    assert "not an input of the model: age; see data.columns" in capsys.readouterr().out


def test_cells_decide_where_names_do_not() -> None:
    cells = {
        "a": ["x1", "x2", "x3"],
        "b": ["F", "m", None],
        "c": ["left arm", "back", "Scalp"],
        "d": ["nevus", "melanoma", "nevus"],
        "malignancy class": ["0", "1", "0"],
        "first site": ["Linz", "Graz", "Wien"],
    }
    table = pd.DataFrame(cells, dtype=object)
    expected = {"image_id": "a", "sex": "b", "site": "c", "diagnosis": "d"}
    assert infer_columns(table, {"x1", "x2", "x3"}) == expected
    twice = table.assign(e=table["b"]).drop(columns="d")
    found = infer_columns(twice, {"x1", "x2", "x3"})
    assert found == {"image_id": "a", "site": "c", "target": "malignancy class"}


def test_a_broken_configuration_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bad.yaml").write_text("name: csv\n  root: x\n")
    assert train(["--config-dir", str(tmp_path), "data=bad"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.yaml, line 2, column 7: not YAML: mapping values are not allowed here" in line


def test_measurements_are_neither_ages_nor_patients_nor_lesions() -> None:
    rows = {
        "file": ["a", "b"],
        "image_quality": ["55", "60"],
        "lesion_diameter_mm": ["5", "6"],
        "personal_hx_mm": ["0", "1"],
        "target": ["0", "1"],
    }
    mapping = infer_columns(pd.DataFrame(rows), {"a", "b"})
    assert mapping == {"image_id": "file", "target": "target"}


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        *((name, "patient_id") for name in ("patient_uid", "id_patient", "PatientGUID")),
        *((name, "patient_id") for name in ("patient_study_id", "hospital_patient_id")),
        *((name, "patient_id") for name in ("patient_id_anon", "anonymized_patient_id")),
        *((name, "lesion_id") for name in ("lesion_uid", "id_lesion")),
        *((name, "age") for name in ("age_at_biopsy", "approx_age", "AgeAtFirstVisit")),
    ],
)
def test_usual_names_are_recognised(name: str, canonical: str) -> None:
    rows = {"file": ["a", "b"], name: ["51", "60"], "target": ["0", "1"]}
    assert infer_columns(pd.DataFrame(rows), {"a", "b"})[canonical] == name
