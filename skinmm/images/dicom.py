"""Decoding of DICOM: baseline JPEG streams like JPEG files, all other pixels by pydicom.

pydicom is imported inside functions, so that reading JPEG files does not import it.
"""

import re
import zlib
from datetime import datetime
from io import BufferedReader, BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import simplejpeg
from jaxtyping import Num, UInt8
from PIL import Image

from skinmm.errors import InputError
from skinmm.images.base import (
    DecodeError,
    ImageInfo,
    Raster,
    Request,
    Size,
    check_frame,
    check_size,
    read_jpeg_header,
    read_jpeg_stream,
    read_profile_name,
    report_damage,
    to_rgb,
)
from skinmm.vocabulary import parse_age, parse_site

if TYPE_CHECKING:
    from pydicom import Dataset
else:
    Dataset = Any  # annotations are checked at run time, where pydicom may not be imported yet

File = BufferedReader | BytesIO
Stored = Num[np.ndarray, "height width *samples"]
Pixels = UInt8[np.ndarray, "height width *channels"]

_COLOURS, _BYTE, _META_GROUP, _BOX_HEAD = 3, 8, 2, 8
_PIXEL_ELEMENTS: Final = (
    *("SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "PixelRepresentation"),
)
_JP2: Final = b"\0\0\0\x0cjP  \r\n\x87\n"
# GDCM is last, and libjpeg-turbo checks streams of 8 bits before it: GDCM ends the whole process
# on damaged streams.
_DECODERS: Final = ("pydicom", "pyjpegls", "pylibjpeg", "pillow", "gdcm")
_MAX_INFLATED: Final = 1 << 30  # bytes


def read_dicom(data: bytes, request: Request) -> Raster:
    """Decode one frame of a DICOM file.

    An EXIF orientation inside an encapsulated JPEG is ignored: Rows and Columns describe the
    stream as it is stored.
    """
    from pydicom.uid import JPEGBaseline8Bit

    dataset = _read_dataset(BytesIO(data))
    frames, (height, width) = _read_geometry(dataset)
    index = check_frame(request.frame, frames)
    check_size(width, height, request.max_pixels, request.min_side)
    profile = dataset.get("ICCProfile")
    stream = _extract_frame(dataset, index, frames)
    jpeg = read_jpeg_header(stream) if stream.startswith(b"\xff\xd8") else None
    size = (jpeg.height, jpeg.width) if jpeg else _read_jpeg2000_size(stream)
    if size and size != (height, width):
        raise DecodeError(
            f"its header has {width}x{height} pixels, the compressed stream "
            f"{size[1]}x{size[0]}: damaged, fetch the file again"
        )
    if jpeg and not jpeg.adobe:
        _require_elements(dataset, "PhotometricInterpretation")
    if jpeg and dataset.file_meta.TransferSyntaxUID == JPEGBaseline8Bit:
        # Without an Adobe marker, libjpeg treats three components as YCbCr.
        has_same_colours = jpeg.adobe or dataset.PhotometricInterpretation != "RGB"
        if jpeg.components == _COLOURS and has_same_colours:
            return read_jpeg_stream(stream, jpeg, request, profile)
    pixels = _to_eight_bits(_decode_values(dataset, index, stream), dataset)
    return Raster(to_rgb(Image.fromarray(pixels), profile, request.icc), (height, width))


def probe_dicom(data: bytes) -> ImageInfo:
    """Read the header only."""
    dataset = _read_dataset(BytesIO(data))
    frames, (height, width) = _read_geometry(dataset)
    return ImageInfo("dicom", width, height, frames, read_profile_name(dataset.get("ICCProfile")))


def read_dicom_record(data: bytes | File) -> dict[str, Any]:
    """Read the patient data of a header.

    An open file is read up to the pixels.

    Returns:
        `age` in years (Patient's Age, else from the dates of birth and study), `sex`, `patient_id`,
        `institution` and `site` (Body Part Examined, else the anatomic region; the first that is
        known) as written; None where missing.
    """
    with report_damage("DICOM header"):
        file = BytesIO(data) if isinstance(data, bytes) else data
        dataset = _read_dataset(file, stop_before_pixels=True)
        regions = dataset.get("AnatomicRegionSequence") or [{}]
        sites = dataset.get("BodyPartExamined"), regions[0].get("CodeMeaning")
        record = {
            "age": _read_age(dataset),
            "sex": dataset.get("PatientSex"),
            "patient_id": dataset.get("PatientID"),
            "institution": dataset.get("InstitutionName"),
            "site": next(filter(parse_site, sites), sites[0] or sites[1]),  # SKIN is no site
        }
    return {name: None if value == "" else value for name, value in record.items()}


def read_dicom_lesion(data: bytes) -> tuple[str | None, str]:
    """Return lesion and view of an image from its header; "" if unknown.

    The lesion is the Tracking UID, which names a skin lesion (PS3.3 C.8.12), else the series.
    """
    from pydicom.uid import DermoscopicPhotographyImageStorage

    with report_damage("DICOM header"):
        dataset = _read_dataset(BytesIO(data), stop_before_pixels=True)
        name = dataset.get("TrackingUID") or dataset.get("SeriesInstanceUID")
        kinds = dataset.get("SOPClassUID"), dataset.get("Modality")
    is_dermoscopic = kinds[0] == DermoscopicPhotographyImageStorage or kinds[1] == "DMS"
    return str(name) if name else None, "dermoscopic" if is_dermoscopic else ""


def _read_age(dataset: Dataset) -> float | None:
    """Return the age in years; `000Y` is ignored unless the dates confirm an infant.

    Devices and anonymisers also write `000Y` where the age is not known.
    """
    if stated := parse_age(dataset.get("PatientAge")):
        return stated
    dates = dataset.get("PatientBirthDate"), dataset.get("StudyDate")
    try:
        birth, study = (datetime.strptime(date or "", "%Y%m%d") for date in dates)
    except ValueError:
        return None
    age = parse_age((study - birth).days / 365.25)
    return age if stated is None or (age or 0) <= 1 else None


def _read_dataset(file: File, *, stop_before_pixels: bool = False) -> Dataset:
    """Read a file; refuse a deflated one that inflates beyond the limit."""
    from pydicom import config, dcmread
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # SIIM-ISIC's files say HEAD/NECK where the standard has no slash: no warning for every image.
    config.settings.reading_validation_mode = config.IGNORE
    file.seek(0)
    read_preamble(file, force=False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, *_: tag >> 16 > _META_GROUP)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(file.read(), _MAX_INFLATED)
        if len(inflated) == _MAX_INFLATED:
            raise DecodeError("the DICOM file inflates to over 1 GiB: store it uncompressed")
    file.seek(0)
    return dcmread(file, stop_before_pixels=stop_before_pixels)


def _require_elements(dataset: Dataset, *names: str) -> None:
    """Raise DecodeError if a file lacks the elements that describe its pixels."""
    from pydicom.datadict import dictionary_description
    from pydicom.tag import Tag

    for name in names:
        if dataset.get(name) in (None, ""):
            raise DecodeError(
                f"the DICOM file has no {dictionary_description(name)} "
                f"{Tag(name)}, and a copy would lack it too: export it from "
                "its source again, or leave it out"
            )


def _read_geometry(dataset: Dataset) -> tuple[int, Size]:
    """Return the number of frames and (height, width)."""
    if "PixelData" not in dataset:
        is_float = "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset
        kind = "floating-point pixels" if is_float else "no pixels"
        raise DecodeError(
            f"the DICOM file has {kind} (Modality {str(dataset.get('Modality'))[:16]}): "
            "leave it out, or give the file with the photograph"
        )
    _require_elements(dataset, "Rows", "Columns")
    return int(dataset.get("NumberOfFrames") or 1), (int(dataset.Rows), int(dataset.Columns))


def _extract_frame(dataset: Dataset, index: int, frames: int) -> bytes:
    """Return the compressed stream of a frame; empty for native pixels."""
    from pydicom.encaps import get_frame

    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return b""
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    return get_frame(dataset.PixelData, index, number_of_frames=frames, extended_offsets=offsets)


def _read_jpeg2000_size(stream: bytes) -> Size | None:
    """Return (height, width) from the SIZ segment (T.800 A.5.1); None without one."""
    start = 0
    if stream.startswith(_JP2):
        start = len(_JP2)
        while stream[start + 4 : start + 8] != b"jp2c":
            length = int.from_bytes(stream[start : start + 4])
            if length < _BOX_HEAD:  # shorter than its own header: pydicom would loop forever
                raise DecodeError("damaged JPEG 2000 boxes: fetch the file again")
            start += length
        start += _BOX_HEAD
    if not stream.startswith(b"\xff\x4f\xff\x51", start):
        return None
    right, bottom, left, top = np.frombuffer(stream, ">u4", 4, start + 8).tolist()
    return bottom - top, right - left


def _decode_values(dataset: Dataset, index: int, stream: bytes) -> Stored:
    """Decode one frame with pydicom, always by the same decoder; YBR becomes RGB."""
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import JPEGBaseline8Bit, JPEGExtended12Bit

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise DecodeError(f"{syntax.name} is not supported: convert it to a still image") from None
    if not decoder.is_available:
        raise DecodeError(f"no decoder for {syntax.name}: pip install 'skinmm[dicom-codecs]'")
    _require_elements(dataset, *_PIXEL_ELEMENTS)
    if dataset.SamplesPerPixel > 1:
        _require_elements(dataset, "PlanarConfiguration")
    plugin = next((name for name in _DECODERS if name in decoder.available_plugins), "")
    if syntax == JPEGBaseline8Bit:
        plugin = "pillow"  # libjpeg-turbo, like the JPEG path
    if syntax == JPEGExtended12Bit and dataset.BitsStored > _BYTE and plugin != "pylibjpeg":
        raise DecodeError(f"JPEG with {dataset.BitsStored} bits: decompress it first (dcmdjpeg)")
    if plugin == "gdcm" and dataset.BitsAllocated == _BYTE:
        simplejpeg.decode_jpeg(stream)
    return pixel_array(dataset, index=index, decoding_plugin=plugin)


def _to_eight_bits(values: Stored, dataset: Dataset) -> Pixels:
    """Convert stored values to 8-bit grey, or to RGB by keeping the upper eight bits."""
    from pydicom.pixels.processing import apply_color_lut

    bits = dataset.BitsStored
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)[..., :3]
        bits = values.itemsize * _BYTE
    if values.ndim < _COLOURS:
        return _to_grey(values, dataset)
    if bits < _BYTE or dataset.PixelRepresentation:
        raise DecodeError(f"signed or {bits}-bit colours are not supported: convert them to 8 bits")
    return (values >> (bits - _BYTE)).astype(np.uint8)


def _to_grey(values: Stored, dataset: Dataset) -> Pixels:
    """Rescale, apply the first window or table, and map the whole range linearly to [0, 255].

    The range is that of the stored bits, not of the actual values: the same value gives the same
    grey in every file (DICOM PS3.3 C.11.1, C.11.2).
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    mapped = apply_voi_lut(apply_modality_lut(values, dataset), dataset).astype(np.float64)
    low, high = _compute_range(dataset)
    if low == high:
        raise DecodeError("Rescale Slope (0028,1053) is 0: every pixel would be the same")
    grey = np.rint((mapped - low) * (255 / (high - low))).clip(0, 255).astype(np.uint8)
    return 255 - grey if dataset.PhotometricInterpretation == "MONOCHROME1" else grey


def _compute_range(dataset: Dataset) -> tuple[float, float]:
    """Return the lowest and highest possible output of the grey-scale pipeline."""
    for table in ("VOILUTSequence", "ModalityLUTSequence"):
        if dataset.get(table):
            return 0.0, 2.0 ** dataset[table][0].LUTDescriptor[2] - 1
    values = 2.0**dataset.BitsStored
    low = -values / 2 if dataset.PixelRepresentation else 0.0
    slope = float(dataset.get("RescaleSlope", 1))
    intercept = float(dataset.get("RescaleIntercept", 0))
    ends = slope * low + intercept, slope * (low + values - 1) + intercept
    windowed = None not in (dataset.get("WindowCenter"), dataset.get("WindowWidth"))
    # pydicom's window puts its dark side at the lowest stored value, whatever the slope's sign.
    return ends if windowed else (min(ends), max(ends))


def check_filters(filters: Any) -> None:
    """Raise InputError for filters that DICOMweb servers would ignore, or that match nothing."""
    from pydicom.datadict import tag_for_keyword

    if not isinstance(filters, dict):
        raise InputError(f"filters={filters}: must be pairs, as {{StudyDate: 20261101-}}")
    for name, value in filters.items():
        if name == "Modality":
            raise InputError("filters: for the modality, set modality=[...]")
        if tag_for_keyword(name) is None and not re.fullmatch("[0-9A-Fa-f]{8}", name):
            raise InputError(f"filters: {name} is no DICOM keyword, as StudyDate and PatientID are")
        if name.endswith("Date") and not re.fullmatch(r"\d{8}(-(\d{8})?)?|-\d{8}", str(value)):
            raise InputError(f"filters: {name}={value}: must be YYYYMMDD, or a range with -")
