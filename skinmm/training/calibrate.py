"""Fit calibration and decision rules on validation rows, and evaluate the predictions.

The prediction files that this module writes, and `metrics.json`, are what reports read.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int

from skinmm.config import EvaluationConfig
from skinmm.evaluation.calibration import Calibration, fit_calibration
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import BINARY, ROW_COLUMNS, Predictions, write_predictions
from skinmm.evaluation.referral import (
    ConformalPredictor,
    OODDetector,
    add_decisions,
    fit_conformal,
    fit_ood_detector,
)
from skinmm.evaluation.thresholds import (
    Threshold,
    choose_threshold,
    decision_priors,
    predict_classes,
)

SCHEMA: Final = 1


@dataclass(frozen=True)
class SplitOutputs:
    """Network outputs of a split, before calibration.

    Attributes:
        cohort: canonical rows of the split.
        targets: class index of each row.
        probabilities: uncalibrated, float64.
        features: fused features, float32.
    """

    cohort: pd.DataFrame
    targets: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]
    features: Float32[np.ndarray, "n dim"]


@dataclass(frozen=True)
class FittedDecision:
    """Calibration, decision threshold, prediction sets and OOD score, fitted on validation rows.

    Attributes:
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        call_shares: class shares that divide the probabilities before the most probable class is
            called.
        calibration: from raw to calibrated probabilities.
        threshold: on the probability of malignancy.
        conformal: prediction sets.
        ood: out-of-distribution score; None if it could not be fitted.
    """

    classes: tuple[str, ...]
    positive: tuple[str, ...]
    call_shares: Float[np.ndarray, " classes"]
    calibration: Calibration
    threshold: Threshold
    conformal: ConformalPredictor
    ood: OODDetector | None

    def apply(self, outputs: SplitOutputs) -> Predictions:
        """Return calibrated predictions with prediction sets, OOD scores and referrals."""
        rows = self.calibrate(outputs)
        ood = self.ood.score(outputs.features) if self.ood else None
        return add_decisions(
            rows, self.threshold.value, self.conformal.predict_sets(rows.probabilities), ood
        )

    def calibrate(self, outputs: SplitOutputs) -> Predictions:
        """Return calibrated predictions only."""
        return calibrate(outputs, self.calibration, self.classes, self.positive, self.call_shares)

    def to_checkpoint(self) -> dict[str, Any]:
        """Return the entries of the checkpoint's card, as plain data."""
        return {
            "calibration": asdict(self.calibration),
            "threshold": asdict(self.threshold),
            "conformal": asdict(self.conformal),
            "ood": self.ood.to_state() if self.ood else None,
        }


def fit_decision(
    val: SplitOutputs,
    *,
    classes: list[str],
    positive: list[str],
    prior: dict[str, list[float]],
    config: EvaluationConfig,
) -> FittedDecision:
    """Fit the calibration, then the threshold and the referral rules, on validation rows alone.

    Args:
        val: outputs of the validation split.
        classes: names, in the order of the probabilities.
        positive: the classes that count as malignant.
        prior: class shares in training and in use, under `trained` and `deployed`.
        config: method of calibration, rule of the threshold, rule of the call, coverage.
    """
    calibration = fit_calibration(
        val.probabilities,
        val.targets,
        val.cohort["patient_id"].to_numpy(dtype=str),
        prior=(np.array(prior["trained"]), np.array(prior["deployed"])),
        method=config.calibration,
    )
    names = (tuple(classes), tuple(positive))
    shares = decision_priors(config.call, prior["deployed"])
    rows = calibrate(val, calibration, *names, shares)
    threshold = choose_threshold(
        rows.malignancy,
        rows.malignant,
        rows.patient_id,
        rule=config.threshold,
        sensitivity=config.sensitivity,
        confidence=config.confidence,
        cost_ratio=config.cost_ratio,
    )
    conformal = fit_conformal(rows, coverage=config.coverage)
    ood = fit_ood_detector(val.features, rows.patient_id)
    return FittedDecision(*names, shares, calibration, threshold, conformal, ood)


def calibrate(
    outputs: SplitOutputs,
    calibration: Calibration,
    classes: tuple[str, ...],
    positive: tuple[str, ...],
    shares: Float[np.ndarray, " classes"],
) -> Predictions:
    """Return a split's calibrated predictions, with the called class where there are several."""
    probabilities = calibration.apply(outputs.probabilities)
    return Predictions(
        image_id=outputs.cohort["image_id"].to_numpy(dtype=str),
        patient_id=outputs.cohort["patient_id"].to_numpy(dtype=str),
        target=outputs.targets,
        probabilities=probabilities,
        raw=outputs.probabilities,
        classes=classes,
        positive=positive,
        called=None if classes == BINARY else predict_classes(probabilities, shares),
    )


def write_evaluation(
    run: Path, parts: dict[str, Predictions], config: EvaluationConfig, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write `predictions/<part>.csv` for every part, and evaluate each.

    Args:
        run: the run folder.
        parts: predictions by the name of their part: test, val, missing_1_of_3, ...
        config: resamples and confidence of the intervals.
        facts: further entries of metrics.json: initialisation, threshold, ...

    Returns:
        The content of metrics.json. The caller writes it last, as the mark of a finished run.
    """
    metrics: dict[str, Any] = {"schema": SCHEMA, **facts}
    (run / "predictions").mkdir(exist_ok=True)
    for name, predictions in parts.items():
        write_predictions(run / "predictions" / f"{name}.csv", predictions)
        metrics[name] = evaluate(
            predictions,
            threshold=facts["threshold"]["value"],
            resamples=config.resamples,
            confidence=config.confidence,
        )
    return metrics


def pool_folds(folds: list[Predictions]) -> Predictions:
    """Concatenate the test rows of all folds, with the fold's number in the column `fold`."""
    columns = {name: [getattr(rows, name) for rows in folds] for name in ROW_COLUMNS}
    columns["fold"] = [np.full(len(rows), number) for number, rows in enumerate(folds)]
    pooled: dict[str, Any] = {
        name: None if any(values is None for values in column) else np.concatenate(column)
        for name, column in columns.items()
    }
    return replace(folds[0], **pooled)
