"""The index: the package's format, when it is current, where it is kept, when it is damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tfrecord.tools.tfrecord2idx import create_index

from skinmm.images.tfrecord import Index, TFRecordError, load_index, write_tfrecord


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, away from the user's."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "skinmm"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write(tmp_path / "a.tfrec", "abc")


def write(path: Path, names: str) -> Path:
    records = [(name, b"\xff\xd8" + bytes(80 * row)) for row, name in enumerate(names)]
    write_tfrecord(path, ({"image": image, "image_name": name} for name, image in records))
    return path


def load(path: Path) -> Index:
    return load_index(path, "image_name", "image")


def spoil(path: Path) -> None:
    """Overwrite a file without a trace in its size or time: only a remembered index can answer."""
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def beside(path: Path) -> list[str]:
    return sorted(item.name for item in path.parent.iterdir())


def test_the_offsets_are_the_packages(file: Path, tmp_path: Path) -> None:
    index = load(file)
    create_index(str(file), str(tmp_path / "theirs"))
    assert (tmp_path / "a.tfrec.tfindex").read_text() == (tmp_path / "theirs").read_text()
    content = file.read_bytes()
    images = [content[start : start + size] for start, size in index.spans[:, 2:]]
    assert images == [b"\xff\xd8" + bytes(80 * row) for row in range(3)]
    assert index.names == ["a", "b", "c"]


def test_an_image_whose_start_occurs_before_it_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    start, image = bytes(range(70)), bytes(range(70)) + b"image"
    write_tfrecord(path, [{"a_thumbnail": start, "image": image, "image_name": "x"}])
    ((*_, offset, size),) = load(path).spans
    assert path.read_bytes()[offset : offset + size] == image


def test_a_current_index_is_believed(file: Path) -> None:
    first = load(file)
    assert beside(file) == ["a.tfrec", "a.tfrec.names.json", "a.tfrec.tfindex"]
    spoil(file)
    second = load(file)
    assert second.names == first.names
    np.testing.assert_array_equal(second.spans, first.spans)


@pytest.mark.parametrize("names", ["abcd", "xyz"])
def test_a_changed_file_is_read_again(file: Path, names: str) -> None:
    load(file)
    status = write(file, names).stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert load(file).names == list(names)
    spoil(file)
    assert load(file).names == list(names)


def test_an_index_for_other_features_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    write_tfrecord(path, [{"image": b"1", "crop": b"2", "image_name": "a", "id": 7}])
    load(path)
    index = load_index(path, "id", "crop")
    assert index.names == ["7"]
    assert path.read_bytes()[int(index.spans[0, 2])] == ord("2")


def test_where_the_folder_cannot_be_written_the_cache_is_used(file: Path, cache: Path) -> None:
    (file.parent / "a.tfrec.tfindex").mkdir()  # a rename over a folder fails, for root too
    load(file)
    assert sorted(item.name[16:] for item in cache.iterdir()) == [
        "-a.tfrec.names.json",
        "-a.tfrec.tfindex",
    ]
    spoil(file)
    assert load(file).names == ["a", "b", "c"]


def test_where_nothing_can_be_written_memory_will_do(
    file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "a.tfrec.tfindex").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert load(file).names == ["a", "b", "c"]
    assert not cache.exists()
    assert beside(file) == ["a.tfrec", "a.tfrec.tfindex"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    which=st.sampled_from([".tfindex", ".names.json"]),
    content=st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [b"", b"0 1", b"0 99999999999999999999 5", b"{}", b"[]", b"null", b'{"version": 1}']
        ),
    ),
)
def test_a_damaged_index_is_built_again(file: Path, which: str, content: bytes) -> None:
    expected = load(file)
    Path(f"{file}{which}").write_bytes(content)
    index = load(file)
    assert index.names == expected.names
    np.testing.assert_array_equal(index.spans, expected.spans)


@pytest.mark.parametrize("key", ["names", "images", "size", "mtime_ns", "version", "features"])
@pytest.mark.parametrize("value", [None, [], 0, [[0, 1]] * 3, ["a", "a", "b"]])
def test_an_index_that_does_not_add_up_is_built_again(file: Path, key: str, value: object) -> None:
    expected = load(file)
    names = Path(f"{file}.names.json")
    names.write_text(json.dumps(json.loads(names.read_text()) | {key: value}))
    index = load(file)
    assert index.names == expected.names
    np.testing.assert_array_equal(index.spans, expected.spans)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], r"a\.tfrec: the file is empty"),
        (
            [{"image": b"x"}],
            r"record 0 at byte 0: feature 'image_name' .* \(features here: image\)",
        ),
        ([{"image_name": b"x"}], "feature 'image' is missing"),
        (
            [{"image": 3, "image_name": "x"}],
            "feature 'image' is missing, empty or of the wrong type",
        ),
        ([{"image": b"x", "image_name": 0.5}], "feature 'image_name' is missing"),
        ([{"image": b"x", "image_name": b"\xff"}], "is not UTF-8 text"),
        (
            [{"image": b"x", "image_name": "n"}] * 2,
            r"record 1 at byte \d+: record 0 is also named 'n'",
        ),
    ],
)
def test_a_file_without_names_and_images_is_refused(
    tmp_path: Path, records: list[dict[str, object]], message: str
) -> None:
    write_tfrecord(tmp_path / "a.tfrec", records)
    with pytest.raises(TFRecordError, match=message):
        load(tmp_path / "a.tfrec")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TFRecordError, match=r"no\.tfrec: cannot be read: No such file"):
        load(tmp_path / "no.tfrec")
    with pytest.raises(TFRecordError, match="cannot be read: Is a directory"):
        load(tmp_path)
