"""The composition root: a configuration becomes a run folder."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.utilities import rank_zero_only

from skinmm.config import (
    Component,
    Config,
    build_component,
    check_component,
    read_config,
    write_config,
)
from skinmm.data.augment import AUGMENTS
from skinmm.data.sampling import SAMPLERS
from skinmm.errors import InputError
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.thresholds import Threshold, average_thresholds
from skinmm.models.fusion import FUSIONS
from skinmm.models.segmentation import SEGMENTERS
from skinmm.models.tabular import TABULAR
from skinmm.report import write_report
from skinmm.segmentation.fold import MaskFold
from skinmm.training import calibrate, run_folder
from skinmm.training import distributed as launch
from skinmm.training.fold import Fold
from skinmm.training.losses import LOSSES
from skinmm.training.mixup import MIXES
from skinmm.training.optimizer import OPTIMIZERS
from skinmm.training.trainer import quiet


def fit(config: Config, run: Path) -> dict[str, Any]:
    """Trains, tests and reports what a configuration asks for.

    What was in the folder is only touched once everything that can be refused has been.

    Args:
        config: the checked configuration; `data.fold=all` runs every fold and pools the test rows,
            `resume` continues from what the folder holds.
        run: the run folder; made here.

    Returns:
        The content of the run's metrics.json; in another process than rank 0 nothing.

    Raises:
        InputError: an unknown component or argument, data that cannot be used, a folder in use.
        KeyboardInterrupt: after a usable `checkpoints/last.ckpt` was left.
    """
    quiet()
    threads = torch.get_num_threads()
    check_components(config)
    if _leads() and not config.resume:
        run_folder.refuse_in_use(run, overwrite=config.overwrite)
    try:
        return _fit(config, run)
    except Exception as error:
        raise launch.failed(error, run) from error
    finally:
        torch.set_num_threads(threads)  # small networks have changed it
        # Or the next run of a sweep would wait for ours; torchrun's processes stay together.
        if torch.distributed.is_initialized() and not launch.by_torchrun():
            torch.distributed.destroy_process_group()


def _fit(config: Config, run: Path) -> dict[str, Any]:
    if config.data.fold == "all":
        return _fit_all(config, run)
    fold = (MaskFold if config.task == "segmentation" else Fold).assemble(config, run)
    _open(run, config)
    return fold.run_through()


def finished(config: Config, run: Path) -> bool:
    """Whether a run that is to be resumed has nothing left to do; missing reports are made.

    Args:
        config: as `resumed` gives it: more epochs, more patience or another logger are something
            to do, but for folds that have finished.
        run: its folder.
    """
    for metrics in sorted(run.rglob("metrics.json")):
        if not metrics.with_name("report.html").is_file():
            write_report(metrics.parent)
    whole = config.data.fold == "all"
    folds = range(config.data.folds if whole else 0)
    places = [run, *(run_folder.fold_folder(run, number) for number in folds)]
    if not all((place / "metrics.json").is_file() for place in places):
        return False
    kept, wanted = read_config(run / "config.yaml"), config.trainer
    more = wanted.max_epochs > kept.trainer.max_epochs or wanted.patience > kept.trainer.patience
    more = more or config.logger != kept.logger
    if whole and more:
        told = "finished folds are not trained on; overwrite=true starts again"
        print(f"WARNING: {run}: {told}", file=sys.stderr)  # noqa: T201
    return whole or not more


def check_components(config: Config) -> None:
    """Refuses an unknown component or argument before any data is read.

    Raises:
        InputError: names the component, the argument and the choices.
    """
    check_component(SEGMENTERS, "segmenter", config.segmenter, context=("model", "pretrained"))
    check_component(FUSIONS, "fusion", config.fusion, context=("image_dim", "record_dim"))
    check_component(TABULAR, "tabular", config.tabular, context=("widths",))
    check_component(LOSSES, "loss", config.loss, context=("counts",))
    check_component(AUGMENTS, "augment", config.augment, context=("size",))
    check_component(SAMPLERS, "sampler", config.sampler)
    check_component(MIXES, "mix", config.mix)
    optimizer = Component(config.optimizer.name, config.optimizer.args)
    check_component(OPTIMIZERS, "optimizer", optimizer, context=("params", "lr", "weight_decay"))
    # Lightning makes the real one when the run has begun; what it would refuse is refused here.
    one = [torch.nn.Parameter(torch.zeros(1))]
    build_component(OPTIMIZERS, "optimizer", config.optimizer, params=one, lr=config.optimizer.lr)


def _leads() -> bool:
    """Whether this process is rank 0, the only one that writes."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _open(run: Path, config: Config) -> None:
    """Makes the folder; from here on it is a run that can be resumed."""
    if _leads():
        if not config.resume:
            run_folder.clear(run)
        _take_down(run)
        write_config(run / "config.yaml", config)
    if launch.by_torchrun():
        if _leads():
            launch.announce(config, run)
        launch.meet(run, config.trainer.timeout)


def _take_down(run: Path) -> None:
    """Of a finished run that goes on, the pages first: none may lie beside other metrics."""
    for name in ("report.html", "card.md", "metrics.json"):
        (run / name).unlink(missing_ok=True)


def _fit_all(config: Config, run: Path) -> dict[str, Any]:
    """Every fold in a folder of its own; those that a resumed run has finished are not repeated."""
    opened = False
    for number in range(config.data.folds):
        place = run_folder.fold_folder(run, number)
        if config.resume and (place / "metrics.json").is_file():
            continue
        fold = Fold.assemble(replace(config, data=replace(config.data, fold=number)), place, run)
        if (fold.data.cohort.loc[fold.data.rows("test"), "fold"] < 0).all():
            raise InputError(
                "data.fold=all pools the folds' test rows, but these data fix the test part; "
                "choose one data.fold"
            )
        if not opened:
            _open(run, config)
            opened = True
        if _leads():
            print(f"fold {number} of {config.data.folds}", flush=True)  # noqa: T201
            place.mkdir(exist_ok=True)
            _take_down(place)
        fold.run_through()
    return _pool(config, run) if _leads() else {}


def _pool(config: Config, run: Path) -> dict[str, Any]:
    """The folds' test rows as one cohort, judged at the mean of their thresholds."""
    places = [run_folder.fold_folder(run, number) for number in range(config.data.folds)]
    metrics = [run_folder.read_metrics(place) for place in places]
    positive = metrics[0]["positive"]
    names = [name for name in metrics[0] if name == "test" or name.startswith("missing_")]
    files = {name: [place / "predictions" / f"{name}.csv" for place in places] for name in names}
    parts = {
        name: calibrate.pool([read_predictions(file, positive=positive) for file in each])
        for name, each in files.items()
    }
    facts = {
        "initialisation": metrics[0]["initialisation"],
        "classes": metrics[0]["classes"],
        "positive": positive,
        "threshold": asdict(
            average_thresholds([Threshold(**each["threshold"]) for each in metrics])
        ),
        "folds": [{"fold": number, "test": each["test"]} for number, each in enumerate(metrics)],
    }
    _take_down(run)
    pooled = calibrate.write_results(run, parts, config.evaluation, facts)
    run_folder.write_json(run / "metrics.json", pooled)
    write_report(run)
    return pooled
