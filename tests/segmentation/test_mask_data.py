"""Images with their masks: what a mask of another size than its image's means."""

from pathlib import Path

import numpy as np
import pytest
from lesion_drawings import ellipse, painted
from PIL import Image

from skinmm.data.augment import AUGMENTS
from skinmm.data.dataset import ImageError, Sample, View
from skinmm.segmentation.train import EVALUATION_SIZE, MaskDataset

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
