# ruff: noqa: RUF009  (`setting` makes a field of its own for each)
"""Every setting of the other commands: what judges lesions, and what looks at a cohort."""

from dataclasses import dataclass, field
from typing import Any, Final

from skinmm.config.schema import DataConfig, setting

CHECKPOINT: Final = "RUN/checkpoints/best.ckpt"


@dataclass
class InferenceConfig:
    """What judges lesions, wherever it does."""

    checkpoint: Any = setting(
        None, "checkpoint: a path, a pattern, or a list of paths", example=CHECKPOINT
    )
    backend: str = setting(
        "auto",
        "what predicts; auto: onnx where `skinmm export` put a model, else torch, which explains",
        choices=("auto", "torch", "onnx"),
    )
    accelerator: str = setting("auto", "where it runs", choices=("auto", "cpu", "gpu"))
    referral: bool = setting(
        True, "decide `refer` where set or features speak against; false: the threshold alone"
    )


@dataclass
class BatchInferenceConfig(InferenceConfig):
    """What judges a list of lesions, in steps."""

    threshold: float | None = setting(
        None, "decision threshold; null: the checkpoint's", low=0, high=1
    )
    probabilities: str = setting("calibrated", "which probabilities", choices=("calibrated", "raw"))
    batch_size: int = setting(32, "rows per step", low=1, high=100_000)


@dataclass
class PredictConfig(BatchInferenceConfig):
    """A prediction job."""

    input: str = setting(
        "",
        "CSV or Parquet of patients, or a folder of images; a path or a URL",
        example="patients.csv",
    )
    images: str | None = setting(None, "folder of the images; default: the table's own folder")
    output: str = setting("predictions.csv", "table to write: .csv, .jsonl or .parquet")
    by_patient: str | None = setting(None, "CSV to write beside it: a row per patient")
    submission: str | None = setting(None, "CSV to write beside it: image_name,target")
    explain: str | None = setting(None, "folder for heat maps and what each input added")
    workers: int | None = setting(
        None, "decoding threads; null: the cores, at most 8", low=0, high=1000
    )
    resume: bool = setting(False, "go on where a job that was killed ended")
    overwrite: bool = setting(False, "replace the output if it exists")


@dataclass
class PredictSparkConfig(BatchInferenceConfig):
    """A prediction job on Apache Spark; paths are such that every executor reaches them."""

    input: str = setting(
        "",
        "Parquet file or folder of patients; a path or a URL of Spark's",
        example="patients.parquet",
    )
    images: str | None = setting(None, "folder of the images; a path or a URL")
    output: str = setting("predictions", "folder of Parquet files to write; a path or a URL")
    master: str = setting("local[*]", "local[CORES], or the URL of a cluster")
    workers: int = setting(1, "decoding threads of each Python worker", low=1, high=1000)
    overwrite: bool = setting(False, "replace the output if it exists")


@dataclass
class DicomConfig(InferenceConfig):
    """What a model says of DICOM images, as DICOM: a structured report, and a heat map."""

    input: str = setting(
        "", "folder of DICOM files, or a table as predict.py reads it", example="DICOM_TREE"
    )
    images: str | None = setting(None, "folder of a table's images")
    out: str = setting("dicom", "folder to write to")
    overwrite: bool = setting(False, "write into a folder that holds files")


@dataclass
class ExportConfig:
    """A checkpoint as one ONNX file."""

    checkpoint: str = setting("", "what training wrote", example=CHECKPOINT)
    out: str | None = setting(None, "file to write; default: beside the checkpoint, as .onnx")
    rows: int = setting(64, "embedded lesions that PyTorch is asked too", low=2, high=700)
    overwrite: bool = setting(False, "replace the file if it exists")


@dataclass
class AuditConfig:
    """A search for leaks and shortcuts in a cohort and its split."""

    data: DataConfig = field(default_factory=DataConfig)
    near: bool = setting(False, "also compare the pixels of all images, to find near duplicates")
    output: str = setting("audit", "folder for audit.json and audit.html")
    overwrite: bool = setting(False, "replace an audit that is in the folder already")


@dataclass
class ExploreConfig:
    """A page about a cohort."""

    data: DataConfig = field(default_factory=DataConfig)
    examples: int = setting(12, "pictures of each class", low=0, high=500)
    output: str = setting("explore.html", "page to write")
    overwrite: bool = setting(False, "replace the page if it exists")


@dataclass
class PackingConfig:
    """A cohort's images, made small and put into TFRecord shards."""

    data: DataConfig = field(default_factory=DataConfig)
    out: str = setting("", "folder of the pack", example="packed")
    size: int = setting(512, "shorter side, pixels; smaller images keep theirs", low=16, high=8192)
    quality: int = setting(95, "of JPEG", low=1, high=100)
    overwrite: bool = setting(False, "replace a pack of other rows or settings")


@dataclass
class PackConfig(PackingConfig):
    """On this machine; or a check of such a pack."""

    workers: int | None = setting(None, "processes; null: one per core", low=1, high=1000)
    verify: bool = setting(False, "only compare the shards that are there with their checksums")


@dataclass
class PackSparkConfig(PackingConfig):
    """On Apache Spark; paths are such that every executor reaches them."""

    master: str = setting("local[*]", "local[CORES], or the URL of a cluster")


@dataclass
class ServeConfig(InferenceConfig):
    """A page and an API for one patient."""

    host: str = setting("127.0.0.1", "address to listen on; other than this machine's needs keys")
    port: int = setting(8000, "port to listen on", low=1, high=65535)
    keys: str | None = setting(None, "file of the API keys' SHA-256 sums, one a line")
    page: bool = setting(True, "the page as well; false: the API alone")
    store: str | None = setting(
        None, "case store: a SQLite file or a PostgreSQL URL; null: nothing is kept"
    )
    store_images: bool = setting(False, "images are kept in the store too")
    queue: int = setting(8, "requests at a time, the running one included", low=1, high=1000)
    timeout: float = setting(60.0, "seconds a request may take", low=0.1, high=3600)
    batch: int = setting(32, "patients of a batch at most", low=1, high=1000)


@dataclass
class FeedbackConfig:
    """What clinicians found in the end, beside what a model had said."""

    store: str = setting("", "case store, as `skinmm serve` was given it")
    checkpoint: Any = setting(
        None, "whose cases: a path, a pattern, or a list of paths; null: the latest model's"
    )
    output: str = setting("feedback", "folder for feedback.html, feedback.json and cases.csv")
    overwrite: bool = setting(False, "replace what is in the folder already")
