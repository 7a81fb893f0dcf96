"""`skinmm dicom-sr`: what a model says of DICOM images, as DICOM that refers to them.

Of each image a Comprehensive SR (TID 1500) and, where the model looks at images, a Secondary
Capture of the heat map over the picture; both belong to the image's study. What says the same has
the same UID again.
"""

import sys
from collections.abc import Iterator, Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import UInt8

from skinmm import __version__
from skinmm.config import DicomConfig
from skinmm.errors import InputError
from skinmm.images.source import Source
from skinmm.predict.explain import decode_for_display, overlay
from skinmm.predict.images import ImageFolder
from skinmm.predict.job import find_checkpoints
from skinmm.predict.reader import read_tables
from skinmm.predict.single_case import NOTICE, Case, CasePredictor
from skinmm.vocabulary import is_missing, rename_columns

SCHEME: Final = "99SKINMM"
"""Of the codes that DICOM has not."""
REPORT, CAPTURE = "sr", "sc"
_NEEDED: Final = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID")
_MAY_BE_EMPTY: Final = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"),
    *("StudyID", "StudyDate", "StudyTime", "ReferringPhysicianName"),
)
_SERIES: Final = {REPORT: 9001, CAPTURE: 9002}
_SIDE: Final = 1024  # of the picture under the map, pixels at most


def write_results(config: DicomConfig) -> int:
    """Writes `UID.sr.dcm` and `UID.sc.dcm` for every DICOM image of a table or a folder.

    Returns:
        The exit status: 0, or 3 where there is none for some rows; the reasons are printed.

    Raises:
        InputError: a missing checkpoint, table or folder, nothing in it, a folder with files in the
            way, or highdicom is not installed.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError("DICOM results need highdicom: pip install 'skinmm[dicom]'") from error
    out = Path(config.out)
    if out.exists() and not config.overwrite and any(out.iterdir()):
        raise InputError(f"out={out} holds files; choose another, or overwrite=true")
    folder = ImageFolder(config.images or config.input)
    service = CasePredictor(
        find_checkpoints(config.checkpoint),
        config.accelerator,
        referral=config.referral,
        backend=config.backend,
    )
    done = failed = 0
    for row in _rows(config.input):
        try:
            results = _results(service, folder, row)
            out.mkdir(parents=True, exist_ok=True)
            for name, dataset in results.items():
                dataset.save_as(out / name, enforce_file_format=True)
            done += 1
        except (InputError, OSError, ValueError, TypeError, AttributeError) as error:
            # The latter three are highdicom's, of a header that breaks the standard.
            print(f"{row['image_id']}: {error}", file=sys.stderr)  # noqa: T201
            failed += 1
    if not done + failed:
        raise InputError(f"input={config.input}: no images to predict")
    print(f"results: {out} ({done} written, {failed} failed)")  # noqa: T201
    return 3 if failed else 0


def _rows(source: str) -> Iterator[Mapping[str, Any]]:
    for table in read_tables(source, 256):
        named = rename_columns(table)
        if "image_id" not in named.columns:
            raise InputError(f"input={source}: no image column; call it image_name or image")
        yield from named.to_dict("records")  # type: ignore[misc]


def _results(service: CasePredictor, folder: ImageFolder, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row's DICOM objects by file name.

    Raises:
        InputError: its image is not there or no DICOM file, or it cannot be predicted.
    """
    path = folder.find(str(row["image_id"]))
    if path is None:
        raise InputError("image not found")
    source = folder.read(path)
    header = _header(source)
    record = {name: row.get(name) for name in service.predictor.columns}
    known = {name: str(cell) for name, cell in record.items() if not is_missing(cell)}
    said, reasons = service.predict_and_explain(Case(source.data, known, source.frame))
    if reasons is None:
        raise InputError(said["error"])
    frame = "" if source.frame is None else f".{source.frame}"
    name = f"{header.SOPInstanceUID}{frame}"
    identity = service.predictor.identity
    results = {f"{name}.{REPORT}.dcm": report(header, source.frame, said, identity)}
    if reasons.heat is not None:
        seen = (
            decode_for_display(source.data, source.frame, _SIDE)
            if reasons.seen is None
            else reasons.seen
        )
        picture = overlay(seen, reasons.heat)
        results[f"{name}.{CAPTURE}.dcm"] = capture(header, source.frame, picture, identity)
    return results


def _header(source: Source) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(BytesIO(source.data), stop_before_pixels=True)
    except InvalidDicomError as error:
        raise InputError("no DICOM file, so a result has nothing to refer to") from error
    if lost := [name for name in _NEEDED if not header.get(name)]:
        raise InputError(f"its header has no {', '.join(lost)}: nothing can refer to it")
    for name in _MAY_BE_EMPTY:
        if name not in header:
            setattr(header, name, "")
    return header


def report(header: Any, frame: int | None, said: Mapping[str, Any], identity: list[str]) -> Any:
    """A Comprehensive SR of what was predicted.

    Args:
        header: of the image.
        frame: which of its frames, from 1.
        said: what the service answers.
        identity: SHA-256 of the checkpoints.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    device = sr.DeviceObserverIdentifyingAttributes(
        _uid("device", *identity), "skinmm", "skinmm", f"skinmm {__version__}", identity[0][:16]
    )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=sr.ObserverContext(codes.DCM.Device, device)),
        Code("446078004", "SCT", "Dermoscopic photography"),
        [_group(header, frame, said, identity)],
    )
    lacking = f" PredictionTable without: {', '.join(said['missing'])}." if said["missing"] else ""
    content[0].ContentSequence.append(
        sr.TextContentItem(codes.DCM.Comment, NOTICE + lacking, sr.RelationshipTypeValues.CONTAINS)
    )
    return sr.ComprehensiveSR(
        [header],
        content[0],
        **_place(REPORT, header, frame, identity, repr(sorted(said.items()))),
        is_complete=True,
    )


def _group(header: Any, frame: int | None, said: Mapping[str, Any], identity: list[str]) -> Any:
    """What was measured in the image, by which algorithm."""
    from highdicom import sr
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    measured = {f"p_{name}": chance for name, chance in said["probabilities"].items()}
    measured["threshold"] = said["threshold"]
    own = [
        sr.Measurement(Code(f"P{number}", SCHEME, name[:64]), _short(value), codes.UCUM.NoUnits)
        for number, (name, value) in enumerate(measured.items())
    ]
    percent = _short(100 * said["malignancy"])
    decision = Code(said["decision"], SCHEME, said["decision"].capitalize())
    frames = None if frame is None else [frame]
    return sr.MeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(_uid("lesion", header.SOPInstanceUID, frame), "lesion"),
        algorithm_id=sr.AlgorithmIdentification(
            "skinmm", __version__, [f"checkpoint SHA-256 {digest}" for digest in identity]
        ),
        measurements=[
            sr.Measurement(codes.DCM.ProbabilityOfCancer, percent, codes.UCUM.Percent),
            *own,
        ],
        qualitative_evaluations=[
            sr.QualitativeEvaluation(Code("decision", SCHEME, "Decision"), decision)
        ],
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(header, frames)],
    )


def capture(
    header: Any, frame: int | None, picture: UInt8[np.ndarray, "h w 3"], identity: list[str]
) -> Any:
    """A Secondary Capture of a picture that was made of an image."""
    from highdicom import sc
    from pydicom import Dataset

    image = sc.SCImage.from_ref_dataset(
        header,
        picture,
        "RGB",
        8,
        "PATIENT",
        **_place(CAPTURE, header, frame, identity, sha256(picture.tobytes()).hexdigest()),
        patient_orientation=("L", "F"),  # asked for; of a lesion nobody knows, so it is taken out
    )
    image.PatientOrientation = []
    image.Laterality = header.get("Laterality", "")
    source = Dataset()
    source.ReferencedSOPClassUID = header.SOPClassUID
    source.ReferencedSOPInstanceUID = header.SOPInstanceUID
    if frame is not None:
        source.ReferencedFrameNumber = frame
    image.SourceImageSequence = [source]
    image.DerivationDescription = f"Where the image speaks for malignancy. {NOTICE}"
    return image


def _place(
    kind: str, header: Any, frame: int | None, identity: list[str], content: str
) -> dict[str, Any]:
    """What SR and capture are told alike: their numbers, and who made them.

    Other content is another object: an archive keeps the first of two that share a number.
    """
    return {
        "series_instance_uid": _uid(kind, header.StudyInstanceUID, *identity),
        "series_number": _SERIES[kind],
        "sop_instance_uid": _uid(
            kind, header.SOPInstanceUID, frame, __version__, *identity, content
        ),
        "instance_number": 1,
        "manufacturer": "skinmm",
    }


def _short(value: float) -> float:
    """A number that fits into the 16 characters that DICOM has for one."""
    return float(f"{value:.9g}")


def _uid(*parts: Any) -> str:
    from pydicom.uid import generate_uid

    return generate_uid(entropy_srcs=[str(part) for part in ("skinmm", *parts)])
