"""The Python API: training, runs, evaluation and comparison for scripts and notebooks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pandas as pd

from skinmm.config.cores import prepare_threads
from skinmm.errors import InputError

if TYPE_CHECKING:
    from skinmm.config import Config
    from skinmm.training.results import Comparison, Evaluation, Run


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during training, shown in a notebook as one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def build_config(*overrides: str, **settings: Any) -> "Config":
    """Return the checked configuration of a run; its attributes may be changed before `fit`.

    It takes the arguments of `fit`, such as `build_config("data.root=DIR", model="effnet_b0")`.
    """
    from skinmm.cli.compose import compose_config

    return compose_config([*overrides, *_to_overrides(settings)])[0]


def fit(*overrides: "str | Config", output: str | Path | None = None, **settings: Any) -> "Run":
    """Train, test and report a model in this process.

    Args:
        overrides: `KEY=VALUE`, as on the command line of `train.py`, or one `Config`.
        output: run folder; None: `runs/DATE_MODEL_FUSION`. A `Config` needs one.
        settings: groups and top-level settings by name, such as `model="effnet_b0"` or `seed=1`; a
            mapping has the settings of a section: `trainer={"max_epochs": 5}`.

    Raises:
        InputError: a setting or data that cannot be used.
        KeyboardInterrupt: after Ctrl-C; the message has the call that continues the run.
    """
    from skinmm.cli.compose import compose_config
    from skinmm.cli.main import start
    from skinmm.config import Config
    from skinmm.training.results import Run

    prepare_threads()
    words = [*_to_overrides(settings)]
    if any(isinstance(item, Config) for item in overrides):
        config, folder = _check_config(overrides, output, words), Path(str(output))
    else:
        words = [*map(str, overrides), *words]
        words += [] if output is None else [f"hydra.run.dir={output}"]
        config, folder = compose_config(words)
    if config.study.arms or config.trainer.devices not in ("auto", 1):
        raise InputError("fit trains one run in this process; use python train.py for several")
    if config.resume is None:
        config = replace(config, trainer=replace(config.trainer, devices=1))
    folder = folder.absolute() if config.resume is None else Path(config.resume).absolute()
    try:
        start(config, folder, words)
    except KeyboardInterrupt as error:
        has_run = (folder / "config.yaml").is_file()
        advice = f"; to resume: skinmm.fit(resume={str(folder)!r})" if has_run else ""
        raise Interrupted(f"interrupted{advice}") from error
    return Run(folder)


def _check_config(given: Sequence[Any], output: str | Path | None, words: list[str]) -> "Config":
    """Return a checked copy of the configuration given to `fit`."""
    from skinmm.config import Config, from_mapping, to_mapping
    from skinmm.config.registry import load_plugins

    if len(given) > 1 or words:
        raise InputError(
            "fit takes one Config or settings, not both; change attributes of the Config"
        )
    if output is None:
        raise InputError("fit(Config) needs output=FOLDER, the run folder")
    if given[0].resume:
        raise InputError("a Config cannot resume a run; use skinmm.fit(resume=FOLDER)")
    load_plugins(given[0].plugins)
    return from_mapping(Config, to_mapping(given[0]))


def load_run(path: str | Path) -> "Run":
    """Return the finished run of a folder."""
    from skinmm.training.results import Run

    return Run(path)


def load_cohort(*overrides: str, **settings: Any) -> pd.DataFrame:
    """Read a cohort as canonical rows, with targets and paths of images.

    It takes the arguments of `fit`, such as `load_cohort("data.root=DIR", data="siim_isic")`.
    """
    from skinmm.data import cohorts

    data = build_config(*overrides, **settings).data
    cohorts.verify_cohort(data)
    return cohorts.load_cohort(data).rows


def evaluate(
    predictions: pd.DataFrame | str | Path,
    labels: str | Path | None = None,
    *,
    positive: str | list[str] | None = None,
    report: str | Path | None = None,
    overwrite: bool = False,
) -> "Evaluation":
    """Evaluate the predictions of any system, with intervals over patients.

    The table, or its file, has a form that `skinmm report` reads: image names, a probability for
    each class, and `target` unless the file `labels` has it. `positive` are the malignant classes,
    or the one, `report` is a page to write.
    """
    from skinmm.report import report_predictions
    from skinmm.report.inputs import read_prediction_file
    from skinmm.training.results import Evaluation

    with TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.csv"
        if isinstance(predictions, pd.DataFrame):
            predictions.to_csv(file, index=False)
        else:
            file = Path(predictions)
        truth = None if labels is None else Path(labels)
        classes = [positive] if isinstance(positive, str) else positive
        try:
            if report is None:
                inputs = read_prediction_file(file, truth, classes, pictures=False)
            else:
                inputs = report_predictions(
                    file, Path(report), truth, positive=classes, overwrite=overwrite
                )
        except InputError as error:  # a table has no file that its owner knows
            raise InputError(str(error).replace(f"{folder}/predictions.csv", "the table")) from None
    return Evaluation(lambda: replace(inputs, pictures=False))


def compare(
    *systems: "Evaluation | str | Path",
    margin: float | None = None,
    **named: "Evaluation | pd.DataFrame | str | Path",
) -> "Comparison":
    """Compare runs, evaluations, files or named tables on common images, with paired tests.

    `margin` is the largest loss of AUROC that is not inferior; None: not tested.
    """
    from skinmm.training.results import Comparison

    evaluations: dict[str, Evaluation] = {}
    for number, system in enumerate(map(_to_evaluation, systems), start=1):
        title = system._inputs.title
        evaluations[f"{number}. {title}" if title in evaluations else title] = system
    evaluations |= {name: _to_evaluation(system) for name, system in named.items()}
    return Comparison(evaluations, margin=margin)


def _to_evaluation(system: "Evaluation | pd.DataFrame | str | Path") -> "Evaluation":
    from skinmm.training.results import Evaluation, Run

    if isinstance(system, Evaluation):
        return system
    is_folder = not isinstance(system, pd.DataFrame) and Path(system).is_dir()
    return Run(str(system)) if is_folder else evaluate(system)


def _to_overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield keyword arguments as overrides; a mapping gives the settings of a section."""
    from skinmm.cli.overrides import quote, quote_list

    for name, value in settings.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _to_overrides(value, f"{key}.")
        elif isinstance(value, list | tuple):
            yield f"{key}={quote_list(map(str, value))}"
        elif isinstance(value, str | Path):
            yield f"{key}={quote(str(value)) if prefix or isinstance(value, Path) else value}"
        else:
            yield f"{key}={'null' if value is None else str(value).lower()}"
