"""Start a run: check the configuration, train one fold or all of them, and pool the folds."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import torch

from skinmm.config import Config, build_component, check_component, read_config
from skinmm.config.checkpoints import FINAL
from skinmm.config.outputs import UPLOADS
from skinmm.data.augment import AUGMENTS
from skinmm.data.datamodule import count_folds
from skinmm.data.sampling import SAMPLERS
from skinmm.errors import InputError, warn
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.thresholds import Threshold, average_thresholds
from skinmm.models.backbone import CUSTOM
from skinmm.models.checkpoint import save_ensemble
from skinmm.models.fusion import FUSIONS
from skinmm.models.heads import HEADS
from skinmm.models.segmentation import SEGMENTERS
from skinmm.models.sources import resolve_image_size
from skinmm.models.tabular import TABULAR
from skinmm.models.views import VIEWS
from skinmm.report import write_report
from skinmm.training.calibrate import fit_referral_band, pool_folds, write_evaluation
from skinmm.training.distributed import is_leader, is_torchrun, shared_failure
from skinmm.training.final import train_final
from skinmm.training.fitted_heads import check_head
from skinmm.training.fold import train_fold
from skinmm.training.losses import LOSSES
from skinmm.training.mixup import MIXES
from skinmm.training.optimizer import OPTIMIZERS
from skinmm.training.progress import print_stage
from skinmm.training.run_folder import RunFolder, read_metrics, write_json
from skinmm.training.trackers import require_packages
from skinmm.training.trainer import silence_libraries

Train = Callable[[Config, RunFolder], dict[str, Any]]
TASKS: Final[dict[str, Train]] = {"classification": train_fold}
"""Functions that train one fold, by `task`; optional tasks add themselves."""


def fit(config: Config, path: Path, *, starts_processes: bool = False) -> dict[str, Any]:
    """Train, test and report a configuration in a run folder, which is created if missing.

    `data.fold=all` trains every fold and pools the test rows; `resume` continues the run in the
    folder. An existing run is only changed when all checks have passed. With `starts_processes`
    the training may start further processes of the command that runs.

    Returns:
        The content of the run's metrics.json; empty on other processes than rank 0.

    Raises:
        InputError: an unknown component or argument, data that cannot be used, a folder in use.
        KeyboardInterrupt: after Ctrl-C; a usable `checkpoints/last.ckpt` was written before.
    """
    silence_libraries()
    require_packages(config)
    check_components(config)
    size = resolve_image_size(config.model, CUSTOM)
    # Folds share the settings of the trainer, in which measured choices replace `auto`.
    config = replace(
        config,
        model=replace(config.model, image_size=size),
        trainer=replace(config.trainer),
        optimizer=replace(config.optimizer),
    )
    run = RunFolder(path, config, starts_processes=starts_processes)
    if is_leader() and not run.is_resumed:
        run.require_unused()
    threads = torch.get_num_threads()
    try:
        return fit_all_folds(run) if config.data.fold == "all" else TASKS[config.task](config, run)
    except Exception as error:
        raise shared_failure(error, path) from error
    finally:
        torch.set_num_threads(threads)
        # The next run of a sweep starts its own processes; processes of torchrun continue.
        if torch.distributed.is_initialized() and not is_torchrun():
            torch.distributed.destroy_process_group()


def check_components(config: Config) -> None:
    """Check the names and arguments of all components before any data is read."""
    check_component(SEGMENTERS, "segmenter", config.segmenter, context=("model", "pretrained"))
    check_component(FUSIONS, "fusion", config.fusion, context=("image_dim", "record_dim"))
    check_component(VIEWS, "views", config.views, context=("image_dim",))
    check_component(TABULAR, "tabular", config.tabular, context=("widths",))
    check_component(HEADS, "head", config.head, context=("fusion", "classes", "image_dim"))
    check_head(config)
    check_index(config)
    check_component(LOSSES, "loss", config.loss, context=("counts",))
    check_component(AUGMENTS, "augment", config.augment, context=("size",))
    check_component(SAMPLERS, "sampler", config.sampler)
    check_component(MIXES, "mix", config.mix)
    optimizer, parameters = config.optimizer, [torch.nn.Parameter(torch.zeros(1))]
    check_component(OPTIMIZERS, "optimizer", optimizer, context=("params", "lr", "weight_decay"))
    # Lightning builds the optimiser after the run has started; bad arguments have to fail here.
    build_component(OPTIMIZERS, "optimizer", optimizer, params=parameters, lr=1e-3)


def check_index(config: Config) -> None:
    """Raise InputError for `model.index` without images, or if a logger uploads the names."""
    if not config.model.index:
        return
    if "image" not in FUSIONS[config.fusion.name].inputs:
        raise InputError(f"model.index=true: fusion={config.fusion.name} has no image; use false")
    if (name := config.logger.name) in UPLOADS and not config.logger.images:
        raise InputError(
            f"model.index=true: the checkpoint that logger={name} uploads contains names of images;"
            " set logger.images=true to allow it, or model.index=false"
        )


def is_finished(config: Config, path: Path) -> bool:
    """Return whether a resumed run is complete, after writing a missing report.

    More epochs, more patience or another logger are work to do, except for the finished folds of
    `data.fold=all`.
    """
    for metrics in sorted(path.rglob("metrics.json")):
        if not metrics.with_name("report.html").is_file():
            write_report(metrics.parent)
    run = RunFolder(path, config)
    has_folds = config.data.fold == "all"
    folds = [run.fold(number) for number in range(count_folds(config) if has_folds else 0)]
    if not all(folder.is_finished for folder in (run, *folds)):
        return False
    if config.final and not run.final_checkpoint.is_file():
        return False
    before = read_config(path / "config.yaml")
    has_more = (
        config.trainer.max_epochs > before.trainer.max_epochs
        or config.trainer.patience > before.trainer.patience
        or config.logger != before.logger
    )
    if has_folds and has_more:
        warn(f"{path}: finished folds are not trained again; overwrite=true replaces them")
    return has_folds or not has_more


def fit_all_folds(run: RunFolder) -> dict[str, Any]:
    """Train every fold that a resumed run has not finished, and evaluate the pooled test rows.

    The networks of all folds become one checkpoint, `checkpoints/ensemble.ckpt`. With `final=true`
    a network is then trained on all rows, `checkpoints/final.ckpt`.

    The decision threshold is the mean of the folds' thresholds. Each fold refers by its own band;
    that of the checkpoint of all folds is fitted to the pooled test rows, whose networks have not
    been trained on them.
    """
    folds = [run.fold(number) for number in range(count_folds(run.config))]
    for fold in folds:
        if not (run.is_resumed and fold.is_finished):
            train_fold(fold.config, fold)
    if not run.config.final:  # an earlier start may have trained one
        run.final_checkpoint.unlink(missing_ok=True)
    final = train_final(run) if run.config.final else {}
    if not is_leader():
        return {}
    metrics = [read_metrics(fold.path) for fold in folds]
    facts = {name: metrics[0][name] for name in ("initialisation", "classes", "positive")}
    parts = {}
    for name in metrics[0]:
        if name == "test" or name.startswith("missing_"):
            files = [fold.path / "predictions" / f"{name}.csv" for fold in folds]
            parts[name] = pool_folds([read_predictions(f, None, facts["positive"]) for f in files])
    thresholds = [Threshold(**fold["threshold"]) for fold in metrics]
    facts["threshold"] = asdict(average_thresholds(thresholds))
    calibration = metrics[0]["calibration"]  # folds differ in its method and fitted state
    facts["calibration"] = {name: calibration.get(name) for name in ("prior", "inverse")}
    fitted = {fold.get("fitted_on", "val") for fold in metrics}
    facts["fitted_on"] = fitted.pop() if len(fitted) == 1 else "mixed"
    selections = [fold["selection"] for fold in metrics if "selection" in fold]
    if len({selection["window"] for selection in selections}) == 1:
        epochs = [selection["epochs"] for selection in selections]
        facts["selection"] = {**selections[0], "epochs": epochs}
    facts |= {FINAL: final} if final else {}
    facts["folds"] = [{"fold": i, "test": fold["test"]} for i, fold in enumerate(metrics)]
    facts["band"] = asdict(fit_referral_band(parts["test"], run.config.evaluation))
    run.remove_results()
    checkpoints = [fold.best_checkpoint for fold in folds]
    save_ensemble(checkpoints, run.ensemble_checkpoint, band=facts["band"])
    facts["checkpoint"] = str(run.ensemble_checkpoint.relative_to(run.path))
    print_stage(run.config, f"all folds: resampling and report of {len(parts['test']):,} rows")
    pooled = write_evaluation(run.path, parts, run.config.evaluation, facts)
    write_json(run.path / "metrics.json", pooled)
    write_report(run.path)
    return pooled
