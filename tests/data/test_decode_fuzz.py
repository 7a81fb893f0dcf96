"""Damaged and invented bytes: a picture or the one documented error, nothing else."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from skinmm.data.decode import DecodeError, decode, dicom_record, probe


def _encoded(format_: str, mode: str, **options: bool) -> bytes:
    pixels = np.random.default_rng(3).integers(0, 256, (40, 33, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, format_, **options)
    return file.getvalue()


def _dicom(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


SEEDS = {
    "jpeg": _encoded("JPEG", "RGB"),
    "progressive": _encoded("JPEG", "RGB", progressive=True),
    "cmyk": _encoded("JPEG", "CMYK"),
    "png": _encoded("PNG", "RGB"),
    "palette": _encoded("PNG", "P"),
    "native dicom": _dicom("SC_rgb_small_odd.dcm"),
    "jpeg dicom": _dicom("SC_rgb_small_odd_jpeg.dcm"),
    "grey dicom": _dicom("MR_small_RLE.dcm"),
}
EDITS = st.lists(
    st.tuples(st.floats(0, 1), st.sampled_from(["set", "cut", "insert"]), st.binary(max_size=6)),
    min_size=1,
    max_size=5,
)


def _damaged(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, value in edits:
        start = int(where * len(data))
        stop = {"set": start + len(value), "cut": start + 40, "insert": start}[kind]
        data = data[:start] + (b"" if kind == "cut" else value) + data[stop:]
    return data


def _only_documented(data: bytes) -> None:
    for size in (None, 16):
        try:
            pixels = decode(data, size=size, max_pixels=1_000_000)
        except DecodeError:
            continue
        assert pixels.dtype == np.uint8
        assert size is None or pixels.shape == (16, 16, 3)
    for read in (probe, dicom_record):
        with suppress(DecodeError):
            read(data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=60, deadline=None)
@given(edits=EDITS)
def test_damage_is_refused_or_survived(seed: str, edits: list[tuple[float, str, bytes]]) -> None:
    _only_documented(_damaged(SEEDS[seed], edits))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", bytes(128) + b"DICM"]),
    tail=st.binary(max_size=200),
)
def test_invented_bytes_are_refused(head: bytes, tail: bytes) -> None:
    _only_documented(head + tail)
