"""What is particular to each public dataset."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom
from miniature_cohorts import (
    ham10000,
    image_folder,
    isic_2017,
    isic_2018,
    isic_2019,
    isic_2024,
    load,
    pad_ufes_20,
    picture,
    siim_isic,
    write,
    write_images,
    write_records,
)

from skinmm.config import DataConfig, ExtraCohort
from skinmm.data.cohorts import list_classes, list_positive_classes, load_cohort, require_masks
from skinmm.errors import InputError
from skinmm.images.source import read_source
from skinmm.images.tfrecord import write_tfrecord
from skinmm.vocabulary import CLASSES

GREY = np.arange(4, dtype=np.uint8).reshape(2, 2)


def test_siim_reads_its_companions(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    table = load("siim_isic", tmp_path).set_index("image_id")
    assert table["target"].tolist() == [0, 1, 0, 0]
    assert table["diagnosis"].tolist() == ["unknown", "mel", "nv", "bkl"]
    assert table["lesion_id"].tolist()[0::3] == ["L0", "L3"]
    assert table["width"].tolist() == [6000, 6000, 1872, 640]
    assert table.loc["I2", "duplicate_of"] == "I0"


def test_siim_options(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    dropped = load("siim_isic", tmp_path, args={"duplicates": "drop"})
    assert dropped["image_id"].tolist() == ["I0", "I1", "I3"]
    public = load("siim_isic", tmp_path, args={"folds": "public"})
    assert public["public_fold"].tolist() == [0, 0, 4]


def test_siim_needs_train_csv_alone(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    for name in (
        "ISIC_2020_Training_Duplicates",
        "ISIC_2020_Training_GroundTruth_v2",
        "image_size",
    ):
        (tmp_path / f"{name}.csv").unlink()
    table = load("siim_isic", tmp_path)
    assert len(table) == 4
    assert table[["lesion_id", "width", "height"]].isna().all(axis=None)
    with pytest.raises(InputError, match=r"folds=public: .*image_size.csv is missing"):
        load("siim_isic", tmp_path, args={"folds": "public"})


def test_siim_from_tfrecords(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    write_records(tmp_path / "train00-4.tfrec", ["I3", "I2", "I1", "I0"])
    table = load("siim_isic", tmp_path, format="tfrecord")
    assert table["path"].tolist() == [f"{tmp_path}/train00-4.tfrec#I{n}" for n in range(4)]
    assert read_source(table["path"][0]).data == picture(3)


def test_siim_from_tfrecords_alone(tmp_path: Path) -> None:
    write_records(
        tmp_path / "train00-2.tfrec",
        ["I0", "I1"],
        patient_id=([7, 8], "int"),
        sex=([1, 0], "int"),
        age_approx=([45, 50], "int"),
        anatom_site_general_challenge=([3, -1], "int"),
        diagnosis=([0, 2], "int"),
        target=([0, 1], "int"),
    )
    table = load("siim_isic", tmp_path)
    assert table["sex"].tolist() == ["female", "male"]
    assert table["age"].tolist() == [45, 50]
    assert table["site"].tolist() == ["torso", None]
    assert table["diagnosis"].tolist() == ["unknown", "mel"]
    assert table["target"].tolist() == [0, 1]


def test_dicom_headers_fill_what_the_table_lacks(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    for number in range(4):
        patient = {"PatientAge": "070Y", "PatientSex": "F", "PatientID": f"X{number}"}
        (tmp_path / "train").mkdir(exist_ok=True)
        header = dicom(GREY, **patient, BodyPartExamined="TORSO")
        (tmp_path / "train" / f"I{number}.dcm").write_bytes(header)
    table = load("siim_isic", tmp_path, format="dicom")
    assert table["age"].tolist() == [45, 45, 70, 50]
    assert table["sex"].tolist() == ["male", "male", "female", "female"]
    assert table["site"].tolist() == ["head/neck", "torso", "torso", "lower extremity"]
    assert table["patient_id"].tolist() == ["P0", "P0", "P1", "P2"]
    table = load("siim_isic", tmp_path)
    assert table["path"].str.endswith(".jpg").all()
    assert table["age"].isna().sum() == 1


def test_headers_are_read_of_every_dicom_file_and_of_nothing_else(tmp_path: Path) -> None:
    """An archive's own names have no suffix, frames are named behind the path."""
    cells = ["a/1.2.840.1", "a/b.dcm#frame=2", "a/c.jpg", "a/1.2.840.4"]
    frames = np.zeros((4, 2, 3), np.uint8)
    header = {"PatientAge": "041Y", "PatientSex": "M", "PatientID": "X"}
    several = {"NumberOfFrames": 2, "Rows": 2, "Columns": 2}
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.2.840.1").write_bytes(dicom(GREY, **header))
    (tmp_path / "a" / "b.dcm").write_bytes(dicom(frames, **several, **header))
    for name in ("c.jpg", "1.2.840.4"):
        (tmp_path / "a" / name).write_bytes(picture())
    rows = "\n".join(f"{cell},{number % 2}" for number, cell in enumerate(cells))
    write(tmp_path, "cohort.csv", f"image,target\n{rows}\n")
    table = load("csv", tmp_path)
    assert table["path"].tolist() == [f"{tmp_path}/{cell}" for cell in cells]
    assert table["age"].fillna(0).tolist() == [41, 41, 0, 0]
    assert table["patient_id"].tolist() == ["X", "X", "c", "1.2.840.4"]
    assert read_source(table["path"][1]).frame == 2


def test_a_frame_is_named_behind_an_image_s_name(tmp_path: Path) -> None:
    frames = np.zeros((4, 2, 3), np.uint8)
    several = dicom(frames, NumberOfFrames=2, Rows=2, Columns=2)
    (tmp_path / "two.dcm").write_bytes(several)
    write(tmp_path, "cohort.csv", "image,target\ntwo.dcm#frame=1,0\ntwo#frame=2,1\n")
    table = load("csv", tmp_path)
    assert table["image_id"].tolist() == ["two#frame=1", "two#frame=2"]
    assert table["path"].tolist() == [f"{tmp_path}/two.dcm#frame={frame}" for frame in (1, 2)]


def test_a_damaged_dicom_is_named(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "I2.dcm").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"image I2 \(.*I2.dcm\): "):
        load("siim_isic", tmp_path, format="dicom")


def test_public_folds_are_the_numbers_of_the_public_tfrecords(tmp_path: Path) -> None:
    siim_isic(tmp_path)
    (tmp_path / "image_size.csv").unlink()
    (tmp_path / "tfrecords").mkdir()
    write_records(tmp_path / "tfrecords" / "train00-2.tfrec", ["I1", "I0"])
    write_records(tmp_path / "tfrecords" / "train14-1.tfrec", ["I3"])
    public = {"args": {"folds": "public"}, "format": "tfrecord"}
    table = load("siim_isic", tmp_path, **public)
    assert table["image_id"].tolist() == ["I0", "I1", "I3"]
    assert table["public_fold"].tolist() == [0, 0, 14]
    with pytest.raises(InputError, match=r"not in files named train00-COUNT.tfrec"):
        load("siim_isic", tmp_path, args={"folds": "public"}, format="jpeg")


FOREIGN = [
    {"encoded": picture(1), "id": "a b", "jahre": 40, "m/w": 0, "grade": 0},
    {"encoded": picture(2), "id": "c#d", "jahre": -1, "m/w": 1, "grade": 1},
]
MAPPING = {
    "image": "encoded",
    "name": "id",
    "columns": {"age": "jahre", "sex": "m/w", "diagnosis": "grade"},
    "codes": {"sex": ["male", "female"], "diagnosis": ["nevus", "melanoma"]},
    "missing": {"age": [-1]},
}


def test_tfrecords_of_another_schema_are_mapped(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "tfrecords.tfrecord", FOREIGN)
    table = load("tfrecord", tmp_path, args=MAPPING, target="diagnosis")
    assert table["image_id"].tolist() == ["a b", "c#d"]
    assert table["age"].fillna(0).tolist() == [40, 0]
    assert table["sex"].tolist() == ["male", "female"]
    assert table["target"].tolist() == ["nevus", "melanoma"]
    assert [read_source(path).data for path in table["path"]] == [picture(1), picture(2)]


def test_a_table_beside_tfrecords_of_another_schema(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "x.tfrec", FOREIGN)
    write(tmp_path, "cohort.csv", "image,target\nc#d,1\na b,0\n")
    args = {"tfrecord": {"image": "encoded", "name": "id"}}
    table = load("csv", tmp_path, args=args)
    assert [read_source(path).data for path in table["path"]] == [picture(2), picture(1)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"image": "pixels"}, "feature 'pixels' is missing"),
        ({"columns": {"age": "years"}}, r"no feature 'years'; .* has grade, image_name, jahre"),
        ({"codes": {"site": ["torso"]}}, "no feature 'site'"),
        ({"codes": {"sex": "male"}}, r"codes.sex=male: must be a list, as in sex: \[male"),
        ({"missing": {"age": ["x"]}}, r"missing.age=\['x'\]: must be a list"),
        ({"columns": "age"}, "columns=age: must be pairs, such as {age: patient_age}"),
        ({"columns": {"sex": "m/w"}}, r"sex is coded \(0, 1\); .*codes.sex=\[male,female\]"),
        ({"files": "test*"}, r"no TFRecord file named test\* in it or in tfrecords/"),
    ],
)
def test_a_mapping_that_does_not_fit_is_named(
    tmp_path: Path, args: dict[str, Any], message: str
) -> None:
    write_tfrecord(tmp_path / "x.tfrec", FOREIGN)
    with pytest.raises(InputError, match=message):
        load("tfrecord", tmp_path, args={"image": "encoded", "name": "id"} | args)


def test_isic_2017_parts(tmp_path: Path) -> None:
    isic_2017(tmp_path)
    table = load("isic_2017", tmp_path)
    assert table["diagnosis"].tolist() == ["mel", "bkl", "nv"]
    assert table["age"].tolist()[0] == 55
    assert table["sex"].tolist() == ["female", None, None]
    public = load("isic_2017", tmp_path, args={"folds": "public"})
    assert public["part"].tolist() == [None, None, None, "test"]
    assert public["path"].notna().all()


def test_isic_2018_groups_lesions(tmp_path: Path) -> None:
    isic_2018(tmp_path)
    table = load("isic_2018", tmp_path)
    assert table["patient_id"].tolist() == ["H0", "H0", "I2", "I3"]
    assert table["diagnosis"].tolist() == ["mel", "nv", "akiec", "vasc"]
    with pytest.raises(InputError, match=r"Validation_GroundTruth.csv: no such file"):
        load("isic_2018", tmp_path, args={"folds": "public"})


def test_isic_2018_task_1_is_images_with_masks(tmp_path: Path) -> None:
    for part, names in (("Training", ["I0", "I1"]), ("Validation", ["I2"]), ("Test", ["I3"])):
        write_images(tmp_path / f"ISIC2018_Task1-2_{part}_Input", names)
        drawn = [f"{name}_segmentation" for name in names]
        write_images(tmp_path / f"ISIC2018_Task1_{part}_GroundTruth", drawn, ".png")
    data = DataConfig(name="isic_2018", root=str(tmp_path), args={"task": 1, "folds": "public"})
    table = require_masks(load_cohort(data, labelled=False).rows, data)
    assert table["image_id"].tolist() == ["I0", "I1", "I2", "I3"]
    assert table["part"].tolist() == [None, None, "val", "test"]
    assert all(Path(mask).stem == f"{name}_segmentation" for name, mask in
               zip(table["image_id"], table["mask"], strict=True))  # fmt: skip
    assert set(table["target"]) == {0}
    with pytest.raises(InputError, match="the target is empty or unknown in 4 rows"):
        load_cohort(data)
    with pytest.raises(InputError, match="task=2: choose from 1, 3"):
        load("isic_2018", tmp_path, args={"task": 2})


def test_masks_may_be_missing_or_elsewhere(tmp_path: Path) -> None:
    root, drawn = tmp_path / "cohort", tmp_path / "drawn"
    write_images(root / "nevi", ["a", "b"])
    write_images(drawn, ["a"], ".png")
    (root / "masks").mkdir()
    data = DataConfig(name="image_folder", root=str(root), masks=str(drawn))
    table = load_cohort(data, labelled=False).rows
    with pytest.raises(InputError, match=r"1 of 2 images have no mask .* e.g. b;"):
        require_masks(table, data)
    assert require_masks(table, replace(data, missing="drop"))["image_id"].tolist() == ["a"]
    with pytest.raises(InputError, match=r"set data\.masks=DIR"):
        require_masks(table, replace(data, masks=None, missing="drop"))


def test_two_masks_of_an_image_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "nevi", ["a", "b"])
    write_images(tmp_path / "masks", ["a", "b", "a_segmentation"], ".png")
    data = DataConfig(name="image_folder", root=str(tmp_path))
    with pytest.raises(InputError, match=r"a has two masks, .*a\.png and .*a_segmentation\.png"):
        require_masks(load_cohort(data, labelled=False).rows, data)


def test_a_ground_truth_row_without_class_is_named(tmp_path: Path) -> None:
    isic_2018(tmp_path)
    name = "ISIC2018_Task3_Training_GroundTruth"
    write(tmp_path, f"{name}/{name}.csv", "image,MEL,NV\nI0,1.0,0.0\nI1,0.0,0.0\n")
    with pytest.raises(InputError, match=r"GroundTruth.csv: row 3: exactly one class"):
        load("isic_2018", tmp_path)


def test_isic_2019_links_downsampled_images(tmp_path: Path) -> None:
    isic_2019(tmp_path)
    table = load("isic_2019", tmp_path)
    expected = ["mel", "nv", "bcc", "akiec", "bkl", "df", "vasc", "scc", "unknown"]
    assert table["diagnosis"].tolist() == expected
    assert table["duplicate_of"].fillna("none").tolist()[:3] == ["none", "J0", "none"]
    assert table["site"].tolist()[:3] == ["torso", None, "palms/soles"]


def test_the_nine_diagnoses_of_2019_and_2020(tmp_path: Path) -> None:
    siim_isic(tmp_path / "a")
    isic_2019(tmp_path / "b")
    data = DataConfig(
        name="siim_isic",
        root=str(tmp_path / "a"),
        target="diagnosis",
        extra=[ExtraCohort(name="isic_2019", root=str(tmp_path / "b"))],
    )
    table = load_cohort(data).rows
    assert list_classes(table, data) == CLASSES
    assert list_positive_classes(CLASSES, data) == ("akiec", "bcc", "mel", "scc")
    extra = table["cohort"] == "isic_2019"
    assert (table["part"][extra] == "train").all()
    assert table["part"][~extra].isna().all()


def test_ham10000_is_in_isic_2019_and_is_not_added_again(tmp_path: Path) -> None:
    ham10000(tmp_path / "a")
    isic_2019(tmp_path / "b")
    truth = tmp_path / "b" / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text(truth.read_text().replace("J2,", "I2,").replace("J3,", "I3,"))
    extra = [ExtraCohort(name="isic_2019", root=str(tmp_path / "b"))]
    table = load("ham10000", tmp_path / "a", extra=extra)
    assert table["image_id"].is_unique
    assert table.groupby("cohort").size().to_dict() == {"ham10000": 4, "isic_2019": 7}


def test_isic_2024_measurements_are_declared_columns(tmp_path: Path) -> None:
    isic_2024(tmp_path)
    table = load("isic_2024", tmp_path, columns=["age", "clin_size_long_diam_mm"])
    assert table["clin_size_long_diam_mm"].tolist() == [3.04, 1.10, 3.40]
    assert table["diagnosis"].tolist() == ["unknown", "mel", "bcc"]
    for name in ("mel_thick_mm", "iddx_full"):
        with pytest.raises(InputError, match=f"'{name}' cannot be an input"):
            load("isic_2024", tmp_path, columns=[name])


def test_pad_ufes_clinical_features(tmp_path: Path) -> None:
    pad_ufes_20(tmp_path)
    table = load("pad_ufes_20", tmp_path, columns=["age", "itch", "diameter_1", "smoke"])
    assert table["itch"].tolist() == ["FALSE", "TRUE", None]
    assert table["diameter_1"].dtype.kind == "f"
    assert table["lesion_id"].tolist() == ["PAD_1765", "PAD_881", "PAD_882"]
    assert table["site"].tolist() == ["upper extremity", "head/neck", "head/neck"]
    with pytest.raises(InputError, match="'biopsed' cannot be an input: it is known only after"):
        load("pad_ufes_20", tmp_path, columns=["biopsed"])


def test_extra_cohorts_use_the_names_of_the_first(tmp_path: Path) -> None:
    image_folder(tmp_path / "a")
    ham10000(tmp_path / "b")
    extra = [ExtraCohort(name="ham10000", root=str(tmp_path / "b"))]
    table = load("image_folder", tmp_path / "a", target="diagnosis", extra=extra)
    assert set(table["target"]) == {"melanoma", "nevus", "akiec", "bkl"}


def test_an_extra_cohort_is_told_from_the_first_by_its_name(tmp_path: Path) -> None:
    """The shares of classes in use are those of the first, even where an adapter reads both."""
    for number, name in enumerate("abc"):
        write(tmp_path, f"{name}/cohort.csv", f"image,target\nI{number},0\nJ{number},1\n")
    extra = [ExtraCohort(name="csv", root=str(tmp_path / name)) for name in "bc"]
    table = load("csv", tmp_path / "a", extra=extra)
    assert table["cohort"].tolist() == ["csv"] * 2 + ["csv (2)"] * 2 + ["csv (3)"] * 2
    assert table["source"].tolist() == table["cohort"].tolist()


def test_the_same_images_again_add_nothing(tmp_path: Path) -> None:
    ham10000(tmp_path)
    extra = [ExtraCohort(name="ham10000", root=str(tmp_path))]
    table = load("ham10000", tmp_path, extra=extra)
    assert len(table) == 4
