"""What follows training: calibration and threshold from validation, then the test part's numbers.

Stages talk through files: this writes the prediction files and `metrics.json` that reports read.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
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
class Raw:
    """A part's rows before calibration; probabilities are float64, fused features float32."""

    cohort: pd.DataFrame
    targets: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]
    features: Float32[np.ndarray, "n dim"]


@dataclass(frozen=True)
class Verdict:
    """What validation decided, as it goes into the checkpoint, and the parts' predictions.

    `calibrated` makes of other raw rows what is written of them.
    """

    calibration: Calibration
    threshold: Threshold
    conformal: ConformalPredictor
    familiarity: OODDetector | None
    calibrated: Callable[[Raw], Predictions]
    val: Predictions
    test: Predictions


def decide(
    val: Raw,
    test: Raw,
    *,
    classes: list[str],
    positive: list[str],
    prior: dict[str, list[float]],
    config: EvaluationConfig,
) -> Verdict:
    """Calibrates, picks the threshold and fits what refers rows, all on validation patients.

    Args:
        val: validation rows.
        test: test rows; they decide nothing.
        classes: names of the columns.
        positive: the classes that count as malignant.
        prior: `trained` and `deployed` class shares.
        config: which calibration, which threshold, which call, which coverage.
    """
    shares = (np.array(prior["trained"]), np.array(prior["deployed"]))
    calibration = fit_calibration(
        val.probabilities,
        val.targets,
        val.cohort["patient_id"].to_numpy(dtype=str),
        prior=shares,
        method=config.calibration,
    )
    calibrated = partial(
        _calibrated,
        calibration=calibration,
        classes=tuple(classes),
        positive=tuple(positive),
        shares=decision_priors(config.call, prior["deployed"]),
    )
    parts = [calibrated(raw) for raw in (val, test)]
    threshold = _threshold(parts[0], config)
    conformal = fit_conformal(parts[0], coverage=config.coverage)
    familiarity = fit_ood_detector(val.features, parts[0].patient_id)
    decided = [
        add_decisions(
            part,
            threshold.value,
            conformal.predict_sets(part.probabilities),
            familiarity.score(raw.features) if familiarity else None,
        )
        for part, raw in zip(parts, (val, test), strict=True)
    ]
    return Verdict(calibration, threshold, conformal, familiarity, calibrated, *decided)


def _threshold(rows: Predictions, config: EvaluationConfig) -> Threshold:
    return choose_threshold(
        rows.malignancy,
        rows.malignant,
        rows.patient_id,
        rule=config.threshold,
        sensitivity=config.sensitivity,
        confidence=config.confidence,
        cost_ratio=config.cost_ratio,
    )


def write_results(
    run: Path, parts: dict[str, Predictions], config: EvaluationConfig, facts: dict[str, Any]
) -> dict[str, Any]:
    """Writes `predictions/<part>.csv`, and judges them.

    Args:
        run: the run folder.
        parts: predictions by part (test, val).
        config: intervals.
        facts: further entries of metrics.json: initialisation, threshold, ...

    Returns:
        The content of metrics.json, which the caller writes as the sign that all is whole.
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


def pool(parts: list[Predictions]) -> Predictions:
    """The test rows of all folds, in the order of the folds, as one file with the column `fold`."""
    columns = {name: [getattr(part, name) for part in parts] for name in ROW_COLUMNS}
    columns["fold"] = [np.full(len(part), fold) for fold, part in enumerate(parts)]
    joined: dict[str, Any] = {
        name: None if any(each is None for each in column) else np.concatenate(column)
        for name, column in columns.items()
    }
    return replace(parts[0], **joined)


def card_entries(verdict: Verdict) -> dict[str, Any]:
    """The verdict as the checkpoint keeps it: plain data."""
    return {
        "calibration": verdict.calibration.to_state(),
        "threshold": asdict(verdict.threshold),
        "conformal": verdict.conformal.to_state(),
        "ood": verdict.familiarity.to_state() if verdict.familiarity else None,
    }


def _calibrated(
    raw: Raw,
    *,
    calibration: Calibration,
    classes: tuple[str, ...],
    positive: tuple[str, ...],
    shares: Float[np.ndarray, " classes"],
) -> Predictions:
    """A part's rows as they are written; whether one is malignant is not decided yet."""
    probabilities = calibration.apply(raw.probabilities)
    return Predictions(
        image_id=raw.cohort["image_id"].to_numpy(dtype=str),
        patient_id=raw.cohort["patient_id"].to_numpy(dtype=str),
        target=raw.targets,
        probabilities=probabilities,
        raw=raw.probabilities,
        classes=classes,
        positive=positive,
        called=None if classes == BINARY else predict_classes(probabilities, shares),
    )
