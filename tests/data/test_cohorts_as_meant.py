"""Tables of users are read as their author meant them, or refused by name."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from dicom_files import dicom_from_jpeg
from miniature_cohorts import load, load_table, picture, write, write_images
from PIL import Image

from skinmm.config import ExtraCohort
from skinmm.errors import InputError
from skinmm.predict.inputs import read_input
from skinmm.vocabulary import match_columns

NAMES = ["I0", "I1", "I2", "I3"]


def cohort(root: Path, header: str, *rows: str) -> Path:
    """Write a table, and images of the names in `NAMES`."""
    write(root, "cohort.csv", "\n".join([header, *rows]) + "\n")
    write_images(root / "images", NAMES)
    return root


def four(cells: str) -> list[str]:
    """Return rows of four images: the cells, then the target."""
    return [f"{name}.jpg,{cells},{number % 2}" for number, name in enumerate(NAMES)]


@pytest.mark.parametrize(
    "header",
    [
        "Image_ID,Patient_ID,Age,Sex,Site,Target",
        "image id,patient-id,AGE,Gender,Body Site,target",
        "filename,PatientID,age_years,gender,body_site,malignant",
        "image,subject_id,Age (years),sex,anatom_site,target",
        "image_id,patient,age_approx,SEX,Localization,target",
    ],
)
def test_columns_are_known_by_name_whatever_the_spelling(tmp_path: Path, header: str) -> None:
    table = load("csv", cohort(tmp_path, header, *four("P1,50,male,torso")))
    assert table["patient_id"].tolist() == ["P1"] * 4
    assert table["age"].tolist() == [50.0] * 4
    assert table["sex"].tolist() == ["male"] * 4
    assert table["site"].tolist() == ["torso"] * 4


def test_unused_and_missing_columns_are_named(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,patient,age,sex,split,target", *four("P1,50,male,train"))
    notes = load_table("csv", folder).notes
    assert notes == (
        "columns: image_id <- image, patient_id <- patient, lesion_id <- (none), age <- age, "
        "sex <- sex, site <- (none), diagnosis <- (none), target <- target, source <- (none)",
        "no value of site in any row",
        "columns not used: split (looks like a split: use +data.args.columns.part=split)",
    )


def test_a_table_without_patients_is_named(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,age,sex,site,case,target", *four("50,male,torso,P1"))
    notes = load_table("csv", folder).notes
    assert notes == (
        "no column patient_id or lesion_id: every image counts as a patient; columns not used: "
        "case",
    )
    folder = cohort(tmp_path, "image,age,sex,site,target", *four("50,male,torso"))
    assert load_table("csv", folder).notes == ()


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (["age", "diametre"], "no column 'diametre'; did you mean 'Diameter (mm)'?"),
        (["age", "sx"], "no column 'sx'; did you mean 'sex'?"),
        (["age", "site"], "no column 'site'; the table has image, patient, age, sex, Lok"),
    ],
)
def test_a_column_that_is_asked_for_is_there_or_refused(
    tmp_path: Path, columns: list[str], match: str
) -> None:
    header = "image,patient,age,sex,Lok,Diameter (mm),target"
    folder = cohort(tmp_path, header, *four("P1,50,male,torso,3"))
    with pytest.raises(InputError, match=re.escape(match)):
        load("csv", folder, columns=columns)
    mapped = {"columns": {"site": "Lok"}}
    assert load("csv", folder, columns=["age", "site"], args=mapped)["site"][0] == "torso"


def test_a_further_column_is_known_whatever_the_spelling(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,patient,Diameter_MM,target", *four("P1,3"))
    assert load("csv", folder, columns=["diameter mm"])["diameter mm"].tolist() == [3.0] * 4
    assert match_columns(["Diameter_MM", "age"], ["diameter mm"])["Diameter_MM"] == "diameter mm"
    # Two columns with the same letters: none of them is meant, unless one is spelt exactly so.
    assert "Size" not in match_columns(["Size", "SIZE"], ["size"])
    assert match_columns(["Size", "size"], ["size"]) == {"size": "size"}


def test_two_columns_of_one_meaning_are_refused(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,patient_id,PatientID,target", *four("P1,P2"))
    with pytest.raises(InputError, match="patient_id and PatientID"):
        load("csv", folder)


def test_a_named_folder_is_not_another_one(tmp_path: Path) -> None:
    rows = [f"siteB/{name}.jpg,P1,{number % 2}" for number, name in enumerate(NAMES)]
    table = load("csv", cohort(tmp_path, "image,patient,target", *rows))
    assert table["path"].tolist() == [None] * 4


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    rows = [f"images\\{name}.jpg,P1,{number % 2}" for number, name in enumerate(NAMES)]
    table = load("csv", cohort(tmp_path, "image,patient,target", *rows))
    assert [Path(path).name for path in table["path"]] == [f"{name}.jpg" for name in NAMES]


def test_a_named_suffix_is_not_another_file(tmp_path: Path) -> None:
    rows = [f"{name}.png,P1,{number % 2}" for number, name in enumerate(NAMES)]
    folder = cohort(tmp_path, "image,patient,target", *rows)
    Image.new("RGB", (8, 8)).save(folder / "images" / "I0.png")
    table = load("csv", folder)
    assert Path(table["path"][0]).name == "I0.png"
    assert table["path"].isna().tolist() == [False, True, True, True]


def test_thousands_are_refused(tmp_path: Path) -> None:
    cells = ["700", "737", '"1,033"', "996"]
    rows = [f"{n}.jpg,P1,{c},{i % 2}" for i, (n, c) in enumerate(zip(NAMES, cells, strict=True))]
    folder = cohort(tmp_path, "image,patient,area,target", *rows)
    with pytest.raises(InputError, match=r"'1,033'.*1033 or 1.033"):
        load("csv", folder, columns=["area"])


def test_other_cells_settle_what_a_comma_means(tmp_path: Path) -> None:
    cells = ['"1,033"', '"0,5"', '"12,25"', "3"]
    rows = [f"{n}.jpg,P1,{c},{i % 2}" for i, (n, c) in enumerate(zip(NAMES, cells, strict=True))]
    table = load("csv", cohort(tmp_path, "image,patient,area,target", *rows), columns=["area"])
    assert table["area"].tolist() == [1.033, 0.5, 12.25, 3.0]


@pytest.mark.parametrize("words", [("TRUE", "True", "false", "FALSE"), ("Yes", "yes", "no", "NO")])
def test_truth_has_two_values(tmp_path: Path, words: tuple[str, ...]) -> None:
    rows = [f"{n}.jpg,P1,{c},{i % 2}" for i, (n, c) in enumerate(zip(NAMES, words, strict=True))]
    table = load("csv", cohort(tmp_path, "image,patient,itch,target", *rows), columns=["itch"])
    assert table["itch"].tolist() == ["true", "true", "false", "false"]


def column(root: Path, name: str, cells: Sequence[str]) -> Path:
    """Write a table with one further column, quoted, and as many images."""
    names = [f"I{number}" for number in range(len(cells))]
    rows = [
        f'{name}.jpg,P1,"{cell}",{i % 2}'
        for i, (name, cell) in enumerate(zip(names, cells, strict=True))
    ]
    write(root, "cohort.csv", "\n".join([f"image,patient,{name},target", *rows]) + "\n")
    write_images(root / "images", names)
    return root


def test_one_truth_in_several_spellings_is_one_value(tmp_path: Path) -> None:
    table = load("csv", column(tmp_path, "itch", ["TRUE", "1", "true", "1.0"]), columns=["itch"])
    assert table["itch"].tolist() == ["true"] * 4


@pytest.mark.parametrize("word", ["wound number {}", "{} pixels"])
def test_texts_that_nearly_all_differ_are_refused(tmp_path: Path, word: str) -> None:
    folder = column(tmp_path, "size", [word.format(number) for number in range(30)])
    first = ", ".join(repr(word.format(number)) for number in range(3))
    pattern = f"'size' contains 30 different texts in 30 rows, e.g. {first}: .* or in mm, cm"
    with pytest.raises(InputError, match=pattern):
        load("csv", folder, columns=["size"])


@pytest.mark.parametrize(
    ("cells", "unit"),
    [
        (["12 mm", "13mm", "1.5 MM", "-4 millimeters"], "mm"),
        (["12,5 mm\N{SUPERSCRIPT TWO}", "13 mm^2", "1,5 sq. mm", "-4 mm2"], "mm2"),
        (["12 %", "13%", "unknown", ""], "%"),
    ],
)
def test_numbers_with_one_unit_are_numbers(tmp_path: Path, cells: list[str], unit: str) -> None:
    cohort = load_table("csv", column(tmp_path, "size", cells), columns=["size"])
    values = {"mm": [12, 13, 1.5, -4], "mm2": [12.5, 13, 1.5, -4], "%": [12, 13, np.nan, np.nan]}
    np.testing.assert_array_equal(cohort.rows["size"], values[unit])
    assert cohort.units == {"size": unit}


def test_units_that_differ_are_refused_with_their_names(tmp_path: Path) -> None:
    folder = column(tmp_path, "size", ["12 mm", "1.2 cm", "13 mm", "14", "15 mm"])
    match = "'size' mixes units: 3 in mm, 1 in cm, 1 without unit; write all in one unit"
    with pytest.raises(InputError, match=match):
        load("csv", folder, columns=["size"])


def test_thousands_with_a_unit_are_refused(tmp_path: Path) -> None:
    folder = column(tmp_path, "size", ["700 mm", "1,033 mm"])
    with pytest.raises(InputError, match=r"'size': '1,033' can mean 1033 or 1.033"):
        load("csv", folder, columns=["size"])


def test_a_cohort_in_another_unit_is_not_added(tmp_path: Path) -> None:
    main = column(tmp_path / "main", "size", ["12 mm", "13 mm"])
    other = column(tmp_path / "other", "size", ["1.2 cm", "1.3 cm"])
    extra = [ExtraCohort(name="csv", root=str(other))]
    match = "'size' mixes units: in csv it has mm, in csv cm"
    with pytest.raises(InputError, match=match):
        load("csv", main, columns=["size"], extra=extra)


def test_an_unknown_diagnosis_has_no_label(tmp_path: Path) -> None:
    words = ["melanoma", "unknown", "nevus", "UNK"]
    rows = [f"{n}.jpg,P1,{word}" for n, word in zip(NAMES, words, strict=True)]
    folder = cohort(tmp_path, "image,patient,diagnosis", *rows)
    with pytest.raises(InputError, match=r"the target is empty or unknown in 2 rows, e.g. I1, I3"):
        load("csv", folder)
    table = load("csv", folder, missing="drop")
    assert table["image_id"].tolist() == ["I0", "I2"]


@pytest.mark.parametrize("word", ["pending", "", "?", "not known"])
def test_a_diagnosis_that_is_pending_has_no_label(tmp_path: Path, word: str) -> None:
    rows = [f"{n}.jpg,P1,{w}" for n, w in zip(NAMES, ["mel", word, "nv", "nv"], strict=True)]
    folder = cohort(tmp_path, "image,patient,diagnosis", *rows)
    with pytest.raises(
        InputError, match=r"the target is empty or unknown in 1 row, e\.g\. I1; set data\.missing"
    ):
        load("csv", folder)


@pytest.mark.parametrize("header", ["MEL,NV,BCC", "melanoma,nevus,basal_cell_carcinoma"])
def test_columns_of_0_and_1_named_like_classes_are_one_hot(tmp_path: Path, header: str) -> None:
    marks = ["1,0,0", "0,1,0", "0,0,1.0", "0,1,0"]
    rows = [f"{n}.jpg,P1,{mark}" for n, mark in zip(NAMES, marks, strict=True)]
    folder = cohort(tmp_path, f"image,patient,{header}", *rows)
    unsplit = load_table("csv", folder)
    mapping, absent = unsplit.notes
    assert mapping.endswith("diagnosis <- (a column per class), target <- (none), source <- (none)")
    assert absent == "no value of age, sex, site in any row"
    assert unsplit.rows["target"].tolist() == [1, 0, 1, 0]
    table = load("csv", folder, target="diagnosis")
    assert table["target"].tolist() == ["mel", "nv", "bcc", "nv"]
    mapped = {"columns": {"target": header.split(",")[0]}}
    assert load("csv", folder, args=mapped)["target"].tolist() == [1, 0, 0, 0]
    for mark in ("1,1,0", "0,0,0", ",,"):
        write(
            tmp_path, "cohort.csv", f"image,patient,{header}\nI0.jpg,P1,0,1,0\nI1.jpg,P1,{mark}\n"
        )
        with pytest.raises(InputError, match="row 3: exactly one class must be 1"):
            load("csv", folder)


def test_one_hot_columns_against_the_target_are_refused(tmp_path: Path) -> None:
    rows = [f"{n}.jpg,P1,{i % 2},{i % 2},0" for i, n in enumerate(NAMES)]
    rows[0] = "I0.jpg,P1,0,1,0"
    folder = cohort(tmp_path, "image,patient,NV,MEL,target", *rows)
    with pytest.raises(InputError, match="exactly one class must be 1"):
        load("csv", folder)
    rows = [f"{n}.jpg,P1,{i % 2},{1 - i % 2},0" for i, n in enumerate(NAMES)]
    folder = cohort(tmp_path, "image,patient,NV,MEL,target", *rows)
    with pytest.raises(InputError, match="2 rows whose target contradicts their diagnosis"):
        load("csv", folder)


@pytest.mark.parametrize("label", ["target", "malignant"])
@pytest.mark.parametrize("other", ["akiec", "bcc"])
def test_a_target_next_to_one_hot_columns_is_read(tmp_path: Path, label: str, other: str) -> None:
    marks = ["1,1,0,0", "0,0,1,0", "1,0,0,1", "0,0,1,0"]
    rows = [f"{name}.jpg,{mark}" for name, mark in zip(NAMES, marks, strict=True)]
    folder = cohort(tmp_path, f"image,{label},melanoma,nevus,{other}", *rows)
    table = load_table("csv", folder)
    assert table.rows["target"].tolist() == [1, 0, 1, 0]
    assert table.rows["diagnosis"].tolist() == ["mel", "nv", other, "nv"]
    # The vocabulary counts both classes as malignant: a 0 can only come from the column.
    rows[2] = "I2.jpg,0,0,0,1"
    folder = cohort(tmp_path, f"image,{label},melanoma,nevus,{other}", *rows)
    if other == "akiec":
        assert load("csv", folder)["target"].tolist() == [1, 0, 0, 0]
    else:
        with pytest.raises(InputError, match=r"1 rows whose target contradicts .* I2: target 0"):
            load("csv", folder)


def test_one_hot_rows_of_an_unknown_class_have_no_label(tmp_path: Path) -> None:
    rows = [
        f"{n}.jpg,{m}" for n, m in zip(NAMES, ["1,0,0", "0,1,0", "0,0,1", "0,1,0"], strict=True)
    ]
    folder = cohort(tmp_path, "image,melanoma,nevus,unknown", *rows)
    with pytest.raises(InputError, match=r"the target is empty or unknown in 1 row, e\.g\. I2"):
        load("csv", folder)


def test_unknown_sites_are_counted_and_listed(tmp_path: Path) -> None:
    words = ["moon", "hands", "moon", "mars"]
    rows = [f"{n}.jpg,P1,{w},{i % 2}" for i, (n, w) in enumerate(zip(NAMES, words, strict=True))]
    folder = cohort(tmp_path, "image,patient,location,target", *rows)
    with pytest.raises(
        InputError, match=r"site 'moon' .*\(3 such rows: 'moon' \(2\), 'mars' \(1\)\)"
    ):
        load("csv", folder)


def test_unknown_words_of_headers_are_counted_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cohort(
        tmp_path, "image,patient,target", *[f"{n},P1,{i % 2}" for i, n in enumerate(NAMES)]
    )
    for name, site in zip(NAMES, ("MOON", "HAND", "MOON", ""), strict=True):
        (folder / "images" / f"{name}.jpg").unlink()
        data = dicom_from_jpeg(picture(), BodyPartExamined=site, PatientSex="O")
        (folder / "images" / f"{name}.dcm").write_bytes(data)
    assert load("csv", folder)["site"].tolist() == [None, "upper extremity", None, None]
    assert capsys.readouterr().err.splitlines() == [
        "WARNING: DICOM headers: sex: 4 unknown values treated as missing: 'O' (4)",
        "WARNING: DICOM headers: site: 2 unknown values treated as missing: 'MOON' (2)",
    ]


def test_spellings_of_a_class_are_one_class(tmp_path: Path) -> None:
    words = ["melanoma", "nevus", "Nevus", "NV"]
    rows = [f"{n}.jpg,P1,{word}" for n, word in zip(NAMES, words, strict=True)]
    table = load("csv", cohort(tmp_path, "image,patient,diagnosis", *rows), target="diagnosis")
    assert table["target"].nunique() == 2


def test_a_target_against_the_diagnosis_is_refused(tmp_path: Path) -> None:
    words = ["melanoma,0", "nevus,1", "nevus,0", "melanoma,1"]
    rows = [f"{n}.jpg,P1,{word}" for n, word in zip(NAMES, words, strict=True)]
    folder = cohort(tmp_path, "image,patient,diagnosis,target", *rows)
    with pytest.raises(InputError, match=r"2 rows.*target contradicts.*I0.*melanoma"):
        load("csv", folder)


def test_one_number_is_one_patient(tmp_path: Path) -> None:
    ids = ["100", "100.0", "7", "7.0"]
    rows = [f"{n}.jpg,{c},{i % 2}" for i, (n, c) in enumerate(zip(NAMES, ids, strict=True))]
    table = load("csv", cohort(tmp_path, "image,patient,target", *rows))
    assert table["patient_id"].nunique() == 2


def test_invisible_characters_make_no_other_patient_or_column(tmp_path: Path) -> None:
    ids = [
        "P1",
        "P1\N{ZERO WIDTH SPACE}",
        "\N{ZERO WIDTH NO-BREAK SPACE}P1",
        "P1\N{NO-BREAK SPACE}",
    ]
    rows = [f"{n}.jpg,{c},{i % 2}" for i, (n, c) in enumerate(zip(NAMES, ids, strict=True))]
    folder = cohort(
        tmp_path, "image,patient\N{ZERO WIDTH SPACE}_id,target\N{NO-BREAK SPACE}", *rows
    )
    assert load("csv", folder)["patient_id"].tolist() == ["P1"] * 4


def test_jpeg_and_dicom_of_one_table_are_found(tmp_path: Path) -> None:
    rows = [f"{name},P1,{number % 2}" for number, name in enumerate(NAMES)]
    folder = cohort(tmp_path, "image,patient,target", *rows)
    (folder / "images" / "I3.jpg").unlink()
    (folder / "images" / "I3.dcm").write_bytes(dicom_from_jpeg(picture()))
    table = load("csv", folder)
    assert [Path(path).suffix for path in table["path"]] == [".jpg"] * 3 + [".dcm"]


def test_litter_of_file_managers_is_skipped(tmp_path: Path) -> None:
    for name in ("benign", "malignant", "__MACOSX/benign", "benign/.ipynb_checkpoints"):
        write_images(tmp_path / name, [f"{name[:1]}{number}" for number in range(3)])
    (tmp_path / "benign" / "._b0.jpg").write_bytes(b"resource fork")
    (tmp_path / "benign" / "Thumbs.db").write_bytes(b"thumbnails")
    table = load("image_folder", tmp_path, positive=["malignant"])
    assert sorted(table["diagnosis"].unique()) == ["benign", "malignant"]
    assert len(table) == 6


def test_pictures_of_other_formats_are_named_in_training_and_rows_in_prediction(
    tmp_path: Path,
) -> None:
    for name in ("benign", "malignant"):
        write_images(tmp_path / name, ["a", "b"])
    Image.new("RGB", (8, 8)).save(tmp_path / "benign" / "c.webp")
    (tmp_path / "benign" / "d.avif").write_bytes(b"not read")
    write_images(tmp_path / "__MACOSX", ["e"])
    (tmp_path / "benign" / "._a.jpg").write_bytes(b"resource fork")
    table = load_table("image_folder", tmp_path, positive=["malignant"])
    assert len(table.rows) == 5
    assert table.notes[0].startswith("1 pictures of formats that cannot be read (d.avif)")
    (listed,) = read_input(str(tmp_path), 100)
    names = [*(f"benign/{name}" for name in ("a.jpg", "b.jpg", "c.webp", "d.avif"))]
    assert listed["image"].tolist() == [*names, "malignant/a.jpg", "malignant/b.jpg"]


def test_prediction_knows_the_same_columns(tmp_path: Path) -> None:
    header = "Image_ID,PatientID,Age,Gender,Body Site,Target"
    folder = cohort(tmp_path, header, *four("P1,50,male,torso"))
    (table,) = read_input(str(folder / "cohort.csv"), 100)
    names = {*match_columns(table.columns).values()}
    assert names == {"image_id", "patient_id", "age", "sex", "site", "target"}


def test_an_exact_column_name_wins(tmp_path: Path) -> None:
    folder = cohort(tmp_path, "image,patient,years,Age,target", *four("P1,30,2"))
    table = load("csv", folder, args={"columns": {"age": "years"}})
    assert table["age"].tolist() == [30.0] * 4


def test_classes_that_differ_in_punctuation_alone_stay_apart(tmp_path: Path) -> None:
    words = ["grade 1-2", "grade 12", "grade 1-2", "grade 12"]
    rows = [f"{n}.jpg,P1,{word}" for n, word in zip(NAMES, words, strict=True)]
    table = load("csv", cohort(tmp_path, "image,patient,diagnosis", *rows), target="diagnosis")
    assert table["target"].tolist() == words


@pytest.mark.parametrize("cell", ["I0.JPG", "images/I0", "images/I0.jpg"])
def test_case_and_a_missing_suffix_do_not_matter(tmp_path: Path, cell: str) -> None:
    rows = [f"{cell},P1,0", "I1.jpg,P1,1"]
    table = load("csv", cohort(tmp_path, "image,patient,target", *rows))
    assert table["path"].notna().all()
