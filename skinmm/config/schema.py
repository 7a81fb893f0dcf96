"""Every setting of a training run, with its type, default and one line of help."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final

from skinmm.config.optimisation import CLASSIFY, LossConfig, OptimizerConfig, ScheduleConfig
from skinmm.config.outputs import EvaluationConfig, LoggerConfig, ReportConfig, StudyConfig
from skinmm.config.setting import (
    Component,
    fraction,
    has_no_text,
    literal_path,
    local,
    section,
    setting,
    shared,
)

TASKS: Final = (CLASSIFY, "segmentation")
BOTH: Final = "image record"
WEIGHTS: Final = ("auto", "true", "false", "zoo:cc0")
"""Values of `model.pretrained` that are neither files nor addresses."""
RELATIVE: Final = ("difference within patient", "z-score within patient")
ANY_COHORT: Final = ("csv", "image_folder", "packed", "tfrecord")
FEWEST: Final = 32  # rows; images can be reconstructed from an update by fewer


def name_relative(columns: Iterable[str]) -> list[str]:
    """Return the names of the record columns that `data.relative` adds for columns."""
    return [f"{name} {column}" for name in dict.fromkeys(columns) for column in RELATIVE]


def name_cohort(data: Mapping[str, Any]) -> str:
    """Return the adapter in `data`, or the name of the folder if the adapter reads any cohort."""
    name: str = data.get("name", "")
    folder = PurePath(data.get("root") or "").name if name in ANY_COHORT else ""
    return name if folder in ("", "..", "~") else folder


@dataclass
class ExtraCohort:
    """Another cohort whose rows are added to the training rows only."""

    name: str = setting("", "dataset adapter")
    root: str | None = literal_path(None, "folder of the dataset")


@dataclass
class DataConfig:
    """Cohort, target and split."""

    name: str = local("demo", "dataset adapter")
    root: str | None = local(None, "folder of the dataset", path=True, incidental=True, first=True)
    format: str = local(
        "auto",
        "storage format of the images",
        choices=("auto", "jpeg", "dicom", "hdf5", "tfrecord"),
    )
    missing: str = local(
        "error", "rows without an image file, if images are used", choices=("error", "drop")
    )
    target: str = shared("malignant", "target to predict", choices=("malignant", "diagnosis"))
    positive: list[str] = shared([], "malignant classes; empty: those of the vocabulary")
    columns: list[str] = shared(
        ["age", "sex", "site"], "record columns that the model uses", first=True
    )
    relative: list[str] = setting(
        [], "numeric columns to compare within patients", task=CLASSIFY, unit="image", shared=False
    )
    unit: str = shared(
        "image",
        "row of the model: an image, or a lesion with all its images",
        choices=("image", "lesion"),
        task=CLASSIFY,
    )
    views: int = shared(4, "maximum images of a lesion", low=1, high=100, unit="lesion")
    licences: list[str] = shared([], "licences of the images to use, e.g. [CC-0]; empty: all")
    args: dict[str, Any] = local(
        {}, "options of the adapter", path=("root", "table", "images", "cache")
    )
    limit: int | None = setting(
        None,
        "size of a class-balanced training subset; null: all rows",
        low=2,
        high=10**9,
        shared=lambda limit: limit >= FEWEST,
    )
    folds: int = shared(5, "number of folds; a patient is in one fold", low=3, high=100)
    fold: int | str = setting(0, "test fold, 0 to folds - 1, or all", first=True, shared=False)
    split: str = setting(
        "patients",
        "unit of the folds; source: the test part of each fold is one source (centre)",
        choices=("patients", "source"),
        task=CLASSIFY,
        shared=False,
    )
    calibration: int | float | str = shared(
        "auto",
        "share of the validation patients, 0 to 0.9, for calibration and threshold only; auto: "
        "0.5 if both halves have 60 malignant patients, else 0",
        task=CLASSIFY,
    )
    split_seed: int = shared(0, "random seed of the split alone", low=0, high=2**32 - 1)
    extra: list[ExtraCohort] = local([], "cohorts added to the training rows only")
    icc: str = shared("ignore", "embedded colour profiles", choices=("ignore", "srgb"))
    preprocess: list[str] = shared(
        [], "steps on every image, in order: border, hair, colour, crop_lesion, mask_background"
    )
    segmenter: str | None = literal_path(
        None, "task=segmentation checkpoint that finds lesions", shared=False
    )
    masks: str | None = local(None, "folder of lesion masks; null: the dataset's", path=True)
    allow_leaks: bool = shared(False, "train even if the audit finds a leak")


@dataclass
class ModelConfig:
    """Image network, and random removal of inputs in training."""

    name: str = setting(
        "efficientnet_b3",
        "name of a timm model, hf-hub:ORG/NAME, local-dir:PATH, open_clip:MODEL/TAG, or simple_cnn",
        shared=lambda name: not {"local-dir", "hf-hub"} & {*name.split(":")},
    )
    pretrained: bool | str = literal_path(
        "auto",
        "auto, true, false, a weights file of any usual program, a run's checkpoint, zoo:cc0",
        first=True,
        shared=lambda weights: str(weights).lower() in WEIGHTS,
    )
    tune: str = shared(
        "all",
        "trained part of the image network: all, none (head), normalisation layers, LoRA adapters",
        choices=("all", "head", "norm", "lora"),
        task=CLASSIFY,
    )
    freeze: bool = shared(False, "true: the same as tune=head", task=CLASSIFY)
    lora_rank: int = shared(8, "rank of the adapters of tune=lora", low=1, high=1024, task=CLASSIFY)
    image_size: int = shared(
        300,
        "side of the square input in pixels, 16 or more; 0: that of the weights",
        low=0,
        high=4096,
    )
    head_dropout: float = shared(
        0.0, "dropout of fused features", low=0, high=0.95, task=CLASSIFY, neural=True
    )
    head_masks: int = shared(
        1, "dropout masks averaged per step", low=1, high=64, task=CLASSIFY, neural=True
    )
    args: dict[str, Any] = setting(
        {}, "keyword arguments of the network, e.g. drop_rate", shared=has_no_text
    )
    drop_image: float = fraction(
        0.0,
        "fraction of training rows without image; above 0: images are optional",
        task=CLASSIFY,
        inputs=BOTH,
        shared=True,
    )
    drop_views: float = fraction(
        0.0,
        "fraction of a lesion's images withheld in training; one remains",
        unit="lesion",
        neural=True,
        shared=True,
    )
    cache: str | None = literal_path(
        None,
        "folder to cache frozen features; null: the run folder",
        per_start=True,
        task=CLASSIFY,
        local=True,
    )
    index: bool = setting(
        False,
        "store names, diagnoses and embeddings of the training images in the checkpoint, so that "
        "explanations show similar ones; share such a checkpoint like the images",
        task=CLASSIFY,
        shared=False,
    )
    drop_record: float = fraction(
        0.0,
        "fraction of training rows without record",
        task=CLASSIFY,
        neural=True,
        inputs=BOTH,
        shared=True,
    )
    drop_columns: float = fraction(
        0.0,
        "fraction of record columns dropped per row",
        task=CLASSIFY,
        neural=True,
        inputs="record",
        shared=True,
    )

    @property
    def trained(self) -> str:
        """Trained part of the image network, as a value of `tune`."""
        return "head" if self.freeze else self.tune


@dataclass
class TrainerConfig:
    """Hardware, training loop and data loaders."""

    max_epochs: int = shared(10, "maximum number of epochs", low=1, high=1_000_000, first=True)
    batch_size: int | str = setting(
        32,
        "training rows per step and process; auto: up to 256, as memory and data allow",
        low=1,
        high=100_000,
        shared=lambda size: size != "auto",
    )
    eval_batch_size: int = shared(64, "evaluation rows per step and process", low=1, high=100_000)
    workers: int | None = local(
        None, "data loader processes; null: CPU cores, at most 8", low=0, high=1000
    )
    accelerator: str = local("auto", "device to train on", choices=("auto", "cpu", "gpu"))
    devices: int | str = local("auto", "processes per machine; auto: GPUs, or measured on a CPU")
    strategy: str = local("auto", "how several processes train", choices=("auto", "ddp"))
    sync_batchnorm: bool = shared(False, "compute batch normalisation over the rows of all GPUs")
    timeout: float = shared(10.0, "minutes that a process waits for another", low=0.1)
    precision: str = shared(
        "auto",
        "arithmetic of training; auto: measured on a CPU",
        choices=("auto", "32", "bf16", "16"),
    )
    augment_on: str = shared(
        "workers",
        "where to augment images; auto: on a GPU if available",
        choices=("auto", "workers", "device"),
        task=CLASSIFY,
    )
    channels_last: bool | str = shared(
        "auto", "channels-last memory layout: true, false, or auto (measured on a CPU)"
    )
    compile: bool = shared(False, "compile the network with torch.compile")
    accumulate: int = shared(1, "steps per update of the weights", low=1, high=1_000_000)
    clip: float | None = shared(1.0, "maximum gradient norm; null: no clipping", low=0)
    average_best: int = setting(
        1, "best epochs to average into best.ckpt", low=1, high=100, neural=True, shared=False
    )
    ema: float = setting(
        0.0,
        "decay of the moving average of weights; 0: off",
        low=0,
        high=0.99999,
        neural=True,
        shared=False,
    )
    monitor: str = shared(
        "val/auroc",
        "metric for early stopping and the best checkpoint",
        choices=("val/auroc", "val/auprc", "val/balanced_accuracy", "val/dice", "val/loss"),
    )
    smoothing: int | str = shared(
        "auto",
        "number of latest epochs over which the monitored metric is averaged, for the best epoch "
        "and early stopping; auto: 3 with fewer than 100 malignant validation lesions, else 1",
        low=1,
        high=1000,
        task=CLASSIFY,
    )
    patience: int = shared(5, "epochs without improvement before stopping", low=1, high=1_000_000)
    checkpoint_minutes: float = local(
        5.0, "minutes between checkpoints in an epoch; 0: every step", low=0
    )
    progress: bool = local(True, "show a progress bar")
    limit_batches: int | None = setting(
        None, "steps per epoch; null: all", low=1, high=10**9, shared=False
    )

    @property
    def rows(self) -> int:
        """Training rows per step and process, once a number has replaced `auto`."""
        return int(self.batch_size)


@dataclass
class Config:
    """Train, evaluate and report one model."""

    task: str = setting("classification", "task of the model", choices=TASKS, shared=False)
    data: DataConfig = section(DataConfig, first_group=True)
    model: ModelConfig = section(ModelConfig, first_group=True)
    segmenter: Component = section(lambda: Component("unet"))
    views: Component = section(lambda: Component("mean"), unit="lesion")
    fusion: Component = section(Component, first_group=True)
    tabular: Component = section(Component)
    head: Component = section(lambda: Component("neural"), shared=False)
    loss: LossConfig = section(LossConfig)
    sampler: Component = section(Component)
    augment: Component = section(Component)
    mix: Component = section(lambda: Component("none"))
    optimizer: OptimizerConfig = section(OptimizerConfig)
    schedule: ScheduleConfig = section(ScheduleConfig)
    trainer: TrainerConfig = section(TrainerConfig, resumable=True)
    evaluation: EvaluationConfig = section(EvaluationConfig)
    report: ReportConfig = section(ReportConfig)
    logger: LoggerConfig = section(LoggerConfig, resumable=True, incidental=True)
    study: StudyConfig = section(StudyConfig, per_start=True, shared=False)
    final: bool = setting(
        False,
        "with data.fold=all: after the folds, train one network on all rows, for as many epochs as "
        "the folds selected (median)",
        resumable=True,
        task=CLASSIFY,
        shared=False,
    )
    seed: int = shared(0, "random seed of everything except the split", low=0, high=2**32 - 1)
    plugins: list[str] = literal_path(
        [], "files of plug-ins", resumable=True, incidental=True, shared=False
    )
    resume: str | None = literal_path(None, "run folder to continue", per_start=True, shared=False)
    overwrite: bool = local(False, "replace an existing run in the folder", per_start=True)
