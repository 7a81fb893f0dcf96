"""Calibration and decision rules: fitted on validation rows alone, and written for reports."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from quick_runs import best, cohort_of, metrics_of, predictions_of, quick_train
from scipy.special import expit
from scipy.stats import ks_2samp
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from skinmm.config import EvaluationConfig
from skinmm.errors import InputError
from skinmm.evaluation.calibration import Calibration
from skinmm.evaluation.call_rules import restore_rule
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.correction import correct_prior
from skinmm.evaluation.predictions import read_predictions
from skinmm.evaluation.referral import OODDetector, add_decisions
from skinmm.evaluation.thresholds import ReferralBand
from skinmm.models.checkpoint import Card, load_card, update_card
from skinmm.predict import Predictor
from skinmm.predict.writer import number_columns
from skinmm.training.calibrate import (
    FittedDecision,
    SplitOutputs,
    fit_decision,
    pool_folds,
    write_evaluation,
)

CLASSES = ["benign", "malignant"]
EVEN = {"trained": [0.5, 0.5], "deployed": [0.5, 0.5]}


def outputs(seed: int, rows: int = 400) -> SplitOutputs:
    """Rows of a model that is informative and overconfident, two a patient."""
    rng = np.random.default_rng(seed)
    targets = (rng.random(rows) < 0.3).astype(np.int64)
    malignant = expit(3 * rng.normal(2 * targets - 1, 1.5))
    names = [f"I{seed}_{row}" for row in range(rows)]
    cohort = pd.DataFrame(
        {"image_id": names, "patient_id": [f"P{row // 2}" for row in range(rows)]}
    )
    features = rng.normal(targets[:, None], 1, size=(rows, 5)).astype(np.float32)
    return SplitOutputs(cohort, targets, np.column_stack([1 - malignant, malignant]), features)


def fitted(val: SplitOutputs, **options: object) -> FittedDecision:
    config = EvaluationConfig(**options)  # type: ignore[arg-type]
    return fit_decision(val, Card({}, CLASSES, CLASSES[1:], {}, "", EVEN), config)


def test_the_test_rows_decide_nothing() -> None:
    val = outputs(0)
    one, other = fitted(val), fitted(val)
    one.apply(outputs(1))
    other.apply(outputs(2))
    assert one.calibration == other.calibration
    assert one.threshold == other.threshold
    assert one.conformal == other.conformal
    assert one.ood is not None
    assert other.ood is not None
    assert one.ood.to_state() == other.ood.to_state()
    np.testing.assert_array_equal(one.apply(val).probabilities, other.apply(val).probabilities)


def test_rows_that_fitted_the_ood_score_look_as_unusual_as_new_ones() -> None:
    val, test = outputs(0, rows=140), outputs(1, rows=140)
    rng = np.random.default_rng(0)
    val, test = (
        replace(part, features=rng.normal(size=(140, 40)).astype(np.float32))
        for part in (val, test)
    )
    decision = fitted(val)
    scores = [decision.apply(val, decision.held_out_ood).ood, decision.apply(test).ood]
    assert decision.ood is not None
    assert val.features is not None
    assert ks_2samp(*scores).pvalue > 0.05
    assert ks_2samp(decision.ood.score(val.features), scores[1]).pvalue < 1e-6


def test_calibration_makes_an_overconfident_model_better_and_keeps_the_order() -> None:
    test = fitted(outputs(0), calibration="temperature").apply(outputs(1))
    assert test.raw is not None
    rows = np.arange(len(test))
    before, after = (-np.log(p[rows, test.target]).mean() for p in (test.raw, test.probabilities))
    assert after < before
    auroc = [roc_auc_score(test.target, p[:, 1]) for p in (test.raw, test.probabilities)]
    assert auroc[0] == pytest.approx(auroc[1])


def test_the_loss_is_inverted_before_the_prior_also_by_the_checkpoint() -> None:
    val = outputs(0)
    prior = {"trained": [0.5, 0.5], "deployed": [0.98, 0.02]}
    inverse = {"kind": "smoothing", "smoothing": 0.1}
    card = Card({}, CLASSES, CLASSES[1:], {}, "", prior, inverse)
    fitted_decision = fit_decision(val, card, EvaluationConfig(calibration="none"))
    unsmoothed = np.clip((val.probabilities - 0.05) / 0.9, 1e-3 * val.probabilities, None)
    unsmoothed /= unsmoothed.sum(axis=1, keepdims=True)
    expected = correct_prior(unsmoothed, np.array([0.5, 0.5]), np.array([0.98, 0.02]))
    stored = Calibration(**fitted_decision.to_checkpoint()["calibration"])
    for probabilities in (
        fitted_decision.apply(val).probabilities,
        stored.apply(val.probabilities),
    ):
        np.testing.assert_allclose(probabilities, expected)
    older = {name: value for name, value in asdict(stored).items() if name != "inverse"}
    unchanged = correct_prior(val.probabilities, np.array([0.5, 0.5]), np.array([0.98, 0.02]))
    np.testing.assert_array_equal(Calibration(**older).apply(val.probabilities), unchanged)


@pytest.mark.parametrize("rule", ["f1", "cost"])
def test_a_fitted_call_is_stored_with_the_checkpoint(rule: str) -> None:
    val = outputs(0)
    thirds = np.column_stack([val.probabilities[:, 0] / 2] * 2 + [val.probabilities[:, 1]])
    targets = np.where(val.targets == 1, 2, np.arange(400) % 2)
    val = SplitOutputs(val.cohort, targets, thirds, None)
    costs = {"c": {"a": 30}} if rule == "cost" else None
    prior = {"trained": [1 / 3] * 3, "deployed": [1 / 3] * 3}
    config = EvaluationConfig(call=rule, costs=costs, calibration="none", half_cut=True)
    decision = fit_decision(val, Card({}, ["a", "b", "c"], ["c"], {}, "", prior), config)
    rows = decision.apply(val)
    stored = restore_rule(decision.to_checkpoint()["call"], rule, [1 / 3] * 3)
    assert stored.name == rule
    np.testing.assert_array_equal(rows.called, stored.call(rows.probabilities))
    assert rows.called is not None
    assert rows.half is not None
    np.testing.assert_array_equal(rows.half >= 0.5, np.arange(3) == rows.called[:, None])
    assert (rows.called != rows.probabilities.argmax(axis=1)).any()
    assert fitted(outputs(0)).to_checkpoint()["call"] is None


def test_without_calibration_the_sampling_is_still_corrected() -> None:
    prior = {"trained": [0.5, 0.5], "deployed": [0.98, 0.02]}
    val = outputs(0)
    card = Card({}, CLASSES, CLASSES[1:], {}, "", prior)
    decision = fit_decision(val, card, EvaluationConfig(calibration="none"))
    expected = correct_prior(val.probabilities, np.array([0.5, 0.5]), np.array([0.98, 0.02]))
    np.testing.assert_allclose(decision.apply(val).probabilities, expected, rtol=1e-9)


def test_the_threshold_reaches_its_sensitivity_on_validation() -> None:
    decision = fitted(outputs(0), sensitivity=0.9)
    val = decision.apply(outputs(0))
    found = val.malignancy[val.malignant] >= decision.threshold.value
    assert found.mean() >= 0.9
    assert decision.threshold.rule == "sensitivity"


def test_the_decision_survives_the_checkpoint_as_plain_data() -> None:
    decision = fitted(outputs(0))
    test = decision.apply(outputs(1))
    entries = decision.to_checkpoint()
    again = Calibration(**entries["calibration"])
    np.testing.assert_array_equal(again.apply(outputs(1).probabilities), test.probabilities)
    assert entries["threshold"]["value"] == decision.threshold.value
    sets = ConformalPredictor(**entries["conformal"]).predict_sets(test.probabilities)
    np.testing.assert_array_equal(sets, test.sets)
    features = outputs(1).features
    assert features is not None
    ood = OODDetector.from_state(entries["ood"]).score(features)
    band = ReferralBand.from_state(entries["band"])
    assert band == decision.band
    again_decided = add_decisions(test, entries["threshold"]["value"], band, sets, ood)
    assert again_decided.decision is not None
    assert test.decision is not None
    assert again_decided.decision.tolist() == test.decision.tolist()
    assert {*test.decision} == {"benign", "malignant", "refer"}


def test_what_is_written_is_what_was_judged(tmp_path: Path) -> None:
    decision = fitted(outputs(0))
    config = EvaluationConfig(resamples=20)
    facts = {"initialisation": "none", "threshold": {"value": 0.25}}
    parts = {"test": decision.apply(outputs(1)), "val": decision.apply(outputs(0))}
    metrics = write_evaluation(tmp_path, parts, config, facts)
    assert (metrics["schema"], metrics["initialisation"]) == (1, "none")
    assert metrics["test"]["threshold"] == 0.25
    for name, predictions in parts.items():
        written = read_predictions(tmp_path / "predictions" / f"{name}.csv")
        np.testing.assert_allclose(written.probabilities, predictions.probabilities, rtol=1e-8)
        assert written.image_id.tolist() == predictions.image_id.tolist()
        assert predictions.decision is not None
        assert written.decision is not None
        assert written.decision.tolist() == predictions.decision.tolist()
        np.testing.assert_array_equal(written.sets, predictions.sets)
        assert predictions.ood is not None
        assert written.ood is not None
        np.testing.assert_allclose(written.ood, predictions.ood, rtol=1e-8)
    assert metrics["val"]["metrics"]["coverage_malignant"]["value"] == pytest.approx(0.9, abs=0.02)


def test_a_run_calls_classes_as_it_was_told_and_its_checkpoint_does_so_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    diagnosis = rng.choice(["nv", "mel", "bcc"], 300, p=[0.7, 0.2, 0.1])
    age = rng.normal(40 + 15 * (diagnosis == "mel") + 30 * (diagnosis == "bcc"), 12).clip(1, 99)
    table = pd.DataFrame({"image_id": [f"I{row}" for row in range(300)], "age": age.round()})
    table.assign(sex="male", site="torso", diagnosis=diagnosis).to_csv(tmp_path / "cohort.csv")
    cohort = ["data=csv", f"data.root={tmp_path}", "fusion=tabular_only", "data.target=diagnosis"]
    run = tmp_path / "run"
    options = ("evaluation.call=balanced", "evaluation.half_cut=true", "evaluation.resamples=0")
    assert quick_train(run, *cohort, *options) == 0

    card, _ = load_card(best(run))
    rows, deployed = predictions_of(run), np.array(card.prior["deployed"])
    names = [f"p_{name}" for name in card.classes]
    called = np.array(card.classes)[(rows[names].to_numpy() / deployed).argmax(axis=1)]
    assert rows["called"].tolist() == called.tolist()
    likeliest = np.array(card.classes)[rows[names].to_numpy().argmax(axis=1)]
    assert (called != likeliest).any()
    found = metrics_of(run)["test"]["metrics"]["class_balanced_accuracy"]["value"]
    assert found == pytest.approx(balanced_accuracy_score(rows["target"], called))
    page = (run / "report.html").read_text()
    for words in (
        "relative to its share of the training rows",
        "relative to the threshold of best",
    ):
        assert words in page
    halves = [f"half_{name}" for name in card.classes]
    np.testing.assert_array_equal(rows[halves] >= 0.5, called[:, None] == card.classes)

    patients = cohort_of(run)
    assert Predictor.from_checkpoints(best(run)).predict(patients)["called"].tolist() == [*called]
    again = Predictor.from_checkpoints(best(run)).predict(patients)
    np.testing.assert_allclose(again[halves], rows[halves], atol=1e-6)
    assert {*halves} <= {*number_columns(again)}
    f1 = Path(shutil.copy(best(run), tmp_path / "f1.ckpt"))
    state = {"name": "f1", "divisors": [0.5, 0.1, 0.01], "costs": None}
    update_card(f1, call=state, config={**card.config, "evaluation": {"call": "f1"}})
    by_f1 = np.array(card.classes)[(rows[names].to_numpy() / [0.5, 0.1, 0.01]).argmax(axis=1)]
    assert Predictor.from_checkpoints(f1).predict(patients)["called"].tolist() == by_f1.tolist()
    assert (by_f1 != called).any()
    other = Path(shutil.copy(best(run), tmp_path / "likeliest.ckpt"))
    update_card(other, config={**card.config, "evaluation": {}})
    assert Predictor.from_checkpoints(other).predict(patients)["called"].tolist() == [*likeliest]
    with pytest.raises(InputError, match=r"evaluation\.call=balanced and likeliest"):
        Predictor.from_checkpoints([best(run), other])
    even = Path(shutil.copy(best(run), tmp_path / "even.ckpt"))
    update_card(even, prior={**card.prior, "deployed": [1 / 3] * 3})
    both = Predictor.from_checkpoints([best(run), even]).predict(patients)
    shares = (deployed + 1 / 3) / 2
    expected = np.array(card.classes)[(both[names].to_numpy() / shares).argmax(axis=1)]
    assert both["called"].tolist() == expected.tolist()


def test_pooling_keeps_every_row_and_says_whose_it_is() -> None:
    decision = fitted(outputs(0))
    parts = [decision.apply(outputs(seed, rows)) for seed, rows in ((1, 10), (2, 6), (3, 8))]
    pooled = pool_folds(parts)
    assert pooled.fold is not None
    assert pooled.raw is not None
    for number, part in enumerate(parts):
        rows = pooled.select(pooled.fold == number)
        assert rows.image_id.tolist() == part.image_id.tolist()
        np.testing.assert_array_equal(rows.target, part.target)
        np.testing.assert_array_equal(rows.probabilities, part.probabilities)
        np.testing.assert_array_equal(rows.raw, part.raw)
        np.testing.assert_array_equal(rows.sets, part.sets)
        np.testing.assert_array_equal(rows.ood, part.ood)
    assert len(pooled) == 24
