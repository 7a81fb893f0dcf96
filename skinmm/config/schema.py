# ruff: noqa: RUF009  (`setting` makes a field of its own for each)
"""Every setting of a run with its type, its bounds and a line on what it does; YAML holds them."""

from dataclasses import dataclass, field
from typing import Any

TASKS = ("classification", "segmentation")


def setting(
    default: Any,
    explanation: str,
    *,
    low: int | float | None = None,
    high: int | float | None = None,
    choices: tuple[str, ...] | None = None,
    example: str | None = None,
) -> Any:
    """A dataclass field with a one-line explanation, and bounds that `check` enforces.

    What has an `example` has to be given.
    """
    metadata = {"explanation": explanation, "low": low, "high": high, "choices": choices}
    metadata["example"] = example
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class Component:
    """An open choice: `name` is looked up in a table, `args` go to the constructor found there."""

    name: str = setting("", "name in the component's table")
    args: dict[str, Any] = setting({}, "keyword arguments of the constructor")


@dataclass
class ExtraCohort:
    """Another cohort whose rows are added to training only."""

    name: str = setting("", "dataset adapter")
    root: str | None = setting(None, "folder of the dataset")


@dataclass
class DataConfig:
    """Which cohort, which target, which split."""

    name: str = setting("demo", "dataset adapter")
    root: str | None = setting(None, "folder of the dataset; the demo brings its own")
    format: str = setting(
        "auto", "how the images are stored", choices=("auto", "jpeg", "dicom", "tfrecord")
    )
    missing: str = setting(
        "error",
        "rows whose image is not on disk: refuse where images are used, or drop anyhow",
        choices=("error", "drop"),
    )
    target: str = setting("malignant", "what is predicted", choices=("malignant", "diagnosis"))
    positive: list[str] = setting([], "classes that count as malignant; empty: the usual ones")
    columns: list[str] = setting(["age", "sex", "site"], "record columns the model sees")
    args: dict[str, Any] = setting({}, "further options of the adapter (column mapping, parts)")
    limit: int | None = setting(
        None, "class-balanced subset of the training rows", low=2, high=10**9
    )
    folds: int = setting(5, "parts the patients are dealt into", low=3, high=100)
    fold: int | str = setting(0, "which part is the test part: 0 to folds-1, or all")
    split_seed: int = setting(
        0, "seed of the split alone, so that runs share it", low=0, high=2**32 - 1
    )
    extra: list[ExtraCohort] = setting([], "cohorts added to training only")
    icc: str = setting("ignore", "embedded colour profiles", choices=("ignore", "srgb"))
    preprocess: list[str] = setting(
        [],
        "steps on every image, in order: border, hair, colour; crop_lesion and mask_background, "
        "which need data.segmenter",
    )
    segmenter: str | None = setting(
        None, "checkpoint of task=segmentation, which finds the lesion; kept in the classifier's"
    )
    masks: str | None = setting(None, "folder of lesion masks; null: the dataset's own")
    allow_leaks: bool = setting(False, "train although the audit found a leak (it is recorded)")


@dataclass
class ModelConfig:
    """The image network, and what training rows are shown without."""

    name: str = setting("efficientnet_b3", "any timm model, or simple_cnn")
    pretrained: bool | str = setting(
        "auto", "auto, true, false, a weights file, or a run's checkpoint"
    )
    freeze: bool = setting(False, "train the head only, on a frozen image network")
    image_size: int = setting(300, "side of the square input, pixels", low=16, high=4096)
    head_dropout: float = setting(0.0, "dropout of the fused features", low=0, high=0.95)
    head_masks: int = setting(
        1, "dropout masks whose logits are averaged in training", low=1, high=64
    )
    args: dict[str, Any] = setting({}, "keyword arguments of the network (drop_rate, ...)")
    drop_image: float = setting(
        0.0, "share of training rows without image; above 0 a prediction needs none", low=0, high=1
    )
    cache: str | None = setting(
        None, "folder for a frozen network's features, shared by runs; null: the run's own"
    )
    drop_record: float = setting(0.0, "share of training rows without record", low=0, high=1)
    drop_columns: float = setting(
        0.0, "share of the record's columns that training rows lack", low=0, high=1
    )


@dataclass
class ScheduleConfig:
    """The learning rate over the run."""

    name: str = setting(
        "warmup_cosine",
        "shape of the schedule",
        choices=("warmup_cosine", "one_cycle", "plateau", "constant"),
    )
    warmup: float = setting(0.1, "share of the steps that warm up; not of plateau", low=0, high=1)
    final: float = setting(0.01, "last rate as a share of the highest", low=0, high=1)
    factor: float = setting(0.2, "of the rate, where plateau lowers it", low=0.001, high=0.999)
    patience: int = setting(
        1, "epochs without a better monitor that plateau bears", low=0, high=1_000_000
    )


@dataclass
class OptimizerConfig(Component):
    """The optimiser and how its rate is dealt out."""

    lr: float = setting(1e-3, "highest learning rate", low=0)
    weight_decay: float = setting(1e-2, "decay of matrices; biases and norms have none", low=0)
    backbone_lr_scale: float = setting(1.0, "image network's rate as a share of lr", low=0)
    layer_decay: float = setting(
        1.0, "rate of a layer of the image network over the next one's", low=0.01, high=1
    )
    head_epochs: int = setting(
        0, "first epochs that leave the image network as it is", low=0, high=1_000_000
    )


@dataclass
class TrainerConfig:
    """The machine, the loop and its loaders."""

    max_epochs: int = setting(10, "epochs at most", low=1, high=1_000_000)
    batch_size: int = setting(32, "rows per step and process", low=1, high=100_000)
    eval_batch_size: int = setting(64, "rows per evaluation step and process", low=1, high=100_000)
    workers: int | None = setting(
        None, "loader processes; null: the cores, at most 8", low=0, high=1000
    )
    accelerator: str = setting("auto", "where it runs", choices=("auto", "cpu", "gpu"))
    devices: int | str = setting("auto", "processes per machine, or auto; torchrun has its own")
    strategy: str = setting("auto", "how processes cooperate", choices=("auto", "ddp"))
    sync_batchnorm: bool = setting(False, "BatchNorm over the rows of all GPUs")
    timeout: float = setting(10.0, "minutes that a process waits for another one", low=0.1)
    precision: str = setting(
        "auto",
        "training arithmetic; probabilities are always 32 bit",
        choices=("auto", "32", "bf16", "16"),
    )
    augment_on: str = setting(
        "workers",
        "where pictures are augmented; auto: on the GPU where there is one",
        choices=("auto", "workers", "device"),
    )
    channels_last: bool = setting(True, "memory layout of images")
    compile: bool = setting(False, "torch.compile the network")
    accumulate: int = setting(1, "steps whose gradients are added up", low=1, high=1_000_000)
    clip: float | None = setting(1.0, "largest gradient norm", low=0)
    average_best: int = setting(
        1, "best epochs whose weights are averaged into best.ckpt", low=1, high=100
    )
    ema: float = setting(0.0, "decay of the weights' moving average; 0: none", low=0, high=0.99999)
    monitor: str = setting(
        "val/auroc",
        "what early stopping and the best checkpoint watch; a loss is to fall, the others to rise",
        choices=("val/auroc", "val/auprc", "val/balanced_accuracy", "val/dice", "val/loss"),
    )
    patience: int = setting(
        5, "epochs without a better monitor before stopping", low=1, high=1_000_000
    )
    checkpoint_minutes: float = setting(
        5.0, "time between checkpoints within an epoch; 0: after every step", low=0
    )
    progress: bool = setting(True, "show a progress bar")
    limit_batches: int | None = setting(
        None, "steps per epoch at most (debugging)", low=1, high=10**9
    )


@dataclass
class EvaluationConfig:
    """How numbers, intervals and thresholds are made."""

    views: int = setting(
        1, "flips and transposes averaged in testing and prediction", low=1, high=8
    )
    resamples: int = setting(1000, "bootstrap resamples over patients", low=0, high=100_000)
    confidence: float = setting(0.95, "confidence of intervals", low=0.5, high=0.999)
    calibration: str = setting(
        "auto",
        "fitted on validation patients",
        choices=("auto", "none", "temperature", "platt", "isotonic"),
    )
    threshold: str = setting(
        "sensitivity", "rule of the decision", choices=("sensitivity", "youden", "cost")
    )
    sensitivity: float = setting(0.95, "target of the sensitivity rule", low=0.01, high=0.9999)
    cost_ratio: float | None = setting(None, "cost of a miss over a false alarm", low=0)
    call: str = setting(
        "likeliest",
        "class called of several; balanced: by its probability over its share",
        choices=("likeliest", "balanced"),
    )
    coverage: float = setting(
        0.9, "share of each class whose prediction set is to hold it", low=0.5, high=0.999
    )


@dataclass
class ReportConfig:
    """What the page of a run shows."""

    pictures: bool = setting(True, "show lesions; false: no image of a patient leaves the cohort")
    explain: bool = setting(True, "say why the surest mistakes were made, where lesions are shown")


@dataclass
class LoggerConfig:
    """Where a run reports while it trains."""

    name: str = setting("csv", "logger", choices=("csv", "tensorboard", "wandb", "none"))
    project: str = setting("skinmm", "W&B project")
    entity: str | None = setting(None, "W&B team or user")
    group: str | None = setting(None, "W&B group")
    images: bool = setting(False, "let pictures and patient ids leave the run folder")


@dataclass
class StudyConfig:
    """Several runs that differ in what they are compared for; without arms there is one run."""

    arms: dict[str, list[str]] = setting({}, "of each run its overrides, as on the command line")
    against: list[str] = setting([], "arms that all others are compared with; empty: the first")
    outside: bool = setting(False, "judge each arm's first model on the others' cohorts instead")


@dataclass
class Config:
    """A training run."""

    task: str = setting("classification", "what is learned", choices=TASKS)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    segmenter: Component = field(default_factory=lambda: Component("unet"))
    fusion: Component = field(default_factory=Component)
    tabular: Component = field(default_factory=Component)
    loss: Component = field(default_factory=Component)
    sampler: Component = field(default_factory=Component)
    augment: Component = field(default_factory=Component)
    mix: Component = field(default_factory=lambda: Component("none"))
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    study: StudyConfig = field(default_factory=StudyConfig)
    seed: int = setting(0, "seed of everything but the split", low=0, high=2**32 - 1)
    resume: str | None = setting(None, "run folder to continue")
    overwrite: bool = setting(False, "replace a run that is in the folder already")
