"""Adaptation to a site: against logistic regression, known shares and shifts that are refused."""

import numpy as np
import pytest
from jaxtyping import Float64, Int64
from scipy.special import expit, logit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from skinmm.evaluation.adaptation import (
    METHODS,
    fit_adaptation,
    fit_ensemble,
    fit_map,
)
from skinmm.evaluation.calibration import Calibration, apply_scale
from skinmm.evaluation.correction import correct_prior
from skinmm.evaluation.prevalence_shift import estimate_shares, estimate_shift

SPREAD = 1.35  # of the log odds within a class: an AUROC of 0.83
TRAINED = [0.8, 0.2]
Rows = tuple[Float64[np.ndarray, "n c"], Int64[np.ndarray, " n"]]


def draw(seed: int, n: int, share: float, slope: float = 1.0, shift: float = 0.0) -> Rows:
    """Probabilities calibrated at a share of 0.2 for slope 1 and shift 0; the truth."""
    rng = np.random.default_rng(seed)
    target = (rng.random(n) < share).astype(np.int64)
    evidence = rng.normal((2 * target - 1) * SPREAD**2 / 2, SPREAD)
    p = expit(logit(TRAINED[1]) + slope * evidence + shift)
    return np.column_stack([1 - p, p]), target


def test_both_without_priors_is_logistic_regression() -> None:
    p, target = draw(0, 2000, 0.05, slope=2.0, shift=1.0)
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logit(p[:, 1:]), target)
    found = fit_map(p, target, "both", (0.0, 0.0))
    assert found["scale"] == pytest.approx(fitted.coef_[0, 0], abs=1e-4)
    assert found["shifts"] == pytest.approx([0, fitted.intercept_[0]], abs=1e-4)


def test_an_intercept_makes_the_mean_the_observed_share() -> None:
    p, target = draw(1, 3000, 0.1, shift=1.5)
    adapted = apply_scale(fit_map(p, target, "intercept", (0.0, 0.0)), p)
    assert adapted[:, 1].mean() == pytest.approx(target.mean(), abs=1e-7)
    odds = logit(adapted[:, 1]) - logit(p[:, 1])
    assert np.ptp(odds) == pytest.approx(0, abs=1e-9)


def test_intercepts_of_several_classes_give_every_observed_share() -> None:
    rng = np.random.default_rng(2)
    p = softmax(rng.normal(size=(4000, 4)), axis=1)
    target = (np.cumsum(p**1.3 / (p**1.3).sum(1, keepdims=True), 1) < rng.random((4000, 1))).sum(1)
    for method in ("intercept", "both"):
        adapted = apply_scale(fit_map(p, target, method, (0.0, 0.0)), p)
        assert adapted.mean(axis=0) == pytest.approx(np.bincount(target) / 4000, abs=1e-6)
    assert fit_map(p, target, "both", (0.0, 0.0))["scale"] == pytest.approx(1.3, abs=0.08)


def test_a_site_without_malignant_lesions_has_a_finite_intercept() -> None:
    p, _ = draw(3, 50, 0.2)
    shift = fit_map(p, np.zeros(50, np.int64), "intercept")["shifts"][1]
    assert -8 < shift < -1


@pytest.mark.parametrize(
    ("slope", "shift", "method"), [(1.0, 2.0, "intercept"), (2.5, 2.2, "both"), (1.0, 0.0, "none")]
)
def test_the_map_that_the_shift_needs_is_chosen(slope: float, shift: float, method: str) -> None:
    p, target = draw(4, 3000, 0.2, slope, shift)
    adaptation = fit_adaptation(p, target, np.arange(3000))
    assert adaptation.method == method
    assert set(adaptation.losses) == {*METHODS}
    assert adaptation.before == pytest.approx(log_loss(target, p))
    assert adaptation.after == pytest.approx(log_loss(target, adaptation.cross_fitted))
    assert adaptation.after <= adaptation.before
    assert (adaptation.after < adaptation.before) == (method != "none")


def test_calibrated_probabilities_are_rarely_made_worse() -> None:
    new, truth = draw(5, 50_000, 0.2)
    before, worse = log_loss(truth, new), []
    for seed in range(10):
        p, target = draw(100 + seed, 80, 0.2)
        state = fit_adaptation(p, target, np.arange(80)).state
        worse.append(log_loss(truth, apply_scale(state, new)) - before)
    assert np.median(worse) < 0.001
    assert max(worse) < 0.1


def test_rows_of_one_patient_are_never_divided() -> None:
    p, target = draw(6, 60, 0.5)
    patients = np.repeat(np.arange(2), 30)  # two patients of one class each: no cross-validation
    target = np.repeat([0, 1], 30)
    adaptation = fit_adaptation(p, target, patients)
    assert adaptation.method == "none"
    assert adaptation.state == {"scale": 1.0, "shifts": [0.0, 0.0]}


def test_the_calibration_applies_the_map_last() -> None:
    p, _ = draw(7, 20, 0.2)
    state = {"scale": 0.5, "shifts": [0.0, -1.0]}
    adapted = Calibration("temperature", {"scale": 2.0, "shifts": [0.0, 3.0]}, site=state).apply(p)
    expected = 0.5 * (2 * logit(p[:, 1]) + 3) - 1
    np.testing.assert_allclose(logit(adapted[:, 1]), expected)


@pytest.mark.parametrize("share", [0.02, 0.2, 0.6])
def test_the_shares_of_a_site_are_found_without_labels(share: float) -> None:
    p, target = draw(8, 40_000, share)
    found = estimate_shares(p, np.array(TRAINED))[0]
    assert found[1] == pytest.approx(target.mean(), abs=0.01)
    # A fixed point of Saerens: the mean of the corrected posteriors is the share itself.
    corrected = correct_prior(p, np.array(TRAINED), found)
    assert corrected.mean(axis=0) == pytest.approx(found, abs=1e-5)


def test_a_reference_that_hardly_ranks_gives_no_new_shares() -> None:
    rng = np.random.default_rng(0)
    malignancy = 0.375 + 0.01 * rng.standard_normal(24)
    known = np.c_[1 - malignancy, malignancy], np.arange(24) % 2, np.arange(24).astype(str)
    here = rng.choice(malignancy, 150)
    names = np.arange(150).astype(str)
    shift = estimate_shift(np.c_[1 - here, here], names, known, [0.5, 0.5])
    assert not shift.is_changed
    assert shift.low[1] < 0.1
    assert shift.high[1] > 0.9


def test_the_interval_contains_the_share_and_the_map_corrects_it() -> None:
    reference, truth = draw(9, 500, 0.2)
    covered, refused = [], []
    for seed in range(20):
        p, _ = draw(200 + seed, 300, 0.4)
        shift = estimate_shift(
            p, np.arange(300), (reference, truth, np.arange(500)), TRAINED, resamples=100
        )
        covered.append(shift.low[1] <= 0.4 <= shift.high[1])
        refused.append(not shift.is_plausible)
    assert np.mean(covered) >= 0.85
    assert np.mean(refused) <= 0.15
    assert shift.is_changed
    expected = correct_prior(p, np.array(TRAINED), np.array(shift.shares))
    np.testing.assert_allclose(apply_scale(shift.state, p), expected)


def test_other_images_that_pass_for_another_share_are_refused_by_their_ood_scores() -> None:
    reference, truth = draw(14, 500, 0.2)
    rng = np.random.default_rng(15)
    p, _ = draw(15, 300, 0.5)  # as a share of 0.5 would give
    known = (reference, truth, np.arange(500))
    usual = rng.gamma(4, 0.15, 500)
    for scale, is_plausible in ((0.15, True), (0.25, False)):
        ood = (rng.gamma(4, scale, 300), usual)
        shift = estimate_shift(p, np.arange(300), known, TRAINED, ood=ood, resamples=60)
        assert shift.is_plausible == is_plausible


def test_no_class_becomes_impossible() -> None:
    reference, truth = draw(12, 500, 0.2)
    p, _ = draw(13, 60, 0.0)
    shift = estimate_shift(
        p, np.arange(60), (reference, truth, np.arange(500)), TRAINED, resamples=60
    )
    assert shift.shares[1] >= 0.5 / 61
    assert shift.low[1] < 1e-3
    assert shift.low[1] <= shift.shares[1] <= shift.high[1]
    assert shift.low[0] <= shift.shares[0] <= shift.high[0]


def test_a_change_of_slope_is_no_change_of_prevalence() -> None:
    reference, truth = draw(10, 500, 0.2)
    for seed in range(5):
        p, _ = draw(300 + seed, 400, 0.2, slope=0.4)
        shift = estimate_shift(
            p, np.arange(400), (reference, truth, np.arange(500)), TRAINED, resamples=100
        )
        assert not shift.is_plausible


def test_few_patients_with_many_rows_are_no_evidence_of_another_shift() -> None:
    reference, truth = draw(11, 600, 0.2)
    rng, refused = np.random.default_rng(0), 0
    for seed in range(12):
        p, _ = draw(400 + seed, 30, 0.2)
        patients = np.repeat(np.arange(30), 20)  # 600 rows, but only 30 different ones
        order = rng.permutation(600)
        shift = estimate_shift(
            np.repeat(p, 20, axis=0)[order],
            patients[order],
            (reference, truth, np.arange(600)),
            TRAINED,
            resamples=60,
        )
        refused += not shift.is_plausible
    assert refused <= 3


def test_an_ensemble_stays_alone_unless_its_mean_gains() -> None:
    p, target = draw(3, 400, 0.2)
    patients = np.arange(400).astype(str)
    # Two networks that err in opposite ways: their mean is calibrated, each alone is not.
    odds = logit(p[:, 1])
    pair = [np.c_[1 - q, q] for q in (expit(odds + 1.2), expit(odds - 1.2))]
    for members in ([p, p], pair):
        result = fit_ensemble(members, target, patients)
        mean = (members[0] + members[1]) / 2
        assert result.losses[0] == pytest.approx(log_loss(target, mean))
        assert result.losses[1] == pytest.approx(log_loss(target, result.cross_fitted))
        assert result.losses[1] <= result.losses[0]
        if result.losses[1] == result.losses[0]:
            assert [fit.method for fit in result.fits] == ["none", "none"]
            assert result.adapted == pytest.approx(mean)
    alone = fit_adaptation(pair[0], target, patients)
    one = fit_ensemble(pair[:1], target, patients)
    assert one.fits[0].state == alone.state
    assert one.losses == pytest.approx((alone.before, alone.after))
