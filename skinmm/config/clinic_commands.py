"""Settings of the commands for DICOM, DICOMweb and FHIR."""

from dataclasses import dataclass
from typing import Any

from skinmm.config.commands import InferenceConfig
from skinmm.config.setting import literal_path, output_path, setting


@dataclass
class DicomConfig(InferenceConfig):
    """Predict DICOM images, and write DICOM structured reports and heat maps."""

    input: str = literal_path("", "folder of DICOM files, or a table", example="DICOM_TREE")
    images: str | None = literal_path(None, "folder of the images of a table")
    out: str = output_path("dicom", "folder to write", usage="DIR")
    overwrite: bool = setting(False, "write into a folder that contains files")


@dataclass
class DicomwebConfig(InferenceConfig):
    """Predict the images of a DICOMweb server, and store the results there."""

    url: str = literal_path("", "address of DICOMweb", example="https://pacs.example/dicom-web")
    store: str = literal_path(
        "", "case store, which remembers images: SQLite file or PostgreSQL URL", example="cases.db"
    )
    modality: list[str] = setting(["XC", "DMS"], "modalities to predict")
    filters: dict[str, Any] = setting({}, "further QIDO-RS filters, e.g. {StudyDate: 20261101-}")
    watch: float | None = setting(
        None, "seconds between searches; null: search once", low=0.1, high=86_400
    )
    captures: bool = setting(True, "also store heat maps as secondary captures")
    parked: bool = setting(False, "try parked images again")
    attempts: int = setting(
        8,
        "attempts per request; then the image is postponed, or the command ends (watch=null)",
        low=1,
        high=1000,
    )
    timeout: float = setting(30.0, "seconds to wait for an answer", low=0.1, high=3600)
    certificate: str | None = literal_path(None, "PEM file of the authorities to trust")
    client_certificate: str | None = literal_path(None, "PEM file of our certificate and key")


@dataclass
class FhirConfig:
    """Write the cases of a case store as FHIR R4 resources, or send them to a server."""

    store: str = literal_path("", "case store: SQLite file or PostgreSQL URL", example="cases.db")
    output: str | None = output_path(
        None, "file to write: a Bundle of up to 100 cases a line", usage="cases.ndjson"
    )
    url: str | None = literal_path(None, "address of a FHIR server, for transactions")
    patient: str | None = setting(None, "only the cases of this patient")
    after: int = setting(0, "only cases with a higher number", low=0)
    overwrite: bool = setting(False, "replace existing output")
