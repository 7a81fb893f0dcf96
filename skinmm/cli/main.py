"""The commands. An exit status says how one ended, a single line what was wrong.

0 all done, 1 failure, 2 bad usage or input, 3 some rows not predicted, 130 Ctrl-C.
Nothing here imports torch before the configuration was checked.
"""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from skinmm.cli.commands import audit, compare, explore, pack, pack_spark, predict_spark, report
from skinmm.cli.hydra_app import refuse, run_cli, run_hydra, run_single, temporary_environment
from skinmm.cli.study import absolutize_paths, study
from skinmm.config import (
    Config,
    DicomConfig,
    ExportConfig,
    FeedbackConfig,
    PredictConfig,
    ServeConfig,
    read_config,
    resume_config,
)
from skinmm.errors import InputError

# Set while a run trains: what rank 0 starts joins the run in this folder instead of making one.
JOIN: Final = "SKINMM_JOIN"
TORCHRUN: Final = "TORCHELASTIC_RUN_ID"


def main(argv: list[str] | None = None) -> int:
    """The `skinmm` command."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())  # noqa: T201
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        return refuse(f"unknown command '{name}'; choose from {', '.join(COMMANDS)}")
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
        status = run_hydra(argv, "config", Config, job)
        for config, folder in studies:
            status = max(status, study(config, folder.absolute(), argv, _begin))
    finally:
        if TORCHRUN in os.environ:
            _dismiss(status)
    return status


def predict(argv: list[str]) -> int:
    """Predicts a list of patients: `predict.py checkpoint=... input=... output=...`."""
    return run_single(argv, "predict", PredictConfig, _predict, "predict.py makes one table")


def serve(argv: list[str]) -> int:
    """Serves a page and an API for one patient: `skinmm serve checkpoint=...`."""
    return run_single(argv, "serve", ServeConfig, _serve, "skinmm serve is one service")


def feedback(argv: list[str]) -> int:
    """Sets what clinicians found beside what a model had said, and its cases beside training."""
    return run_single(
        argv, "feedback", FeedbackConfig, _feedback, "skinmm feedback looks at one store"
    )


def export(argv: list[str]) -> int:
    """Writes a checkpoint as one ONNX file, compared with PyTorch first."""
    return run_single(argv, "export", ExportConfig, _export, "skinmm export takes one checkpoint")


def dicom_sr(argv: list[str]) -> int:
    """Writes what a model says of DICOM images as DICOM: structured reports and heat maps."""
    return run_single(argv, "dicom", DicomConfig, _dicom_sr, "skinmm dicom-sr takes one folder")


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
    """One run: a new one, or one to resume."""
    if config.resume is None:
        return _train(absolutize_paths(config), folder)
    overrides = [item for item in argv if "=" in item and not item.startswith("-")]
    return _resume(resume_config(config, overrides))


def _resume(config: Config) -> int:
    from skinmm.training.fit import finished

    folder = Path(config.resume or "")
    if not finished(config, folder):
        return _train(config, folder)
    print(f"{folder}: this run is finished; its report: {folder / 'report.html'}")  # noqa: T201
    if config.logger.name == "wandb":
        told = "what W&B lacks of it is sent when metrics.json is removed and the run resumed again"
        print(told)  # noqa: T201
    return 0


def _train(config: Config, folder: Path) -> int:
    from skinmm.data.cohorts import verify_cohort

    verify_cohort(config.data)  # before torch, which takes seconds
    from skinmm.report.format import format_metrics
    from skinmm.training.fit import fit

    folder = folder.absolute()
    try:
        with temporary_environment(**{JOIN: str(folder)}):
            metrics = fit(config, folder)
    except KeyboardInterrupt:
        if (folder / "config.yaml").is_file():
            again = shlex.quote(f"resume={folder}")
            print(f"to go on: python train.py {again}", file=sys.stderr)  # noqa: T201
        raise
    print(format_metrics(metrics["test"]))  # noqa: T201
    print(f"run folder: {folder}\nreport: {folder / 'report.html'}")  # noqa: T201
    return 0


def _other_process() -> int | None:
    """What a process does that somebody started beside rank 0; None: it is rank 0, or alone."""
    if "LOCAL_RANK" in os.environ:  # one of several: of another one's end we speak ourselves
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        if JOIN in os.environ:
            return run_cli(lambda: _join(Path(os.environ[JOIN])))
    if TORCHRUN in os.environ:
        return run_cli(_follow) if os.environ["RANK"] != "0" else None
    if "LOCAL_RANK" in os.environ:
        return refuse("LOCAL_RANK is set, but not by torchrun: unset it, or start with torchrun")
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return refuse("srun made several processes of this; see docker/slurm.sh for how to")
    return None


def _join(folder: Path) -> int:
    """Another process of a run that rank 0 has begun; it writes nothing and says nothing."""
    from skinmm.training.distributed import end_with_parent
    from skinmm.training.fit import fit

    end_with_parent()
    fit(read_config(folder / "config.yaml"), folder)
    return 0


def _follow() -> int:
    """The same, where torchrun started it."""
    from skinmm.training.distributed import follow
    from skinmm.training.fit import fit

    return follow(fit)


def _dismiss(status: int) -> None:
    from skinmm.training.distributed import dismiss

    dismiss(status)


def _predict(config: PredictConfig, _: Path) -> int:
    from skinmm.models.checkpoint import read_task
    from skinmm.predict.job import find_checkpoints, predict_file

    checkpoints = find_checkpoints(config.checkpoint)
    tasks = {read_task(path) for path in checkpoints}
    if len(checkpoints) == 1 and tasks == {"segmentation"} and config.explain is None:
        from skinmm.segmentation.predict import predict_masks

        return predict_masks(config, checkpoints[0])
    return predict_file(config)


def _serve(config: ServeConfig, _: Path) -> int:
    from skinmm.serve.run import serve as served

    return served(config)


def _feedback(config: FeedbackConfig, _: Path) -> int:
    try:
        from skinmm.serve.feedback import feedback as made
    except ModuleNotFoundError as error:
        needs = f"skinmm feedback needs {error.name}: pip install 'skinmm[serve]'"
        raise InputError(needs) from error
    print(f"feedback: {made(config)}")  # noqa: T201
    return 0


def _export(config: ExportConfig, _: Path) -> int:
    from skinmm.predict.export_onnx import export as exported

    path = exported(config)
    size = path.stat().st_size / 1e6
    print(f"model: {path} ({size:.1f} MB), equal to PyTorch on {config.rows} lesions")  # noqa: T201
    return 0


def _dicom_sr(config: DicomConfig, _: Path) -> int:
    from skinmm.predict.dicom_sr import write_results

    return write_results(config)


def _usage() -> str:
    lines = [
        f"  {name:<15}{(call.__doc__ or '').splitlines()[0]}" for name, call in COMMANDS.items()
    ]
    return "\n".join(["usage: skinmm COMMAND ...", "", *lines])
