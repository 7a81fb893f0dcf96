"""Fit calibration and decision rules on held-out rows, and evaluate the predictions."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int, Shaped

from skinmm.config import EvaluationConfig
from skinmm.data.splits import CALIBRATION
from skinmm.evaluation.calibration import Calibration, fit_calibration
from skinmm.evaluation.call_rules import (
    FITTED,
    CallRule,
    cut_at_half,
    fit_call_rule,
    parse_costs,
    threshold_scores,
)
from skinmm.evaluation.conformal import ConformalPredictor, fit_conformal
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import ROW_COLUMNS, Predictions, write_predictions
from skinmm.evaluation.referral import OODDetector, add_decisions, cross_fit_ood
from skinmm.evaluation.thresholds import (
    ReferralBand,
    Threshold,
    choose_threshold,
    fit_band,
)
from skinmm.models.checkpoint import Card
from skinmm.vocabulary import name_units

METRICS_SCHEMA: Final = 1  # version of the format of metrics.json


@dataclass(frozen=True)
class SplitOutputs:
    """Network outputs of a split, before calibration.

    Attributes:
        cohort: rows of the split, in the columns of cohort.csv.
        targets: class index of each row.
        probabilities: uncalibrated, float64.
        features: fused features, float32; None if networks with different features are pooled.
    """

    cohort: pd.DataFrame
    targets: Int[np.ndarray, " n"]
    probabilities: Float[np.ndarray, "n classes"]
    features: Float32[np.ndarray, "n dim"] | None


@dataclass(frozen=True)
class FittedDecision:
    """Calibration, decision threshold, prediction sets and OOD score, fitted on held-out rows.

    Attributes:
        calibrate: turns the outputs of a split into calibrated predictions, without decisions.
        calibration: from raw to calibrated probabilities.
        threshold: on the probability of malignancy.
        band: probabilities around the threshold that are referred.
        conformal: prediction sets, for information.
        ood: out-of-distribution score; None if it could not be fitted.
        call: rule for the predicted class of several; None for two, which the threshold decides.
        half_cut: add scores that reach 0.5 for the predicted class only (`evaluation.half_cut`).
        held_out_ood: cross-validated scores of the rows that fitted `ood`.
    """

    calibrate: Callable[[SplitOutputs], Predictions]
    calibration: Calibration
    threshold: Threshold
    band: ReferralBand
    conformal: ConformalPredictor
    ood: OODDetector | None
    call: CallRule | None = None
    half_cut: bool = False
    held_out_ood: Float64[np.ndarray, " n"] | None = None

    def apply(
        self, outputs: SplitOutputs, ood: Float64[np.ndarray, " n"] | None = None
    ) -> Predictions:
        """Return calibrated predictions with prediction sets, OOD scores and referrals.

        Without given OOD scores, they are computed from the features. Rows that fitted the detector
        need their cross-validated scores, `held_out_ood`.
        """
        rows = self.calibrate(outputs)
        sets = self.conformal.predict_sets(rows.probabilities)
        if ood is None and self.ood and outputs.features is not None:
            ood = self.ood.score(outputs.features)
        rows = add_decisions(rows, self.threshold.value, self.band, sets, ood)
        called = None if self.call is None else self.call.call(rows.probabilities)
        rows = replace(rows, called=called)
        return replace(rows, half=self._cut_at_half(rows)) if self.half_cut else rows

    def _cut_at_half(self, rows: Predictions) -> Float64[np.ndarray, "n c"]:
        scores = threshold_scores(rows.malignancy, self.threshold.value)
        if self.call is not None:
            scores = self.call.score(rows.probabilities)
        return cut_at_half(scores, rows.predicted_classes(self.threshold.value))

    def to_checkpoint(self) -> dict[str, Any]:
        """Return the entries of the checkpoint's card."""
        return {
            "calibration": asdict(self.calibration),
            "threshold": asdict(self.threshold),
            "band": asdict(self.band),
            "conformal": asdict(self.conformal),
            "ood": self.ood.to_state() if self.ood else None,
            "call": to_stored_rule(self.call),
        }


def fit_decision(held_out: SplitOutputs, card: Card, config: EvaluationConfig) -> FittedDecision:
    """Fit the calibration, then the threshold and the referral rules, on held-out rows alone.

    Held-out rows are the calibration rows, or else the validation rows. The card has the classes in
    the order of the probabilities, and the corrections of loss and sampler, which need no fitting.
    """
    calibration = fit_calibration(
        held_out.probabilities,
        held_out.targets,
        held_out.cohort["patient_id"].to_numpy(dtype=str),
        prior=(np.array(card.prior["trained"]), np.array(card.prior["deployed"])),
        inverse=card.inverse,
        method=config.calibration,
    )

    def calibrate(outputs: SplitOutputs) -> Predictions:
        table = outputs.cohort
        return Predictions(
            image_id=table["image_id"].to_numpy(dtype=str),
            patient_id=table["patient_id"].to_numpy(dtype=str),
            target=outputs.targets,
            probabilities=calibration.apply(outputs.probabilities),
            raw=outputs.probabilities,
            classes=tuple(card.classes),
            positive=tuple(card.positive),
            unit=name_units(table).to_numpy(dtype=str),
            source=list_row_sources(table),
            images=table["images"].to_numpy(dtype=str) if "images" in table else None,
        )

    rows = calibrate(held_out)
    threshold, band, conformal, call = fit_rules(rows, config, card.prior["deployed"])
    features = held_out.features
    ood = held_out_ood = None
    if features is not None and (fitted_ood := cross_fit_ood(features, rows.patient_id)):
        ood, held_out_ood = fitted_ood
    fitted = (calibration, threshold, band, conformal, ood, call)
    return FittedDecision(calibrate, *fitted, half_cut=config.half_cut, held_out_ood=held_out_ood)


def to_stored_rule(call: CallRule | None) -> dict[str, Any] | None:
    """Return a rule as plain data, or None if the settings suffice to build it again."""
    return asdict(call) if call and call.name in FITTED else None


def fit_rules(
    rows: Predictions, config: EvaluationConfig, deployed: list[float]
) -> tuple[Threshold, ReferralBand, ConformalPredictor, CallRule | None]:
    """Fit threshold, referral band, prediction sets and class rule to calibrated rows."""
    threshold = choose_threshold(
        rows.malignancy,
        rows.malignant,
        rows.patient_id,
        rule=config.threshold,
        sensitivity=config.sensitivity,
        confidence=config.confidence,
        cost_ratio=config.cost_ratio,
    )
    band = fit_referral_band(rows, config)
    conformal = fit_conformal(rows, coverage=config.coverage)
    call = None
    if not rows.is_binary:  # with two classes, the threshold decides
        call = fit_call_rule(
            config.call,
            rows.probabilities,
            rows.target,
            rows.patient_id,
            shares=deployed,
            costs=parse_costs(config.costs, rows.classes),
        )
    return threshold, band, conformal, call


def list_row_sources(cohort: pd.DataFrame) -> Shaped[np.ndarray, " n"] | None:
    """Return the source of each row; None if all sources are just the names of the cohorts."""
    if not {"source", "cohort"} <= set(cohort) or (cohort["source"] == cohort["cohort"]).all():
        return None
    return cohort["source"].where(cohort["source"].notna(), None).to_numpy(dtype=object)


def fit_referral_band(rows: Predictions, config: EvaluationConfig) -> ReferralBand:
    """Fit the referral band for the targets of the configuration."""
    return fit_band(
        rows.malignancy,
        rows.malignant,
        rows.patient_id,
        miss_rate=config.miss_rate,
        false_alarm_rate=config.false_alarm_rate,
    )


def write_evaluation(
    run: Path, parts: dict[str, Predictions], config: EvaluationConfig, facts: dict[str, Any]
) -> dict[str, Any]:
    """Write `predictions/<part>.csv` for every part, and return the content of metrics.json.

    Parts are test, val, calibration, and missing_1_of_3 (without one of three record columns) etc.
    The result has the facts, among them the threshold, and the evaluation of each part. The caller
    writes it after all other results, as the mark of a finished run.
    """
    metrics: dict[str, Any] = {"schema": METRICS_SCHEMA, **facts}
    (run / "predictions").mkdir(exist_ok=True)
    for name, predictions in parts.items():
        write_predictions(run / "predictions" / f"{name}.csv", predictions)
        if name == CALIBRATION:  # these rows chose the threshold, so they cannot evaluate it
            continue
        metrics[name] = evaluate_part(predictions, facts["threshold"]["value"], config)
    return metrics


def evaluate_part(rows: Predictions, threshold: float, config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate rows with the settings of a run."""
    return evaluate(
        rows,
        threshold=threshold,
        prevalence=config.prevalence,
        resamples=config.resamples,
        confidence=config.confidence,
    )


def pool_folds(folds: list[Predictions]) -> Predictions:
    """Concatenate the test rows of all folds, with a column `fold`."""
    pooled: dict[str, Any] = {}
    for name in ROW_COLUMNS:
        values = [getattr(rows, name) for rows in folds]
        pooled[name] = None if any(value is None for value in values) else np.concatenate(values)
    pooled["fold"] = np.repeat(np.arange(len(folds)), [len(rows) for rows in folds])
    return replace(folds[0], **pooled)
