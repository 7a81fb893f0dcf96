"""Prediction sets cover every class, OOD scores detect other data, decisions refer correctly."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32
from scipy.special import softmax
from scipy.stats import beta, norm
from sklearn.covariance import EmpiricalCovariance
from sklearn.decomposition import PCA
from sklearn.metrics import precision_score, recall_score, roc_auc_score

from skinmm.config import EvaluationConfig
from skinmm.errors import InputError
from skinmm.evaluation.conformal import (
    ConformalPredictor,
    count_effective_rows,
    coverage_range,
    fit_conformal,
    sets_agree,
)
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.referral import (
    BLAS_ROWS,
    FOLDS,
    SHARE,
    OODDetector,
    add_decisions,
    cross_fit_ood,
    decide,
)
from skinmm.evaluation.thresholds import choose_threshold, fit_band

CLASSES = ("bkl", "mel", "nv")
POSITIVE = np.array([False, True, False])


def rows(generator: np.random.Generator, n: int) -> Predictions:
    """Three classes of unequal frequency, probabilities that overlap."""
    target = generator.choice(3, size=n, p=[0.2, 0.1, 0.7])
    scores = generator.normal(size=(n, 3)) + np.eye(3)[target] + np.log([0.2, 0.1, 0.7])
    names = np.arange(n).astype(str)
    return Predictions(
        image_id=names,
        patient_id=names,
        target=target,
        probabilities=softmax(scores, axis=1),
        raw=None,
        classes=CLASSES,
        positive=("mel",),
    )


def test_coverage_of_every_class_is_in_its_range() -> None:
    generator = np.random.default_rng(0)
    fresh = rows(generator, 20_000)
    coverage, inside = [], []
    for _ in range(150):
        fitted = fit_conformal(rows(generator, 500), coverage=0.9)
        held = fitted.predict_sets(fresh.probabilities)[np.arange(len(fresh)), fresh.target]
        coverage.append([held[fresh.target == index].mean() for index in range(3)])
        bounds = coverage_range(fitted.rows["mel"], 0.9)
        assert bounds is not None
        inside.append(bounds[0] - 0.01 <= coverage[-1][1] <= bounds[1] + 0.01)
    np.testing.assert_allclose(np.mean(coverage, axis=0), 0.9, atol=0.02)
    assert np.mean(inside) > 0.93


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_limit_is_the_conformal_quantile(seed: int, coverage: float) -> None:
    predictions = rows(np.random.default_rng(seed), 60)
    fitted = fit_conformal(predictions, coverage=coverage)
    for index, name in enumerate(CLASSES):
        scores = np.sort(1 - predictions.probabilities[predictions.target == index, index])
        rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
        expected = scores[rank - 1] if rank <= len(scores) else 1
        assert 1 - fitted.limits[name] == pytest.approx(expected, abs=2e-6)


def test_few_rows_give_no_coverage() -> None:
    assert coverage_range(8, 0.9) is None
    assert coverage_range(9, 0.9) == pytest.approx(beta.ppf([0.025, 0.975], 9, 1))
    few = rows(np.random.default_rng(0), 400).select(np.arange(400) < 40)
    kept = np.flatnonzero(few.target == 1)[:8]
    fitted = fit_conformal(few.select(np.r_[kept, np.flatnonzero(few.target != 1)]))
    assert fitted.limits["mel"] == 0
    assert fitted.rows["mel"] == len(kept)
    with pytest.raises(InputError, match=r"coverage 1\.5"):
        fit_conformal(few, coverage=1.5)


def test_rows_are_independent_unless_their_patients_are_alike() -> None:
    generator = np.random.default_rng(0)
    covered = generator.random(4000) < 0.9
    assert count_effective_rows(covered, np.arange(4000)) == 4000
    fives = np.repeat(np.arange(800), 5)
    assert 3500 < count_effective_rows(covered, fives) <= 4000
    alike = np.repeat(generator.random(800) < 0.9, 5)  # a patient is covered or not
    assert count_effective_rows(alike, fives) == pytest.approx(800, rel=0.02)
    assert count_effective_rows(np.ones(4000, bool), fives) == 800


def test_coverage_range_holds_for_patients_with_many_images() -> None:
    """Sixty patients of 2 to 115 images, half of the variance between them, as the text says."""
    generator = np.random.default_rng(1)
    outside, plain = [], []
    for _ in range(1500):
        sizes = np.clip(np.exp(generator.normal(2.3, 0.9, size=60)).round(), 2, 115).astype(int)
        codes = np.repeat(np.arange(60), sizes)
        score = generator.normal(size=60)[codes] + generator.normal(size=len(codes))
        p = norm.cdf(score / np.sqrt(2))
        limit = np.sort(p)[int(0.1 * (len(p) + 1)) - 1]
        true = 1 - limit  # of p, which is uniform
        effective = count_effective_rows(p >= limit, codes)
        low, high = coverage_range(len(p), 0.9, effective_rows=effective) or (0, 0)
        outside.append(not low <= true <= high)
        low, high = coverage_range(len(p), 0.9) or (0, 0)
        plain.append(not low <= true <= high)
    assert np.mean(outside) < 0.07 + 0.006  # one standard error of the share
    assert np.mean(plain) > 0.4  # images that are counted as if they were patients


def test_a_decision_must_be_safe_and_familiar() -> None:
    called = np.array([False, True, False, True])
    safe = np.array([True, True, False, False])
    assert decide(called, safe, None).tolist() == ["benign", "malignant", "refer", "refer"]
    assert decide(called, None, None).tolist() == ["benign", "malignant"] * 2
    ood = np.array([1.0, 1.1, np.nan, 0.2])
    assert decide(called, None, ood).tolist() == ["benign", "refer", "benign", "malignant"]


def test_the_earlier_rule_needs_threshold_and_set_to_agree() -> None:
    sets = np.array([[1, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]], dtype=bool)
    called = np.array([False, True, False, True, True, False])
    assert sets_agree(called, POSITIVE, sets).tolist() == [True, True, *[False] * 4]


@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0.01, 0.5))
@settings(max_examples=30)
def test_rows_at_the_threshold_are_never_decided_benign(
    seed: int, threshold: float, rate: float
) -> None:
    generator = np.random.default_rng(seed)
    predictions = rows(generator, 100)
    band = fit_band(
        *(predictions.malignancy, predictions.malignant, predictions.patient_id),
        miss_rate=rate,
        false_alarm_rate=rate,
    )
    found = add_decisions(predictions, threshold, band, None, generator.random(100) * 1.2)
    assert found.decision is not None
    assert not ((predictions.malignancy >= threshold) & (found.decision == "benign")).any()
    assert not ((predictions.malignancy < threshold) & (found.decision == "malignant")).any()


def test_a_rare_class_does_not_stop_any_decision() -> None:
    """With eight rows of a benign class, its set limit is 0: the sets agreed on no malignancy."""
    generator = np.random.default_rng(5)
    target = np.repeat([0, 1, 2], [8, 60, 532])
    scores = 2.2 * np.eye(3)[target] + generator.normal(size=(600, 3)) + np.log([0.02, 0.1, 0.88])
    names = np.arange(600).astype(str)
    predictions = Predictions(
        names, names, target, softmax(scores, axis=1), None, ("df", "mel", "nv"), ("mel",)
    )
    facts = predictions.malignancy, predictions.malignant, predictions.patient_id
    threshold = choose_threshold(*facts).value
    sets = fit_conformal(predictions).predict_sets(predictions.probabilities)
    assert sets[:, 0].all()
    called = predictions.malignancy >= threshold
    assert not (called & sets_agree(called, POSITIVE, sets)).any()
    band = fit_band(*facts, miss_rate=0.01, false_alarm_rate=0.1)
    decision = add_decisions(predictions, threshold, band, sets, None).decision
    assert decision is not None
    assert (decision[predictions.malignant] == "malignant").mean() > 0.5
    assert (decision == "refer").mean() < 0.5


def test_missed_lesions_are_referred_with_the_default_targets() -> None:
    generator = np.random.default_rng(2)
    truth = np.arange(700) < 140
    scores = norm.cdf(1.5 * truth - 1 + generator.normal(size=700))
    facts = scores, truth, np.arange(700)
    defaults = EvaluationConfig()
    threshold = choose_threshold(*facts).value
    band = fit_band(
        *facts, miss_rate=defaults.miss_rate, false_alarm_rate=defaults.false_alarm_rate
    )
    missed = truth & (scores < threshold)
    assert missed.sum() == 2
    assert not band.is_safe(scores >= threshold, scores)[missed].any()
    assert band.low.value < threshold < band.high.value


def test_referral_metrics_are_shares_of_rows() -> None:
    generator = np.random.default_rng(3)
    predictions = rows(generator, 300)
    facts = predictions.malignancy, predictions.malignant, predictions.patient_id
    band = fit_band(*facts, miss_rate=0.2, false_alarm_rate=0.3)
    sets = fit_conformal(predictions).predict_sets(predictions.probabilities)
    ood = generator.random(300) * 1.05
    found = add_decisions(predictions, 0.1, band, sets, ood)
    metrics = evaluate(found, threshold=0.1, resamples=50)["metrics"]
    decision, malignant = found.decision, found.malignant
    assert decision is not None
    decided = decision != "refer"
    called = decision[decided] == "malignant"
    expected = {
        "referred": 1 - decided.mean(),
        "decided_sensitivity": recall_score(malignant[decided], called),
        "decided_specificity": recall_score(~malignant[decided], ~called),
        "decided_ppv": precision_score(malignant[decided], called),
        "decided_npv": precision_score(~malignant[decided], ~called),
        "found_or_referred": 1 - (malignant & (decision == "benign")).sum() / malignant.sum(),
        "cleared_or_referred": (decision[~malignant] != "malignant").mean(),
        "unfamiliar": np.mean(ood > 1),
        "set_size": sets.sum(axis=1).mean(),
        **{f"coverage_{name}": sets[found.target == i, i].mean() for i, name in enumerate(CLASSES)},
    }
    for name, value in expected.items():
        assert metrics[name]["value"] == pytest.approx(value, abs=1e-12)
        assert metrics[name]["low"] <= value <= metrics[name]["high"]
    assert "referred" not in evaluate(predictions, resamples=0)["metrics"]


def features(seed: int, n: int, width: int = 12) -> Float32[np.ndarray, "n d"]:
    mixing = np.random.default_rng(0).normal(size=(width, width))
    drawn = np.random.default_rng(seed).normal(size=(n, width)) @ mixing + 3
    return drawn.astype(np.float32)


def fitted_to(values: Float32[np.ndarray, "n d"], components: int = 64) -> OODDetector:
    fit = cross_fit_ood(values, np.arange(len(values)), components=components)
    assert fit is not None
    return fit[0]


def test_distance_is_mahalanobis_when_every_direction_is_kept() -> None:
    seen = features(1, 300)
    fitted = fitted_to(seen)
    expected = EmpiricalCovariance().fit(seen).mahalanobis(seen) * 299 / 300
    np.testing.assert_allclose(fitted.score(seen) * fitted.limit, expected, rtol=1e-3)


def test_distance_inverts_the_covariance_of_principal_components() -> None:
    seen = features(2, 300)
    fitted = fitted_to(seen, components=4)
    precision = PCA(4, svd_solver="full").fit(seen.astype(np.float64)).get_precision()
    centred = seen - seen.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", centred, precision, centred)
    np.testing.assert_allclose(fitted.score(seen) * fitted.limit, expected, rtol=1e-3)


def test_new_rows_stay_below_the_limit_and_far_ones_do_not() -> None:
    fitted = fitted_to(features(3, 400), components=6)
    near, far = features(5, 4000), features(6, 400)[:, ::-1] * 2
    assert np.mean(fitted.score(near) <= 1) == pytest.approx(SHARE, abs=0.02)
    scores = fitted.score(np.vstack([near, far]))
    assert roc_auc_score(np.repeat([False, True], [4000, 400]), scores) > 0.95


def test_a_row_s_distance_is_the_same_in_any_company() -> None:
    fitted, seen = fitted_to(features(3, 400), components=6), features(5, BLAS_ROWS)
    alone = [fitted.score(row[None])[0] for row in seen]
    np.testing.assert_allclose(fitted.score(seen), alone, rtol=1e-12)


def test_few_rows_of_wide_features_are_not_all_out_of_distribution() -> None:
    """The fit knows its own rows by heart; only held-out ones say what is usual."""
    fitted = fitted_to(features(7, 100, width=300))
    fresh = features(8, 1000, width=300)
    assert np.mean(fitted.score(fresh) <= 1) > SHARE - 0.05


def test_copies_of_a_row_are_held_out_together() -> None:
    seen = np.repeat(features(9, 40, width=30), 4, axis=0)
    together = cross_fit_ood(seen, np.repeat(np.arange(40), 4))
    assert together is not None
    assert together[0].limit > 1.2 * fitted_to(seen).limit


@pytest.mark.parametrize("shape", [(FOLDS + 1, 40), (40, 3)])
def test_constant_features_are_accepted(shape: tuple[int, int]) -> None:
    seen = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    seen[:, 1:2] = 7
    fitted = fitted_to(seen)
    scores = fitted.score(seen)
    assert np.all(np.isfinite(scores))
    if fitted.directions.shape[0] == shape[1]:  # else too few rows to know that it never varies
        assert fitted.score(seen + np.eye(shape[1])[1]).min() > scores.max()


def test_without_comparison_there_is_no_detector() -> None:
    seen = features(1, 20)
    assert cross_fit_ood(seen, np.zeros(20)) is None
    assert cross_fit_ood(np.ones_like(seen), np.arange(20)) is None
    assert cross_fit_ood(seen[:FOLDS], np.arange(FOLDS)) is None
    once = np.ones_like(seen)
    once[0] = 2
    assert np.isfinite(fitted_to(once).score(seen)).all()


def test_states_are_plain() -> None:
    fitted = fitted_to(features(1, 50), components=3)
    state = json.loads(json.dumps(fitted.to_state(), allow_nan=False))
    again = OODDetector.from_state(state)
    np.testing.assert_array_equal(again.score(features(3, 9)), fitted.score(features(3, 9)))
    conformal = fit_conformal(rows(np.random.default_rng(0), 100))
    state = json.loads(json.dumps(asdict(conformal), allow_nan=False))
    assert ConformalPredictor(**state) == conformal


def test_effective_rows_are_plain_numbers_that_a_checkpoint_loads() -> None:
    covered, patients = np.array([True, False, True, True, True, False]), np.array(list("aabbcc"))
    assert type(count_effective_rows(covered, patients)) is float
