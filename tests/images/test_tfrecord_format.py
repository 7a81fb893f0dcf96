"""The format against the tfrecord package, TensorFlow, and bytes that mean harm."""

import gzip
import struct
import subprocess
import sys
from ast import literal_eval
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tfrecord.reader import tfrecord_loader
from tfrecord.writer import TFRecordWriter

from skinmm.images.tfrecord import TFRecordError, parse_example, scan_records, write_tfrecord

VALUES = st.one_of(
    st.lists(st.binary(max_size=50)),
    st.lists(st.integers(-(2**63), 2**63 - 1)),
    st.lists(st.floats(width=32, allow_nan=False)),
)
EXAMPLES = st.lists(st.dictionaries(st.text(max_size=20), VALUES, max_size=6), max_size=8)


def frame(payload: bytes, length: int | None = None) -> bytes:
    """A record whose checksums are right, whatever its length claims."""
    header = struct.pack("<Q", len(payload) if length is None else length)
    crc = TFRecordWriter.masked_crc
    return bytes(header + crc(header) + payload + crc(payload))


def read(path: Path) -> list[dict[str, Any]]:
    return [parse_example(payload, "") for _, payload in scan_records(path)]


@given(examples=EXAMPLES)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, examples: Any) -> None:
    path = tmp_path_factory.mktemp("round") / "a.tfrec"
    write_tfrecord(path, examples)
    assert read(path) == examples


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    write_tfrecord(
        path, [{"image": b"\xff\xd8", "name": "é", "age": 45, "area": 1.5, "gone": None}]
    )
    (record,) = tfrecord_loader(str(path), None, ["image", "name", "age", "area"])
    assert (record["image"], record["name"]) == (b"\xff\xd8", "é".encode())
    assert (record["age"], record["area"]) == ([45], [1.5])


def test_a_value_of_another_type_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        TFRecordError, match=r"feature 'when' is .*: bytes, text, integers or floats"
    ):
        write_tfrecord(tmp_path / "a.tfrec", [{"when": {}}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**31, 11])
def test_a_length_beyond_the_file_takes_no_memory(tmp_path: Path, length: int) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(frame(b"first") + frame(b"0123456789", length))
    with pytest.raises(
        TFRecordError, match=rf"record 1 at byte 21: the record has {length} bytes but only 10"
    ):
        list(scan_records(path))


def test_a_length_that_looks_like_gzip_is_a_length(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrec"
    path.write_bytes(frame(bytes(0x8B1F)))
    assert [len(payload) for _, payload in scan_records(path)] == [0x8B1F]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(frame(b"x"), mtime=0),
            "record 0 .* compressed with gzip; decompress it first",
        ),
        (b"image_name,target\nISIC_1,0\n", "record 0 at byte 0: not a TFRecord file"),
        (frame(b"x") + frame(b"y")[:5], "record 1 at byte 17: the file is truncated"),
        (frame(b"x")[:-1], "record 0 .* truncated or damaged"),
        (frame(b"x") + frame(b"y")[:-1] + b"?", "record 1 at byte 17: wrong checksum"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.tfrec"
    path.write_bytes(content)
    with pytest.raises(TFRecordError, match=rf"bad\.tfrec: {message}"):
        list(scan_records(path))


def test_another_message_is_refused() -> None:
    with pytest.raises(TFRecordError, match=r"record 7: not a tf\.train\.Example"):
        parse_example(b"\x0a\xff", "record 7")


WITH_TENSORFLOW = """
import sys
import tensorflow as tf
train, (_, source, target) = tf.train, sys.argv
for record in tf.data.TFRecordDataset(source).as_numpy_iterator():
    print(sorted((key, list(getattr(value, value.WhichOneof("kind")).value))
          for key, value in train.Example.FromString(record).features.feature.items()))
features = {
    "image": train.Feature(bytes_list=train.BytesList(value=[b"\\xff\\xd8\\xff"])),
    "age": train.Feature(int64_list=train.Int64List(value=[1, -1])),
    "area": train.Feature(float_list=train.FloatList(value=[0.5, 1e30])),
    "none": train.Feature(),
}
with tf.io.TFRecordWriter(target) as writer:
    example = train.Example(features=train.Features(feature=features))
    writer.write(example.SerializeToString())
    writer.write(b"")
"""


@pytest.mark.skipif(find_spec("tensorflow") is None, reason="needs TensorFlow")
def test_tensorflow_reads_our_files_and_we_read_its(tmp_path: Path) -> None:
    """In a process of its own: it and the package register the same messages, which clash."""
    record = {"image": [b"\xff\xd8\xff"], "age": [1, -1], "area": [0.5, 2.0**60]}
    ours, theirs = tmp_path / "ours.tfrec", tmp_path / "theirs.tfrec"
    write_tfrecord(ours, [record, {}])
    command = [sys.executable, "-c", WITH_TENSORFLOW, str(ours), str(theirs)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    assert [literal_eval(line) for line in lines] == [sorted(record.items()), []]
    first, second = read(theirs)
    assert first.pop("area") == pytest.approx([0.5, 1e30])
    assert first == {"image": [b"\xff\xd8\xff"], "age": [1, -1], "none": []}
    assert second == {}
