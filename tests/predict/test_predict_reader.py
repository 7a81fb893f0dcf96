"""Patient tables and image folders: what is accepted, what is named, what stays unchanged."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinmm.data.record import RecordEncoder
from skinmm.errors import InputError
from skinmm.predict.ensemble import Ensemble
from skinmm.predict.inputs import ImageFolder, describe_missing_columns, read_input
from skinmm.predict.pipeline import TableBatch, _refuse_cells
from skinmm.vocabulary import resolve_patients


@pytest.mark.parametrize("name", ["image_name", "image_id", "image", "path"])
@pytest.mark.parametrize(
    ("age", "site"),
    [
        ("age", "site"),
        ("age_approx", "anatom_site_general_challenge"),
        ("age_approx", "anatom_site_general"),
        ("age", "localization"),
    ],
)
def test_the_usual_column_names_are_understood(name: str, age: str, site: str) -> None:
    table = pd.DataFrame({name: [" A.jpg "], age: ["55"], "sex": ["M"], site: ["Torso"]})
    patients = TableBatch(table, ["age", "sex", "site"], needs_image=True)
    row = {column: cells[0] for column, cells in patients.cells.items()}
    assert (row["image_id"], row["age"], row["sex"], row["site"]) == (
        " A.jpg ",
        55.0,
        "male",
        "torso",
    )
    assert patients.unread == []


@pytest.mark.parametrize("name", ["target", "Target ", "malignant", "Melanoma", "diagnosis", "dx"])
def test_targets_are_copied_under_every_name_that_training_reads(name: str) -> None:
    table = pd.DataFrame({"image": ["a", "b", "c"], name: [" 1", "", 0]})
    batch = TableBatch(table, [], needs_image=True)
    assert batch.target is not None
    assert batch.target.tolist() == ["1", None, 0]


@pytest.mark.parametrize(
    ("classes", "columns", "target"),
    [
        (["nevus", "BCC"], [], None),
        (["seborrheic_keratosis", "unknown"], [], None),
        (["nevus", "bcc"], ["bcc"], [1, 0]),  # an input of the model is not a class
        (["seborrheic_keratosis"], [], [1, 0]),
        (["bcc", "malignant"], [], [0, 1]),
    ],
)
def test_melanoma_among_malignant_classes_is_not_the_target(
    classes: list[str], columns: list[str], target: list[int] | None
) -> None:
    table = pd.DataFrame(
        {"image": ["a", "b"], "melanoma": [1, 0]} | {name: [0, 1] for name in classes}
    )
    batch = TableBatch(table, columns, needs_image=True)
    assert (None if batch.target is None else batch.target.tolist()) == target


@pytest.mark.parametrize("is_reversed", [False, True])
def test_every_member_refuses_its_ambiguous_numbers(is_reversed: bool) -> None:
    encoders = [
        RecordEncoder.fit(pd.DataFrame({"size": sizes}), ["size"])
        for sizes in (["small", "large"], [1.0, 2.0])
    ]
    members: Any = [SimpleNamespace(encoder=encoder, columns=["size"]) for encoder in encoders]
    ensemble = Ensemble.__new__(Ensemble)  # without networks, which this does not run
    ensemble.columns, ensemble.members = ["size"], members[:: 1 - 2 * is_reversed]
    table = pd.DataFrame({"size": ["1,033", "1,5", "small"]})
    batch = TableBatch(table, ["size"], needs_image=False)
    _refuse_cells(batch, ensemble)
    assert [error[:30] for error in batch.errors] == ["column 'size': '1,033' can mea", "", ""]
    assert batch.cells["size"].tolist() == [None, "1,5", "small"]


def test_columns_under_names_that_nobody_knows_are_told() -> None:
    german = ["image", "Zahl", "Wuchs", "age_approx", "itch"]
    assert describe_missing_columns([*german, "patient"], ["age", "itch"]) == ""
    assert describe_missing_columns(["image", "Age", "ITCH"], ["age", "itch"]) == ""
    assert describe_missing_columns([*german, "fold"], ["age", "itch"]) == (
        "no column patient_id or lesion_id; columns not used: Zahl, Wuchs, fold (looks like "
        "a split)"
    )
    assert describe_missing_columns(german, ["age", "sex", "grew"]) == (
        "no column for sex (e.g. sex, gender, patient_sex), grew: missing, unless DICOM headers "
        "have it; columns not used: Zahl, Wuchs, itch"
    )
    many = [f"c{n}" for n in range(12)]
    assert describe_missing_columns(many, ["sex"]).endswith(f"not used: {', '.join(many)}")
    assert describe_missing_columns(["image", "target"], ["sex"]).endswith("DICOM headers have it")


def test_names_that_init_infers_are_known_to_prediction() -> None:
    table = pd.DataFrame({"Photo": ["A.jpg"], "Years": ["55"], "Geschlecht": ["f"], "MRN": ["7"]})
    cells = TableBatch(table, ["age", "sex"], needs_image=True).cells
    expected = {
        "image_id": "A.jpg",
        "patient_id": "7",
        "lesion_id": None,
        "age": 55,
        "sex": "female",
    }
    assert {name: value[0] for name, value in cells.items()} == expected


def test_unknown_values_become_missing_and_are_counted() -> None:
    table = pd.DataFrame(
        {
            "image": ["a", "b", "c", "d"],
            "sex": ["divers", "female", "", "x"],
            "age": ["old", "-3", "40", ""],
        }
    )
    patients = TableBatch(table, ["age", "sex", "site"], needs_image=True)
    assert sorted(patients.unread) == [
        *(("age", "-3"), ("age", "old"), ("sex", "divers"), ("sex", "x")),
    ]
    assert patients.cells["sex"].tolist() == [None, "female", None, None]
    assert np.isnan(patients.cells["age"]).tolist() == [True, True, False, True]
    assert patients.cells["site"].tolist() == [None] * 4


def test_a_list_in_a_cell_counts_as_not_known() -> None:
    table = pd.DataFrame({"image": ["a", ["b"]], "age": [[5], 50], "itch": [{"no": 1}, "True"]})
    found = TableBatch(table, ["age", "itch"], needs_image=True)
    assert found.cells["image_id"].tolist() == ["a", "['b']"]
    np.testing.assert_array_equal(found.cells["age"].astype(float), [np.nan, 50])
    assert found.cells["itch"].tolist() == ["{'no': 1}", "True"]
    assert found.unread == [("age", "[5]")]


def test_numbers_that_name_something_have_no_decimals(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    names = {"image": [1.0, 2.0, None], "patient_id": [100.0, None, 7.0], "lesion_id": [1, 2, 3]}
    pd.DataFrame(names).to_parquet(tmp_path / "in.parquet")
    (table,) = read_input(str(tmp_path / "in.parquet"), 9)
    cells = TableBatch(table, [], needs_image=True).cells
    assert cells["image_id"].tolist() == ["1", "2", ""]
    assert cells["patient_id"].tolist() == ["100", None, "7"]
    assert cells["lesion_id"].tolist() == ["1", "2", "3"]


def test_a_table_without_images_is_refused_only_where_they_are_needed() -> None:
    table = pd.DataFrame({"sex": ["male"]})
    with pytest.raises(
        InputError, match=r"no image column; rename it to image_name.*\(it has: sex\)"
    ):
        TableBatch(table, ["sex"], needs_image=True)
    assert TableBatch(table, ["sex"], needs_image=False).cells["image_id"].tolist() == [""]


def test_who_a_row_belongs_to() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["a", "b", "c", "d"],
            "lesion_id": ["l", "m", None, "unknown"],
            "patient_id": ["p", "", None, "-"],
        }
    )
    whole = pd.DataFrame(TableBatch(table, [], needs_image=True).cells)
    assert resolve_patients(whole).tolist() == ["p", "m", "c", "d"]
    images = pd.DataFrame(TableBatch(table[["image_id"]], [], needs_image=True).cells)
    assert resolve_patients(images).tolist() == ["a", "b", "c", "d"]


FILES = ("a.jpg", "b.JPEG", "c.v2.png", "d.dcm", "d.png", "e.jpg.png", "notes.txt")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a", "a.jpg"),
        ("a.jpg", "a.jpg"),
        ("a.dcm", None),
        ("b", "b.JPEG"),
        ("c.v2", "c.v2.png"),
        ("b.jpeg", "b.JPEG"),
        ("c.v2.jpg", None),
        ("d.png", "d.png"),
        ("d.dcm", "d.dcm"),
        ("e.jpg", "e.jpg.png"),
        ("d.dcm#frame=2", "d.dcm#frame=2"),
        ("e.dcm#frame=2", None),
        ("sub/f.jpg", "sub/f.jpg"),
        ("sub/f", "sub/f.jpg"),
        ("sub\\f.jpg", "sub/f.jpg"),
        ("sub/f.png", None),
        ("nowhere/a.jpg", None),
        ("notes.txt", "notes.txt"),
        ("notes", None),
        ("z", None),
        ("sub", None),
        ("", None),
    ],
)
def test_an_image_is_found_with_and_without_its_suffix(
    tmp_path: Path, name: str, found: str | None
) -> None:
    (tmp_path / "sub").mkdir()
    for file in (*FILES, "sub/f.jpg"):
        (tmp_path / file).touch()
    path = ImageFolder(tmp_path).find(name)
    assert path == (None if found is None else f"{tmp_path}/{found}")


def test_a_path_outside_the_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    elsewhere = tmp_path / "x.jpg"
    elsewhere.touch()
    assert ImageFolder(tmp_path / "images").find(str(elsewhere)) == str(elsewhere)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"images=.*nowhere: no such folder"):
        ImageFolder(tmp_path / "nowhere")
