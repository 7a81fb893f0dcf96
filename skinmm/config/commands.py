"""Settings of commands that use models or predictions; a docstring is the help of its command."""

from dataclasses import dataclass
from typing import Any, Final

from skinmm.config.checkpoints import INCLUDED
from skinmm.config.setting import PLUGINS, fraction, literal_path, output_path, section, setting

CHECKPOINT: Final = "RUN/checkpoints/best.ckpt"
CHECKPOINTS: Final = "run folder, file, pattern, list, zoo:cc0 (included), hf://ORG/NAME@REVISION"
DECODERS: Final = "decoding threads; null: CPU cores, at most 8"
MASTER: Final = "Spark master: local[CORES], or the URL of a cluster"
TEXTS: Final = "words of the page in another language; null: English"
UNCALIBRATED: Final = "accept checkpoints without calibration; every decision is then refer"


@dataclass
class InferenceConfig:
    """Model and device of a prediction."""

    checkpoint: Any = literal_path(None, CHECKPOINTS, example=CHECKPOINT)
    backend: str = setting(
        "auto", "library; auto: onnx after `skinmm export`", choices=("auto", "torch", "onnx")
    )
    accelerator: str = setting(
        "auto", "device to predict on", choices=("auto", "cpu", "gpu"), decides_rows=True
    )
    referral: bool = setting(
        True, "refer ambiguous or unfamiliar rows; false: threshold only", decides_rows=True
    )
    uncalibrated: bool = setting(False, UNCALIBRATED)
    plugins: list[str] = literal_path([], PLUGINS)


@dataclass
class BatchInferenceConfig(InferenceConfig):
    """Prediction of many rows."""

    threshold: float | None = fraction(
        None, "decision threshold; null: the checkpoint's", decides_rows=True
    )
    probabilities: str = setting(
        "calibrated", "probabilities to write", choices=("calibrated", "raw"), decides_rows=True
    )
    batch_size: int = setting(32, "rows per batch", low=1, high=100_000, decides_rows=True)


@dataclass
class PredictConfig(BatchInferenceConfig):
    """Predict a table of patients or a folder of images."""

    checkpoint: Any = literal_path(INCLUDED, CHECKPOINTS, usage=CHECKPOINT)
    input: str = literal_path(
        "", "CSV, Parquet or image folder; path or URL", example="patients.csv", decides_rows=True
    )
    images: str | None = literal_path(
        None, "folder of the images; null: that of the table", usage="DIR", decides_rows=True
    )
    output: str = output_path("predictions.csv", "table to write: .csv, .jsonl or .parquet")
    by_patient: str | None = output_path(None, "further CSV to write: one row per patient")
    submission: str | None = output_path(None, "further CSV to write: image_name,target")
    explain: str | None = output_path(
        None, "folder for heat maps and contributions", decides_rows=True
    )
    workers: int | None = setting(None, DECODERS, low=0, high=1000)
    resume: bool = setting(False, "continue a job that was interrupted")
    overwrite: bool = setting(False, "replace existing output")


@dataclass
class EmbeddingModelConfig:
    """Pretrained image network whose embeddings are computed, without a checkpoint."""

    name: str | None = setting(None, "name of an image network, instead of a checkpoint")
    pretrained: str = literal_path("true", "true, false, a weights file, a checkpoint, or zoo:cc0")
    image_size: int = setting(224, "side of the square input in pixels", low=16, high=4096)


@dataclass
class EmbeddingConfig:
    """Image network, and the images to embed."""

    checkpoint: Any = literal_path(None, "run folder or file of one network", usage=CHECKPOINT)
    model: EmbeddingModelConfig = section(EmbeddingModelConfig)
    images: str | None = literal_path(
        None, "folder of the images; null: that of the table", usage="DIR"
    )
    accelerator: str = setting("auto", "device to run on", choices=("auto", "cpu", "gpu"))
    batch_size: int = setting(32, "images per batch", low=1, high=100_000)
    workers: int | None = setting(None, DECODERS, low=0, high=1000)
    plugins: list[str] = literal_path([], PLUGINS)
    overwrite: bool = setting(False, "replace existing output")


@dataclass
class EmbedConfig(EmbeddingConfig):
    """Write the embeddings of images as Parquet."""

    input: str = literal_path(
        "", "CSV, Parquet or image folder; path or URL", example="patients.csv"
    )
    columns: list[str] = setting(["diagnosis", "target"], "further columns of the table to copy")
    output: str = output_path("embeddings.parquet", "file to write")


@dataclass
class SimilarConfig(EmbeddingConfig):
    """Find the most similar images of an embedding file, by cosine similarity."""

    input: str = literal_path("", "an image, a table or an image folder", example="lesion.jpg")
    index: str = literal_path("", "file of skinmm embed", example="embeddings.parquet")
    count: int = setting(5, "similar images of each image", low=1, high=10_000)
    output: str = output_path("similar.csv", "table to write")


@dataclass
class PredictSparkConfig(BatchInferenceConfig):
    """Predict a table of any length on Apache Spark; executors must be able to read all paths."""

    input: str = literal_path("", "Parquet file or folder; path or URL", example="patients.parquet")
    images: str | None = literal_path(None, "folder of the images; path or URL", usage="DIR")
    output: str = output_path("predictions", "folder of Parquet files to write; path or URL")
    master: str = literal_path("local[*]", MASTER)
    workers: int = setting(1, "decoding threads per Python worker", low=1, high=1000)
    overwrite: bool = setting(False, "replace existing output")


@dataclass
class ExportConfig:
    """Write a checkpoint as one ONNX file, or as a static folder that runs in a web browser."""

    checkpoint: str = literal_path(
        INCLUDED, "checkpoint to export, or its run folder", usage=CHECKPOINT
    )
    target: str = setting(
        "onnx", "onnx: a file for predict.py; browser: a page", choices=("onnx", "browser")
    )
    out: str | None = output_path(None, "file of target=onnx; null: next to the checkpoint")
    output: str | None = output_path(None, "folder of target=browser; null: browser")
    runtime: str | None = literal_path(
        None, "folder of onnxruntime-web for target=browser; null: that in node_modules"
    )
    texts: str | None = literal_path(None, TEXTS, usage="TOML")
    plugins: list[str] = literal_path([], PLUGINS)
    precision: str = setting(
        "fp32",
        "arithmetic of the image network; fp16: of its weights",
        choices=("fp32", "fp16", "int8"),
    )
    root: str | None = literal_path(
        None, "folder of the cohort for fp16 and int8, if it is no longer data.root", usage="DIR"
    )
    rows: int = setting(64, "rows on which ONNX is compared with PyTorch", low=2, high=700)
    uncalibrated: bool = setting(False, UNCALIBRATED)
    overwrite: bool = setting(False, "replace existing output")


@dataclass
class AdaptConfig:
    """Adapt the calibration, threshold and referral of a checkpoint to the lesions of a site."""

    checkpoint: Any = literal_path("", CHECKPOINTS, example=CHECKPOINT)
    input: str = literal_path(
        "",
        "table or folder of the site, with a column target or without; or its predictions",
        example="site.csv",
    )
    images: str | None = literal_path(None, "folder of the images; null: that of the table")
    reference: str | None = literal_path(
        None, "without target: predictions of validation rows; null: from the run folder"
    )
    plugins: list[str] = literal_path([], PLUGINS)
    output: str = output_path("adapted.ckpt", "checkpoint to write")
    page: str = output_path("adapt.html", "page to write: before and after")
    accelerator: str = setting(
        "auto", "device to predict on", choices=("auto", "cpu", "gpu"), decides_rows=True
    )
    overwrite: bool = setting(False, "replace existing output")


@dataclass
class ReportPicturesConfig:
    """Lesion images in a report."""

    pictures: bool | None = setting(None, "show lesion images; null: as in the run's configuration")


@dataclass
class ClinicConfig:
    """Prevalence of a clinic, for its predictive values and net benefit."""

    prevalence: float | None = setting(
        None, "share of malignant lesions; null: as in training", low=0.0001, high=0.99
    )


@dataclass
class ClinicAndCostsConfig(ClinicConfig):
    """Prevalence of a clinic, and costs of errors for comparing decision rules."""

    costs: Any = setting(
        None, "costs of errors: {TRUTH: {CALL: number}}, or a YAML file; null: those of the run"
    )


@dataclass
class PredictionFilesConfig:
    """Labels and columns of the prediction files of any system."""

    labels: str | None = literal_path(None, "table of labels by image_id", usage="labels.csv")
    positive: list[str] = setting([], "malignant classes; empty: those of the vocabulary")
    classes: list[str] = setting([], "classes in the order of numbered columns, e.g. [mel,nv]")
    columns: Any = setting(None, "names of other columns, e.g. {p_malignant: score}")
    logits: bool = setting(False, "the columns of the classes are logits: take their softmax")


@dataclass
class ReportPageConfig(PredictionFilesConfig):
    """Write the report of a run folder or of a prediction file."""

    input: str = literal_path(
        "", "run folder, or CSV of predictions", example="predictions.csv", positional=True
    )
    system: str | None = setting(None, "system to report, in a file with several")
    output: str = output_path("report.html", "page to write; a run folder has its own")
    report: ReportPicturesConfig = section(ReportPicturesConfig)
    evaluation: ClinicAndCostsConfig = section(ClinicAndCostsConfig)
    overwrite: bool = setting(False, "replace an existing page")


@dataclass
class CompareConfig(PredictionFilesConfig):
    """Compare runs or prediction files, with paired tests."""

    inputs: list[str] = literal_path(
        [], "run folders, a folder of runs, or CSV files", example="[a.csv,b.csv]", positional=True
    )
    margin: float | None = setting(
        None, "margin of non-inferiority in AUROC; null: no test", low=0, high=1
    )
    output: str | None = output_path(
        None, "page to write; null: compare.html in the folder of runs or in compare/, replaced"
    )
    evaluation: ClinicConfig = section(ClinicConfig)
    overwrite: bool = setting(False, "replace an existing page")


@dataclass
class PlanConfig(PredictionFilesConfig):
    """Compute how many malignant lesions an evaluation needs."""

    input: str | None = literal_path(
        None, "predictions to resample; null: formulas only", usage="predictions.csv",
        positional=True,
    )  # fmt: skip
    system: str | None = setting(None, "system to plan for, in a file with several")
    against: str | None = literal_path(
        None, "predictions of a second system for the same lesions; null: no pairs to resample"
    )
    prevalence: float | None = setting(
        None, "share of malignant lesions; null: that of the input, or 0.0176", low=1e-4, high=0.99
    )
    auroc: float | None = setting(
        None, "expected AUROC; null: that of the input, or 0.85", low=0.51, high=0.999
    )
    width: float = setting(0.1, "width of the interval of the AUROC", low=0.001, high=0.9)
    slope_width: float = setting(
        0.4, "width of the interval of the calibration slope", low=0.01, high=9
    )
    difference: float | None = setting(
        None, "difference of two AUROCs; null: 0.05, at most half of 1 - AUROC", low=0.001,
        high=0.4,
    )  # fmt: skip
    correlation: float = setting(
        0.5, "correlation of two AUROCs on the same lesions", low=0, high=0.99
    )
    sensitivity: float = setting(0.95, "sensitivity to be exceeded", low=0.01, high=0.9999)
    expected: float = setting(0.98, "true sensitivity of a given threshold", low=0.02, high=0.99999)
    confidence: float = setting(0.95, "level of bounds and intervals", low=0.5, high=0.999)
    power: float = setting(0.8, "chance to show a sensitivity or difference", low=0.5, high=0.999)
    output: str = output_path("plan.html", "page to write")
    overwrite: bool = setting(False, "replace an existing page")


@dataclass
class RunsConfig:
    """List runs: date, data, model, fusion, and the main metric with its interval."""

    input: str = literal_path("runs", "folder of runs, or of folders of runs", positional=True)


@dataclass
class FeedbackConfig:
    """Compare predictions with confirmed diagnoses, and cases with the training data."""

    store: str = literal_path("", "case store: SQLite file or PostgreSQL URL", example="cases.db")
    checkpoint: Any = literal_path(
        None, "run folder, file, pattern, or list; null: the latest of the store", usage=CHECKPOINT
    )
    plugins: list[str] = literal_path([], PLUGINS)
    output: str = output_path("feedback", "folder for feedback.html, feedback.json and cases.csv")
    overwrite: bool = setting(False, "replace existing output")
