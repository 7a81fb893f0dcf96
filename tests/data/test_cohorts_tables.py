"""Tables of users: what is accepted, and which file and row an error names."""

import re
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from miniature_cohorts import load, load_table, picture, siim_isic, write, write_images

from skinmm.config import DataConfig
from skinmm.data.cohorts import ADAPTERS, load_cohort, require_images
from skinmm.data.cohorts.tables import FORMATS, read_table, to_canonical
from skinmm.errors import InputError
from skinmm.images.tfrecord import write_tfrecord

HEADER = "image,patient,age,sex,site,target\n"
GOOD = "I0,P0,40,male,torso,1\nI1,P1,50,female,torso,0\n"


def cohort(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "cohort.csv").write_text(text, encoding=encoding)
    return root


@pytest.mark.parametrize(
    "words", [("0", "1.00"), ("0.0", "01"), ("benign", "Malignant"), ("no", "YES"), ("nein", "ja")]
)
def test_spellings_of_the_target(tmp_path: Path, words: tuple[str, str]) -> None:
    rows = [f"I{row},P{row},40,male,torso,{words[row % 2]}" for row in range(4)]
    table = load("csv", cohort(tmp_path, HEADER + "\n".join(rows)))
    assert table["target"].tolist() == [0, 1, 0, 1]


def test_rows_without_a_target_may_all_be_benign(tmp_path: Path) -> None:
    table = "image,target,diagnosis\nI0,1,\nI1,,nevus\nI2,0,\n"
    rows = load_cohort(DataConfig(name="csv", root=str(cohort(tmp_path, table)))).rows
    assert rows["target"].tolist() == [1, 0, 0]


def test_a_column_of_benign_is_no_target(tmp_path: Path) -> None:
    cohort(tmp_path, "image,Benign\nI0,1\nI1,0\n")
    data = DataConfig(name="csv", root=str(tmp_path), args={"columns": {"target": "Benign"}})
    with pytest.raises(InputError, match="target=Benign: in a target, 1 means malignant"):
        load_cohort(data)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_and_byte_order_marks(tmp_path: Path, separator: str, encoding: str) -> None:
    text = (HEADER + GOOD).replace(",", separator)
    table = load("csv", cohort(tmp_path, text, encoding))
    assert table["image_id"].tolist() == ["I0", "I1"]
    assert table["patient_id"].tolist() == ["P0", "P1"]
    assert table["age"].tolist() == [40, 50]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "I1,P1,-5,male,torso,0",
            r"row 3 \('I1'\): age '-5' is not recognised \(1 such row: '-5' \(1\)\).*0 to 120",
        ),
        ("I1,P1,forty,male,torso,0", r"row 3 \('I1'\): age 'forty' .*0 to 120"),
        ("I1,P1,40,divers,torso,0", r"row 3 \('I1'\): sex 'divers' .*female, male or empty"),
        ("I1,P1,40,male,moon,0", r"row 3 \('I1'\): site 'moon' .*head/neck, lower extremity"),
        ("I1,P1,40,male,torso,2", r"row 3 \('I1'\): target '2' .*0 or 1"),
        ("I0.jpg,P1,40,male,torso,0", r"images are repeated in 1 row, first 'I0' \(rows 2, 3\)"),
        (",P1,40,male,torso,0", r"row 3: no image name"),
        ("I1,P1,40,male,torso,", r"the target is empty or unknown in 1 row, e.g. I1"),
        ("I1,P1,40,male,torso,1", r"every row has the same target, 1"),
        ("I1,P1,40,male,torso,0,7,8", r"cohort.csv: row 3 has 8 cells, the header has 6"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("csv", cohort(tmp_path, HEADER + "I0,P0,40,male,torso,1\n" + row))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        (HEADER, "a header and no rows"),
        (
            "age,sex\n40,male\n",
            r"no image column; name it: \+data.args.columns.image_id=COLUMN, one of age",
        ),
        ("image,target\nI0,1,\nI1,0,\n", "row 2 has 3 cells, the header has 2"),
        (
            "image,Zahl\nI0,40\nI1,50\n",
            r"no column target or diagnosis in \S+cohort.csv: it has image, Zahl; name it: "
            r"\+data.args.columns.target=COLUMN or \+data.args.columns.diagnosis=COLUMN",
        ),
        ("image,target\nI0,\nI1,\n", "the target is empty or unknown in 2 rows, e.g. I0, I1"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("csv", cohort(tmp_path, text))


def test_numbers_as_names_stay_text(tmp_path: Path) -> None:
    text = "image,patient,duplicate_of,target\n01,1,,0\n02,2,01.jpg,1\n"
    table = load("csv", cohort(tmp_path, text))
    assert table["image_id"].tolist() == ["01", "02"]
    assert table["patient_id"].tolist() == ["1", "2"]
    assert table["duplicate_of"].tolist()[1] == "01"


def test_options_of_the_wrong_type_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data.args.columns=age: must be pairs"):
        load("csv", tmp_path, args={"columns": "age"})
    with pytest.raises(InputError, match=r"data.args.test_fraction=some: must be a number"):
        load("csv", cohort(tmp_path, HEADER + GOOD), args={"test_fraction": "some"})


def test_text_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_bytes("image,arzt\nI0,Müller\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"cohort.csv: not UTF-8 text .*; save it"):
        load("csv", tmp_path)


def test_a_missing_column_lists_those_there(tmp_path: Path) -> None:
    write(tmp_path, "train.csv", "image_name,target\nI0,1\n")
    with pytest.raises(InputError, match=r"no column patient_id; it has image_name, target"):
        load("siim_isic", tmp_path)


def test_columns_are_mapped(tmp_path: Path) -> None:
    text = "Datei;Alter;age;Breite;Befund\nI0.JPG;45,5;9;7;boese\nI1.JPG;50;9;8;gut\n"
    columns = {"image_id": "Datei", "age": "Alter", "breadth": "Breite", "diagnosis": "Befund"}
    table = load(
        "csv",
        cohort(tmp_path, text),
        args={"columns": columns},
        columns=["age", "breadth"],
        positive=["boese"],
    )
    assert table["age"].tolist() == [45.5, 50]
    assert table["breadth"].tolist() == [7, 8]
    assert table["target"].tolist() == [1, 0]
    with pytest.raises(InputError, match=r"columns: age=Jahre, but .*cohort.csv has Datei, Alter"):
        load("csv", tmp_path, args={"columns": {"age": "Jahre"}})
    with pytest.raises(InputError, match="taget=Befund; did you mean target"):
        load("csv", tmp_path, args={"columns": {"taget": "Befund"}})


def test_further_columns_are_numbers_or_words_but_not_both(tmp_path: Path) -> None:
    rows = "".join(f"I{n};{n % 2};{n},5;{n % 3}{'+' * (n == 1)}\n" for n in range(40))
    folder = cohort(tmp_path, "image_id;target;width_mm;grade\n" + rows + "I40;1;;\n")
    table = load("csv", folder, columns=["width_mm", "grade"])
    assert table["width_mm"].head(3).tolist() == [0.5, 1.5, 2.5]
    assert table["grade"].dropna().unique().tolist() == ["0", "1+", "2", "1"]
    rows = rows.replace("I7;1;7,5", "I7;1;wide")
    cohort(tmp_path, "image_id;target;width_mm;grade\n" + rows)
    with pytest.raises(InputError, match=r"'width_mm' contains numbers, .* 1 word, first 'wide'"):
        load("csv", tmp_path, columns=["width_mm"])
    for cell in ("<1", "1.033,5", "1 033"):
        rows = "".join(f"I{n};{n % 2};{cell if n == 7 else n % 4}\n" for n in range(40))
        cohort(tmp_path, "image_id;target;width_mm\n" + rows)
        with pytest.raises(InputError, match=f"contains numbers, but also '{re.escape(cell)}'"):
            load("csv", tmp_path, columns=["width_mm"])


def test_images_by_path_under_the_root(tmp_path: Path) -> None:
    write_images(tmp_path / "a", ["1", "2"])
    write_images(tmp_path / "b", ["1"])
    table = load("csv", cohort(tmp_path, "image,target\na/1.jpg,0\na/2.jpg,1\nb/1.jpg,1\n"))
    assert table["image_id"].tolist() == ["a/1", "a/2", "b/1"]
    assert table["path"].tolist() == [f"{tmp_path}/{name}.jpg" for name in ("a/1", "a/2", "b/1")]


def test_a_part_column_fixes_the_split(tmp_path: Path) -> None:
    text = "image,target,part\nI0,0,Train\nI1,1,train\nI2,1,valid\nI3,0,TEST\n"
    part = load("csv", cohort(tmp_path, text))["part"]
    assert part.fillna("free").tolist() == ["free", "free", "val", "test"]
    with pytest.raises(InputError, match=r"row 2: part 'today'; allowed: train, "):
        load("csv", cohort(tmp_path, text.replace("Train", "today")))


def test_missing_images_are_counted_with_examples(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    for number in (0, 3):
        (tmp_path / "jpeg" / "train" / f"I{number}.jpg").unlink()
    cohort = load_table("siim_isic", tmp_path)
    expected = r"2 of 4 images are not on disk, e.g. I0, I3; searched in .*jpeg/train.*missing=drop"
    with pytest.raises(InputError, match=expected):
        require_images(cohort, "error")
    for needed in (True, False):  # a model of the record has the rows of those that also look
        kept = require_images(cohort, "drop", needed=needed)
        assert kept.rows["image_id"].tolist() == ["I1", "I2"]
        note = "data.missing=drop leaves out 2 of 4 rows, which have no image, e.g. I0, I3"
        assert kept.notes == (*cohort.notes, note)
    assert len(require_images(cohort, "error", needed=False).rows) == 4
    nowhere = replace(cohort, rows=cohort.rows.assign(path=None))
    with pytest.raises(InputError, match="4 of 4 images are not on disk"):
        require_images(nowhere, "drop")
    assert len(require_images(nowhere, "drop", needed=False).rows) == 4


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.csv"
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        table = read_table(file)
        rows = to_canonical(table.assign(image_id=table.iloc[:, 0]), file, DataConfig(name="any"))
    except InputError as error:
        refusal = str(error)
        rows = pd.DataFrame({"image_id": [str(file)]})
    else:
        refusal = str(file)
    assert str(file) in refusal
    assert rows["image_id"].is_unique


def test_the_example_of_the_readme_is_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text()
    write(tmp_path, "cohort.csv", text.split("```csv\n")[1].split("```")[0])
    write_images(tmp_path / "images", ["a1", "a2", "b1"])
    table = require_images(load_table("csv", tmp_path), "error").rows
    assert table["target"].tolist() == [1, 0, 0]
    assert table["patient_id"].tolist() == ["P1", "P1", "P2"]
    assert table[["age", "sex", "site", "path"]].notna().all(axis=None)


def test_the_example_of_the_datasets_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    settings = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    text = "file,case,years,finding,diameter_mm\na.jpg,P0,40,mel,6.5\nb,P1,50,nevus,\n"
    write(tmp_path, "patients.csv", text)
    write_images(tmp_path / "photos", ["a", "b"])
    table = load(settings.pop("name"), tmp_path, **settings)
    assert table["diameter"].tolist()[0] == 6.5
    assert table["target"].tolist() == [1, 0]
    assert table["path"].notna().all()


def test_the_tfrecord_example_of_the_datasets_page_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    settings = yaml.safe_load(page.split("```yaml\n")[2].split("```")[0])
    names = ("image/encoded", "image/id", "patient_age", "gender", "label", "mm")
    rows = [(picture(), "a", 50, 0, 1, 6.5), (picture(), "b", -1, 7, 0, 2.5)]
    write_tfrecord(tmp_path / "train0.tfrec", [dict(zip(names, row, strict=True)) for row in rows])
    write_tfrecord(tmp_path / "test0.tfrec", [{"image/encoded": picture(), "image/id": "c"}])
    table = load(settings.pop("name"), tmp_path, **settings)
    assert table["age"].fillna(0).tolist() == [50, 0]
    assert table["sex"].tolist() == ["female", None]
    assert table["target"].tolist() == [1, 0]
    assert table["diameter"].tolist() == [6.5, 2.5]


def test_every_format_can_be_selected() -> None:
    (format_,) = (field for field in fields(DataConfig) if field.name == "format")
    assert {*format_.metadata["choices"]} == {"auto", *FORMATS}


def test_the_datasets_page_has_every_adapter() -> None:
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    assert all(f"\n| `{name}` |" in page for name in ADAPTERS)


ROWS = "image,patient,lesion,age,target\n" + "".join(
    f"I{row},P{row // 4},L{row // 2},40,{row % 2}\n" for row in range(8)
)


@pytest.mark.parametrize(
    ("table", "left", "note"),
    [
        (
            "image\nI0.jpg\nI3\nI9\n",
            "1 2 4 5 6 7",
            "2 of 8 rows are left out, .*; 1 of its images",
        ),
        ("image\nI0\n", "1 2 3 4 5 6 7", "1 other images of their lesions stay"),
        (
            "image,lesion\nI0,L0\n,L3\n",
            "2 3 4 5",
            "4 of 8 rows are left out, because .* them$",
        ),
        ("patient_id\nP1\n", "0 1 2 3", "4 of 8 rows are left out, because .* them$"),
    ],
)
def test_rows_that_a_table_names_are_left_out(
    tmp_path: Path, table: str, left: str, note: str
) -> None:
    file = tmp_path / "others.csv"
    file.write_text(table)
    args = {"exclude": str(file)}
    config = DataConfig(name="csv", root=str(cohort(tmp_path, ROWS)), args=args)
    loaded = load_cohort(config)
    assert loaded.rows["image_id"].tolist() == [f"I{row}" for row in left.split()]
    assert any(re.search(note, line) for line in loaded.notes)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image\nJ0\n", "names no row of the dataset"),
        ("name_of_file\nI0\n", "needs a column image_id, lesion_id or patient_id; it has name"),
        (None, "no such file"),
    ],
)
def test_a_list_of_other_rows_is_refused(tmp_path: Path, table: str | None, message: str) -> None:
    file = tmp_path / "others.csv"
    if table:
        file.write_text(table)
    with pytest.raises(InputError, match=message):
        load("csv", cohort(tmp_path, ROWS), args={"exclude": str(file)})
