"""Images with their masks: what a mask of another size than its image's means."""

from pathlib import Path

import numpy as np
import pytest
from lesion_drawings import ellipse, painted
from micro_runs import micro_config
from PIL import Image

from skinmm.config import DataConfig
from skinmm.data.augment import AUGMENTS
from skinmm.data.dataset import ImageError, Sample, View
from skinmm.errors import InputError
from skinmm.segmentation.train import (
    EVALUATION_SIZE,
    MaskData,
    MaskDataset,
    check_mask,
    load_mask,
)

LYING = ellipse(50, 80, (100, 130))[:192]  # 256 by 192 pixels


def sample(folder: Path, size: tuple[int, int]) -> Sample:
    """A lying picture with its mask as `size`, (width, height), has it."""
    Image.fromarray(painted(LYING)).save(folder / "image.png")
    Image.fromarray(LYING).resize(size).save(folder / "mask.png")
    image, mask = (str(folder / name) for name in ("image.png", "mask.png"))
    return MaskDataset(["I"], [image], [mask], View(32), AUGMENTS["standard"](size=32))[0, None]


@pytest.mark.parametrize("size", [(256, 192), (512, 384), (128, 96), (127, 96), (64, 48)])
def test_a_mask_may_have_its_image_s_shape_in_another_size(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    expected = np.asarray(Image.fromarray(LYING).resize((EVALUATION_SIZE, EVALUATION_SIZE)))
    drawn = sample(tmp_path, size)["mask"].numpy()
    assert (drawn != expected).mean() < 0.02


@pytest.mark.parametrize("size", [(192, 256), (256, 256), (125, 96), (256, 190)])
def test_a_mask_of_another_shape_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    said = rf"mask of I \(.*mask\.png\): {size[0]}x{size[1]} pixels, but its image has 256x192"
    with pytest.raises(ImageError, match=said):
        sample(tmp_path, size)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (3, 40)])
def test_a_mask_is_read_whatever_its_two_values_are(
    tmp_path: Path, values: tuple[int, int]
) -> None:
    drawn = np.where(LYING > 0, *reversed(values)).astype(np.uint8)
    expected = sample(tmp_path, (256, 192))["mask"].numpy()
    Image.fromarray(drawn).save(tmp_path / "drawn.png")
    mask = load_mask(str(tmp_path / "drawn.png"), str(tmp_path / "image.png"), EVALUATION_SIZE)
    np.testing.assert_array_equal(mask[0].astype(bool), expected)


@pytest.mark.parametrize(("value", "state"), [(0, "empty"), (1, "full"), (255, "full")])
def test_a_mask_without_a_border_is_refused(tmp_path: Path, value: int, state: str) -> None:
    Image.new("L", (20, 10), value).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=rf"mask\.png: the mask is {state}: draw the lesion"):
        check_mask(str(tmp_path / "mask.png"))


@pytest.mark.parametrize("missing", ["error", "drop"])
def test_rows_with_such_a_mask_are_refused_or_left_out(
    tmp_path: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("lesions", "masks"):
        (tmp_path / folder).mkdir()
    for row in range(20):
        Image.fromarray(painted(LYING)).save(tmp_path / "lesions" / f"I{row}.png")
        mask = Image.fromarray(LYING * (row > 1))
        mask.save(tmp_path / "masks" / f"I{row}.png")
    source = DataConfig(name="image_folder", root=str(tmp_path), missing=missing)
    data = MaskData(micro_config(data=source))
    if missing == "error":
        with pytest.raises(InputError, match=r"2 of 20 masks cannot be used: I0 \(.*empty"):
            data.setup()
        return
    data.setup()
    assert len(data.cohort) == 18
    assert "2 of 20 masks cannot be used: I0" in capsys.readouterr().err
