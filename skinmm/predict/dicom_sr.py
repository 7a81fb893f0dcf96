"""`skinmm dicom-sr`: predictions of DICOM images, written as DICOM objects.

Every image gets a Comprehensive SR (TID 1500) and, if the model has an image branch, a Secondary
Capture of the heat map over the image; both belong to the study of the image. The same content has
the same UID.
"""

from collections.abc import Hashable, Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import UInt8

from skinmm import __version__
from skinmm.config.checkpoints import find_checkpoints
from skinmm.config.remote_commands import DicomConfig
from skinmm.errors import InputError, print_error, print_line, require_new_output
from skinmm.images.source import Source
from skinmm.predict.cases import NOTICE, Case, CasePredictor
from skinmm.predict.inputs import ImageFolder, read_input
from skinmm.predict.loading import CaseImage
from skinmm.predict.pipeline import require_single_rows
from skinmm.vocabulary import is_missing, rename_columns

SCHEME: Final = "99SKINMM"
"""Coding scheme of the codes that DICOM does not define."""
REPORT, CAPTURE = "sr", "sc"
INVALID: Final = (InputError, ValueError, TypeError, AttributeError)
"""Errors of an image without a result; highdicom raises the last three for a wrong header."""
_REQUIRED: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_MAY_BE_EMPTY: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_SERIES_NUMBERS: Final = {REPORT: 9001, CAPTURE: 9002}
_MAX_SIDE: Final = 1024  # pixels of the image under the map


def write_results(config: DicomConfig) -> int:
    """Write `UID.sr.dcm` and `UID.sc.dcm` for every DICOM image of a table or a folder.

    Returns the exit status: 0, or 3 if some rows have no result; the reasons are printed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError("DICOM results need highdicom: pip install 'skinmm[dicom]'") from error
    out = Path(config.out)
    require_new_output("out", out, overwrite=config.overwrite)
    images = ImageFolder(config.images or config.input)
    predictor = CasePredictor(config, find_checkpoints(config.checkpoint))
    require_single_rows(predictor.predictor.ensemble.members, "skinmm dicom-sr")
    tables = map(rename_columns, read_input(config.input, 256))
    rows = (row for table in tables for row in table.to_dict("records"))
    written = failed = 0
    for row in rows:
        if "image_id" not in row:
            raise InputError(
                f"input={config.input}: no image column; rename it to image_name or image"
            )
        try:
            results = _build_results(predictor, images, row)
            out.mkdir(parents=True, exist_ok=True)
            for name, dataset in results.items():
                dataset.save_as(out / name, enforce_file_format=True)
            written += 1
        except (OSError, *INVALID) as error:
            print_error(f"{row['image_id']}: {error}")
            failed += 1
    if not written + failed:
        raise InputError(f"input={config.input}: no images to predict")
    print_line(f"results: {out} ({written} written, {failed} failed)")
    return 3 if failed else 0


def _build_results(
    predictor: CasePredictor, images: ImageFolder, row: Mapping[Hashable, Any]
) -> dict[str, Any]:
    """Return the DICOM objects of a row by file name."""
    location = images.find(str(row["image_id"]))
    if location is None:
        raise InputError(images.describe_missing(str(row["image_id"])))
    source = images.read(location)
    cells = {name: row.get(name) for name in predictor.predictor.columns}
    record = {name: str(cell) for name, cell in cells.items() if not is_missing(cell)}
    result = build_results(predictor, source, record)
    name = str(result.header.SOPInstanceUID)
    name += "" if source.frame is None else f".{source.frame}"
    return {f"{name}.{kind}.dcm": dataset for kind, dataset in result.objects.items()}


class DicomResult(NamedTuple):
    """Prediction of a DICOM image, and its DICOM objects by kind: report, and heat map."""

    header: Any
    case: Case
    prediction: dict[str, Any]
    objects: dict[str, Any]


def build_results(
    predictor: CasePredictor, source: Source, record: Mapping[str, str]
) -> DicomResult:
    """Predict a DICOM image and build the objects of its result."""
    header = _read_header(source)
    case = Case([CaseImage(*source)], record)
    prediction, explanation = predictor.predict_and_explain(case)
    if explanation is None:
        raise InputError(prediction["error"])
    digests = predictor.predictor.identity
    objects = {REPORT: build_report(header, source.frame, prediction, digests)}
    for drawing in explanation.draw(_MAX_SIDE):
        objects[CAPTURE] = build_capture(header, source.frame, drawing, digests)
    return DicomResult(header, case, prediction, objects)


def _read_header(source: Source) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(BytesIO(source.data), stop_before_pixels=True)
    except InvalidDicomError as error:
        raise InputError("not a DICOM file, so no DICOM result can refer to it") from error
    if missing := [name for name in _REQUIRED if not header.get(name)]:
        raise InputError(f"its header lacks {', '.join(missing)}, to which a result refers")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def build_report(
    header: Any, frame: int | None, prediction: Mapping[str, Any], digests: list[str]
) -> Any:
    """Build a Comprehensive SR of a prediction."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = sr.DeviceObserverIdentifyingAttributes(
        _uid("device", *digests), "skinmm", "skinmm", f"skinmm {__version__}", digests[0][:16]
    )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        Code("446078004", "SCT", "Dermoscopic photography"),
        [_build_measurements(header, frame, prediction, digests)],
    )
    missing = ", ".join(prediction["missing"])
    comment = f"{NOTICE} Predicted without: {missing}." if missing else NOTICE
    content[0].ContentSequence.append(
        sr.TextContentItem(codes.DCM.Comment, comment, sr.RelationshipTypeValues.CONTAINS)
    )
    return sr.ComprehensiveSR(
        [header],
        content[0],
        **_identify(REPORT, header, frame, digests, repr(sorted(prediction.items()))),
        is_complete=True,
    )


def _build_measurements(
    header: Any, frame: int | None, prediction: Mapping[str, Any], digests: list[str]
) -> Any:
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    values = {f"p_{name}": value for name, value in prediction["probabilities"].items()}
    if prediction["threshold"] is not None:
        values["threshold"] = prediction["threshold"]
    measurements = [
        sr.Measurement(Code(f"P{number}", SCHEME, name[:64]), _round(value), codes.UCUM.NoUnits)
        for number, (name, value) in enumerate(values.items())
    ]
    percent = _round(100 * prediction["malignancy"])
    decision = Code(prediction["decision"], SCHEME, prediction["decision"].capitalize())
    frames = None if frame is None else [frame]
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(_uid("lesion", header.SOPInstanceUID, frame), "lesion"),
        algorithm_id=sr.AlgorithmIdentification(
            "skinmm", __version__, [f"checkpoint SHA-256 {digest}" for digest in digests]
        ),
        measurements=[
            sr.Measurement(codes.DCM.ProbabilityOfCancer, percent, codes.UCUM.Percent),
            *measurements,
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(Code("decision", SCHEME, "Decision"), decision)
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(header, frames)],
    )


def build_capture(
    header: Any, frame: int | None, pixels: UInt8[np.ndarray, "h w 3"], digests: list[str]
) -> Any:
    """Build a Secondary Capture of pixels derived from an image."""
    from highdicom import sc
    from pydicom import Dataset

    image = sc.SCImage.from_ref_dataset(
        header,
        pixels,
        "RGB",
        8,
        "PATIENT",
        **_identify(CAPTURE, header, frame, digests, sha256(pixels.tobytes()).hexdigest()),
        patient_orientation=("L", "F"),  # required here, but unknown for a lesion: removed below
    )
    image.PatientOrientation = []
    image.Laterality = header.get("Laterality", "")
    source = Dataset()
    source.ReferencedSOPClassUID = header.SOPClassUID
    source.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        source.ReferencedFrameNumber = frame
    image.SourceImageSequence = [source]
    image.DerivationDescription = (
        f"Heat map: where the image raises the probability of malignancy. {NOTICE}"
    )
    return image


def _identify(
    kind: str, header: Any, frame: int | None, digests: list[str], content: str
) -> dict[str, Any]:
    """Return the identifiers of an object; the UID is derived from its content."""
    parts = (frame, __version__, *digests, content)
    return {
        "series_instance_uid": _uid(kind, header.StudyInstanceUID, *digests),
        "series_number": _SERIES_NUMBERS[kind],
        "sop_instance_uid": _uid(kind, header.SOPInstanceUID, *parts),
        "instance_number": 1,
        "manufacturer": "skinmm",
    }


def _round(value: float) -> float:
    """Round to the 16 characters of a DICOM decimal string."""
    return float(f"{value:.9g}")


def _uid(*parts: Any) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[str(part) for part in ("skinmm", *parts)])
