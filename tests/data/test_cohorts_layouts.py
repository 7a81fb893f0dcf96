"""Datasets in the folders and under the names that different archives unpack to."""

from pathlib import Path

import pandas as pd
import pytest
from miniature_cohorts import (
    WRITERS,
    ham10000,
    isic_2019,
    load,
    load_table,
    siim_isic,
    write,
    write_images,
)

from skinmm.config import ExtraCohort
from skinmm.data.cohorts import require_images
from skinmm.errors import InputError

FOLDERS: dict[str, tuple[str, str]] = {
    "siim_isic": ("jpeg", "JPEG"),
    "ham10000": ("HAM10000_images_part_1", "ham10000_images_part_1/ham10000_images_part_1"),
    "isic_2017": ("ISIC-2017_Training_Data", "ISIC-2017_Training_Data/ISIC-2017_Training_Data"),
    "isic_2018": ("ISIC2018_Task3_Training_Input", "isic2018_task3_training_input"),
    "isic_2019": ("ISIC_2019_Training_Input/ISIC_2019_Training_Input", "images/images"),
    "pad_ufes_20": ("images/imgs_part_1", "images/imgs_part_1/imgs_part_1"),
    "csv": ("images", "Images/Images"),
}
TABLES: dict[str, tuple[str, str]] = {
    "siim_isic": ("train.csv", "Train.CSV"),
    "ham10000": ("HAM10000_metadata.csv", "HAM10000_metadata"),
    "isic_2017": (
        "ISIC-2017_Training_Part3_GroundTruth.csv",
        "ISIC-2017_Training_Part3_GroundTruth/ISIC-2017_Training_Part3_GroundTruth.csv",
    ),
    "isic_2018": (
        "ISIC2018_Task3_Training_GroundTruth/ISIC2018_Task3_Training_GroundTruth.csv",
        "isic2018_task3_training_groundtruth.csv",
    ),
    "isic_2019": (
        "ISIC_2019_Training_GroundTruth.csv",
        "ISIC_2019_Training_GroundTruth.csv/ISIC_2019_Training_GroundTruth.csv",
    ),
    "isic_2024": ("train-metadata.csv", "train-metadata.tab"),
    "pad_ufes_20": ("metadata.csv", "Metadata"),
    "csv": ("cohort.csv", "cohort.tab"),
}


def move(root: Path, source: str, target: str) -> None:
    """Move a file or folder, also into a folder of its own name."""
    (root / source).rename(root / "moved")
    (root / target).parent.mkdir(parents=True, exist_ok=True)
    (root / "moved").rename(root / target)


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_found_doubled_and_in_any_letter_case(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    expected = load(name, tmp_path)["image_id"].tolist()
    move(tmp_path, *FOLDERS[name])
    table = load(name, tmp_path)
    assert table["image_id"].tolist() == expected
    assert table["path"].notna().all()


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_found_in_the_folder_and_with_the_suffix_of_an_archive(
    tmp_path: Path, name: str
) -> None:
    WRITERS[name](tmp_path)
    expected = load(name, tmp_path)
    move(tmp_path, *TABLES[name])
    pd.testing.assert_frame_equal(load(name, tmp_path), expected)


def test_the_folder_with_the_very_name_takes_precedence(tmp_path: Path) -> None:
    ham10000(tmp_path)
    write_images(tmp_path / "ham10000_images_part_1", ["I0", "I1"])
    table = load("ham10000", tmp_path)
    assert [Path(path).parent.name for path in table["path"][:2]] == ["HAM10000_images_part_1"] * 2


def test_two_images_of_a_public_dataset_are_refused(tmp_path: Path) -> None:
    ham10000(tmp_path)
    write_images(tmp_path / "images", ["I1"])
    with pytest.raises(InputError, match=r"image I1 can be .*part_1/I1\.jpg or .*images/I1\.jpg"):
        load("ham10000", tmp_path)


def test_missing_images_come_with_the_folders_of_their_own_cohort(tmp_path: Path) -> None:
    siim_isic(tmp_path / "a")
    isic_2019(tmp_path / "b")
    move(tmp_path / "b", "ISIC_2019_Training_Input", "photos/raw")
    (tmp_path / "b" / "images").mkdir()
    write(tmp_path, "b/images/J0.avif", "not read")
    extra = [ExtraCohort(name="isic_2019", root=str(tmp_path / "b"))]
    cohort = load_table("siim_isic", tmp_path / "a", extra=extra)
    with pytest.raises(InputError) as caught:
        require_images(cohort, "error")
    message = str(caught.value)
    assert "9 of 13 images are not on disk, e.g. J0, J0_downsampled, J2" in message
    assert f"searched in {tmp_path}/b/images, {tmp_path}/b; " in message
    assert f"image files under {tmp_path}/b: photos/raw/ISIC_2019_Training_Input (9)" in message
    assert "1 pictures of formats that cannot be read (J0.avif)" in message
    assert f"{tmp_path}/a" not in message


def test_a_file_with_another_suffix_is_named(tmp_path: Path) -> None:
    write(tmp_path, "cohort.csv", "image,target\nI0.png,0\nI1.jpg,1\n")
    write_images(tmp_path / "images", ["I0", "I1"])
    with pytest.raises(InputError, match=r"1 of 2 .*e\.g\. I0 \(there is .*images/I0\.jpg\)"):
        require_images(load_table("csv", tmp_path), "error")
