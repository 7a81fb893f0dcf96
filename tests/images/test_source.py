"""Bytes from every kind of path that a cohort table may hold."""

import multiprocessing
from pathlib import Path

import h5py
import numpy as np
import pytest
from miniature_cohorts import picture, write_records

from skinmm.errors import InputError
from skinmm.images.source import Source, list_hdf5_names, read_source


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "images.hdf5", "w") as file:
        for number in range(4):
            file.create_dataset(f"I{number}", data=np.void(picture(number) + b"\0"))
    return tmp_path / "images.hdf5"


@pytest.mark.parametrize("name", ["plain.jpg", "with#hash.jpg", "a.dcm#b.jpg", "no suffix"])
def test_a_file_is_read_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(picture(5))
    assert read_source(str(tmp_path / name)) == Source(picture(5), None)


def test_a_frame_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(b"frames")
    assert read_source(f"{tmp_path}/a.dcm#frame=3") == Source(b"frames", 3)
    with pytest.raises(InputError, match="frame=last is not a number"):
        read_source(f"{tmp_path}/a.dcm#frame=last")


def test_a_tfrecord_entry_is_read(tmp_path: Path) -> None:
    write_records(tmp_path / "train.tfrec", ["I0", "I1"])
    assert read_source(f"{tmp_path}/train.tfrec#I1").data == picture(1)


def test_an_hdf5_entry_is_read_to_the_last_byte(hdf5: Path) -> None:
    assert list_hdf5_names(hdf5) == ["I0", "I1", "I2", "I3"]
    assert read_source(f"{hdf5}#I2").data == picture(2) + b"\0"
    with pytest.raises(InputError, match="no image 'I9'"):
        read_source(f"{hdf5}#I9")


def test_an_open_hdf5_file_is_not_shared_with_a_forked_worker(hdf5: Path) -> None:
    locations = [f"{hdf5}#I{number % 4}" for number in range(200)]
    expected = [read_source(location) for location in locations]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(read_source, locations) == expected


def test_what_is_no_hdf5_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "images.h5").write_text("text")
    with pytest.raises(InputError, match=r"images.h5: not a readable HDF5 file"):
        list_hdf5_names(tmp_path / "images.h5")


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_source(str(tmp_path / "gone.jpg"))
