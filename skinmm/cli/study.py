"""Studies: run the arms of an experiment, each in its own folder, and compare them."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from skinmm.cli.commands import Command
from skinmm.cli.hydra_app import FULL_ERROR, refuse, run_cli, run_hydra
from skinmm.config import (
    Config,
    flatten,
    keys_with,
    read_config,
    read_costs,
    resume_config,
    to_mapping,
)
from skinmm.config.commands import PredictConfig
from skinmm.config.outputs import StudyConfig
from skinmm.config.schema import DataConfig
from skinmm.errors import InputError, print_line

if TYPE_CHECKING:
    import pandas as pd

    from skinmm.report.blocks import Note, Table

Start = Callable[[Config, Path, list[str]], int]
ID_COLUMNS: Final = ("image_id", "lesion_id", "patient_id")


class Arm(NamedTuple):
    """One run of a study, and the overrides that start it."""

    config: Config
    folder: Path
    overrides: list[str]


def study(config: Config, folder: Path, argv: list[str], command: Command, start: Start) -> int:
    """Run every arm that has not finished, and compare all arms.

    An interrupted arm is resumed. Arms with the same frozen network share its cached features.

    `folder` contains a folder per arm, `compare.md` and, for one cohort, `compare.html`. The
    overrides of an arm follow those of `argv`; `start` starts or resumes one run.

    Returns:
        The exit status of the first arm that failed; 3 if some rows could not be predicted.
    """
    if {"-m", "--multirun"} & set(argv):
        return refuse("a study runs its own arms; remove -m")
    # Hydra merges an empty mapping into the arms of the experiment, which changes nothing.
    if any("".join(word.split()).lstrip("+") == "study.arms={}" for word in argv):
        names = ", ".join(config.study.arms)
        return refuse(f"study.arms={{}}: remove each arm with ~study.arms.NAME; arms: {names}")
    arms: list[Arm] = []
    # Check all arms before the first starts, which may take hours.
    for name, overrides in config.study.arms.items():

        def job(composed: Config, arm_folder: Path, overrides: list[str] = overrides) -> int:
            if config.study.outside:
                _require_image_files(composed.data, arm_folder.name)
            arms.append(_prepare_arm(composed, arm_folder, [*argv, *overrides]))
            return 0

        status = run_hydra([*argv, *overrides, f"hydra.run.dir={folder / name}"], command, job)
        if status:
            return status
    full = os.environ.get(FULL_ERROR) == "1"
    return run_cli(lambda: _run_arms(config.study, folder, arms, start), full=full)


def absolutize_paths(config: Config) -> Config:
    """Make the path of the weights absolute, and read the file of costs, to resume anywhere."""
    costs = read_costs(config.evaluation.costs)
    config = replace(config, evaluation=replace(config.evaluation, costs=costs))
    path = Path(str(config.model.pretrained))
    if not path.is_file():
        return config
    return replace(config, model=replace(config.model, pretrained=str(path.absolute())))


def _prepare_arm(config: Config, folder: Path, overrides: list[str]) -> Arm:
    """Prepare an arm; resume it if its folder contains a run with the same settings."""
    from skinmm.training.trainer import uses_gpu

    config = absolutize_paths(replace(config, study=StudyConfig()))
    if config.trainer.devices == "auto" and not uses_gpu(config):
        # Batch normalisation depends on the number of processes, which arms must not choose.
        config = replace(config, trainer=replace(config.trainer, devices=1))
    cache = config.model.cache or str(folder.parent / "features")
    config = replace(config, model=replace(config.model, cache=cache))
    if not (folder / "config.yaml").is_file() or config.overwrite:
        return Arm(config, folder, overrides)
    before = flatten(to_mapping(read_config(folder / "config.yaml")))
    now = flatten(to_mapping(config))
    resumable = keys_with(Config, "resumable")
    ignored = (*resumable, *keys_with(Config, "per_start"))
    if "auto" in (config.trainer.batch_size, config.optimizer.lr):
        ignored = (*ignored, "optimizer.lr")  # which the run has chosen
    changed = [key for key in now | before if now.get(key) != before.get(key)]
    if fixed := [key for key in changed if not key.startswith(ignored)]:
        raise InputError(
            f"{folder} was started with other values of {', '.join(fixed)}; choose another "
            "hydra.run.dir, or replace every arm with overwrite=true"
        )
    overrides = [item for item in overrides if item.lstrip("+~").partition("=")[0] in resumable]
    return Arm(replace(config, resume=str(folder)), folder, overrides)


def _require_image_files(data: DataConfig, name: str) -> None:
    """Raise InputError if images are inside containers, which prediction does not read."""
    from skinmm.data.cohorts import load_cohort
    from skinmm.images.source import split_frame

    if data.unit == "lesion":
        raise InputError(f"arm {name}: study.outside=true: not available for data.unit=lesion")
    paths = load_cohort(data).rows["path"].dropna()
    inside = next((path for path in paths if not Path(split_frame(path)[0]).is_file()), None)
    if inside:
        raise InputError(
            f"arm {name}: study.outside=true needs images that are files, not {inside}; give the "
            "folder of the images"
        )


def _run_arms(study: StudyConfig, folder: Path, arms: Sequence[Arm], start: Start) -> int:
    from skinmm.report import write_comparison
    from skinmm.report.terminal import format_markdown

    for arm in arms:
        if arm.config.resume and (arm.folder / "metrics.json").is_file():
            from skinmm.training.fit import is_finished

            if is_finished(resume_config(arm.config, arm.overrides), arm.folder):
                continue
        print_line(f"\nstudy: {arm.folder.name}")
        if status := start(*arm):
            return status
    runs, status = [folder / name for name in study.arms], 0
    notes: Sequence[Note] = ()
    if study.outside:
        table, status = _evaluate_outside(runs, folder / "outside")
        tables = [table]
    else:
        against, page = study.against or [runs[0].name], folder / "compare.html"
        tables, notes = write_comparison(runs, page, against=against, overwrite=True)
    blocks = [format_markdown(table.header, table.rows) for table in tables]
    text = "\n".join([*blocks, *(f"{note.text}\n" for note in notes)])
    (folder / "compare.md").write_text(text, encoding="utf-8")
    print_line(f"\n{text}\ncomparison: {folder / 'compare.md'}")
    return status


def _evaluate_outside(runs: list[Path], folder: Path) -> "tuple[Table, int]":
    """Evaluate the first model of each run on the other cohorts, without patients of its cohort."""
    import pandas as pd

    from skinmm.report import compare_cohorts

    folds = {run.name: run / "fold_0" if (run / "fold_0").is_dir() else run for run in runs}
    dtypes = dict.fromkeys(ID_COLUMNS, str)
    cohorts = {name: pd.read_csv(fold / "cohort.csv", dtype=dtypes) for name, fold in folds.items()}
    folder.mkdir(exist_ok=True)
    sources, status = [], 0
    for run, (name, cohort) in product(runs, cohorts.items()):
        source = run if name == run.name else folder / f"{run.name}_on_{name}.csv"
        sources.append((run.name, name, source))
        if source != run:
            best = folds[run.name] / "checkpoints" / "best.ckpt"
            training = cohorts[run.name]
            is_shared = cohort["image_id"].isin(training["image_id"])
            for key in {*ID_COLUMNS} & {*cohort} & {*training}:
                is_shared |= cohort[key].notna() & cohort[key].isin(training[key])
            status = max(status, _predict_rows(best, cohort[~is_shared], source))
    return compare_cohorts(sources, folds), status


def _predict_rows(checkpoint: Path, rows: "pd.DataFrame", output: Path) -> int:
    """Predict rows, unless this checkpoint's predictions exist; resume if interrupted."""
    from skinmm.predict import predict_file

    if rows.empty:
        raise InputError(f"{output.stem}: every row shares a patient with the training cohort")
    table, digest_file = output.with_suffix(".input.csv"), output.with_suffix(".sha256")
    text = rows.drop(columns="image_id").to_csv(index=False)  # `path` names the images
    digest = sha256(checkpoint.read_bytes() + text.encode()).hexdigest()
    is_new = not digest_file.is_file() or digest_file.read_text(encoding="utf-8") != digest
    if is_new:
        output.unlink(missing_ok=True)
        table.write_text(text, encoding="utf-8")
        digest_file.write_text(digest, encoding="utf-8")
    if output.exists():
        return 0
    print_line(f"\n{output.stem.replace('_on_', ' on ')}")
    job = PredictConfig(checkpoint=str(checkpoint), input=str(table), output=str(output))
    return predict_file(replace(job, resume=not is_new, overwrite=is_new))
