"""A study: an experiment's arms, each a run of its own in one folder, and a table of them all."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from skinmm.cli.hydra_app import FULL_ERROR, refuse, run_cli, run_hydra
from skinmm.config import (
    CHANGEABLE,
    Config,
    DataConfig,
    PredictConfig,
    StudyConfig,
    filter_overrides,
    flatten,
    read_config,
    resume_config,
    to_mapping,
)
from skinmm.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from skinmm.report.blocks import Note, Table

Begin = Callable[[Config, Path, list[str]], int]
FREE: Final = ("trainer.", "logger.", "overwrite", "resume", "study.", "model.cache")
"""Settings that an arm may be gone on with by other values of."""
PERSON: Final = ("image_id", "lesion_id", "patient_id")


class Arm(NamedTuple):
    """One run of a study: its configuration, its folder, and the overrides that `begin` takes."""

    config: Config
    place: Path
    told: list[str]


def study(config: Config, folder: Path, argv: list[str], begin: Begin) -> int:
    """Runs every arm that the folder does not hold, and compares them all.

    An arm that was interrupted is resumed. A frozen network's features are shared by the arms that
    have the same.

    Args:
        config: of the study.
        folder: for a folder of each arm, `compare.md` and, of one cohort, `compare.html`.
        argv: as typed; an arm's overrides go behind them.
        begin: makes one run of a configuration.

    Returns:
        The exit status of the first arm that failed; 3 if rows of another cohort did.
    """
    if {"-m", "--multirun"} & set(argv):
        return refuse("a study runs its arms itself: leave -m out")
    # Merged into the experiment's: nothing.
    if any("".join(word.split()).lstrip("+") == "study.arms={}" for word in argv):
        names = ", ".join(config.study.arms)
        return refuse(f"study.arms={{}}: leave arms out by ~study.arms.NAME each; of {names}")
    arms: list[Arm] = []
    # All are looked at before the first one, which may take hours, begins.
    for name, overrides in config.study.arms.items():

        def job(composed: Config, place: Path, own: list[str] = overrides) -> int:
            if config.study.outside:
                _refuse_containers(composed.data, place.name)
            arms.append(_arm(composed, place, argv, own))
            return 0

        told = [*argv, *overrides, f"hydra.run.dir={folder / name}"]
        if status := run_hydra(told, "config", Config, job):
            return status
    full = os.environ.get(FULL_ERROR) == "1"
    return run_cli(lambda: _all(config.study, folder, arms, begin), full=full)


def _arm(config: Config, place: Path, argv: list[str], own: list[str]) -> Arm:
    """An arm that is to begin, to be gone on with, or that is there.

    Raises:
        InputError: the folder holds one of other settings.
    """
    config, told = absolutize_paths(replace(config, study=StudyConfig())), [*argv, *own]
    cache = config.model.cache or str(place.parent / "features")
    config = replace(config, model=replace(config.model, cache=cache))
    if not (place / "config.yaml").is_file() or config.overwrite:
        return Arm(config, place, told)
    kept, wanted = (
        flatten(to_mapping(each)) for each in (read_config(place / "config.yaml"), config)
    )
    keys = [key for key in wanted | kept if wanted.get(key) != kept.get(key)]
    if changed := [key for key in keys if not key.startswith(FREE)]:
        raise InputError(
            f"{place} was begun with other values of {', '.join(changed)}; choose another "
            "hydra.run.dir, or make every arm again with overwrite=true"
        )
    return Arm(replace(config, resume=str(place)), place, filter_overrides(CHANGEABLE, told))


def absolutize_paths(config: Config) -> Config:
    """First weights are named from the root on, so that a run is gone on with from any folder."""
    path = Path(str(config.model.pretrained))
    if not path.is_file():
        return config
    return replace(config, model=replace(config.model, pretrained=str(path.absolute())))


def _refuse_containers(data: DataConfig, name: str) -> None:
    """Other models' prediction of a cohort takes its images from files."""
    from skinmm.data.cohorts import load_cohort
    from skinmm.images.source import split_frame

    paths = load_cohort(data).rows["path"].dropna()
    inside = next((path for path in paths if not Path(split_frame(path)[0]).is_file()), None)
    if inside:
        raise InputError(
            f"arm {name}: study.outside=true needs images that are files, not {inside}; name the "
            "folder of the images themselves"
        )


def _all(study: StudyConfig, folder: Path, arms: Sequence[Arm], begin: Begin) -> int:
    for arm in arms:
        if arm.config.resume and _finished(arm):
            continue
        print(f"\nstudy: {arm.place.name}", flush=True)  # noqa: T201
        if status := begin(*arm):
            return status
    return _compared(study, folder)


def _finished(arm: Arm) -> bool:
    if not (arm.place / "metrics.json").is_file():
        return False
    from skinmm.training.fit import finished

    return finished(resume_config(arm.config, arm.told), arm.place)


def _compared(study: StudyConfig, folder: Path) -> int:
    from skinmm.report import write_comparison
    from skinmm.report.format import format_markdown

    runs, status = [folder / name for name in study.arms], 0
    notes: Sequence[Note] = ()
    if study.outside:
        table, status = _outside(runs, folder / "outside")
        tables = [table]
    else:
        against = study.against or [runs[0].name]
        tables, notes = write_comparison(
            runs, folder / "compare.html", against=against, overwrite=True
        )
    told = [f"{note.text}\n" for note in notes]
    text = "\n".join([*(format_markdown(table.header, table.rows) for table in tables), *told])
    (folder / "compare.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\ncomparison: {folder / 'compare.md'}")  # noqa: T201
    return status


def _outside(runs: list[Path], folder: Path) -> "tuple[Table, int]":
    """Every run's first model on the cohorts of the others, but for the people that it knows."""
    import pandas as pd

    from skinmm.report import compare_cohorts

    firsts = {run.name: run / "fold_0" if (run / "fold_0").is_dir() else run for run in runs}
    text = dict.fromkeys(PERSON, str)
    cohorts = {
        name: pd.read_csv(first / "cohort.csv", dtype=text) for name, first in firsts.items()
    }
    folder.mkdir(exist_ok=True)
    judged, worst = [], 0
    for own, (name, cohort) in product(runs, cohorts.items()):
        place = own if name == own.name else folder / f"{own.name}_on_{name}.csv"
        judged.append((own.name, name, place))
        if place != own:
            best = firsts[own.name] / "checkpoints" / "best.ckpt"
            worst = max(worst, _predicted(best, _unknown(cohort, cohorts[own.name]), place))
    return compare_cohorts(judged, firsts), worst


def _unknown(cohort: "pd.DataFrame", known: "pd.DataFrame") -> "pd.DataFrame":
    """The rows of a cohort that share neither image, lesion nor patient with another one."""
    shared = cohort["image_id"].isin(known["image_id"])
    for name in {*PERSON} & {*cohort} & {*known}:
        shared |= cohort[name].notna() & cohort[name].isin(known[name])
    return cohort[~shared]


def _predicted(checkpoint: Path, rows: "pd.DataFrame", output: Path) -> int:
    """Predicts rows, unless this checkpoint has; a prediction that was killed goes on.

    Returns:
        The exit status.

    Raises:
        InputError: there are no rows.
    """
    from skinmm.predict import predict_file

    if rows.empty:
        raise InputError(f"{output.stem}: the model knows the patients of every row")
    asked, note = output.with_suffix(".input.csv"), output.with_suffix(".sha256")
    text = rows.drop(columns="image_id").to_csv(index=False)  # `path` names the images
    made_of = sha256(checkpoint.read_bytes() + text.encode()).hexdigest()
    fresh = not note.is_file() or note.read_text(encoding="utf-8") != made_of
    if fresh:
        output.unlink(missing_ok=True)
        asked.write_text(text, encoding="utf-8")
        note.write_text(made_of, encoding="utf-8")
    if output.exists():
        return 0
    print(f"\n{output.stem.replace('_on_', ' on ')}", flush=True)  # noqa: T201
    job = PredictConfig(checkpoint=str(checkpoint), input=str(asked), output=str(output))
    return predict_file(replace(job, resume=not fresh, overwrite=fresh))
