"""DICOM files as tests need them: around pixels, or around JPEG streams as archives hold them."""

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ExplicitVRLittleEndian,
    JPEGBaseline8Bit,
    SecondaryCaptureImageStorage,
    generate_uid,
)


def dicom(pixels: bytes | np.ndarray | None, **elements: Any) -> bytes:
    """Write a Secondary Capture file; `pixels` may be encoded already."""
    syntax = elements.pop("syntax", ExplicitVRLittleEndian)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = generate_uid()
    dataset.Modality = "XC"
    dataset.PixelRepresentation = 0
    if isinstance(pixels, np.ndarray):
        dataset.Rows, dataset.Columns = pixels.shape[:2]
        dataset.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
        dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
        dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = pixels.itemsize * 8
        dataset.HighBit = dataset.BitsStored - 1
        pixels = pixels.tobytes()
    if pixels is not None:
        dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
        dataset["PixelData"].VR = "OB" if syntax == JPEGBaseline8Bit else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    file = BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def dicom_from_jpeg(*streams: bytes, **elements: Any) -> bytes:
    """Wrap JPEG streams, one a frame, as the SIIM-ISIC files are: YBR_FULL_422, one fragment."""
    with Image.open(BytesIO(streams[0])) as image:
        geometry = {"Rows": image.height, "Columns": image.width}
    geometry |= {"SamplesPerPixel": 3, "PlanarConfiguration": 0}
    geometry |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "NumberOfFrames": len(streams)}
    return dicom(
        encapsulate(list(streams)),
        syntax=JPEGBaseline8Bit,
        **geometry | {"PhotometricInterpretation": "YBR_FULL_422"} | elements,
    )
