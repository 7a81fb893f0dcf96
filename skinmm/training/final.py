"""Final network: trained on all rows after the folds, calibrated on their test predictions."""

import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import pytorch_lightning as pl
from jaxtyping import Float64

from skinmm.config import Config
from skinmm.config.outputs import LoggerConfig
from skinmm.data.datamodule import LesionData, count_folds
from skinmm.errors import InputError, print_line
from skinmm.evaluation.metrics import describe_probabilities
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.referral import SHARE, OODDetector, cross_fit_ood
from skinmm.models.checkpoint import load_card, read_epochs, save_ensemble, update_card
from skinmm.training.autotune import choose_lr
from skinmm.training.calibrate import (
    FittedDecision,
    SplitOutputs,
    evaluate_part,
    fit_decision,
    pool_folds,
)
from skinmm.training.distributed import open_run
from skinmm.training.extras import build_index, sample_background
from skinmm.training.fold import (
    build_classifier,
    describe_inputs,
    predict_split,
    train_network,
    write_cohort_and_environment,
)
from skinmm.training.frozen_features import load_features
from skinmm.training.leak_guard import require_same_split
from skinmm.training.progress import print_duration
from skinmm.training.run_folder import RunFolder
from skinmm.training.trackers import upload_files
from skinmm.training.trainer import build_trainer, set_threads

NOTE: Final = (
    "Figures of the folds: predictions of their networks, each for rows that it was not trained "
    "on. The same predictions fitted calibration and threshold. This network was trained on all "
    "rows, so that none of them can evaluate it."
)


def train_final(run: RunFolder) -> dict[str, Any]:
    """Train a network on all rows for the median best epoch of the folds, and calibrate it.

    The test predictions of all folds fit calibration, threshold, referral and prediction sets. Each
    is of a network that was not trained on the patient, so that they are close to predictions of
    this network for new patients; no guarantee is derived from them. The network continues from its
    last checkpoint if the run is resumed.

    Returns:
        The entry `final` of metrics.json on rank 0, an empty dict on other processes.
    """
    config, final = run.config, run.final
    folds = [run.fold(number) for number in range(count_folds(config))]
    epochs = count_epochs([read_epochs(fold.best_checkpoint) for fold in folds], config)
    pl.seed_everything(config.seed, workers=False, verbose=False)
    trainer = build_trainer(config, final.path, epochs)
    data = LesionData(config)
    set_threads(has_images=data.decodes_images, processes=trainer.num_devices)
    data.setup()
    require_same_split(folds[0].path / "cohort.csv", data.cohort, "fold")
    module = build_classifier(config, data)
    choose_lr(module, data, trainer, final)
    open_run(final, config.trainer.timeout)
    load_features(config, data, module.network, trainer, final)
    if trainer.is_global_zero:
        write_cohort_and_environment(final, data.cohort, trainer)
        print_line(f"final network: {len(data.cohort)} rows to train")
        print_duration(module, data, trainer, config, folds=0)
    card, _ = train_network(trainer, module, data, final)
    training = predict_split(trainer, module, data, "train")
    stretches = [measure_stretch(fold) for fold in folds]
    if not trainer.is_global_zero:
        return {}
    held_out, ood = pool_held_out(folds, data.cohort, card.positive)
    decision = fit_decision(held_out, card, config.evaluation)
    threshold = replace(decision.threshold, guaranteed=False)
    detector = fit_corrected_detector(training, stretches)
    decision = replace(decision, threshold=threshold, ood=detector)
    predictions = decision.apply(held_out, ood)
    malignancy = decision.calibrate(training).malignancy
    update_card(
        final.best_checkpoint,
        **decision.to_checkpoint(),
        summary={
            **evaluate_part(predictions, threshold.value, config.evaluation),
            "probabilities": describe_probabilities(predictions),
            "note": NOTE,
        },
        inputs=describe_inputs(data, predictions),
        background=sample_background(data, module.network, "train", malignancy),
        index=build_index(data, module.network) if config.model.index else None,
    )
    save_ensemble([final.best_checkpoint], run.final_checkpoint)
    upload_files(trainer, [run.final_checkpoint])
    return describe_final(run, decision, epochs, len(data.cohort), stretches)


def pool_held_out(
    folds: Sequence[RunFolder], cohort: pd.DataFrame, positive: Sequence[str]
) -> tuple[SplitOutputs, Float64[np.ndarray, " n"] | None]:
    """Return the test rows of all folds before calibration, and their OOD scores."""
    files = [fold.path / "predictions" / "test.csv" for fold in folds]
    pooled = pool_folds([read_predictions(file, positive=positive) for file in files])
    if pooled.raw is None:
        raise InputError(f"{files[0]}: the predictions of a fold lack the columns raw_<class>")
    rows = cohort.set_index("image_id", drop=False).loc[list(pooled.image_id)]
    return SplitOutputs(rows, pooled.target, pooled.raw, None), pooled.ood


def count_epochs(selected: Sequence[Sequence[int]], config: Config) -> int:
    """Return the number of epochs to train: the median of the epochs that the folds selected.

    With `trainer.average_best=k` the last k epochs are averaged, and the median is in their middle.
    """
    middle = math.ceil(np.median([np.median(epochs) for epochs in selected]))
    return min(middle + config.trainer.average_best // 2, config.trainer.max_epochs)


def measure_stretch(fold: RunFolder) -> float | None:
    """Return the ratio of OOD distances of test and training rows of a fold."""
    config = replace(fold.config, logger=LoggerConfig("none"))
    trainer = build_trainer(config, fold.path)
    data = LesionData(config)
    data.setup()
    module = build_classifier(config, data)
    module.network.load_state_dict(load_card(fold.best_checkpoint)[1])
    load_features(config, data, module.network, trainer, fold)
    return compare_distances(*(predict_split(trainer, module, data, p) for p in ("train", "test")))


def compare_distances(training: SplitOutputs, test: SplitOutputs) -> float | None:
    """Return the ratio of the OOD distances of test rows to the distances of training rows.

    A network has memorised its training rows, so that a limit from them is too low for new rows,
    and a training on all rows leaves no others. In a fold both are available.

    Returns:
        The quantile `SHARE` of the squared distance of test rows over that of cross-validated
        training rows. None: the features have no distance.
    """
    detector = fit_training_detector(training)
    if detector is None or test.features is None:
        return None
    return float(np.quantile(detector.score(test.features), SHARE))


def fit_training_detector(training: SplitOutputs) -> OODDetector | None:
    """Fit the OOD score to the features of training rows."""
    if training.features is None:
        return None
    patients = training.cohort["patient_id"].to_numpy(dtype=str)
    return (cross_fit_ood(training.features, patients) or (None,))[0]


def fit_corrected_detector(
    training: SplitOutputs, stretches: Sequence[float | None]
) -> OODDetector | None:
    """Fit the OOD detector to training rows; multiply its limit by the median of the stretches."""
    detector = fit_training_detector(training)
    measured = [stretch for stretch in stretches if stretch is not None]
    if detector is None or not measured:
        return None
    return replace(detector, limit=detector.limit * float(np.median(measured)))


def describe_final(
    run: RunFolder,
    decision: FittedDecision,
    epochs: int,
    rows: int,
    stretches: Sequence[float | None],
) -> dict[str, Any]:
    """Return the entry `final` of metrics.json."""
    return {
        "checkpoint": str(run.final_checkpoint.relative_to(run.path)),
        "epochs": epochs,
        "rows": rows,
        "threshold": asdict(decision.threshold),
        "band": asdict(decision.band),
        "calibration": {"method": decision.calibration.method},
        "ood_stretch": list(stretches),
    }
