"""The audit: every planted leak is found, a clean split is clean, shortcuts are measured."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from skinmm.config import DataConfig
from skinmm.data.audit import audit
from skinmm.data.cohorts import load_cohort
from skinmm.data.shortcuts import (
    compare_acquisition_groups,
    compute_size_auroc,
    is_malignant,
)
from skinmm.data.splits import split

FOLDER = os.environ.get("SKINMM_DATA", "")
realdata = [
    pytest.mark.realdata,
    pytest.mark.skipif(not FOLDER, reason="SKINMM_DATA does not name the real cohorts"),
]


def cohort(patients: int = 40, images: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    n = patients * images
    table = pd.DataFrame(
        {
            "image_id": [f"image{row}" for row in range(n)],
            "patient_id": [f"patient{row // images}" for row in range(n)],
            "lesion_id": None,
            "duplicate_of": None,
            "source": "made",
            "target": (rng.random(n) < 0.3).astype(np.int64),
            "width": np.nan,
            "height": np.nan,
        }
    )
    return split(table, 5, 0, 0)


@pytest.mark.parametrize("kind", ["patient", "lesion"])
def test_ids_that_differ_in_spelling_alone_are_a_possible_leak(kind: str) -> None:
    table = cohort()
    table["lesion_id"] = [f"lesion{row}" for row in range(len(table))]
    table[f"{kind}_id"] = table[f"{kind}_id"].str.replace("patient|lesion", "Pat 0", regex=True)
    part = table.groupby(f"{kind}_id")["part"].first()
    one, other, same = (part.index[part == name][0] for name in ("train", "test", "train"))
    assert audit(table)["possible_leaks"] == []
    spellings = {other: one.upper().replace(" 0", ""), part.index[part == "train"][1]: same.lower()}
    table[f"{kind}_id"] = table[f"{kind}_id"].replace(spellings)
    findings = audit(table)
    pair = " and ".join(sorted([one, spellings[other]], key=table[f"{kind}_id"].tolist().index))
    assert findings["possible_leaks"] == [
        f"{kind} ids in two parts differ only in case, spaces or leading zeros: 1 pair ({pair}); "
        "use one spelling of each"
    ]
    assert findings["leaks"] == []


def row_of(table: pd.DataFrame, part: str) -> int:
    return int(table.index[table["part"] == part][0])


@given(st.integers(3, 6), st.integers(0, 2), st.integers(0, 20))
@settings(max_examples=15, deadline=None)
def test_a_split_of_ours_has_no_leak(folds: int, fold: int, seed: int) -> None:
    table = cohort()
    report = audit(split(table.drop(columns=["part", "fold"]), folds, fold, seed), columns=["age"])
    assert report["leaks"] == []
    assert report["pairs"] == []
    assert report["across_parts"] == {
        "patient": 0,
        **dict.fromkeys(["lesion", "official duplicate", "near duplicate"]),  # not checked
    }
    assert sum(report["parts"].values()) == report["rows"] == len(table)


def test_a_check_that_was_not_made_is_not_passed() -> None:
    table = cohort().assign(width=256, height=256)
    unchecked = audit(table)["unchecked"]
    assert [text.partition(" (")[0] for text in unchecked] == ["near duplicates"]
    assert "near=true" in unchecked[0]
    near = pd.DataFrame(columns=["first", "second"], dtype=object)
    assert audit(table, near=near)["unchecked"] == []
    assert audit(table, near=near)["across_parts"]["near duplicate"] == 0
    table = table.assign(patient_id=table["image_id"], width=None, height=None)
    report = audit(table, near=near)
    assert report["across_parts"]["patient"] is None
    assert report["named"]["patient"] == report["named"]["size"] == 0
    assert [text.split()[0] for text in report["unchecked"]] == ["patients", "image"]


def test_a_patient_in_two_parts_is_found() -> None:
    table = cohort()
    table.loc[row_of(table, "test"), "part"] = "train"
    report = audit(table)
    assert report["across_parts"]["patient"] == 1
    patient = table["patient_id"][row_of(cohort(), "test")]
    assert report["leaks"] == [f"1 patient ({patient}) in two parts"]


@pytest.mark.parametrize("sides", [("train", "test"), ("train", "val"), ("val", "test")])
def test_a_lesion_in_two_parts_is_found(sides: tuple[str, str]) -> None:
    table = cohort()
    table.loc[[row_of(table, side) for side in sides], "lesion_id"] = "lesion"
    assert audit(table)["leaks"] == ["1 lesion (lesion) in two parts"]


def test_an_official_pair_in_two_parts_is_found() -> None:
    table = cohort()
    first, second = row_of(table, "train"), row_of(table, "test")
    table.loc[second, "duplicate_of"] = table["image_id"][first]
    report = audit(table)
    assert report["duplicates"] == {"official duplicate": 1}
    assert report["pairs"] == [
        {
            "kind": "official duplicate",
            "first": f"image{first}",
            "second": f"image{second}",
            "first_part": "train",
            "second_part": "test",
        }
    ]
    named = f"image{first} and image{second}"
    assert report["leaks"] == [f"1 official duplicate ({named}) in two parts"]


def test_two_duplicates_of_an_absent_original_are_linked() -> None:
    table = cohort()
    rows = [row_of(table, part) for part in ("train", "test")]
    table.loc[rows, "duplicate_of"] = "absent"
    names = " and ".join(sorted(table["image_id"][rows], key=lambda name: int(name[5:])))
    how = "duplicates of the same image, which the table does not list"
    assert audit(table)["leaks"] == [f"1 pair ({names}) in two parts, {how}"]
    table.loc[rows[0], "part"] = "unused"
    table.loc[table["patient_id"] == table["patient_id"][rows[0]], "part"] = "unused"
    assert audit(table)["leaks"] == []


def test_a_chain_through_an_unused_row_is_a_leak() -> None:
    table = cohort()
    first, last = (row_of(table, part) for part in ("train", "test"))
    middle = row_of(table.drop(first), "train")
    table.loc[[middle], "patient_id"] = "alone"
    table.loc[[middle], "part"] = "unused"
    table.loc[first, "lesion_id"] = table.loc[middle, "lesion_id"] = "lesion"
    assert audit(table)["leaks"] == []
    table.loc[[middle], "duplicate_of"] = table["image_id"][last]
    (leak,) = audit(table)["leaks"]
    assert leak.startswith("1 pair (")
    assert leak.endswith(
        "in two parts, linked by patient, lesion or duplicate_of through rows that no part uses"
    )
    others = [row_of(table.drop(table.index[:60]), part) for part in ("train", "test")]
    table.loc[others, "duplicate_of"] = "absent"  # both kinds, each named once
    assert [text.partition(", ")[2].split()[0] for text in audit(table)["leaks"]] == [
        "duplicates",
        "linked",
    ]


def test_up_to_three_pairs_are_named() -> None:
    table = cohort()
    train, test = (table["image_id"][table["part"] == part].iloc[:4] for part in ("train", "test"))
    table["duplicate_of"] = table["image_id"].map(dict(zip(test, train, strict=True)))
    named = ", ".join(
        f"{one} and {other}" for one, other in list(zip(train, test, strict=True))[:3]
    )
    assert audit(table)["leaks"] == [f"4 official duplicates ({named}) in two parts"]


def test_near_duplicates_count_unless_a_link_joins_them() -> None:
    table = cohort()
    first, second = row_of(table, "train"), row_of(table, "test")
    near = pd.DataFrame(
        {
            "first": [f"image{first}", "image0", "image0"],
            "second": [f"image{second}", "image1", "elsewhere"],
        }
    )
    report = audit(table, near=near)
    assert report["duplicates"] == {"near duplicate": 1}  # image0 and image1 share their patient
    named = f"image{first} and image{second}"
    assert report["leaks"] == [f"1 near duplicate ({named}) in two parts"]


def test_unused_rows_do_not_count() -> None:
    table = cohort()
    row = row_of(table, "test")
    table.loc[row, "lesion_id"] = table.loc[row_of(table, "train"), "lesion_id"] = "lesion"
    table.loc[table["patient_id"] == table["patient_id"][row], "part"] = "unused"
    assert audit(table)["leaks"] == []


def test_a_lesion_without_name_joins_nothing() -> None:
    table = cohort().assign(lesion_id=np.nan)
    assert audit(table)["leaks"] == []


def test_columns_that_no_model_may_use_are_leaks() -> None:
    assert audit(cohort(), columns=["age", "width"])["leaks"] == [
        "column width: it describes the camera or the archive, not the patient"
    ]


def test_an_encoder_fitted_on_evaluated_rows_is_a_leak() -> None:
    table = cohort()
    train = table.loc[table["part"] == "train", "image_id"]
    assert audit(table, fitted_on=train.tolist())["leaks"] == []
    evaluated = table.loc[table["part"] != "train", "image_id"]
    (leak,) = audit(table, fitted_on=table["image_id"].tolist())["leaks"]
    assert leak.startswith(
        f"the record encoder was fitted on {len(evaluated)} rows ({evaluated.iloc[0]},"
    )
    assert leak.endswith("outside the training part")


def test_an_encoder_fitted_on_unused_rows_is_a_leak() -> None:
    """Unused rows belong to patients in validation or test."""
    table = cohort()
    table.loc[row_of(table, "train"), "part"] = "unused"
    row = row_of(table, "unused")
    assert audit(table, fitted_on=[f"image{row}"])["leaks"] == [
        f"the record encoder was fitted on 1 row (image{row}) outside the training part"
    ]


def test_the_audit_is_plain_data() -> None:
    table = cohort().assign(width=640.0, height=480.0)
    assert json.loads(json.dumps(audit(table))) == audit(table)


def test_positive_classes_are_malignant() -> None:
    names = pd.DataFrame({"target": ["mel", "nv", "foreign"]})
    assert is_malignant(names, ("nv", "foreign")).tolist() == [False, True, True]
    assert is_malignant(pd.DataFrame({"target": [0, 1]}), ("malignant",)).tolist() == [False, True]


def test_shortcuts_of_classes_are_those_of_the_positive_ones() -> None:
    table = cohort(patients=300)
    table = table.assign(width=np.where(table["target"] == 1, 640.0, 6000.0), height=480.0)
    named = table.assign(target=table["target"].map({0: "plain", 1: "odd"}))
    binary, classes = audit(table), audit(named, positive=["odd"])
    for key in ("size_auroc", "acquisition", "warnings"):
        assert classes[key] == binary[key]


def test_the_size_auroc_finds_a_camera() -> None:
    table = cohort(patients=300)
    small = (table["target"] == 1) ^ (np.random.default_rng(1).random(len(table)) < 0.1)
    table = table.assign(width=np.where(small, 640.0, 6000.0), height=480.0)
    auroc = compute_size_auroc(table)
    assert auroc == pytest.approx(roc_auc_score(table["target"], small), abs=0.03)
    report = audit(table)
    assert report["warnings"][0].startswith(
        f"the size of the image file alone reaches AUROC {auroc:.3f}"
    )
    assert report["leaks"] == []


@pytest.mark.parametrize("constant", [np.nan, 600.0])
def test_no_size_auroc_without_different_sizes(constant: float) -> None:
    table = cohort().assign(width=constant, height=constant)
    assert compute_size_auroc(table) is None
    assert audit(table)["warnings"] == []


def test_acquisition_groups_are_measured_by_membership() -> None:
    table = cohort().assign(width=600.0, height=450.0)
    table.loc[table.index % 2 == 0, "width"] = 1024.0
    table.loc[table.index % 3 == 0, "source"] = "other"
    groups = {group["group"]: group for group in compare_acquisition_groups(table)}
    assert set(groups) == {"600x450", "1024x450", "made", "other"}
    for name, member in (("600x450", table["width"] == 600), ("other", table["source"] == "other")):
        inside = roc_auc_score(table["target"], member)
        assert groups[name]["auroc"] == pytest.approx(max(inside, 1 - inside))
        assert groups[name]["rows"] == member.sum()
        assert groups[name]["malignant"] == table["target"][member].sum()


class TestReal:
    pytestmark = realdata

    def test_siim_is_read_split_and_audited(self) -> None:
        data = DataConfig(name="siim_isic", root=str(Path(FOLDER) / "siim_isic_2020"))
        report = audit(split(load_cohort(data).rows, 5, 0, 0), columns=data.columns)
        assert report["duplicates"] == {"official duplicate": 425}
        assert report["leaks"] == []
        assert report["size_auroc"] == pytest.approx(0.788, abs=0.01)
        largest = report["acquisition"][0]
        assert largest["group"] == "6000x4000"
        assert largest["auroc"] == pytest.approx(0.704, abs=0.001)

    def test_a_split_by_image_leaks_patients_and_pairs(self) -> None:
        data = DataConfig(name="siim_isic", root=str(Path(FOLDER) / "siim_isic_2020"))
        table = load_cohort(data).rows
        sides = np.random.default_rng(0).choice(["train", "val", "test"], len(table))
        report = audit(table.assign(part=sides))
        assert report["across_parts"]["official duplicate"] == pytest.approx(425 * 2 / 3, abs=40)
        assert report["across_parts"]["patient"] > 1900
        assert len(report["pairs"]) == 200
        assert len(report["leaks"]) == 3
