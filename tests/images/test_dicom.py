"""DICOM files against pydicom's own pixels, and against the JPEG files that they hold."""

import os
import warnings
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dicom_files import dicom, dicom_from_jpeg
from PIL import Image, ImageCms
from pydicom import Dataset, dcmread, dcmwrite, examples
from pydicom import data as pydicom_data
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import JPEGLosslessSV1Decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000, MPEG2MPML, JPEGBaseline8Bit, JPEGLosslessSV1

from skinmm.images import dicom as decode_dicom
from skinmm.images.decode import DecodeError, decode, probe
from skinmm.images.dicom import read_dicom_record
from skinmm.images.shards import read_tfrecord_image
from skinmm.images.tfrecord import write_tfrecord

RNG = np.random.default_rng(11)
# pydicom tells what is unusual in its test files by warnings.
pytestmark = pytest.mark.filterwarnings("ignore")


def jpeg(image: Image.Image, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


PIXELS = RNG.integers(0, 256, (37, 52, 3), dtype=np.uint8)
STREAM = jpeg(Image.fromarray(PIXELS).resize((104, 74), Image.Resampling.BICUBIC))


def turned_to_rgb(dataset: Dataset, values: np.ndarray) -> np.ndarray:
    """Say what 8-bit RGB means for pydicom's pixels, by pydicom's functions on single values."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.asarray(apply_color_lut(values, dataset) >> 8, np.uint8)
    bits = dataset.BitsStored
    if values.ndim == 3:
        return np.asarray(values >> (bits - 8), np.uint8)
    signed = dataset.PixelRepresentation
    stored = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    black, white = apply_modality_lut(stored, dataset)
    shown = apply_voi_lut(apply_modality_lut(values, dataset), dataset)
    grey = np.rint(np.interp(shown, [black, white], [0, 255])).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


def pydicom_pixels(path: Path) -> tuple[Dataset, np.ndarray] | None:
    """Return the first frame, None where pydicom cannot decode it."""
    try:
        dataset = dcmread(path)
        plugin = "pillow" if dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit else ""
        return dataset, pixel_array(dataset, index=0, decoding_plugin=plugin)
    except Exception:
        return None


FILES = {path.name: path for path in Path(pydicom_data.__file__).parent.glob("test_files/*.*")}
# What pydicom does not decode either. 12-bit JPEG: its only free decoder is under the GPL.
REFUSED = {
    "JPEG-lossy.dcm": "JPEG with 12 bits: decompress it first",
    "JPGExtended.dcm": "JPEG with 12 bits: decompress it first",
    "JPEG2000-embedded-sequence-delimiter.dcm": "its header has 256x1024",
    "MR_truncated.dcm": "number of bytes of pixel data is less than expected",
    "badVR.dcm": "unreadable DICOM",
    "meta_missing_tsyntax.dcm": "a copy would lack it too",
    "nested_priv_SQ.dcm": "a copy would lack it too",
    "no_meta.dcm": "not an image of a supported format",
    "rtplan.dcm": r"has no pixels \(Modality RTPLAN\)",
    "rtstruct.dcm": "not an image of a supported format",
    "test-SR.dcm": r"has no pixels \(Modality SR\): leave it out",
    "waveform_ecg.dcm": r"has no pixels \(Modality ECG\)",
}


@pytest.mark.parametrize("name", sorted(FILES))
def test_pydicoms_files_equal_pydicoms_pixels_or_are_refused(name: str) -> None:
    data = FILES[name].read_bytes()
    expected = pydicom_pixels(FILES[name])
    if expected is None:
        with pytest.raises(DecodeError, match=REFUSED.get(name, "")):
            decode(data, frame=1)
    else:
        assert name not in REFUSED
        np.testing.assert_array_equal(decode(data, frame=1), turned_to_rgb(*expected))


def test_enough_of_pydicoms_files_were_compared() -> None:
    assert sum(pydicom_pixels(path) is not None for path in FILES.values()) >= 50


@pytest.mark.realdata
def test_dicom_and_tfrecord_made_from_camera_jpegs_equal_them_to_the_bit(tmp_path: Path) -> None:
    root = Path(os.environ.get("SKINMM_DATA") or pytest.skip("SKINMM_DATA is not set"))
    files = sorted((root / "isic_originals").glob("*.jpg"))
    assert len(files) == 22
    for file in files:
        data = file.read_bytes()
        wrapped = dicom_from_jpeg(data)
        np.testing.assert_array_equal(decode(wrapped), decode(data))
        np.testing.assert_array_equal(decode(wrapped, size=300), decode(data, size=300))
        write_tfrecord(tmp_path / f"{file.stem}.tfrec", [{"image_name": "a", "image": data}])
        assert read_tfrecord_image(f"{tmp_path}/{file.stem}.tfrec#a") == data


@pytest.mark.parametrize("size", [None, 30, (60, 200)])
def test_encapsulated_jpeg_takes_the_jpeg_path(size: Any) -> None:
    np.testing.assert_array_equal(
        decode(dicom_from_jpeg(STREAM), size=size), decode(STREAM, size=size)
    )


def test_rgb_in_a_jpeg_that_does_not_say_so_is_not_converted_again() -> None:
    """Without an Adobe marker libjpeg takes any three components for YCbCr."""
    picture = Image.fromarray(PIXELS).resize((104, 74), Image.Resampling.BICUBIC)
    stream = jpeg(picture, keep_rgb=True, quality=95, subsampling=0)
    adobe, frame, scan = (
        stream.index(marker) for marker in (b"\xff\xee", b"\xff\xc0", b"\xff\xda")
    )
    unnamed = bytearray(stream)  # components called 1, 2, 3 instead of R, G, B
    unnamed[frame + 10 : frame + 19 : 3] = unnamed[scan + 5 : scan + 11 : 2] = b"\1\2\3"
    length = int.from_bytes(stream[adobe + 2 : adobe + 4])
    bare = bytes(unnamed[:adobe] + unnamed[adobe + 2 + length :])
    pixels = decode(dicom_from_jpeg(bare, PhotometricInterpretation="RGB"))
    assert np.abs(pixels.astype(int) - np.asarray(picture)).mean() < 3
    assert np.abs(decode(bare).astype(int) - pixels).mean() > 30
    np.testing.assert_array_equal(decode(stream), pixels)


def test_exif_orientation_inside_dicom_is_ignored_as_viewers_do() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    turned = STREAM[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + STREAM[2:]
    assert decode(turned).shape[:2] == decode(STREAM).shape[1::-1]
    np.testing.assert_array_equal(decode(dicom_from_jpeg(turned)), decode(STREAM))


def test_several_frames_must_be_named() -> None:
    second = jpeg(Image.new("RGB", (104, 74), "olive"))
    data = dicom_from_jpeg(STREAM, second)
    with pytest.raises(DecodeError, match="has 2 frames: choose one, #frame=1 to #frame=2"):
        decode(data)
    with pytest.raises(DecodeError, match="#frame=3 does not exist: 1 to 2 exist"):
        decode(data, frame=3)
    with pytest.raises(DecodeError, match="#frame=0 does not exist"):
        decode(data, frame=0)
    np.testing.assert_array_equal(decode(data, frame=2), decode(second))
    assert probe(data).frames == 2


def test_monochrome1_is_inverted() -> None:
    grey = PIXELS[:, :, 0]
    np.testing.assert_array_equal(
        decode(dicom(grey, PhotometricInterpretation="MONOCHROME1"))[:, :, 1], 255 - grey
    )


def test_window_by_the_standards_formula() -> None:
    values = RNG.integers(0, 4096, (20, 30), dtype=np.uint16)
    data = dicom(values, BitsStored=12, HighBit=11, WindowCenter=1000, WindowWidth=401)
    expected = np.rint(np.clip((values - 999.5) / 400 + 0.5, 0, 1) * 255)  # PS3.3 C.11.2.1.2.1
    np.testing.assert_array_equal(decode(data)[:, :, 0], expected)


def test_rescale_alone_keeps_the_stored_range() -> None:
    values = RNG.integers(-2048, 2048, (20, 30)).astype(np.int16)
    rescale = {"RescaleSlope": 2, "RescaleIntercept": -7}
    data = dicom(values, BitsStored=12, HighBit=11, PixelRepresentation=1, **rescale)
    expected = np.rint((values.astype(float) + 2048) / 4095 * 255)
    np.testing.assert_array_equal(decode(data)[:, :, 2], expected)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": -127, "WindowWidth": 256}])
def test_falling_slope_turns_the_greys_round(window: dict[str, int]) -> None:
    grey = PIXELS[:, :, 2]
    data = dicom(grey, RescaleSlope=-1, RescaleIntercept=0, **window)
    np.testing.assert_array_equal(decode(data)[:, :, 0], 255 - grey)


@pytest.mark.parametrize("table", ["VOILUTSequence", "ModalityLUTSequence"])
def test_lookup_tables_are_applied(table: str) -> None:
    lut = Dataset()
    lut.LUTDescriptor, lut.LUTData = [256, 0, 8], list(range(255, -1, -1))
    lut["LUTDescriptor"].VR = lut["LUTData"].VR = "US"
    lut.ModalityLUTType = "US"
    grey = PIXELS[:, :, 1]
    data = dicom(grey, **{table: Sequence([lut])})
    np.testing.assert_array_equal(decode(data)[:, :, 0], 255 - grey)


def test_icc_profile_is_noted_and_converted_on_request() -> None:
    profile = FILES["crayons.icc"].read_bytes()
    data = dicom(PIXELS, ICCProfile=profile)
    assert probe(data).icc == "Crayon Colours"
    np.testing.assert_array_equal(decode(data), PIXELS)
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    expected = ImageCms.profileToProfile(
        Image.fromarray(PIXELS), source, ImageCms.createProfile("sRGB")
    )
    np.testing.assert_array_equal(decode(data, icc="srgb"), np.asarray(expected))
    wrapped = dicom_from_jpeg(STREAM, ICCProfile=profile)
    assert (decode(wrapped, icc="srgb") != decode(wrapped)).any()


def test_dicom_from_pydicoms_examples() -> None:
    data = Path(str(examples.get_path("rgb_color"))).read_bytes()
    info = probe(data)
    assert (info.format, info.height, info.width, info.frames) == ("dicom", 240, 320, 1)


def without(data: bytes, name: str, value: object = ...) -> bytes:
    """Remove an element of a file, or empty it."""
    dataset, file = dcmread(BytesIO(data)), BytesIO()
    delattr(dataset, name)
    if value is None:
        setattr(dataset, name, None)
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize("value", [..., None])
@pytest.mark.parametrize(
    ("name", "element"),
    [
        ("Rows", r"Rows \(0028,0010\)"),
        ("Columns", r"Columns \(0028,0011\)"),
        ("SamplesPerPixel", r"Samples per Pixel \(0028,0002\)"),
        ("PhotometricInterpretation", r"Photometric Interpretation \(0028,0004\)"),
        ("PlanarConfiguration", r"Planar Configuration \(0028,0006\)"),
        ("BitsAllocated", r"Bits Allocated \(0028,0100\)"),
        ("BitsStored", r"Bits Stored \(0028,0101\)"),
        ("PixelRepresentation", r"Pixel Representation \(0028,0103\)"),
    ],
)
def test_an_element_that_was_never_written_is_named(name: str, element: str, value: object) -> None:
    message = f"the DICOM file has no {element}, and a copy would lack it too: export it"
    with pytest.raises(DecodeError, match=message) as caught:
        decode(without(dicom(PIXELS), name, value))
    assert "fetch" not in str(caught.value)


def test_what_a_jpeg_stream_states_may_be_missing() -> None:
    data = without(without(dicom_from_jpeg(STREAM), "BitsStored"), "SamplesPerPixel")
    np.testing.assert_array_equal(decode(data), decode(dicom_from_jpeg(STREAM)))


BAD: dict[str, tuple[bytes, str]] = {
    "no pixels": (dicom(None), r"has no pixels \(Modality XC\): leave it out"),
    "floating-point pixels": (
        dicom(None, Rows=2, Columns=2, FloatPixelData=bytes(16)),
        "has floating-point pixels",
    ),
    "cut in the meta information": (dicom(PIXELS)[:200], "DICOM"),
    "cut in the pixels": (dicom(PIXELS)[:-1000], "unreadable DICOM .*fetch the file again"),
    "cut in the JPEG": (dicom_from_jpeg(STREAM[:2000]), "damaged JPEG"),
    "huge header": (
        dicom(PIXELS, Rows=60_000, Columns=60_000),
        "60000x60000 is 3,600.0 megapixels, the limit is 200.0",
    ),
    "huge stream": (
        dicom_from_jpeg(STREAM, Rows=60, Columns=60),
        "header has 60x60 pixels, the compressed stream 104x74",
    ),
    "video": (
        dicom(encapsulate([b"\0" * 8]), syntax=MPEG2MPML, Rows=2, Columns=2),
        "is not supported: convert it",
    ),
    "no grey": (
        dicom(PIXELS[:, :, 0], RescaleSlope=0, RescaleIntercept=1),
        "Rescale Slope .* is 0",
    ),
    "signed colours": (dicom(PIXELS, PixelRepresentation=1), "signed or 8-bit colours are not"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_dicom_says_what_and_what_to_do(name: str) -> None:
    data, message = BAD[name]
    with pytest.raises(DecodeError, match=message):
        decode(data, size=32)


@pytest.mark.parametrize("damage", ["stray bytes", "cut"])
def test_damaged_lossless_jpeg_does_not_end_the_process_in_gdcm(damage: str) -> None:
    dataset = dcmread(FILES["SC_rgb_jpeg_gdcm.dcm"])
    stream = get_frame(dataset.PixelData, 0, number_of_frames=1)
    stray = stream.replace(b"\xff\xc4", b"\0\0\0\0\xff\xc4", 1)
    dataset.PixelData = encapsulate([stray if damage == "stray bytes" else stream[:1500]])
    file = BytesIO()
    dataset.save_as(file)
    with pytest.raises(DecodeError, match="unreadable DICOM"):
        decode(file.getvalue())


def test_jpeg2000_box_without_a_length_does_not_keep_pydicom_for_ever() -> None:
    stream = b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40)
    elements = {"Rows": 2, "Columns": 2, "SamplesPerPixel": 1, "BitsAllocated": 8, "BitsStored": 8}
    data = dicom(encapsulate([stream]), syntax=JPEG2000, **elements)
    with pytest.raises(DecodeError, match="damaged JPEG 2000"):
        decode(data)


def test_missing_decoder_names_the_extra() -> None:
    names = JPEGLosslessSV1Decoder.available_plugins
    removed = {name: JPEGLosslessSV1Decoder._available[name] for name in names}
    data = FILES["SC_rgb_jpeg_gdcm.dcm"].read_bytes()
    assert dcmread(BytesIO(data)).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    JPEGLosslessSV1Decoder._available.clear()
    try:
        with pytest.raises(DecodeError, match=r"pip install 'skinmm\[dicom-codecs\]'"):
            decode(data)
    finally:
        JPEGLosslessSV1Decoder._available.update(removed)


def test_deflated_file_that_inflates_too_much_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = FILES["image_dfl.dcm"].read_bytes()
    assert decode(data).shape == (512, 512, 3)
    monkeypatch.setattr(decode_dicom, "_MAX_INFLATED", 100_000)
    with pytest.raises(DecodeError, match="DICOM file inflates"):
        decode(data)


@pytest.mark.parametrize(
    ("elements", "age"),
    [
        ({"PatientAge": "045Y"}, 45),
        ({"PatientAge": "018M"}, 1.5),
        ({"PatientBirthDate": "19700601", "StudyDate": "20200601"}, 50),
        ({"PatientAge": "", "PatientBirthDate": "", "StudyDate": "20200601"}, None),
        ({"PatientBirthDate": "1970", "StudyDate": "20200601"}, None),
        ({"PatientAge": "000Y"}, None),
        ({"PatientAge": "000Y", "PatientBirthDate": "19700601", "StudyDate": "20200601"}, None),
        ({"PatientAge": "000Y", "PatientBirthDate": "20200101", "StudyDate": "20200601"}, 0.416),
        ({"PatientAge": "003M"}, 0.25),
        ({}, None),
    ],
)
def test_age_comes_in_years(elements: dict[str, str], age: float | None) -> None:
    assert read_dicom_record(dicom(PIXELS, **elements))["age"] == pytest.approx(age, abs=0.01)


def test_record_is_read_as_written() -> None:
    named = dicom(PIXELS, PatientSex="F", PatientID="IP_7279968", BodyPartExamined="HEAD/NECK")
    assert read_dicom_record(named) == {
        "age": None,
        "sex": "F",
        "patient_id": "IP_7279968",
        "institution": None,
        "site": "HEAD/NECK",
    }
    region = Dataset()
    region.CodeMeaning = "Trunk"
    coded = read_dicom_record(
        dicom(PIXELS, AnatomicRegionSequence=Sequence([region]), PatientSex="")
    )
    assert coded == dict.fromkeys(("age", "sex", "patient_id", "institution")) | {"site": "Trunk"}


def test_a_site_as_siim_writes_it_is_read_without_a_warning() -> None:
    data = dicom(PIXELS, BodyPartExamined="HEAD/NECK")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_dicom_record(data)["site"] == "HEAD/NECK"


@pytest.mark.parametrize("data", [b"", b"text" * 99, dicom(PIXELS)[:130], STREAM])
def test_record_of_no_dicom_file_is_an_error(data: bytes) -> None:
    with pytest.raises(DecodeError, match="DICOM"):
        read_dicom_record(data)
