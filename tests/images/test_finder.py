"""From names of images to locations."""

from pathlib import Path

import h5py
import numpy as np
import pytest

from skinmm.images.shards import Schema
from skinmm.images.source import HDF5_SUFFIXES, ImageFinder, list_files, read_source
from skinmm.images.tfrecord import write_tfrecord

FILES = ["a.dcm", "a.jpg", "b.JPG", "b.png", "c.jpg.png", "d", "e.txt", "f.jpg"]


@pytest.mark.parametrize(
    ("cell", "file"),
    [
        ("a", "a.dcm"),
        ("a.jpg", "a.jpg"),
        ("a.jpeg", "a.dcm"),
        ("a#frame=3", "a.dcm#frame=3"),
        ("a.jpg#frame=2", "a.jpg#frame=2"),
        ("b", "b.JPG"),
        ("c.jpg", "c.jpg.png"),
        ("d", "d"),
        ("e", None),
        ("e.txt", "e.txt"),
        ("", None),
    ],
)
def test_a_cell_is_a_file_name_or_a_name_without_suffix(cell: str, file: str | None) -> None:
    assert ImageFinder(FILES).find_cell(cell) == file
    expected = None if file is None else f"s3://bucket/{file}"
    assert ImageFinder(FILES, "s3://bucket").find_cell(cell) == expected


def test_a_name_without_suffix_is_not_stripped_again() -> None:
    finder = ImageFinder(FILES)
    assert finder.find("c.jpg") == "c.jpg.png"
    assert finder.find("f") == finder.find_cell("f.png") == "f.jpg"
    assert finder.find("f.png") is finder.find("d") is None


def test_the_first_file_of_a_name_is_used() -> None:
    assert ImageFinder(["y/a.png", "x/a.jpg"]).find("a") == "y/a.png"
    assert ImageFinder(["y/a.png", "x/a.jpg"], suffixes=[".jpg"]).find("a") == "x/a.jpg"


def test_entries_of_containers_are_found_by_name(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "x.tfrec", [{"image": b"1", "image_name": "a"}])
    write_tfrecord(tmp_path / "y.tfrec", [{"pixels": b"2", "id": "b"}])
    with h5py.File(tmp_path / "z.hdf5", "w") as file:
        file["c"] = np.frombuffer(b"3", np.uint8)
    (tmp_path / "d.jpg").write_bytes(b"4")
    schema = Schema(image="pixels", name="id")
    finders = [
        ImageFinder(["x.tfrec", "d.jpg"], str(tmp_path)),
        ImageFinder([f"{tmp_path}/y.tfrec"], suffixes=[".tfrec"], schema=schema),
        ImageFinder(list_files([tmp_path]), suffixes=HDF5_SUFFIXES),
    ]
    assert [set(finder.names) for finder in finders] == [{"a", "d"}, {"b"}, {"c"}]
    locations = [finder.find(name) for finder in finders for name in sorted(finder.names)]
    assert [read_source(str(location)).data for location in locations] == [b"1", b"4", b"2", b"3"]
    assert finders[0].find_cell("a.jpg") == f"{tmp_path}/x.tfrec#a"


def test_hidden_files_are_not_listed(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.jpg", ".c.jpg"):
        (tmp_path / name).touch()
    assert list_files([tmp_path]) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
