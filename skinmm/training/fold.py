"""Training of one fold, from its rows to its run folder; `train_fold` is the main function."""

import platform
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from skinmm.config import Config, build_component, to_mapping
from skinmm.config.checks import list_changed
from skinmm.config.registry import GROUPS, list_sources
from skinmm.data.datamodule import LesionData
from skinmm.data.splits import CALIBRATION
from skinmm.errors import print_line, warn
from skinmm.evaluation.call_rules import parse_costs
from skinmm.evaluation.drift import describe_columns
from skinmm.evaluation.metrics import describe_probabilities
from skinmm.evaluation.predictions import Predictions
from skinmm.files import remove_partials
from skinmm.models.backbone import synchronise_batchnorm
from skinmm.models.checkpoint import (
    KEY,
    Card,
    average_checkpoints,
    load_card,
    read_epochs,
    save_checkpoint,
    update_card,
)
from skinmm.models.network import build_network
from skinmm.report import write_report
from skinmm.training.autotune import StepTime, choose_lr, tune
from skinmm.training.calibrate import SplitOutputs, fit_decision, write_evaluation
from skinmm.training.callbacks import BEST_EPOCHS
from skinmm.training.distributed import is_leader, open_run
from skinmm.training.extras import EXTRAS, TrainedFold
from skinmm.training.fitted_heads import fit_head
from skinmm.training.frozen_features import load_features
from skinmm.training.leak_guard import audit_split, require_same_finder, require_usable_split
from skinmm.training.losses import LOSSES
from skinmm.training.memory import choose_batch, require_memory
from skinmm.training.module import BaseModule, Classifier
from skinmm.training.progress import print_duration, print_stage
from skinmm.training.run_folder import RunFolder, environment, write_cohort, write_json
from skinmm.training.teacher import load_teacher
from skinmm.training.trackers import log_config, upload_run
from skinmm.training.trainer import build_trainer, log_test, run_stage, set_threads
from skinmm.vocabulary import name_units

SMOOTHING: Final = 3
"""Epochs over which the monitored metric is averaged if validation has few malignant lesions."""
FEW: Final = 100
"""Number of malignant validation lesions from which no average is taken."""


def train_fold(
    config: Config,
    run: RunFolder,
    data: LesionData | None = None,
    train: Callable[..., tuple[Card, dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Train one fold, calibrate it on held-out rows, and evaluate it on test rows.

    Nothing is written before all checks have passed. metrics.json is written after all other
    results, before the report. A resumed run continues from the last checkpoint in its folder.
    `data` replaces the rows of the configuration. `train` replaces `train_network`; a centre of a
    federation trains by its own function.

    Returns:
        The content of metrics.json on rank 0, and an empty dict on other processes.
    """
    pl.seed_everything(config.seed, workers=False, verbose=False)
    require_same_finder(config, run)  # a resumed run finds lesions with the same segmenter
    trainer = build_trainer(config, run.path)
    data = data or LesionData(config)
    set_threads(has_images=data.decodes_images, processes=trainer.num_devices)
    data.setup()
    require_usable_split(data, run)
    findings = audit_split(data, config)  # refuses leaks
    module = build_classifier(config, data)
    choose_batch(module, data, trainer)  # replaces "auto" in `config`, as `choose_lr` does
    require_memory(module.network, config, trainer, data.record_widths)
    choose_lr(module, data, trainer, run)
    step = tune(module, data, trainer, run) if is_leader() else None
    if step:  # `tune` has changed settings of the trainer in `config`
        trainer = build_trainer(config, run.path)
        set_threads(has_images=True, processes=trainer.num_devices)

    open_run(run, config.trainer.timeout)  # prepares the folder and waits for all processes
    load_features(config, data, module.network, trainer, run)  # frozen networks: replaces images
    if trainer.is_global_zero:
        write_cohort_and_environment(run, data.cohort, trainer)
        log_config(config, trainer)
        write_json(run.path / "audit.json", findings)
        announce(run, data, module, trainer, findings, step)

    card, facts = (train or train_network)(trainer, module, data, run)

    parts = [part for part in ("test", "val", CALIBRATION) if len(data.rows(part))]
    print_stage(config, f"testing: {len(data.rows('test')):,} rows")
    outputs = {part: predict_split(trainer, module, data, part) for part in parts}
    fitting_part = CALIBRATION if CALIBRATION in parts else "val"
    decision = fit_decision(outputs[fitting_part], card, config.evaluation)
    predictions = {
        part: decision.apply(outputs[part], decision.held_out_ood if part == fitting_part else None)
        for part in parts
    }
    if trainer.is_global_zero:
        update_card(run.best_checkpoint, **decision.to_checkpoint())
    test = outputs["test"]
    fold = TrainedFold(config, run, data, trainer, module.network, test, decision, predictions)
    for extra in EXTRAS:
        predictions |= extra(fold)  # in place, so that later extras have the earlier results
    if not trainer.is_global_zero:
        return {}
    names = ("initialisation", "classes", "positive")
    facts = {name: getattr(card, name) for name in names} | facts | {"fitted_on": fitting_part}
    return write_results(fold, facts)


def write_results(fold: TrainedFold, facts: dict[str, Any]) -> dict[str, Any]:
    """Evaluate the predictions of a fold, and write metrics.json and the report."""
    config, run, test = fold.config, fold.run, fold.predictions["test"]
    entries = fold.decision.to_checkpoint()
    del entries["ood"]  # thousands of numbers, which only the checkpoint needs
    print_stage(config, f"resampling: intervals from {config.evaluation.resamples:,} resamples")
    metrics = write_evaluation(run.path, fold.predictions, config.evaluation, facts | entries)
    summary = metrics["test"] | {"probabilities": describe_probabilities(test)}
    update_card(run.best_checkpoint, summary=summary, inputs=describe_inputs(fold.data, test))
    log_test(fold.trainer, metrics["test"])
    write_json(run.path / "metrics.json", metrics)
    print_stage(config, "writing the report")
    write_report(run.path)
    upload_run(config, run, fold.trainer)
    return metrics


def build_classifier(config: Config, data: LesionData) -> Classifier:
    """Build the network, its loss, and the card for its checkpoints."""
    classes = list(data.classes)
    parse_costs(config.evaluation.costs, classes)  # refuses unknown classes before the training
    network = build_network(config, data.record_widths, len(classes), pretrained=True)
    if config.trainer.sync_batchnorm:
        synchronise_batchnorm(network)
    counts = torch.bincount(torch.from_numpy(data.training_targets), minlength=len(classes))
    loss = build_component(LOSSES, "loss", config.loss, counts=counts)
    # The network learns the class shares of the sampler times the class weights.
    drawn = data.sampler.prior(data.training_targets)  # ends with the last class that has rows
    trained = np.pad(drawn, (0, len(classes) - len(drawn))) * loss.weights.numpy()
    trained /= trained.sum()
    model = network.image.config if network.image else config.model  # needs no hub
    card = Card(
        # How the run was started is not a property of its network.
        config=to_mapping(replace(config, model=model, plugins=[], resume=None, overwrite=False)),
        classes=classes,
        positive=list(data.positive),
        encoder=data.encoder.to_state(),
        initialisation=network.image.origin if network.image else "no image network",
        prior={"trained": trained.tolist(), "deployed": data.natural_prior.tolist()},
        inverse=loss.inverse,
        preprocess=list(data.steps),
        segmenter=data.finder.state if data.finder else None,
        parts=list_sources({kind: getattr(config, kind).name for kind in GROUPS}),
    )
    module = Classifier(network, loss, card, config, choose_window(config, data))
    if config.loss.teacher:
        module.teacher = load_teacher(config.loss, data, card.prior["trained"])
    return module


def train_network(
    trainer: pl.Trainer, module: Classifier, data: LesionData, run: RunFolder
) -> tuple[Card, dict[str, Any]]:
    """Train by gradients, or fit a head to features of the training rows; load the best weights.

    Returns:
        The card, and an entry of metrics.json: how the epoch, or the hyper-parameters, were chosen.
    """
    head, options = module.network.fitted_head, run.config.trainer
    if head is None:
        # Our own checkpoints contain plain data, so they load with weights_only.
        last = run.last_checkpoint
        run_stage(trainer.fit, module, data, ckpt_path=last, weights_only=True)
        card = load_best(trainer, module, run)
        epochs = read_epochs(run.best_checkpoint)
        selection = {"monitor": options.monitor, "window": module.window, "epochs": epochs}
        return card, {"selection": selection}
    training = predict_split(trainer, module, data, "train")
    fitting = fit_head(head, training, module.card.prior["trained"], run.config.seed)
    if trainer.is_global_zero:
        chosen = ", ".join(f"{name} {value:.4g}" for name, value in fitting.items())
        print_line(f"head={run.config.head.name}: {chosen}")
        content = {"state_dict": module.state_dict(), "epoch": 0, KEY: asdict(module.card)}
        save_checkpoint(content, run.best_checkpoint)
    return load_best(trainer, module, run), {"fitted_head": fitting}


def choose_window(config: Config, data: LesionData) -> int:
    """Return the number of epochs over which the monitored metric is averaged.

    With few malignant lesions, the metric varies by chance from epoch to epoch: its highest value
    is too optimistic, and its epoch is often not the best one.
    """
    if config.trainer.smoothing != "auto":
        return int(config.trainer.smoothing)
    rows = data.rows("val")
    malignant = np.isin(data.targets[rows], [data.classes.index(name) for name in data.positive])
    table = data.cohort.iloc[rows[malignant]]
    lesions = table["lesion_id"].fillna(table["image_id"]).nunique()
    return SMOOTHING if lesions < FEW else 1


def write_cohort_and_environment(run: RunFolder, cohort: pd.DataFrame, trainer: pl.Trainer) -> None:
    """Write the rows and the environment of a run that is about to start."""
    remove_partials(run.path)
    write_cohort(run.path, cohort)
    device = trainer.strategy.root_device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    write_json(run.path / "environment.json", environment(gpu or platform.machine()))


def announce(
    run: RunFolder,
    data: LesionData,
    module: Classifier,
    trainer: pl.Trainer,
    findings: dict[str, Any],
    step: StepTime | None,
) -> None:
    """Print rows, initialisation, warnings and the expected duration before the first epoch."""
    config = run.config
    by_source = config.data.split == "source"
    tested = f": source {data.cohort['source'].iloc[data.rows('test')[0]]}" if by_source else ""
    if run.parent or by_source:  # one fold of several
        print_line(f"fold {config.data.fold}{tested or f' of {config.data.folds}'}")
    sizes = [len(data.rows(part)) for part in ("train", "val", "test")]
    rows = "cohort: {} rows to train, {} to validate, {} to test".format(*sizes)
    if calibration := len(data.rows(CALIBRATION)):
        rows += f", {calibration} to calibrate"
    print_line(f"{rows}; classes: {', '.join(data.classes)}")
    named = int((name_units(data.cohort) == "patient").sum())
    if named < len(data.cohort):
        count = f"{named} of {len(data.cohort)} rows name" if named else "no row names"
        others = "each other row" if named else "each"
        print_line(
            f"cohort: {count} a patient; {others} counts as its lesion, or else as its image"
        )
    for note in data.notes:
        print_line(f"cohort: {note}")
    name = f"image network {config.model.name}: " if module.network.image else ""
    print_line(f"{name}{module.card.initialisation}")
    for warning in list_warnings(data, module, findings):
        warn(warning)
    folds = config.data.folds - int(config.data.fold) if run.parent else 1
    print_duration(module, data, trainer, config, folds, step)
    if run.is_resumed and not run.last_checkpoint:
        print_line("no checkpoint was written yet; training starts from the beginning")


def list_warnings(data: LesionData, module: Classifier, findings: dict[str, Any]) -> list[str]:
    """Return warnings about the cohort, the initialisation and the correction of imbalance."""
    warnings = [*findings["warnings"], *findings["possible_leaks"]]
    if findings["leaks"]:
        warnings.append(f"the split leaks (data.allow_leaks): {'; '.join(findings['leaks'])}")
    if module.card.initialisation.startswith("FROM SCRATCH"):
        warnings.append(f"the image network starts {module.card.initialisation}")
    if data.sampler.corrects and module.loss.corrects:
        both = f"{data.sampler.corrects} and {module.loss.corrects}"
        warnings.append(f"the class imbalance is corrected more than once: {both}")
    config = data.config
    for key, value, needed in list_changed(config, "inputs"):
        if not {*needed.split()} <= {*data.inputs}:
            warnings.append(f"{key}={value} has no effect with fusion={config.fusion.name}")
    if config.evaluation.cost_ratio and (rule := config.evaluation.threshold) != "cost":
        warnings.append(f"evaluation.cost_ratio has no effect with evaluation.threshold={rule}")
    return warnings


def load_best(trainer: pl.Trainer, module: BaseModule, run: RunFolder) -> Card:
    """Load the weights of the best epoch, or the mean of the best ones, into the module."""
    best = run.best_checkpoint
    by_epoch = {int(path.stem.rpartition("=")[2]): path for path in best.parent.glob(BEST_EPOCHS)}
    several = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    if trainer.is_global_zero and several:
        average_checkpoints(several, best)
    trainer.strategy.barrier()
    card, weights = load_card(best)
    module.network.load_state_dict(weights)
    return card


def predict_split(
    trainer: pl.Trainer, module: Classifier, data: LesionData, part: str
) -> SplitOutputs:
    """Return the outputs of all rows of a part, on every process.

    The module stays in evaluation mode: Lightning restores the mode that precedes a test, and in
    training mode a network normalises by batch.
    """
    module.eval()
    run_stage(trainer.test, module, data.evaluation_loader(part), verbose=False)
    log_probabilities, targets, features = (values.cpu() for values in module.test_outputs)
    probabilities = log_probabilities.double().softmax(dim=1).numpy()
    cohort = data.cohort.iloc[data.rows(part)]
    return SplitOutputs(cohort, targets.numpy(), probabilities, features.numpy())


def describe_inputs(data: LesionData, test: Predictions) -> dict[str, Any]:
    """Return the distributions of training records and test scores, to detect later drift."""
    training = data.cohort[data.cohort["image_id"].isin(data.fitted_on)]  # fitted the encoder
    scores = pd.DataFrame({"malignancy": test.malignancy})
    if test.ood is not None:
        scores["ood"] = test.ood
    return describe_columns(training, data.encoder.columns) | describe_columns(scores, [*scores])
