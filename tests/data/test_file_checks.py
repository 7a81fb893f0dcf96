"""Unusable files are found before training, all in one message, and left out on request."""

from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from micro_runs import micro_config, read_data
from PIL import Image, ImageOps

from skinmm.cli.commands import load_pack_input
from skinmm.config import DataConfig
from skinmm.config.data_commands import PackConfig
from skinmm.data.file_checks import (
    HEAD,
    FileCheck,
    check_image,
    fill_sizes,
    image_checks,
    require_usable,
)
from skinmm.errors import InputError
from skinmm.training.leak_guard import audit_split

BOTH = frozenset({"image", "record"})


def write_cohort(root: Path, rows: int = 60) -> DataConfig:
    """A cohort of noise, half of it malignant."""
    noise = np.random.default_rng(0)
    for row in range(rows):
        pixels = noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"I{row:02}.jpg")
    lines = [f"I{row:02},P{row},50,{row % 2}" for row in range(rows)]
    (root / "cohort.csv").write_text("\n".join(["image_id,patient_id,age,target", *lines]))
    return DataConfig(name="csv", root=str(root), folds=5)


def damage(file: Path, kind: str) -> None:
    data = file.read_bytes()
    broken = {"truncated": data[:-900], "empty": b"", "text": b"<html>404</html>"}
    file.write_bytes(broken[kind])


def test_all_damaged_files_are_in_one_message(tmp_path: Path) -> None:
    data = write_cohort(tmp_path)
    for row, kind in enumerate(["truncated", "empty", "text"]):
        damage(tmp_path / f"I0{row}.jpg", kind)
    said = r"^3 of 60 .*I00 \(damaged JPEG.*I01 \(the file is empty.*I02 \(not an image.*=drop"
    with pytest.raises(InputError, match=said):
        read_data(micro_config(data=data), BOTH)


@pytest.mark.parametrize("inputs", [BOTH, frozenset({"record"})])
def test_they_are_left_out_on_request_for_all_models_alike(
    tmp_path: Path, inputs: frozenset[str], capsys: pytest.CaptureFixture[str]
) -> None:
    data = replace(write_cohort(tmp_path), missing="drop")
    whole = read_data(micro_config(data=data), BOTH).cohort.set_index("image_id")
    for row in range(8):
        damage(tmp_path / f"I0{row}.jpg", "truncated")
    left = read_data(micro_config(data=data), inputs)
    warning = capsys.readouterr().err
    assert "8 of 60 images cannot be used: I00" in warning
    assert warning.rstrip().endswith("3 more: left out")
    assert left.cohort["image_id"].tolist() == [f"I{row:02}" for row in range(8, 60)]
    expected = whole["part"].loc[left.cohort["image_id"]]
    assert left.cohort["part"].tolist() == expected.tolist()
    assert len(left.targets) == 52
    np.testing.assert_array_equal(left.targets, left.cohort["target"])
    assert left.notes[-1].startswith("60 images checked in ")


def test_pixels_of_validation_and_test_are_decoded(tmp_path: Path) -> None:
    """A hole in the stream is not in the header: only decoding finds it."""
    data = write_cohort(tmp_path)
    cohort = read_data(micro_config(data=data), BOTH).cohort
    for part in ("train", "test"):
        name = cohort["image_id"][cohort["part"] == part].iloc[0]
        stream = (tmp_path / f"{name}.jpg").read_bytes()
        (tmp_path / f"{name}.jpg").write_bytes(stream[:900] + stream[1200:])
    test = cohort["image_id"][cohort["part"] == "test"].iloc[0]
    with pytest.raises(InputError, match=rf"^1 of 60 images cannot be used: {test} \("):
        read_data(micro_config(data=data), BOTH)


def test_tiny_and_single_coloured_images_are_refused_as_in_prediction(tmp_path: Path) -> None:
    data = write_cohort(tmp_path)
    cohort = read_data(micro_config(data=data), BOTH).cohort
    names = {part: cohort["image_id"][cohort["part"] == part].iloc[0] for part in ("train", "test")}
    Image.linear_gradient("L").resize((15, 40)).save(tmp_path / f"{names['train']}.jpg")
    Image.new("RGB", (40, 40)).save(tmp_path / f"{names['test']}.jpg")
    with pytest.raises(InputError, match="2 of 60 images cannot be used") as caught:
        read_data(micro_config(data=data), BOTH)
    assert f"{names['train']} (15x40 pixels are too few" in str(caught.value)
    assert f"{names['test']} (the image has a single colour" in str(caught.value)


def test_a_pack_is_checked_before_it_is_written(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, 10)
    damage(tmp_path / "I03.jpg", "truncated")
    damage(tmp_path / "I07.jpg", "empty")
    config = PackConfig(data=data, out=str(tmp_path / "packed"))
    with pytest.raises(InputError, match=r"2 of 10 images cannot be used: I03 .* I07 "):
        load_pack_input(config)
    config.data.missing = "drop"
    assert load_pack_input(config)[0]["image_id"].isin(["I03", "I07"]).sum() == 0


def test_a_long_header_is_read_to_its_end(tmp_path: Path) -> None:
    picture = Image.new("RGB", (30, 20))
    long, trailing = tmp_path / "long.jpg", tmp_path / "trailing.jpg"
    picture.save(long, icc_profile=bytes(2 * HEAD))
    assert check_image(str(long), None) == (30, 20)
    stream = BytesIO()
    picture.save(stream, "JPEG")
    trailing.write_bytes(stream.getvalue() + b"camera data" * 20)  # after the end: decoded
    assert check_image(str(trailing), None) == (30, 20)


def test_no_row_of_a_part_may_be_lost_entirely() -> None:
    def refuse(path: str) -> None:
        if path == "b":
            raise InputError("unusable")

    rows = pd.DataFrame({"image_id": ["A", "B"], "path": ["a", "b"], "part": ["train", "val"]})
    with pytest.raises(InputError, match=r"1 of 2 images cannot be used.*no row is left in val"):
        require_usable(rows, [FileCheck(("path",), refuse)], "drop")


@pytest.mark.parametrize("location", [lambda root: str(root / "I00.jpg#frame=2"), str])
def test_a_frame_that_a_file_lacks_and_a_folder_are_unusable(
    tmp_path: Path, location: Callable[[Path], str]
) -> None:
    write_cohort(tmp_path, 1)
    rows = pd.DataFrame({"image_id": ["A"], "path": [location(tmp_path)]})
    with pytest.raises(InputError, match="1 of 1 images cannot be used: A "):
        require_usable(rows, image_checks(rows, DataConfig()), "error")


def test_the_audit_of_a_run_tests_image_sizes_that_the_check_read(tmp_path: Path) -> None:
    """Malignant images are larger: the size alone is a perfect shortcut, and no pixel is needed."""
    data = write_cohort(tmp_path, 200)
    for row in range(1, 200, 2):
        Image.linear_gradient("L").resize((30 + row % 3, 20)).save(tmp_path / f"I{row:02}.jpg")
    turned = Image.Exif()
    turned[0x0112] = 6  # displayed upright after a quarter turn
    Image.linear_gradient("L").resize((30, 20)).save(tmp_path / "I01.jpg", exif=turned)
    config = micro_config(data=data)
    rows = read_data(config, BOTH)
    sizes = rows.cohort.set_index("image_id")[["width", "height"]]
    for name in ("I00", "I01", "I05"):
        with Image.open(tmp_path / f"{name}.jpg") as image:
            assert (*sizes.loc[name],) == ImageOps.exif_transpose(image).size
    findings = audit_split(rows, config)
    assert [text.split()[0] for text in findings["unchecked"]] == ["near"]
    assert findings["named"]["size"] == 200
    assert findings["size_auroc"] > 0.95
    assert "reaches AUROC" in findings["warnings"][0]
    unread = audit_split(read_data(config, frozenset({"record"})), config)
    assert [text.split()[0] for text in unread["unchecked"]] == ["image", "near"]


def test_sizes_in_the_table_are_not_replaced() -> None:
    table = pd.DataFrame({"width": [600.0, np.nan], "height": [np.nan, np.nan]})
    filled = fill_sizes(table, np.array([[50, 40], [np.nan, np.nan]]))
    assert filled.iloc[0].tolist() == [600, 40]
    assert filled.iloc[1].isna().all()
