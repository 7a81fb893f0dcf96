"""Class folders, and which classes count as malignant."""

from pathlib import Path

import pytest
from miniature_cohorts import load, write_images

from skinmm.config import DataConfig
from skinmm.data.cohorts import list_classes, list_positive_classes, load_cohort
from skinmm.data.cohorts.targets import select_malignant
from skinmm.data.splits import split
from skinmm.errors import InputError


def fill(root: Path, **folders: int) -> Path:
    """Writes so many pictures to each folder; `__` in a keyword stands for `/`."""
    for folder, count in folders.items():
        path = root / folder.replace("__", "/")
        write_images(path, [f"{path.name}{n}" for n in range(count)])
    return root


def test_folders_are_classes(tmp_path: Path) -> None:
    table = load("image_folder", fill(tmp_path, melanoma=2, nevus=3), target="diagnosis")
    assert table["target"].tolist() == ["melanoma"] * 2 + ["nevus"] * 3
    assert table["image_id"].tolist()[:2] == ["melanoma0", "melanoma1"]
    assert "part" not in table


def test_equal_names_are_distinguished_by_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "benign", ["1", "2"])
    write_images(tmp_path / "malignant", ["1"])
    table = load("image_folder", tmp_path)
    assert table["image_id"].tolist() == ["benign/1", "benign/2", "malignant/1"]
    assert table["target"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "VALID", "Testing")])
def test_part_folders_are_kept(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name, count in zip(names, (6, 3, 4), strict=True):
        write_images(tmp_path / name / "benign", [f"{name}{n}" for n in range(count)])
        write_images(tmp_path / name / "malignant", [f"{name}m{n}" for n in range(count)])
    table = load("image_folder", tmp_path)
    assert split(table, 5, 0, 0)["part"].value_counts().to_dict() == {
        "train": 12,
        "test": 8,
        "val": 6,
    }


def test_validation_is_taken_from_training_where_there_is_none(tmp_path: Path) -> None:
    fill(tmp_path, train__benign=10, train__malignant=10, test__benign=4, test__malignant=4)
    for name in ("benign", "malignant"):
        for file in (tmp_path / "test" / name).iterdir():
            file.rename(file.with_stem(f"test_{file.stem}"))
    table = load("image_folder", tmp_path)
    part = split(table, 5, 3, 0)["part"]
    assert part.value_counts().to_dict() == {"train": 16, "test": 8, "val": 4}
    assert (part == "test").tolist() == (table["part"] == "test").tolist()


def test_other_folders_and_files_are_ignored(tmp_path: Path) -> None:
    fill(tmp_path, benign=1, malignant=1)
    (tmp_path / ".cache").mkdir()
    (tmp_path / "benign" / "Thumbs.db").write_text("")
    assert len(load("image_folder", tmp_path)) == 2


def test_too_few_classes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"two or more folders, one per class.*it has none"):
        load("image_folder", tmp_path)
    with pytest.raises(InputError, match=r"two or more folders.*it has only 'nevus'"):
        load("image_folder", fill(tmp_path, nevus=2))
    (tmp_path / "melanoma").mkdir()
    with pytest.raises(InputError, match=r"melanoma: no image in this class folder"):
        load("image_folder", tmp_path)


def test_positive_folders_make_a_binary_target(tmp_path: Path) -> None:
    fill(tmp_path, good=2, bad=1, worse=1)
    table = load("image_folder", tmp_path, positive=["bad", "worse"])
    assert table.groupby("diagnosis")["target"].first().to_dict() == {
        "bad": 1,
        "good": 0,
        "worse": 1,
    }


def test_unclear_classes_ask_for_positive(tmp_path: Path) -> None:
    fill(tmp_path, melanoma=1, other=1)
    asked = (
        r"cannot determine whether 'other' is malignant: "
        r"set data.positive=\[...\] to some of melanoma, other"
    )
    with pytest.raises(InputError, match=asked):
        load("image_folder", tmp_path)
    with pytest.raises(
        InputError, match=r"data.positive: no class 'melanom'; the classes are melanoma"
    ):
        load("image_folder", tmp_path, positive=["melanom"])
    assert select_malignant(["Melanom", "x"], DataConfig(positive=["melanom"])) == ("Melanom",)
    for name in ("Grade 1", "grade 1"):
        both = ["Grade 1", "grade 1", "nv"]
        assert select_malignant(both, DataConfig(positive=[name])) == (name,)
    with pytest.raises(InputError, match=r"data.positive: none of bcc is among the classes"):
        load("image_folder", tmp_path, positive=["bcc"])


def test_a_table_without_malignant_rows_is_not_asked_which_class_is_malignant() -> None:
    with pytest.raises(InputError, match=r"malignant, all are benign; add malignant rows$"):
        select_malignant(["benign"], DataConfig())
    with pytest.raises(InputError, match=r"no row is malignant, all are bkl, nv.*data.positive"):
        select_malignant(["nv", "bkl"], DataConfig())


def test_classes_come_in_the_order_of_the_vocabulary(tmp_path: Path) -> None:
    fill(tmp_path, zebra=1, nevus=1, melanoma=1, apple=1)
    data = DataConfig(
        name="image_folder", root=str(tmp_path), target="diagnosis", positive=["mel", "zebra"]
    )
    classes = list_classes(load_cohort(data).rows, data)
    assert classes == ("melanoma", "nevus", "apple", "zebra")
    assert list_positive_classes(classes, data) == ("melanoma", "zebra")


def test_binary_classes_do_not_depend_on_the_names(tmp_path: Path) -> None:
    fill(tmp_path, benign=1, malignant=1)
    data = DataConfig(name="image_folder", root=str(tmp_path))
    classes = list_classes(load_cohort(data).rows, data)
    assert classes == ("benign", "malignant")
    assert list_positive_classes(classes, data) == ("malignant",)
