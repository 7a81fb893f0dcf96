"""Settings of commands for other systems: service, DICOM files, DICOMweb, FHIR, federations."""

from dataclasses import dataclass
from typing import Any, Final

from skinmm.config.checkpoints import INCLUDED
from skinmm.config.commands import CHECKPOINT, CHECKPOINTS, TEXTS, InferenceConfig
from skinmm.config.schema import Config, DataConfig
from skinmm.config.setting import literal_path, output_path, section, setting

STRATEGIES: Final = ("fedavg", "fedprox", "fedbn", "fedadam")
SHARED: Final = ("rows", "prevalence", "auroc")
INSECURE: Final = "allow other addresses than loopback without TLS and client keys"


@dataclass
class ServeConfig(InferenceConfig):
    """Serve a web page and a REST API (research use only)."""

    checkpoint: Any = literal_path(INCLUDED, CHECKPOINTS, usage=CHECKPOINT)
    host: str = setting("127.0.0.1", "address to listen on; a public one needs keys", usage="IP")
    port: int = setting(8000, "port to listen on", low=1, high=65535)
    keys: str | None = literal_path(None, "file of SHA-256 digests of API keys", usage="keys.txt")
    page: bool = setting(True, "serve the web page; false: the API only")
    texts: str | None = literal_path(None, TEXTS, usage="TOML")
    patient_view: bool = setting(
        False, "offer a wording for patients on the page; it never gives an all-clear"
    )
    store: str | None = literal_path(None, "case store: SQLite file or PostgreSQL URL; null: none")
    store_images: bool = setting(False, "also store the images of the cases")
    queue: int = setting(8, "maximum waiting and running requests", low=1, high=1000)
    timeout: float = setting(60.0, "maximum duration of a request in seconds", low=0.1, high=3600)
    batch: int = setting(32, "maximum number of patients per batch request", low=1, high=1000)


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
    filters: Any = setting(None, "further QIDO-RS filters, e.g. {StudyDate: 20261101-}")
    watch: float | None = setting(
        None, "seconds between searches; null: search once", low=0.1, high=86_400
    )
    captures: bool = setting(True, "also store heat maps as secondary captures")
    parked: bool = setting(False, "try parked images again")
    dismiss: list[str] = setting([], "parked images to give up, by SOP Instance UID")
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


@dataclass
class FederationConfig(Config):
    """Settings of a federation and of the run that its centres train."""

    rounds: int = setting(10, "rounds of training", low=1, high=100_000)
    local_epochs: int = setting(1, "epochs of a client in a round", low=1, high=1000)
    min_clients: int = setting(2, "minimum number of clients in a round", low=1, high=10_000)
    strategy: str = setting(
        "fedavg",
        "how updates are combined; fedbn: normalisation layers stay local",
        choices=STRATEGIES,
    )
    aggregate: str = setting(
        "all", "shared arrays; the others stay local", choices=("all", "backbone", "head")
    )
    mu: float = setting(0.01, "weight of the proximal term of fedprox", low=0, high=1000)
    server_lr: float = setting(0.01, "learning rate of fedadam on the server", low=0, high=100)
    noise: float = setting(
        0.0, "noise multiplier of differential privacy; 0: none", low=0, high=1000
    )
    clip_norm: float = setting(1.0, "maximum norm of an update if noise>0", low=1e-6, high=1e6)
    audit: list[str] = setting(
        ["patient", "lesion"],
        "links between centres to search by keyed hashes: patient, lesion, image",
    )
    output: str = output_path("federation", "folder of the server, and of simulated clients")


@dataclass
class FederateSimulateConfig(FederationConfig):
    """Train across simulated clients on this machine, one for each source (data.split=source)."""

    min_clients: int = setting(1, "minimum number of clients in a round", low=1, high=10_000)


@dataclass
class FederateServerConfig(FederationConfig):
    """Coordinate training across centres; it sends the configuration and receives arrays only."""

    host: str = setting("127.0.0.1", "address to listen on; another needs TLS and client keys")
    port: int = setting(9092, "port to listen on", low=1, high=65535)
    certificate: str | None = literal_path(None, "TLS certificate of the server, PEM")
    private_key: str | None = literal_path(None, "private key of the certificate, PEM")
    clients: str | None = literal_path(None, "public keys of the centres, one a line")
    insecure: bool = setting(False, INSECURE)
    round_minutes: float = setting(60.0, "minutes that a round waits for clients", low=0.05)


@dataclass
class FederateClientConfig:
    """Take part in a federation with the data of this centre; no row leaves it."""

    server: str = setting("", "address of the server", example="HOST:9092")
    name: str = setting("", "name of this centre in the server's model card", example="clinic_a")
    data: DataConfig = section(DataConfig, usage="csv data.root=DIR")
    accelerator: str = setting("auto", "device to train on", choices=("auto", "cpu", "gpu"))
    workers: int | None = setting(
        None, "data loader processes; null: CPU cores, at most 8", low=0, high=1000
    )
    pretrained: str | None = literal_path(
        None, "weights file of the image network; null: model.pretrained of the server"
    )
    share: list[str] = setting(
        ["rows", "prevalence"], f"facts that the model card may state: {', '.join(SHARED)}"
    )
    audit_key: str | None = literal_path(
        None, "file with the secret of all centres for the audit; never the server's"
    )
    certificate: str | None = literal_path(
        None, "certificate of the server's authority, PEM; null: those of the system"
    )
    private_key: str | None = literal_path(
        None, "private key of this centre, as ssh-keygen -t ecdsa -b 384 writes it"
    )
    insecure: bool = setting(False, INSECURE)
    output: str = output_path("federation_client", "run folder of this centre")
    overwrite: bool = setting(False, "replace an existing run in the folder")
