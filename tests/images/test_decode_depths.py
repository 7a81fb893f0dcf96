"""Pixels of more than eight bits, masks and other formats against Pillow and their definition."""

import struct

import numpy as np
import pytest
from pictures import GREY16, RNG, encoded, photograph
from PIL import Image

from skinmm.images.decode import DecodeError, decode, decode_mask


def test_sixteen_bits_become_their_upper_eight() -> None:
    upper = (np.asarray(GREY16) >> 8).astype(np.uint8)
    np.testing.assert_array_equal(
        decode(encoded(GREY16, "PNG")), np.repeat(upper[:, :, None], 3, axis=2)
    )


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_sixteen_bits_of_any_format_become_their_upper_eight(format_: str) -> None:
    upper = (np.asarray(GREY16) >> 8).astype(np.uint8)
    np.testing.assert_array_equal(decode(encoded(GREY16, format_))[..., 1], upper)


GREY12 = RNG.integers(0, 2**12, (40, 50), dtype=np.uint16)


def tiff(values: np.ndarray, bits: int) -> bytes:
    """Write values of 12 or 16 bits as an uncompressed TIFF."""
    height, width, samples = (*values.shape, 1)[:3]
    if bits == 12:  # two values in three bytes
        pairs = values.reshape(-1, 2).astype(np.uint32)
        packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8)
        strip = packed.reshape(-1, 4)[:, 1:].tobytes()
    else:
        strip = values.astype("<u2").tobytes()
    count, start = 9, 8 + 2 + 9 * 12 + 4  # of the values that follow the directory
    tags = {
        256: width,
        257: height,
        258: bits if samples == 1 else start,
        259: 1,
        262: 1 if samples == 1 else 2,
        273: start + 6,
        277: samples,
        278: height,
        279: len(strip),
    }
    kinds = {256: 4, 257: 4, 273: 4, 279: 4}  # LONG; others are SHORT
    directory = b"".join(
        struct.pack("<HHLL", tag, kinds.get(tag, 3), samples if tag == 258 else 1, value)
        for tag, value in tags.items()
    )
    head = b"II*\0" + struct.pack("<LH", 8, count)
    return head + directory + bytes(4) + struct.pack("<HHH", bits, bits, bits) + strip


def test_twelve_bits_that_a_tiff_states_become_their_upper_eight() -> None:
    expected = (GREY12 >> 4).astype(np.uint8)
    stated = encoded(Image.fromarray(GREY12), "TIFF", tiffinfo={281: 4095})
    for data in (stated, tiff(GREY12, 12)):
        np.testing.assert_array_equal(decode(data)[..., 1], expected)


@pytest.mark.parametrize(
    "data",
    [
        encoded(Image.fromarray(GREY12), "TIFF"),
        encoded(Image.fromarray(GREY12), "PNG"),
        tiff(GREY12, 16),
        tiff(np.stack([GREY12] * 3, axis=2), 16),
    ],
    ids=["TIFF", "PNG", "TIFF of two bytes", "TIFF in colour"],
)
def test_twelve_bits_in_sixteen_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError, match=r"at most 12 bits.*almost black: convert it to 8 bits"):
        decode(data)


def test_colours_of_sixteen_bits_become_their_upper_eight() -> None:
    colours = RNG.integers(0, 2**16, (6, 8, 3), dtype=np.uint16)
    np.testing.assert_array_equal(decode(tiff(colours, 16)), colours >> 8)


def test_thirty_two_bits_are_refused() -> None:
    with pytest.raises(DecodeError, match="32 bits per value: convert it"):
        decode(encoded(Image.fromarray(RNG.random((4, 5), dtype=np.float32)), "TIFF"))


def test_a_page_of_a_tiff_is_named() -> None:
    pages = [photograph(), photograph().rotate(180)]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with pytest.raises(DecodeError, match=r"2 frames: choose one"):
        decode(data)
    np.testing.assert_array_equal(decode(data, frame=2), np.asarray(pages[1]))


MASK = np.zeros((30, 40), np.uint8)


MASK[8:20, 5:33] = 1


COLOURS = Image.fromarray(MASK, "P")


COLOURS.putpalette([0, 0, 0, 128, 0, 0])


INVERTED = Image.fromarray(1 - MASK, "P")


INVERTED.putpalette([255, 255, 255, 0, 0, 0])


MASKS = {
    "0 and 1": Image.fromarray(MASK),
    "0 and 255": Image.fromarray(MASK * 255),
    "0 and 3": Image.fromarray(MASK * 3),
    "10 and 90": Image.fromarray(MASK * 80 + 10),
    "16 bits": Image.fromarray(MASK.astype(np.uint16) * 65535),
    "0 and 1 of 16 bits": Image.fromarray(MASK.astype(np.uint16)),
    "1 bit": Image.fromarray(MASK.astype(bool)),
    "RGB": Image.fromarray(np.repeat(MASK[..., None] * 255, 3, axis=2)),
    "red": Image.fromarray(MASK[..., None] * np.array([200, 0, 0], np.uint8)),
    "palette of colours": COLOURS,
    "palette of grey levels, white first": INVERTED,
}


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_read_whatever_its_values_are(name: str, format_: str) -> None:
    np.testing.assert_array_equal(decode_mask(encoded(MASKS[name], format_)), MASK == 1)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_mask_of_one_value_is_empty_or_full(value: int) -> None:
    drawn = decode_mask(encoded(Image.fromarray(np.full((5, 6), value, np.uint8)), "PNG"))
    assert (drawn == bool(value)).all()
