"""Random access by name, the table, the public schema; whatever the bytes, one kind of error."""

import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skinmm.images.finder import ImageFinder
from skinmm.images.shards import (
    SIIM,
    Schema,
    TFRecordFile,
    is_tfrecord,
    read_records,
    read_tfrecord_image,
)
from skinmm.images.source import may_be_dicom
from skinmm.images.tfrecord import TFRecordError, write_tfrecord

IMAGES = {f"ISIC_{row:07d}": bytes([255, 216, row]) * (row + 1) for row in range(9)}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "train #1.tfrec"
    records = ({"image_name": name, "image": image} for name, image in IMAGES.items())
    write_tfrecord(file, records)
    return file


def damage(path: Path, at: int, value: int = 0) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes([value]))


def test_images_come_by_name_in_any_order(path: Path) -> None:
    file = TFRecordFile(path)
    assert file.names == list(IMAGES)
    for name in np.random.default_rng(0).permutation(file.names).tolist():
        assert file.image(name) == IMAGES[name]
        assert file.read(name) == {"image": [IMAGES[name]], "image_name": [name.encode()]}
        assert read_tfrecord_image(f"{path}#{name}") == IMAGES[name]


def test_reading_leaves_the_process_s_random_numbers_alone(path: Path) -> None:
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    read_records([path])
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_an_unknown_name_is_an_error(path: Path) -> None:
    with pytest.raises(
        TFRecordError, match=r"train #1\.tfrec: no image named 'ISIC_9' in 9 records"
    ):
        TFRecordFile(path).image("ISIC_9")


def _images(file: TFRecordFile, names: Iterable[str]) -> list[bytes]:
    return [file.image(name) for name in names]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_worker_processes_share_a_file(path: Path, method: str) -> None:
    file = TFRecordFile(path)
    halves = list(IMAGES)[::2], list(IMAGES)[1::2]
    assert file.image(halves[0][0])  # the descriptor is open when the workers start
    context = multiprocessing.get_context(method)
    with context.Pool(2) as pool:
        jobs = [pool.apply_async(_images, (file, half * 50)) for half in halves]
        for job, half in zip(jobs, halves, strict=True):
            assert job.get(60) == [IMAGES[name] for name in half * 50]


def test_descriptors_are_given_back(path: Path) -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    for _ in range(3):
        TFRecordFile(path).image("ISIC_0000000")
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def test_damage_after_indexing_is_found_at_reading(path: Path) -> None:
    file = TFRecordFile(path)
    file.image("ISIC_0000000")
    damage(path, path.stat().st_size - 10)
    with pytest.raises(
        TFRecordError, match=r"record 8 at byte \d+: wrong checksum: the file is dam"
    ):
        file.image("ISIC_0000008")
    with pytest.raises(TFRecordError, match="record 8"):
        file.read("ISIC_0000008")
    assert file.image("ISIC_0000007") == IMAGES["ISIC_0000007"]


def test_a_file_cut_short_in_use_is_an_error(path: Path) -> None:
    file = TFRecordFile(path)
    file.image("ISIC_0000000")
    os.truncate(path, 10)
    with pytest.raises(TFRecordError, match="record 8"):
        file.image("ISIC_0000008")


def test_a_file_changed_before_its_first_read_is_an_error(path: Path) -> None:
    file = TFRecordFile(path)
    os.utime(path, ns=(0, 0))
    with pytest.raises(TFRecordError, match="changed while it was used"):
        file.image("ISIC_0000000")
    path.unlink()
    with pytest.raises(TFRecordError, match=r"record 0 .*: No such file"):
        file.image("ISIC_0000000")


MIXED: list[dict[str, Any]] = [
    {
        "image": b"1",
        "image_name": "a",
        "sex": "male",
        "age": 49.0,
        "patient_id": 7,
        "boxes": [1, 2],
    },
    {"image": b"2", "image_name": "b", "sex": "", "age": None, "patient_id": None},
]


def test_a_table_has_everything_but_the_images(tmp_path: Path) -> None:
    files = [tmp_path / "a.tfrec", tmp_path / "b.tfrec"]
    write_tfrecord(files[0], MIXED[:1])
    write_tfrecord(files[1], MIXED[1:])
    table = read_records(files)
    assert sorted(map(str, table)) == ["age", "boxes", "image_name", "path", "patient_id", "sex"]
    assert table["path"].tolist() == [f"{files[0]}#a", f"{files[1]}#b"]
    assert [read_tfrecord_image(path) for path in table["path"]] == [b"1", b"2"]
    assert table.loc[0].drop("path").to_dict() == {
        "image_name": "a", "age": 49, "boxes": [1, 2], "patient_id": "7", "sex": "male"
    }  # fmt: skip
    assert table.loc[1, ["age", "boxes", "patient_id", "sex"]].isna().all()


def test_other_names_and_codes_are_mapped(tmp_path: Path) -> None:
    record: dict[str, Any] = {
        "image/encoded": b"\xff",
        "image/id": "x",
        "gender": 1,
        "grade": -1,
        "other": b"\xff",
    }
    write_tfrecord(tmp_path / "a.tfrec", [{**record, "other": "text"}])
    schema = Schema(
        image="image/encoded",
        name="image/id",
        columns={"gender": "sex"},
        codes={"gender": ("female", "male"), "grade": ("low", "high")},
    )
    (row,) = read_records([tmp_path / "a.tfrec"], schema).to_dict("records")
    assert (row["image_name"], row["sex"], row["grade"], row["other"]) == (
        "x",
        "male",
        None,
        "text",
    )
    assert read_tfrecord_image(row["path"]) == b"\xff"
    write_tfrecord(tmp_path / "b.tfrec", [record])
    with pytest.raises(TFRecordError, match=r"b\.tfrec: x: .* is not UTF-8 text"):
        read_records([tmp_path / "b.tfrec"], schema)


SIIM_TEXT = ["sex", "anatom_site_general_challenge", "diagnosis"]


@pytest.mark.realdata
def test_the_siim_codes_are_those_of_the_public_recipe(tmp_path: Path) -> None:
    """The files as the public notebooks write them give back train.csv and test.csv."""
    root = Path(os.environ.get("SKINMM_DATA") or pytest.skip("SKINMM_DATA is not set"))
    train, test = (
        pd.read_csv(root / "siim_isic_2020" / f"{part}.csv") for part in ("train", "test")
    )
    both = pd.concat([train[test.columns], test], ignore_index=True)
    coded = both.assign(
        **{column: both[column].factorize()[0] for column in ("patient_id", *SIIM_TEXT[:2])},
        age_approx=both["age_approx"].fillna(both["age_approx"].mean()).astype(int),
    )
    coded["diagnosis"] = pd.Series(train["diagnosis"].factorize()[0])
    coded["target"] = train["target"]
    sample = pd.concat([train[train.isna().any(axis=1)], train.drop_duplicates(SIIM_TEXT)]).index
    rows = coded.loc[sample.unique()].astype({"diagnosis": int, "target": int}).iterrows()
    write_tfrecord(tmp_path / "train.tfrec", ({**row, "image": b"\xff"} for _, row in rows))
    table = read_records([tmp_path / "train.tfrec"], SIIM).set_index("image_name")
    columns = [*SIIM_TEXT, "age_approx", "target"]
    expected = train.loc[sample.unique()].set_index("image_name")
    pd.testing.assert_frame_equal(table[columns], expected[columns], check_dtype=False)
    assert table["patient_id"].nunique() == expected["patient_id"].nunique()


def test_codes_that_contradict_the_target_are_refused(tmp_path: Path) -> None:
    record = {"image": b"1", "image_name": "ISIC_1", "diagnosis": 1, "target": 1}
    write_tfrecord(tmp_path / "a.tfrec", [record])
    with pytest.raises(
        TFRecordError,
        match=r"ISIC_1 has the diagnosis 'nevus' but target 1.*not use the codes of the schema",
    ):
        read_records([tmp_path / "a.tfrec"], SIIM)


def _everything(path: Path) -> None:
    file = TFRecordFile(path)
    for name in file.names:
        file.read(name), file.image(name)
    read_records([path], SIIM)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_bytes_there_is_one_kind_of_error(path: Path, data: Any) -> None:
    """Cut, change, repeat and swap bytes of a good file; nothing but the documented error comes."""
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(content))] * 2)))
        content[start:end] = data.draw(
            st.one_of(st.binary(max_size=40), st.just(content[start:end] * 2))
        )
    bad = path.with_name("bad.tfrec")
    bad.write_bytes(content)
    reason = ""
    try:
        _everything(bad)
    except TFRecordError as error:
        reason = str(error)
    assert not reason or reason.startswith(f"{bad}: ")


@given(payload=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_payload_there_is_one_kind_of_error(path: Path, payload: bytes) -> None:
    """Right checksums around a wrong message."""
    from tfrecord.writer import TFRecordWriter

    header = len(payload).to_bytes(8, "little")
    crc = TFRecordWriter.masked_crc
    bad = path.with_name("bad.tfrec")
    bad.write_bytes(header + crc(header) + payload + crc(payload))
    with pytest.raises(TFRecordError, match=r"bad\.tfrec: record 0"):
        _everything(bad)


def test_a_shard_named_as_by_tensorflow_datasets_is_found(path: Path) -> None:
    shard = path.with_name("data.tfrecord-00000-of-00002")
    path.rename(shard)
    assert is_tfrecord(shard.name)
    assert not is_tfrecord(f"{shard.name}.tfindex")
    finder = ImageFinder([str(shard)])
    location = finder.find("ISIC_0000003")
    assert location is not None
    assert read_tfrecord_image(location) == IMAGES["ISIC_0000003"]
    assert not may_be_dicom(location)


def test_a_list_is_refused_if_it_is_used(path: Path) -> None:
    record = {"image_name": "I", "image": b"\xff\xd8\xff", "age_approx": [3, 4], "box": [1, 2]}
    write_tfrecord(path, [record])
    with pytest.raises(TFRecordError, match=r"1\.tfrec: I: feature 'age_approx' is a list of 2"):
        read_records([path])
    write_tfrecord(path, [record | {"age_approx": 3}])
    assert read_records([path])["age_approx"].tolist() == [3]
    with pytest.raises(TFRecordError, match="feature 'box' is a list of 2 values"):
        read_records([path], used=["box"])
