"""Where patients may come from: Parquet, folders, shards, URLs; what is made beside the output."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from dicom_files import dicom_from_jpeg
from quick_runs import best, cohort_of
from tfrecord.writer import TFRecordWriter

from skinmm.cli import main
from skinmm.predict.extra_outputs import summarize_patients
from skinmm.predict.inputs import count_rows, fingerprint, read_input

Said = pytest.CaptureFixture[str]
COLUMNS = ["image_id", "age", "sex", "site", "patient_id", "target"]


def predicted(checkpoint: Path, source: object, output: Path, *overrides: str) -> pd.DataFrame:
    given = {"checkpoint": checkpoint, "input": source, "output": output}
    arguments = [f"{name}={value}" for name, value in given.items()]
    assert main.predict([*arguments, "overwrite=true", *overrides]) == 0
    return pd.read_csv(output, keep_default_na=False, dtype={"image_id": str, "patient_id": str})


@pytest.fixture
def table(both: Path) -> pd.DataFrame:
    return cohort_of(both)[COLUMNS].head(12)


@pytest.fixture
def expected(table: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path) -> pd.DataFrame:
    table.to_csv(tmp_path / "in.csv", index=False)
    return predicted(best(both), tmp_path / "in.csv", tmp_path / "a.csv", f"images={pictures}")


def assert_same(found: pd.DataFrame, expected: pd.DataFrame, *columns: str) -> None:
    np.testing.assert_allclose(found["p_malignant"], expected["p_malignant"], atol=1e-6)
    for column in ("decision", *columns):
        assert found[column].tolist() == expected[column].tolist()


def test_a_parquet_table_is_a_table(
    table: pd.DataFrame, expected: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    table.to_parquet(tmp_path / "in.parquet")
    source = tmp_path / "in.parquet"
    found = predicted(best(both), source, tmp_path / "b.csv", f"images={pictures}")
    assert_same(found, expected, "image_id", "patient_id", "target", "missing")
    parts = [*read_input(str(source), 5, skip=3)]
    assert sum(map(len, parts)) == 9
    assert parts[0]["image_id"].iloc[0] == table["image_id"][3]
    assert count_rows(str(source)) == 12


@pytest.mark.parametrize("suffix", [".xlsx", ".csv.gz"])
def test_every_row_of_a_workbook_or_a_gzipped_table_is_predicted(
    suffix: str,
    table: pd.DataFrame,
    expected: pd.DataFrame,
    both: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: Said,
) -> None:
    source = tmp_path / f"in{suffix}"
    if suffix == ".xlsx":
        pytest.importorskip("openpyxl")
        table.to_excel(source, index=False)
    else:
        table.to_csv(source, index=False)
    predictions = predicted(best(both), source, tmp_path / "b.csv", f"images={pictures}")
    assert_same(predictions, expected, "image_id")
    assert "(12 rows: " in capsys.readouterr().out.splitlines()[-1]
    assert [len(part) for part in read_input(str(source), 5, skip=3)] == [5, 4]
    assert count_rows(str(source)) is None


def test_blanks_around_names_of_images_do_not_count(
    table: pd.DataFrame, expected: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path
) -> None:
    table.assign(image_id=" " + table["image_id"] + " ").to_csv(tmp_path / "b.csv", index=False)
    found = predicted(best(both), tmp_path / "b.csv", tmp_path / "c.csv", f"images={pictures}")
    assert_same(found, expected, "error")


def test_a_url_is_a_table_and_a_folder(
    table: pd.DataFrame, expected: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/job/in.csv", table.to_csv(index=False).encode())
    for name in table["image_id"]:
        memory.pipe(f"/job/{name}.jpg", (pictures / f"{name}.jpg").read_bytes())
    found = predicted(best(both), "memory://job/in.csv", tmp_path / "b.csv")
    assert_same(found, expected, "image_id", "patient_id", "target", "missing")
    before = fingerprint("memory://job/in.csv")
    memory.pipe("/job/in.csv", b"image\na\n")
    assert fingerprint("memory://job/in.csv") != before
    assert count_rows("memory://job/in.csv") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("memory://nowhere/in.csv", "input=memory://nowhere/in.csv: no such file"),
        ("nothing://a/in.csv", "input=nothing://a/in.csv: cannot be reached"),
    ],
)
def test_a_url_that_leads_nowhere_is_named(
    both: Path, tmp_path: Path, capsys: Said, source: str, message: str
) -> None:
    arguments = [f"checkpoint={best(both)}", f"input={source}", f"output={tmp_path / 'b.csv'}"]
    assert main.predict(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_images_is_a_table_and_lacks_the_record(
    table: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    folder = tmp_path / "images"
    (folder / "deeper").mkdir(parents=True)
    for row, name in enumerate(table["image_id"]):
        shutil.copy(pictures / f"{name}.jpg", folder / ("deeper" if row % 2 else "."))
    (folder / "notes.txt").write_text("no image")
    twins = [f"{table['image_id'][0]}{suffix}" for suffix in (".jpg", ".jpeg")]
    shutil.copy(folder / twins[0], folder / twins[1])
    found = predicted(best(both), folder, tmp_path / "b.csv")
    assert "no column for age (e.g. age" in capsys.readouterr().err
    # As the datasets name them, but where that would not say which file is meant.
    plain, deep = table["image_id"][2::2], table["image_id"][1::2]
    ids = {*twins, *plain, *(f"deeper/{name}.jpg" for name in deep)}
    assert len(found) == len(ids)
    assert set(found["image_id"]) == ids
    assert set(found["patient_id"]) == {""}
    names = found["image_id"].str.split(".").str[0].str.split("/").str[-1]
    (tmp_path / "in.csv").write_text("image\n" + "\n".join(names))
    listed = predicted(best(both), tmp_path / "in.csv", tmp_path / "c.csv", f"images={pictures}")
    assert_same(found, listed)


def test_a_dicom_tree_brings_its_records(
    table: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    study = tmp_path / "tree" / "study" / "series"
    study.mkdir(parents=True)
    known = table.dropna(subset=["age", "sex"]).reset_index(drop=True).assign(site=None)
    for row, patient in enumerate(known.to_dict("records")):
        stream = (pictures / f"{patient['image_id']}.jpg").read_bytes()
        sex, age = str(patient["sex"])[0].upper(), f"{int(patient['age']):03}Y"
        data = dicom_from_jpeg(stream, PatientID=f"P{row}", PatientSex=sex, PatientAge=age)
        # Archives name files by number: of those without a suffix the first bytes tell.
        (study / f"{row:04}{'' if row % 2 else '.dcm'}").write_bytes(data)
    (study / "DICOMDIR").write_text("no picture")
    found = predicted(best(both), tmp_path / "tree", tmp_path / "b.csv")
    assert "no column" not in capsys.readouterr().err
    known.drop(columns="patient_id").to_csv(tmp_path / "in.csv", index=False)
    listed = predicted(best(both), tmp_path / "in.csv", tmp_path / "c.csv", f"images={pictures}")
    assert found["patient_id"].tolist() == [f"P{row}" for row in range(len(known))]
    assert found["image_id"][1] == "study/series/0001"
    assert_same(found, listed, "missing")


def test_shards_are_a_table_and_a_folder(
    table: pd.DataFrame,
    expected: pd.DataFrame,
    both: Path,
    pictures: Path,
    tmp_path: Path,
    capsys: Said,
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, part in enumerate((table.head(5), table.iloc[5:])):
        writer = TFRecordWriter(str(shards / f"{number}.tfrec"))
        for row in part.to_dict("records"):
            image = (pictures / f"{row['image_id']}.jpg").read_bytes()
            features = {"image": (image, "byte"), "image_name": (row["image_id"].encode(), "byte")}
            for name in ("sex", "site"):
                if isinstance(row[name], str):
                    features[name] = (row[name].encode(), "byte")
            if row["age"] == row["age"]:
                features["age"] = (float(row["age"]), "float")
            writer.write(features)
        writer.close()
    found = predicted(best(both), shards, tmp_path / "b.csv")
    assert "no column" not in capsys.readouterr().err
    assert_same(found, expected, "image_id", "missing")
    named = predicted(best(both), tmp_path / "in.csv", tmp_path / "c.csv", f"images={shards}")
    assert_same(named, expected, "image_id", "patient_id")


def test_a_row_per_patient_and_the_competition_s_file(
    table: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path
) -> None:
    rows = table.assign(patient_id=[f"P{row // 4}" for row in range(12)]).astype(object)
    rows["image_id"] = rows["image_id"] + ".jpg"
    rows.loc[9, "image_id"] = "nowhere.jpg"
    rows.to_csv(tmp_path / "in.csv", index=False)
    paths = {name: tmp_path / f"{name}.csv" for name in ("output", "by_patient", "submission")}
    arguments = [f"checkpoint={best(both)}", f"input={tmp_path / 'in.csv'}", f"images={pictures}"]
    assert main.predict([*arguments, *(f"{name}={path}" for name, path in paths.items())]) == 3
    output, patients, submission = (
        pd.read_csv(path, keep_default_na=False, na_values={"malignancy": "", "target": ""})
        for path in paths.values()
    )
    assert submission["image_name"].tolist() == [
        cell.removesuffix(".jpg") for cell in rows["image_id"]
    ]
    assert submission["target"].equals(output["malignancy"].rename("target"))
    assert patients["malignancy"].is_monotonic_decreasing
    highest = output.groupby("patient_id")["malignancy"].max()
    for row in patients.to_dict("records"):
        own = output[output["patient_id"] == row["patient_id"]]
        assert row["malignancy"] == pytest.approx(highest[row["patient_id"]])
        order = own.dropna(subset="malignancy").sort_values("malignancy", ascending=False)
        assert row["lesions"] == "|".join(order["image_id"])
        assert row["images"] == 4
        worst = [name for name in ("malignant", "refer", "benign") if name in {*own["decision"]}]
        assert row["decision"] == worst[0]
    (reasons,) = patients[patients["patient_id"] == "P2"]["reasons"]
    assert "image nowhere.jpg not found" in reasons


def test_without_patients_there_is_a_row_per_lesion_or_image() -> None:
    units = {"patient_id": ["P", "", "", ""], "lesion_id": ["L1", "L2", "L2", ""]}
    rows = pd.DataFrame({**units, "image_id": ["a", "b", "c", "d"], "error": "lost"})
    (summary,) = summarize_patients([rows])
    names = summary.set_index("patient_id")[["unit", "images"]].to_dict("index")
    assert names == {
        "P": {"unit": "patient", "images": 1},
        "L2": {"unit": "lesion", "images": 2},
        "d": {"unit": "image", "images": 1},
    }


def test_what_stands_beside_the_output_is_not_replaced_unasked(
    table: pd.DataFrame, both: Path, pictures: Path, tmp_path: Path, capsys: Said
) -> None:
    table.to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "there.csv").write_text("precious")
    arguments = [f"checkpoint={best(both)}", f"input={tmp_path / 'in.csv'}", f"images={pictures}"]
    output = f"output={tmp_path / 'out.csv'}"
    for name in ("by_patient", "submission"):
        assert main.predict([*arguments, output, f"{name}={tmp_path / 'there.csv'}"]) == 2
        assert "there.csv exists; choose another" in capsys.readouterr().err
        assert main.predict([*arguments, output, f"{name}={tmp_path / 'none' / 'a.csv'}"]) == 2
        assert "does not exist" in capsys.readouterr().err
    assert (tmp_path / "there.csv").read_text() == "precious"
    assert not (tmp_path / "out.csv").exists()
