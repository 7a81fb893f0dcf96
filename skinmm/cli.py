"""The commands. An exit status says how one ended, a single line what was wrong.

0 all done, 1 failure, 2 bad usage or input, 3 some rows not predicted, 130 Ctrl-C.
Nothing here imports torch before the configuration was checked.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from skinmm.cli_data import audit, explore, pack
from skinmm.cli_hydra import environment, guarded, refused, run
from skinmm.cli_spark import pack_spark, predict_spark
from skinmm.cli_study import study
from skinmm.config import (
    Config,
    DicomConfig,
    ExportConfig,
    FeedbackConfig,
    PredictConfig,
    ServeConfig,
    read_config,
    resumed,
    staged,
)
from skinmm.errors import InputError

# Set while a run trains: what rank 0 starts joins the run in this folder instead of making one.
JOIN: Final = "SKINMM_JOIN"
TORCHRUN: Final = "TORCHELASTIC_RUN_ID"
REPORT_OPTIONS: Final = ("labels", "positive", "output", "report.pictures", "overwrite")
REPORT_USAGE: Final = (
    "usage: skinmm report RUN_FOLDER | PREDICTIONS.csv "
    "[labels=LABELS.csv] [positive=CLASS,CLASS] [output=report.html] [report.pictures=true] "
    "[overwrite=false]"
)
COMPARE_OPTIONS: Final = ("labels", "positive", "output", "overwrite")
COMPARE_USAGE: Final = (
    "usage: skinmm compare PREDICTIONS.csv | RUN_FOLDER | FOLDER_OF_RUNS ... "
    "[labels=LABELS.csv] [positive=CLASS,CLASS] [output=compare.html] [overwrite=false]"
)


def main(argv: list[str] | None = None) -> int:
    """The `skinmm` command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())  # noqa: T201
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return refused(f"unknown command '{name}'; choose from {', '.join(COMMANDS)}")
    return COMMANDS[name](rest)


def train(argv: list[str]) -> int:
    """Trains, tests and reports: `train.py KEY=VALUE ...`, `-m` for several runs."""
    other = _other_process()
    if other is not None:
        return other
    studies: list[tuple[Config, Path]] = []

    def job(config: Config, folder: Path) -> int:
        if not config.study.arms:
            return _begin(config, folder, argv)
        studies.append((config, folder))
        return 0

    status = 1
    try:
        status = run(argv, "config", Config, job)
        for config, folder in studies:
            status = max(status, study(config, folder.absolute(), argv, _begin))
    finally:
        if TORCHRUN in os.environ:
            _dismiss(status)
    return status


def predict(argv: list[str]) -> int:
    """Predicts a list of patients: `predict.py checkpoint=... input=... output=...`."""
    if {"-m", "--multirun"} & set(argv):
        return refused("predict.py makes one table; start it once for each")
    return run(argv, "predict", PredictConfig, _predict)


def serve(argv: list[str]) -> int:
    """Serves a page and an API for one patient: `skinmm serve checkpoint=...`."""
    if {"-m", "--multirun"} & set(argv):
        return refused("skinmm serve is one service; start it once for each")
    return run(argv, "serve", ServeConfig, _serve)


def feedback(argv: list[str]) -> int:
    """Sets what clinicians found beside what a model had said, and its cases beside training."""
    if {"-m", "--multirun"} & set(argv):
        return refused("skinmm feedback looks at one store; start it once for each")
    return run(argv, "feedback", FeedbackConfig, _feedback)


def export(argv: list[str]) -> int:
    """Writes a checkpoint as one ONNX file, compared with PyTorch first."""
    if {"-m", "--multirun"} & set(argv):
        return refused("skinmm export takes one checkpoint; start it once for each")
    return run(argv, "export", ExportConfig, _export)


def dicom_sr(argv: list[str]) -> int:
    """Writes what a model says of DICOM images as DICOM: structured reports and heat maps."""
    if {"-m", "--multirun"} & set(argv):
        return refused("skinmm dicom-sr takes one folder; start it once for each")
    return run(argv, "dicom", DicomConfig, _dicom_sr)


def report(argv: list[str]) -> int:
    """Makes the page of a run folder or of any system's prediction file."""
    return _told(argv, REPORT_USAGE, _report)


def compare(argv: list[str]) -> int:
    """Sets prediction files or runs side by side, or all runs in a folder."""
    return _told(argv, COMPARE_USAGE, _compare)


COMMANDS: Final[dict[str, Callable[[list[str]], int]]] = {
    "train": train,
    "predict": predict,
    "predict-spark": predict_spark,
    "export": export,
    "dicom-sr": dicom_sr,
    "serve": serve,
    "feedback": feedback,
    "report": report,
    "compare": compare,
    "audit": audit,
    "explore": explore,
    "pack": pack,
    "pack-spark": pack_spark,
}


def _begin(config: Config, folder: Path, argv: list[str]) -> int:
    """One run: a new one, one to resume, or a second stage on another."""
    overrides = [item for item in argv if "=" in item and not item.startswith("-")]
    if config.resume is not None:
        return _resume(resumed(config, overrides))
    return _train(staged(config, overrides) if config.fusion.args.get("base") else config, folder)


def _resume(config: Config) -> int:
    from skinmm.training import finished

    folder = Path(config.resume or "")
    if not finished(config, folder):
        return _train(config, folder)
    print(f"{folder}: this run is finished; its report: {folder / 'report.html'}")  # noqa: T201
    return 0


def _train(config: Config, folder: Path) -> int:
    from skinmm.training import fit
    from skinmm.wording import metrics_table

    folder = folder.absolute()
    with environment(**{JOIN: str(folder)}):
        metrics = fit(config, folder)
    print(metrics_table(metrics["test"]))  # noqa: T201
    print(f"run folder: {folder}\nreport: {folder / 'report.html'}")  # noqa: T201
    return 0


def _other_process() -> int | None:
    """What a process does that somebody started beside rank 0; None: it is rank 0, or alone."""
    if "LOCAL_RANK" in os.environ:  # one of several: of another one's end we speak ourselves
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if JOIN in os.environ:
            return guarded(lambda: _join(Path(os.environ[JOIN])))
    if TORCHRUN in os.environ:
        return guarded(_follow) if os.environ["RANK"] != "0" else None
    if "LOCAL_RANK" in os.environ:
        return refused("LOCAL_RANK is set, but not by torchrun: unset it, or start with torchrun")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return refused("srun made several processes of this; see docker/slurm.sh for how to")
    return None


def _join(folder: Path) -> int:
    """Another process of a run that rank 0 has begun; it writes nothing and says nothing."""
    from skinmm.launch import end_with_parent
    from skinmm.training import fit

    end_with_parent()
    fit(read_config(folder / "config.yaml"), folder)
    return 0


def _follow() -> int:
    """The same, where torchrun started it."""
    from skinmm.launch import follow
    from skinmm.training import fit

    return follow(fit)


def _dismiss(status: int) -> None:
    from skinmm.launch import dismiss

    dismiss(status)


def _predict(config: PredictConfig, _: Path) -> int:
    from skinmm.predict import predict_file

    return predict_file(config)


def _serve(config: ServeConfig, _: Path) -> int:
    from skinmm.serve.run import serve as served

    return served(config)


def _feedback(config: FeedbackConfig, _: Path) -> int:
    try:
        from skinmm.feedback import feedback as made
    except ModuleNotFoundError as error:
        needs = f"skinmm feedback needs {error.name}: pip install 'skinmm[serve]'"
        raise InputError(needs) from error
    print(f"feedback: {made(config)}")  # noqa: T201
    return 0


def _export(config: ExportConfig, _: Path) -> int:
    from skinmm.export import export as exported

    path = exported(config)
    size = path.stat().st_size / 1e6
    print(f"model: {path} ({size:.1f} MB), equal to PyTorch on {config.rows} lesions")  # noqa: T201
    return 0


def _dicom_sr(config: DicomConfig, _: Path) -> int:
    from skinmm.dicom_result import write_results

    return write_results(config)


def _report(argv: list[str]) -> int:
    from skinmm.report import report_predictions, write_report

    sources, options = _options(argv, REPORT_OPTIONS)
    if len(sources) != 1:
        raise InputError(REPORT_USAGE)
    source = sources[0]
    if source.is_dir():
        page = write_report(source, pictures=_flag(options, "report.pictures"))
    else:
        labels = Path(options["labels"]) if "labels" in options else None
        output = Path(options.get("output", "report.html"))
        page = report_predictions(
            source,
            output,
            labels,
            positive=_names(options, "positive"),
            pictures=_flag(options, "report.pictures") is not False,
            overwrite=_flag(options, "overwrite") is True,
        )
    print(f"report: {page}")  # noqa: T201
    return 0


def _compare(argv: list[str]) -> int:
    from skinmm.report import compare_page
    from skinmm.wording import aligned

    sources, options = _options(argv, COMPARE_OPTIONS)
    if not sources:
        raise InputError(COMPARE_USAGE)
    labels = Path(options["labels"]) if "labels" in options else None
    output = Path(options.get("output", "compare.html"))
    positive, overwrite = _names(options, "positive"), _flag(options, "overwrite") is True
    (table, *_), _ = compare_page(sources, output, labels, positive=positive, overwrite=overwrite)
    print(f"{aligned(table.header, table.rows)}\ncomparison: {output}")  # noqa: T201
    return 0


def _told(argv: list[str], usage: str, job: Callable[[list[str]], int]) -> int:
    if {"-h", "--help"} & set(argv):
        print(usage)  # noqa: T201
        return 0
    return guarded(lambda: job(argv))


def _options(argv: list[str], known: tuple[str, ...]) -> tuple[list[Path], dict[str, str]]:
    """The files that were named, and the KEY=VALUE of known keys."""
    pairs = [item.partition("=")[::2] for item in argv]
    options = dict(pair for pair in pairs if pair[0] in known)
    named = zip(argv, pairs, strict=True)
    return [Path(item) for item, pair in named if pair[0] not in options], options


def _flag(options: dict[str, str], name: str) -> bool | None:
    """What was said of a switch; None where nothing was."""
    word = options.get(name)
    if word is None:
        return None
    if word.lower() not in ("true", "false"):
        raise InputError(f"{name}={word}: must be true or false")
    return word.lower() == "true"


def _names(options: dict[str, str], name: str) -> list[str] | None:
    """A list of names as `a,b` or `[a,b]`; None where nothing was said."""
    given = options.get(name, "").strip("[]").split(",")
    return [each.strip() for each in given if each.strip()] or None


def _usage() -> str:
    lines = [
        f"  {name:<15}{(call.__doc__ or '').splitlines()[0]}" for name, call in COMMANDS.items()
    ]
    return "\n".join(["usage: skinmm COMMAND ...", "", *lines])
