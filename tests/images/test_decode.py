"""JPEG and PNG files against Pillow's own decoding."""

import os
import re
import struct
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from pictures import RNG, distance, encoded, photograph, pillow, with_orientation
from PIL import Image, ImageCms

import skinmm
from skinmm.images.decode import DecodeError, ImageInfo, decode, probe

JPEGS = {
    "4:4:4": encoded(photograph(), subsampling=0),
    "4:2:2": encoded(photograph(), subsampling=1),
    "4:2:0": encoded(photograph(), subsampling=2),
    "progressive": encoded(photograph(), progressive=True),
    "restart markers": encoded(photograph(), restart_marker_rows=1),
    "grey": encoded(photograph().convert("L")),
    "CMYK": encoded(photograph().convert("CMYK")),
    "RGB inside": encoded(photograph(), keep_rgb=True),
    "one pixel": encoded(photograph().resize((1, 1))),
    "stray bytes": encoded(photograph()).replace(b"\xff\xd9", b"\0\0\0\xff\xd9"),
}


JPEGS["stray bytes inside"] = JPEGS["restart markers"].replace(b"\xff\xd0", b"\0\0\xff\xd0", 1)


PNGS = {
    "RGB": encoded(photograph(), "PNG"),
    "interlaced size": encoded(photograph(3, 5), "PNG"),
    "grey": encoded(photograph().convert("L"), "PNG"),
    "grey and alpha": encoded(photograph().convert("LA"), "PNG"),
    "black and white": encoded(photograph().convert("1"), "PNG"),
    "palette": encoded(photograph().quantize(64), "PNG"),
    "palette, transparent": encoded(photograph().quantize(64), "PNG", transparency=b"\0\x80"),
}


@pytest.mark.parametrize("name", JPEGS)
def test_jpeg_equals_pillow_to_the_bit(name: str) -> None:
    np.testing.assert_array_equal(decode(JPEGS[name]), pillow(JPEGS[name]))


@pytest.mark.parametrize("name", PNGS)
def test_png_equals_pillow_to_the_bit(name: str) -> None:
    expected = np.asarray(Image.open(BytesIO(PNGS[name])).convert("RGBA").convert("RGB"))
    np.testing.assert_array_equal(decode(PNGS[name]), expected)


PICTURES = {
    "BMP": encoded(photograph(), "BMP"),
    "BMP, palette": encoded(photograph().quantize(64), "BMP"),
    "TIFF": encoded(photograph(), "TIFF"),
    "TIFF, compressed": encoded(photograph(), "TIFF", compression="tiff_lzw"),
    "TIFF, palette": encoded(photograph().quantize(64), "TIFF"),
    "TIFF, grey": encoded(photograph().convert("L"), "TIFF"),
    "TIFF, CMYK": encoded(photograph().convert("CMYK"), "TIFF"),
    "WebP": encoded(photograph(), "WEBP"),
    "WebP, alpha": encoded(photograph().convert("RGBA"), "WEBP", lossless=True),
    "GIF": encoded(photograph(), "GIF"),
    "GIF, animated": encoded(
        photograph(), "GIF", save_all=True, append_images=[photograph().rotate(180)]
    ),
}


@pytest.mark.parametrize("name", PICTURES)
def test_other_formats_equal_pillow_to_the_bit(name: str) -> None:
    expected = pillow(PICTURES[name])
    np.testing.assert_array_equal(decode(PICTURES[name]), expected)
    info = probe(PICTURES[name])
    assert info.format == name.partition(",")[0].lower()
    assert (info.height, info.width) == expected.shape[:2]
    with pytest.raises(DecodeError):
        decode(PICTURES[name][: len(PICTURES[name]) // 3])


def test_a_phone_s_picture_is_upright() -> None:
    """The file has EXIF orientation 6, and the same rotation as a box of its container."""
    pytest.importorskip("pi_heif")
    data = (Path(__file__).parent / "gradient.heic").read_bytes()
    y, x = np.mgrid[:32, :24]
    expected = np.stack([y * 8, (23 - x) * 10, np.full_like(x, 90)], axis=-1)
    assert distance(decode(data), expected) < 3
    info = probe(data)
    assert (info.format, info.height, info.width) == ("heic", 32, 24)


def test_a_phone_s_picture_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif.as_plugin", None)
    data = (Path(__file__).parent / "gradient.heic").read_bytes()
    with pytest.raises(DecodeError, match=r"need pi-heif: pip install 'skinmm\[heic\]'"):
        decode(data)


def test_alpha_is_dropped_not_blended() -> None:
    pixels = RNG.integers(0, 256, (9, 8, 4), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "PNG")
    np.testing.assert_array_equal(decode(data), pixels[:, :, :3])


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone_before_the_size_is_read(orientation: int, format_: str) -> None:
    data = with_orientation(orientation, format_)
    upright = pillow(data)
    np.testing.assert_array_equal(decode(data), upright)
    info = probe(data)
    assert (info.height, info.width) == upright.shape[:2]
    small = decode(data, size=(60, 90))
    assert small.shape == (60, 90, 3)
    expected = Image.fromarray(upright).resize((90, 60), Image.Resampling.BILINEAR)
    assert distance(small, np.asarray(expected)) < 1


def test_broken_exif_leaves_the_picture_upright() -> None:
    data = encoded(photograph(), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode(data), pillow(encoded(photograph())))


@pytest.mark.parametrize("size", [(40, 40), (53, 71), (106, 142), (200, 280), (211, 283), (300, 9)])
@pytest.mark.parametrize("name", ["4:4:4", "4:2:0", "grey", "CMYK"])
def test_scaled_decoding_is_near_full_decoding(name: str, size: tuple[int, int]) -> None:
    small = decode(JPEGS[name], size=size)
    assert small.shape == (*size, 3)
    full = Image.fromarray(pillow(JPEGS[name]))
    expected = full.resize(size[::-1], Image.Resampling.BILINEAR)
    assert distance(small, np.asarray(expected)) < 1.5


@pytest.mark.parametrize("side", [1, 26, 27, 100, 158, 159, 211, 212])
def test_the_smallest_scale_that_covers_is_decoded(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = []
    turbo = simplejpeg.decode_jpeg

    def spy(*args: Any, **options: Any) -> np.ndarray:
        pixels: np.ndarray = turbo(*args, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    monkeypatch.setattr(simplejpeg, "decode_jpeg", spy)
    decode(JPEGS["4:2:0"], size=side)
    scales = [(-(-211 * n // 8), -(-283 * n // 8)) for n in range(1, 9)]
    covering = [scale for scale in scales if min(scale) >= side]
    assert shapes == [covering[0] if covering else scales[-1]]


def test_result_is_contiguous_and_writable() -> None:
    for data in (JPEGS["4:2:0"], PNGS["RGB"], with_orientation(6)):
        for size in (None, 64):
            pixels = decode(data, size=size)
            assert pixels.flags.c_contiguous
            assert pixels.flags.writeable


def test_probe_reads_the_header_alone() -> None:
    assert probe(JPEGS["4:2:0"][:800]) == ImageInfo("jpeg", 283, 211)
    assert probe(PNGS["RGB"][:60]) == ImageInfo("png", 283, 211)


def swapped_profile() -> bytes:
    """An ICC profile whose red and green primaries are exchanged: its effect is plain to see."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", profile, 128)[0]
    tags = {bytes(profile[132 + 12 * n : 136 + 12 * n]): 132 + 12 * n for n in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_icc_profile_is_noted_and_converted_on_request(format_: str) -> None:
    profile = swapped_profile()
    data = encoded(photograph(), format_, icc_profile=profile)
    assert probe(data).icc == "sRGB built-in"
    plain = decode(data)
    np.testing.assert_array_equal(plain, pillow(data))
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )
    expected = transform.apply(Image.fromarray(plain))
    np.testing.assert_array_equal(decode(data, icc="srgb"), np.asarray(expected))
    assert distance(decode(data, icc="srgb"), plain) > 10


def test_srgb_profile_changes_next_to_nothing_and_no_profile_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photograph(), icc_profile=profile)
    assert np.abs(decode(data, icc="srgb").astype(int) - decode(data)).max() <= 1
    np.testing.assert_array_equal(decode(JPEGS["grey"], icc="srgb"), decode(JPEGS["grey"]))


@pytest.mark.parametrize("profile", [b"no profile", swapped_profile()])
def test_unusable_profile_is_an_error_only_when_asked_for(profile: bytes) -> None:
    data = encoded(photograph().convert("L"), icc_profile=profile)
    decode(data)
    assert probe(data).icc in ("unreadable", "sRGB built-in")
    with pytest.raises(DecodeError, match=r"ICC profile .* use icc=ignore"):
        decode(data, icc="srgb")


HUGE_PNG = PNGS["RGB"].replace(struct.pack(">II", 283, 211), struct.pack(">II", 100_000, 100_000))


HUGE_JPEG = JPEGS["4:4:4"].replace(struct.pack(">HH", 211, 283), struct.pack(">HH", 60_000, 60_000))


BAD = {
    "nothing": (b"", "the file is empty"),
    "text": (
        b"<html>404 not found</html>",
        "not an image of a supported format .* it starts with b'<html>",
    ),
    "three bytes": (b"\xff\xd8\xff", "JPEG ends before its pixels begin"),
    "JPEG header only": (JPEGS["4:2:0"][:300], "JPEG"),
    "half a JPEG": (JPEGS["4:2:0"][:3000], "damaged JPEG .*fetch the file again"),
    "half a CMYK JPEG": (JPEGS["CMYK"][:9000], "unreadable JPEG .*truncated"),
    "JPEG with a hole": (
        JPEGS["4:2:0"][:3000] + JPEGS["4:2:0"][3600:],
        "damaged JPEG .*fetch the file again",
    ),
    "stray bytes, then cut": (JPEGS["stray bytes inside"][:3600], "damaged JPEG"),
    "JPEG of 12 bits": (JPEGS["grey"].replace(b"\x0b\x08", b"\x0b\x0c", 1), "JPEG with 12 bits"),
    "PNG signature": (PNGS["RGB"][:8], "0x0 pixels"),
    "half a PNG": (PNGS["RGB"][:3000], "unreadable PNG .*truncated"),
    "PNG with a wrong CRC": (PNGS["RGB"][:29] + b"0000" + PNGS["RGB"][33:], "unreadable PNG"),
    "huge PNG header": (HUGE_PNG, "100000x100000 is 10,000.0 megapixels, the limit is 200.0"),
    "huge JPEG header": (HUGE_JPEG, "60000x60000 is 3,600.0 megapixels, the limit is 200.0"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("size", [None, 64])
def test_bad_input_says_what_and_what_to_do(name: str, size: int | None) -> None:
    data, message = BAD[name]
    with pytest.raises(DecodeError, match=message) as caught:
        decode(data, size=size)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", JPEGS)
def test_no_prefix_of_a_jpeg_passes_for_the_picture(name: str) -> None:
    data = JPEGS[name]
    for stop in range(0, len(data) - 2, 97):  # the last two bytes only say that it ends
        with pytest.raises(DecodeError):
            decode(data[:stop], size=50)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 50_000}, "283x211 is 0.1 megapixels, the limit is 0.1"),
        ({"size": (0, 10)}, "each side must be at least one pixel"),
        ({"size": 50_000}, "50000x50000 is 2,500.0 megapixels"),
        ({"frame": 2}, "#frame=2 does not exist: it has one frame"),
    ],
)
@pytest.mark.parametrize("data", [JPEGS["4:2:0"], PNGS["RGB"]])
def test_bad_requests_are_refused(data: bytes, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        decode(data, **options)


def test_pillows_own_limits_do_not_apply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode(PNGS["RGB"]).shape == decode(JPEGS["CMYK"]).shape == (211, 283, 3)


def test_decoding_stays_behind_one_function() -> None:
    """Libraries take their decoders away again; here one room knows them."""
    decoders = re.compile(r"decode_jpeg\(|torchvision\.io|imdecode|Image\.open\(|cykooz")
    source = Path(skinmm.__file__).parent
    users = {path.name for path in source.rglob("*.py") if decoders.search(path.read_text())}
    assert users == {"base.py", "dicom.py"}


@pytest.mark.realdata
def test_camera_files_equal_pillow_to_the_bit() -> None:
    root = Path(os.environ.get("SKINMM_DATA") or pytest.skip("SKINMM_DATA is not set"))
    files = sorted((root / "isic_originals").glob("*.jpg"))
    assert len(files) == 22
    for file in files[::3]:
        np.testing.assert_array_equal(decode(file.read_bytes()), pillow(file.read_bytes()))
