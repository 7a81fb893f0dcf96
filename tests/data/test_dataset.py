"""Samples: what is asked for and nothing else, from every kind of path, and errors by image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import dicom
from miniature_cohorts import picture, write_records
from PIL import Image
from torch.utils.data import DataLoader

from skinmm.data.augment import standard
from skinmm.data.dataset import ImageError, LesionDataset, View, apply_seeded, load_image
from skinmm.errors import InputError
from skinmm.images.decode import decode
from skinmm.images.preprocess import preprocess

SIZE = 8
DEMO = Path(__file__).parents[2] / "skinmm" / "demo" / "images"


def dataset(paths: list[str], **options: object) -> LesionDataset:
    """A row for each path, called I0, I1, ..."""
    names = [f"I{row}" for row in range(len(paths))]
    targets = np.arange(len(paths)) % 2
    options = {"view": View(SIZE), **options}
    return LesionDataset(targets, names, paths=paths, **options)  # type: ignore[arg-type]


def demo_paths(count: int) -> list[str]:
    return [str(path) for path in sorted(DEMO.iterdir())[:count]]


def test_a_sample_holds_what_the_model_uses_and_nothing_else() -> None:
    records = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
    table_only = LesionDataset(np.array([0, 1]), ["I0", "I1"], records=records)
    assert len(table_only) == 2
    sample = table_only[1, None]
    assert set(sample) == {"row", "target", "record"}
    assert (sample["row"], sample["target"]) == (1, 1)
    assert torch.equal(sample["record"], torch.tensor([3.0, 4.0]))
    assert set(dataset(demo_paths(1))[0, None]) == {"row", "target", "image"}


def test_an_image_is_the_decoded_picture_channels_first() -> None:
    (path,) = demo_paths(1)
    image = dataset([path])[0, None]["image"]
    expected = decode(Path(path).read_bytes(), size=SIZE)
    assert image.shape == (3, SIZE, SIZE)
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("steps", [("colour",), ("border", "colour")])
def test_an_image_is_preprocessed_before_it_is_augmented(steps: tuple[str, ...]) -> None:
    (path,) = demo_paths(1)
    image = dataset([path], view=View(SIZE, steps=steps))[0, None]["image"]
    room = 2 * SIZE if "border" in steps else SIZE
    pixels = preprocess(decode(Path(path).read_bytes(), size=room), steps)
    expected = np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    shown = image.permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - expected).max() <= 1  # two resizers


def test_only_a_sample_with_a_seed_is_augmented() -> None:
    transform = standard(SIZE)
    images = dataset(demo_paths(1), transform=transform)
    plain = images[0, None]["image"]
    assert torch.equal(plain, dataset(demo_paths(1))[0, None]["image"])
    assert torch.equal(images[0, 7]["image"], apply_seeded(transform, plain, 7))
    assert not torch.equal(images[0, 7]["image"], images[0, 8]["image"])


def test_a_tfrecord_entry_is_the_picture_that_was_packed(tmp_path: Path) -> None:
    write_records(tmp_path / "train.tfrec", ["I0", "I1"])
    pixels = load_image(f"{tmp_path}/train.tfrec#I1", View(SIZE))
    np.testing.assert_array_equal(pixels, decode(picture(1), size=SIZE))


def test_the_frame_that_a_path_names_is_read(tmp_path: Path) -> None:
    frames = np.stack([np.full((SIZE, SIZE, 3), shade, np.uint8) for shade in (10, 200)])
    rows = {"NumberOfFrames": 2, "Rows": SIZE, "Columns": SIZE}
    (tmp_path / "two.dcm").write_bytes(dicom(frames.reshape(-1, SIZE, 3), **rows))
    np.testing.assert_array_equal(load_image(f"{tmp_path}/two.dcm#frame=2", View(SIZE)), frames[1])
    with pytest.raises(InputError, match="it has 2 frames"):
        load_image(f"{tmp_path}/two.dcm", View(SIZE))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"", "the file is empty: fetch it again"),
        (b"text", "not an image of a supported format"),
        (picture()[:200], "damaged JPEG"),
    ],
)
def test_an_unusable_image_is_named_in_one_line(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    bad = tmp_path / "bad.jpg"
    if content is not None:
        bad.write_bytes(content)
    with pytest.raises(ImageError) as raised:
        dataset([*demo_paths(1), str(bad)])[1, None]
    message = str(raised.value)
    assert message.startswith(f"image I1 ({bad}): ")
    assert reason in message
    assert "\n" not in message


def test_a_loader_process_hands_the_same_line_over_and_skips_nothing(tmp_path: Path) -> None:
    """What crosses the process border is the text of a traceback."""
    images = dataset([*demo_paths(1), str(tmp_path / "gone.jpg")])
    with pytest.raises(ImageError) as here:
        images[1, None]
    batches: Any = iter(DataLoader(images, sampler=[(0, None), (1, None)], num_workers=1))
    assert next(batches)["row"].tolist() == [0]
    with pytest.raises(ImageError) as there:
        next(batches)
    batches._shutdown_workers()  # left to the garbage collector it takes five seconds
    assert str(there.value) == str(here.value)
