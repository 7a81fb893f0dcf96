"""Damaged and invented bytes: a picture or the one documented error, nothing else."""

import re
from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from skinmm.images.decode import DecodeError, ImageInfo, decode, probe
from skinmm.images.dicom import read_dicom_record


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


HEADS = {
    b"\xff\xd8\xff": "JPEG|the header has|megapixels",
    b"\x89PNG\r\n\x1a\n": "PNG|the header has|megapixels",
    bytes(128) + b"DICM": "DICOM|the header has|megapixels",
    b"": "not an image of a supported format|the file is empty|(BMP|TIFF|GIF|WebP|HEIC)",
}
"""How files begin, and what is said of those that go on with anything."""


def _damaged(data: bytes, edits: list[tuple[float, str, bytes]]) -> bytes:
    for where, kind, value in edits:
        start = int(where * len(data))
        stop = {"set": start + len(value), "cut": start + 40, "insert": start}[kind]
        data = data[:start] + (b"" if kind == "cut" else value) + data[stop:]
    return data


def _told(read: Callable[[], Any]) -> tuple[Any, str]:
    """What was read, or the one line that says why not: in short, the cause, what to do."""
    try:
        return read(), ""
    except DecodeError as error:
        reason = str(error)
    assert re.fullmatch(r"\S.{10,500}\S", reason)
    return None, reason


def _only_documented(data: bytes) -> list[str]:
    """Reads in every way; what decodes is as large as its header says.

    Returns:
        Why each reading was refused; empty where it was not.
    """
    info, no_header = _told(partial(probe, data))
    record, no_record = _told(partial(read_dicom_record, data))
    assert record is None or {*record} == {"age", "sex", "patient_id", "site", "institution"}
    refusals = [no_header, no_record]
    for size in (None, 16):
        pixels, reason = _told(partial(decode, data, size=size, max_pixels=1_000_000))
        refusals.append(reason)
        if pixels is not None:
            assert isinstance(info, ImageInfo)
            assert pixels.shape == ((info.height, info.width, 3) if size is None else (16, 16, 3))
            assert (pixels.dtype, pixels.flags.writeable) == (np.uint8, True)
    return refusals


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", SEEDS)
@settings(max_examples=60, deadline=None)
@given(edits=EDITS)
@example(edits=[(0.2734375, "set", b"\x00\x02")])  # Modality is half the header
def test_damage_is_refused_or_survived(seed: str, edits: list[tuple[float, str, bytes]]) -> None:
    no_header, _, *not_decoded = _only_documented(_damaged(SEEDS[seed], edits))
    assert all(not_decoded) or not no_header  # pixels need a header


@pytest.mark.parametrize("seed", SEEDS)
def test_undamaged_bytes_are_read(seed: str) -> None:
    no_header, no_record, *not_decoded = _only_documented(SEEDS[seed])
    assert [no_header, *not_decoded] == ["", "", ""]
    assert bool(no_record) == ("dicom" not in seed)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from([*HEADS]),
    tail=st.binary(max_size=200),
)
def test_invented_bytes_are_refused(head: bytes, tail: bytes) -> None:
    data = head + tail
    cause = next(HEADS[each] for each in HEADS if data.startswith(each))
    for reason in _only_documented(data)[2:]:
        assert re.search(cause, reason)
