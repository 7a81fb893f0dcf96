"""A study: an experiment's arms, each a run of its own in one folder, and a table of them all."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from skinmm.cli_hydra import guarded, refused, run
from skinmm.config import Config, PredictConfig, StudyConfig

if TYPE_CHECKING:
    from skinmm.report.blocks import Table

Begin = Callable[[Config, Path, list[str]], int]


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
        The exit status of the first arm that failed.
    """
    if {"-m", "--multirun"} & set(argv):
        return refused("a study runs its arms itself: leave -m out")
    cache = config.model.cache or folder / "features"
    for name, overrides in config.study.arms.items():
        place = folder / name
        if (place / "metrics.json").is_file() and not config.overwrite:
            continue
        print(f"\nstudy: {name}", flush=True)  # noqa: T201
        told = [*argv, *overrides, f"model.cache={cache}", f"hydra.run.dir={place}"]
        if (place / "config.yaml").is_file() and not config.overwrite:
            told = [f"resume={place}"]

        def job(arm: Config, where: Path, told: list[str] = told) -> int:
            return begin(replace(arm, study=StudyConfig()), where, told)

        if status := run(told, "config", Config, job):
            return status
    return guarded(lambda: _compared(config.study, folder))


def _compared(study: StudyConfig, folder: Path) -> int:
    from skinmm.report import compare_page
    from skinmm.wording import markdown

    runs = [folder / name for name in study.arms]
    if study.outside:
        tables = [_outside(runs, folder / "outside")]
    else:
        against = study.against or [runs[0].name]
        tables = compare_page(runs, folder / "compare.html", against=against, overwrite=True)
    text = "\n".join(markdown(table.header, table.rows) for table in tables)
    (folder / "compare.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\ncomparison: {folder / 'compare.md'}")  # noqa: T201
    return 0


def _outside(runs: list[Path], folder: Path) -> "Table":
    """Every run's first model on the cohorts of the others, but for the images that it knows."""
    import pandas as pd

    from skinmm.predict import predict_file
    from skinmm.report import across

    firsts = {run.name: run / "fold_0" if (run / "fold_0").is_dir() else run for run in runs}
    text = {"image_id": str, "patient_id": str}
    cohorts = {
        name: pd.read_csv(first / "cohort.csv", dtype=text) for name, first in firsts.items()
    }
    folder.mkdir(exist_ok=True)
    judged = []
    for own, (name, cohort) in product(runs, cohorts.items()):
        place = own if name == own.name else folder / f"{own.name}_on_{name}.csv"
        judged.append((own.name, name, place))
        if not place.exists():
            asked = place.with_suffix(".input.csv")
            known = cohort["image_id"].isin(cohorts[own.name]["image_id"])
            cohort[~known].drop(columns="image_id").to_csv(asked, index=False)
            best = str(firsts[own.name] / "checkpoints" / "best.ckpt")
            print(f"\n{own.name} on {name}", flush=True)  # noqa: T201
            predict_file(PredictConfig(checkpoint=best, input=str(asked), output=str(place)))
    return across(judged, firsts)
