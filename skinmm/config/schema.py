"""Every setting of a training run, with its type, default and one line of help."""

from dataclasses import dataclass
from typing import Any, Final

from skinmm.config.optimisation import CLASSIFY, LossConfig, OptimizerConfig, ScheduleConfig
from skinmm.config.outputs import LoggerConfig, ReportConfig, StudyConfig
from skinmm.config.setting import Component, fraction, literal_path, local, section, setting

TASKS: Final = (CLASSIFY, "segmentation")


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
        "auto", "storage format of the images", choices=("auto", "jpeg", "dicom", "tfrecord")
    )
    missing: str = local(
        "error", "rows without an image file, if images are used", choices=("error", "drop")
    )
    target: str = setting("malignant", "target to predict", choices=("malignant", "diagnosis"))
    positive: list[str] = setting([], "malignant classes; empty: those of the vocabulary")
    columns: list[str] = setting(
        ["age", "sex", "site"], "record columns that the model uses", first=True
    )
    unit: str = setting(
        "image",
        "what a row of the model is; lesion: all its images",
        choices=("image", "lesion"),
        task=CLASSIFY,
    )
    views: int = setting(4, "maximum images of a lesion", low=1, high=100, unit="lesion")
    licences: list[str] = setting([], "licences of the images to use, e.g. [CC-0]; empty: all")
    args: dict[str, Any] = local(
        {}, "options of the adapter", path=("root", "table", "images", "cache")
    )
    limit: int | None = setting(
        None, "size of a class-balanced training subset; null: all rows", low=2, high=10**9
    )
    folds: int = setting(5, "number of folds; a patient is in one fold", low=3, high=100)
    fold: int | str = setting(0, "test fold, 0 to folds - 1, or all", first=True)
    split: str = setting(
        "patients",
        "unit of the folds; source: the test part of each fold is one source (centre)",
        choices=("patients", "source"),
        task=CLASSIFY,
    )
    calibration: int | float | str = setting(
        "auto",
        "share of the validation patients, 0 to 0.9, for calibration and threshold alone; auto: "
        "0.5 if both halves have 60 malignant patients, else 0",
        task=CLASSIFY,
    )
    split_seed: int = setting(0, "random seed of the split alone", low=0, high=2**32 - 1)
    extra: list[ExtraCohort] = local([], "cohorts added to the training rows only")
    icc: str = setting("ignore", "embedded colour profiles", choices=("ignore", "srgb"))
    preprocess: list[str] = setting(
        [], "steps on every image, in order: border, hair, colour, crop_lesion, mask_background"
    )
    segmenter: str | None = literal_path(None, "task=segmentation checkpoint that finds lesions")
    masks: str | None = local(None, "folder of lesion masks; null: the dataset's", path=True)
    allow_leaks: bool = setting(False, "train even if the audit finds a leak")


@dataclass
class ModelConfig:
    """Image network, and which inputs are dropped during training."""

    name: str = setting(
        "efficientnet_b3",
        "name of a timm model, hf-hub:ORG/NAME, local-dir:PATH, open_clip:MODEL/TAG, or simple_cnn",
    )
    pretrained: bool | str = literal_path(
        "auto",
        "auto, true, false, a weights file of any usual program, a run's checkpoint, zoo:cc0",
        first=True,
    )
    tune: str = setting(
        "all",
        "what is trained of the image network: all, nothing (head), normalisation, LoRA adapters",
        choices=("all", "head", "norm", "lora"),
        task=CLASSIFY,
    )
    freeze: bool = setting(False, "true: the same as tune=head", task=CLASSIFY)
    lora_rank: int = setting(
        8, "rank of the adapters of tune=lora", low=1, high=1024, task=CLASSIFY
    )
    image_size: int = setting(
        300,
        "side of the square input in pixels, 16 or more; 0: that of the weights",
        low=0,
        high=4096,
    )
    head_dropout: float = setting(
        0.0, "dropout of fused features", low=0, high=0.95, task=CLASSIFY, neural=True
    )
    head_masks: int = setting(
        1, "dropout masks averaged per step", low=1, high=64, task=CLASSIFY, neural=True
    )
    args: dict[str, Any] = setting({}, "keyword arguments of the network, e.g. drop_rate")
    drop_image: float = fraction(
        0.0, "fraction of training rows without image; above 0: images are optional", task=CLASSIFY
    )
    drop_views: float = fraction(
        0.0,
        "fraction of a lesion's images withheld in training; one remains",
        unit="lesion",
        neural=True,
    )
    cache: str | None = literal_path(
        None, "folder to cache frozen features; null: the run folder", per_start=True, task=CLASSIFY
    )
    drop_record: float = fraction(
        0.0, "fraction of training rows without record", task=CLASSIFY, neural=True
    )
    drop_columns: float = fraction(
        0.0, "fraction of record columns dropped per row", task=CLASSIFY, neural=True
    )

    @property
    def trained(self) -> str:
        """Trained part of the image network, as `tune` names it."""
        return "head" if self.freeze else self.tune


@dataclass
class TrainerConfig:
    """Hardware, training loop and data loaders."""

    max_epochs: int = setting(10, "maximum number of epochs", low=1, high=1_000_000, first=True)
    batch_size: int = setting(32, "training rows per step and process", low=1, high=100_000)
    eval_batch_size: int = setting(64, "evaluation rows per step and process", low=1, high=100_000)
    workers: int | None = setting(
        None, "data loader processes; null: CPU cores, at most 8", low=0, high=1000
    )
    accelerator: str = setting("auto", "device to train on", choices=("auto", "cpu", "gpu"))
    devices: int | str = setting("auto", "processes per machine; auto: GPUs, or measured on a CPU")
    strategy: str = setting("auto", "how several processes train", choices=("auto", "ddp"))
    sync_batchnorm: bool = setting(False, "compute batch normalisation over the rows of all GPUs")
    timeout: float = setting(10.0, "minutes that a process waits for another", low=0.1)
    precision: str = setting(
        "auto",
        "arithmetic of training; auto: measured on a CPU",
        choices=("auto", "32", "bf16", "16"),
    )
    augment_on: str = setting(
        "workers",
        "where to augment images; auto: on a GPU if available",
        choices=("auto", "workers", "device"),
        task=CLASSIFY,
    )
    channels_last: bool | str = setting(
        "auto", "channels-last memory layout: true, false, or auto (measured on a CPU)"
    )
    compile: bool = setting(False, "compile the network with torch.compile")
    accumulate: int = setting(1, "steps per update of the weights", low=1, high=1_000_000)
    clip: float | None = setting(1.0, "maximum gradient norm; null: no clipping", low=0)
    average_best: int = setting(
        1, "best epochs to average into best.ckpt", low=1, high=100, neural=True
    )
    ema: float = setting(
        0.0, "decay of the moving average of weights; 0: off", low=0, high=0.99999, neural=True
    )
    monitor: str = setting(
        "val/auroc",
        "metric for early stopping and the best checkpoint",
        choices=("val/auroc", "val/auprc", "val/balanced_accuracy", "val/dice", "val/loss"),
    )
    smoothing: int | str = setting(
        "auto",
        "epochs, the latest ones, over which the monitored metric is averaged to select the best "
        "epoch and to stop; auto: 3 with fewer than 100 malignant validation lesions, else 1",
        low=1,
        high=1000,
        task=CLASSIFY,
    )
    patience: int = setting(5, "epochs without improvement before stopping", low=1, high=1_000_000)
    checkpoint_minutes: float = setting(
        5.0, "minutes between checkpoints in an epoch; 0: every step", low=0
    )
    progress: bool = setting(True, "show a progress bar")
    limit_batches: int | None = setting(None, "steps per epoch; null: all", low=1, high=10**9)


@dataclass
class EvaluationConfig:
    """Metrics, confidence intervals, calibration and decision threshold."""

    views: int = setting(
        1, "flips and transposes averaged per prediction", low=1, high=8, task=CLASSIFY
    )
    resamples: int = setting(1000, "bootstrap resamples of patients", low=0, high=100_000)
    confidence: float = setting(0.95, "level of the confidence intervals", low=0.5, high=0.999)
    calibration: str = setting(
        "auto",
        "calibration fitted on the validation rows",
        choices=("auto", "none", "temperature", "platt", "isotonic"),
    )
    threshold: str = setting(
        "sensitivity", "rule for the decision threshold", choices=("sensitivity", "youden", "cost")
    )
    sensitivity: float = setting(
        0.95, "target of threshold=sensitivity", low=0.01, high=0.9999, first=True
    )
    cost_ratio: float | None = setting(
        None, "cost of a missed malignant lesion divided by that of a false alarm", low=0
    )
    call: str = setting(
        "likeliest",
        "rule for the predicted class: the likeliest, or highest probability divided by its "
        "frequency (balanced) or by its threshold of best F1 (f1), or lowest expected cost (cost)",
        choices=("likeliest", "balanced", "f1", "cost"),
    )
    costs: Any = setting(
        None,
        "of call=cost: {TRUTH: {CALL: number}}, e.g. {mel: {nv: 20}}, or a YAML file with such "
        "lines; other errors cost 1",
    )
    half_cut: bool = setting(
        False, "also write half_<class>, from 0.5 for the predicted class alone"
    )
    coverage: float = setting(0.9, "coverage of the prediction sets by class", low=0.5, high=0.999)
    miss_rate: float = setting(
        0.01,
        "highest expected share of malignant lesions decided benign",
        low=0.0001,
        high=0.5,
    )
    false_alarm_rate: float = setting(
        0.1,
        "highest expected share of benign lesions decided malignant",
        low=0.0001,
        high=0.5,
    )
    prevalence: float | None = setting(
        None,
        "share of malignant lesions in the clinic; null: 0.0176 unless the data are similar",
        low=0.0001,
        high=0.99,
    )


@dataclass
class Config:
    """Train, evaluate and report one model."""

    task: str = setting("classification", "task of the model", choices=TASKS)
    data: DataConfig = section(DataConfig, first_group=True)
    model: ModelConfig = section(ModelConfig, first_group=True)
    segmenter: Component = section(lambda: Component("unet"))
    views: Component = section(lambda: Component("mean"), unit="lesion")
    fusion: Component = section(Component, first_group=True)
    tabular: Component = section(Component)
    head: Component = section(lambda: Component("neural"))
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
    study: StudyConfig = section(StudyConfig, per_start=True)
    final: bool = setting(
        False,
        "with data.fold=all: after the folds, train one network on all rows, for as many epochs as "
        "the folds selected (median)",
        resumable=True,
        task=CLASSIFY,
    )
    seed: int = setting(0, "random seed of everything except the split", low=0, high=2**32 - 1)
    plugins: list[str] = literal_path([], "files of plug-ins", resumable=True, incidental=True)
    resume: str | None = literal_path(None, "run folder to continue", per_start=True)
    overwrite: bool = setting(False, "replace an existing run in the folder", per_start=True)
