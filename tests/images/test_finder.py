"""From names of images to locations."""

from pathlib import Path
from unicodedata import normalize

import h5py
import numpy as np
import pytest

from skinmm.errors import InputError
from skinmm.images.finder import ImageFinder, list_files
from skinmm.images.shards import Schema
from skinmm.images.source import HDF5_SUFFIXES, read_source
from skinmm.images.tfrecord import write_tfrecord

FILES = ["a.dcm", "a.jpg", "b.JPG", "b.png", "c.jpg.png", "d", "e.txt", "f.jpg", "g.png", "g"]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a.jpg", "a.jpg"),
        ("a.JPG", "a.jpg"),
        ("a.jpg#frame=2", "a.jpg#frame=2"),
        ("a.jpeg", None),
        ("b.jpg", "b.JPG"),
        ("c.jpg", "c.jpg.png"),
        ("c", None),
        ("d", "d"),
        ("d.dcm", None),
        ("e", None),
        ("e.txt", "e.txt"),
        ("f", "f.jpg"),
        ("f#frame=3", "f.jpg#frame=3"),
        ("f.png", None),
        ("F", None),
        ("g", "g"),
        ("", None),
    ],
)
def test_a_name_is_that_of_a_file_or_its_stem(name: str, file: str | None) -> None:
    assert ImageFinder(FILES).find(name) == file
    expected = None if file is None else f"s3://bucket/{file}"
    assert ImageFinder([f"s3://bucket/{file}" for file in FILES]).find(name) == expected


@pytest.mark.parametrize("name", ["a", "b"])
def test_two_files_of_a_stem_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"image {name} can be {name}\.\w+ or {name}\.\w+: write"):
        ImageFinder(FILES).find(name)
    assert ImageFinder(["y/a.png", "x/a.jpg"], suffixes=[".jpg"]).find("a") == "x/a.jpg"


def test_one_name_in_two_folders_is_refused_unless_it_is_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.jpg", "y/a.jpg")
    files = list_files([tmp_path / "x", tmp_path / "y"])
    with pytest.raises(InputError, match=r"image a\.jpg can be .*x/a\.jpg or .*y/a\.jpg"):
        ImageFinder(files).find("a.jpg")
    (tmp_path / "y" / "a.jpg").unlink()
    (tmp_path / "y" / "a.jpg").symlink_to(tmp_path / "x" / "a.jpg")
    assert ImageFinder(files).find("a.jpg") == f"{tmp_path}/x/a.jpg"


def test_a_name_without_its_suffix_is_missing_with_the_files_that_have_another() -> None:
    finder = ImageFinder(FILES)
    assert finder.describe_missing("f.png") == "image f.png not found (there is f.jpg)"
    assert finder.describe_missing("z\\f.png#frame=2").endswith("not found (there is f.jpg)")
    assert finder.describe_missing("h.png") == "image h.png not found"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("site/a.jpg", "site/a.jpg"),
        ("site/a", "site/a.jpg"),
        ("site\\a.jpg", "site/a.jpg"),
        ("images/a.jpg", "images/a.jpg"),
        ("deep/a.jpg", "images/deep/a.jpg"),
        ("site/a.png", None),
        ("other/a.jpg", None),
        ("images", None),
        ("x\\b.jpg", "images/x\\b.jpg"),
    ],
)
def test_a_folder_in_a_name_is_that_folder(tmp_path: Path, name: str, file: str | None) -> None:
    touch(tmp_path, "site/a.jpg", "images/a.jpg", "images/site/a.jpg", "images/deep/a.jpg")
    touch(tmp_path, "images/x\\b.jpg")
    finder = ImageFinder(list_files([tmp_path / "images"]), [tmp_path, tmp_path / "images"])
    assert finder.find(name) == (None if file is None else f"{tmp_path}/{file}")
    assert finder.find(f"{tmp_path}/site/a.jpg") == f"{tmp_path}/site/a.jpg"


def test_a_folder_in_two_folders_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "images/deep/a.jpg", "jpeg/deep/a.jpg")
    finder = ImageFinder([], [tmp_path, tmp_path / "images", tmp_path / "jpeg"])
    with pytest.raises(InputError, match=r"image deep/a can be"):
        finder.find("deep/a")


COMPOSED, DECOMPOSED = normalize("NFC", "café/é.jpg"), normalize("NFD", "café/é.jpg")


@pytest.mark.parametrize(
    ("written", "named"),
    [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED), (DECOMPOSED, DECOMPOSED)],
)
def test_names_are_compared_in_composed_form(tmp_path: Path, written: str, named: str) -> None:
    touch(tmp_path, written)
    assert ImageFinder([], [tmp_path]).find(named) == f"{tmp_path}/{written}"
    files = list_files([(tmp_path / written).parent])
    assert ImageFinder(files).find(Path(named).stem) == f"{tmp_path}/{written}"


def test_entries_of_containers_are_found_by_name(tmp_path: Path) -> None:
    write_tfrecord(tmp_path / "x.tfrec", [{"image": b"1", "image_name": "a"}])
    write_tfrecord(tmp_path / "y.tfrec", [{"pixels": b"2", "id": "b"}])
    with h5py.File(tmp_path / "z.hdf5", "w") as file:
        file["c"] = np.frombuffer(b"3", np.uint8)
    (tmp_path / "d.jpg").write_bytes(b"4")
    schema = Schema(image="pixels", name="id")
    finders = {
        "ad": ImageFinder([f"{tmp_path}/x.tfrec", f"{tmp_path}/d.jpg"]),
        "b": ImageFinder([f"{tmp_path}/y.tfrec"], suffixes=[".tfrec"], schema=schema),
        "c": ImageFinder(list_files([tmp_path]), suffixes=HDF5_SUFFIXES),
    }
    locations = [finder.find(name) for names, finder in finders.items() for name in names]
    assert [read_source(str(location)).data for location in locations] == [b"1", b"4", b"2", b"3"]
    assert [finders["c"].find(name) for name in "abd"] == [None] * 3
    assert finders["ad"].find("a.jpg") == finders["ad"].find("images/a") == f"{tmp_path}/x.tfrec#a"


def test_entries_of_hdf5_files_are_in_groups_and_have_suffixes(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "z.h5", "w") as file:
        for number, name in enumerate(("train/a.jpg", "train/b.png", "test/b.png", "c.jpg")):
            file[name] = np.frombuffer(b"%d" % number, np.uint8)
    finder = ImageFinder(list_files([tmp_path]), suffixes=HDF5_SUFFIXES)

    def read(name: str) -> bytes | None:
        location = finder.find(name)
        return None if location is None else read_source(location).data

    assert [read(name) for name in ("a", "a.jpg", "a.JPG", "data/train/a.jpg")] == [b"0"] * 4
    assert [read(name) for name in ("test/b", "train/b.png", "c")] == [b"2", b"1", b"3"]
    assert [read(name) for name in ("a.png", "test/a", "train", "d")] == [None] * 4
    with pytest.raises(InputError, match=r"image b can be .*train/b\.png"):
        read("b")


def test_one_entry_in_two_containers_is_refused(tmp_path: Path) -> None:
    for name in ("x.tfrec", "y.tfrec"):
        write_tfrecord(tmp_path / name, [{"image": b"1", "image_name": "a"}])
    with pytest.raises(InputError, match=r"image a can be .*x\.tfrec#a or .*y\.tfrec#a"):
        ImageFinder(list_files([tmp_path])).find("a")


def test_hidden_files_and_folders_are_not_listed(tmp_path: Path) -> None:
    touch(tmp_path, "b.jpg", "a.jpg", ".c.jpg", "d.jpg/e.jpg")
    assert list_files([tmp_path]) == [f"{tmp_path}/a.jpg", f"{tmp_path}/b.jpg"]
