"""Intervals and tests against their definitions, and their coverage on simulated truth."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float64, Int64
from scipy.stats import binomtest, kurtosis, norm, skew, ttest_1samp
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from skinmm.evaluation.comparison import adjust_holm
from skinmm.evaluation.delong import delong_interval, delong_test, perfect_ranking_bound
from skinmm.evaluation.intervals import (
    Shape,
    bootstrap,
    estimate_shapes,
    logit_interval,
    percentile_interval,
    skewed_interval,
    summarise,
)
from skinmm.evaluation.metrics import bound_extreme, evaluate
from skinmm.evaluation.predictions import Predictions

SEPARATION = 1.5
TRUE_AUROC = float(norm.cdf(SEPARATION / np.sqrt(2)))


def binormal(
    generator: np.random.Generator, patients: int, shared: float
) -> tuple[Float64[np.ndarray, " n"], Bool[np.ndarray, " n"], Int64[np.ndarray, " n"]]:
    """Scores whose AUROC is known; `shared` is the part of their variance that a patient's share.

    The lesions of two patients are compared nearly always, so that sharing does not move the AUROC.
    """
    codes = np.repeat(np.arange(patients), generator.integers(1, 6, size=patients))
    truth = generator.random(len(codes)) < 0.2
    truth[:2], truth[-2:] = True, False
    noise = np.sqrt(shared) * generator.normal(size=patients)[codes]
    noise += np.sqrt(1 - shared) * generator.normal(size=len(codes))
    return noise + SEPARATION * truth, truth, codes


@given(st.lists(st.floats(0, 1), min_size=1, max_size=10))
def test_holm_steps_down(p_values: list[float]) -> None:
    adjusted = np.array(adjust_holm(p_values))
    order = np.argsort(p_values, kind="stable")
    for rank, place in enumerate(order):
        worst = max((len(p_values) - j) * p_values[order[j]] for j in range(rank + 1))
        assert adjusted[place] == pytest.approx(min(1, worst))
    assert all(a <= b for a, b in pairwise(adjusted[order]))


def test_holm_gives_what_r_gives() -> None:
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_delong_is_the_covariance_of_pairs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    truth = np.arange(30) < 9
    a = np.round(generator.normal(size=30) + truth, 1)
    b = np.round(a + generator.normal(size=30), 1)
    kernels = []
    for scores in (a, b):
        gaps = scores[truth][:, None] - scores[~truth][None]
        kernels.append((gaps > 0) + (gaps == 0) / 2)
    rows = np.cov([kernel.mean(axis=1) for kernel in kernels]) / 9
    columns = np.cov([kernel.mean(axis=0) for kernel in kernels]) / 21
    covariance = rows + columns
    found = delong_interval(a, truth)
    assert found["value"] == pytest.approx(roc_auc_score(truth, a))
    assert found["standard_error"] == pytest.approx(np.sqrt(covariance[0, 0]))
    paired = delong_test(a, b, truth)
    difference = kernels[0].mean() - kernels[1].mean()
    error = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert paired["difference"] == pytest.approx(difference)
    assert paired["p"] == pytest.approx(2 * student.sf(abs(difference) / error, 9 - 1))


def test_copies_of_a_lesion_are_no_evidence() -> None:
    scores, truth, _ = binormal(np.random.default_rng(0), 60, 0.0)
    lone = delong_interval(scores, truth)
    copied = delong_interval(
        np.repeat(scores, 3), np.repeat(truth, 3), np.repeat(np.arange(len(scores)), 3)
    )
    assert copied == pytest.approx(lone)


def test_delong_of_what_has_no_interval() -> None:
    truth = np.array([True, False, False])
    assert delong_interval(np.ones(3), np.ones(3, dtype=bool))["value"] is None
    lone = delong_interval(np.array([0.9, 0.1, 0.2]), truth)
    assert lone["value"] == 1
    assert lone["low"] is None
    same = np.array([0.1, 0.4, 0.3, 0.6])
    assert delong_test(same, same, same > 0.35)["difference"] == 0
    assert delong_test(same, same, same > 0.35)["p"] is None


def test_bootstrap_of_a_mean_has_its_standard_error() -> None:
    values = np.random.default_rng(1).normal(size=200)
    samples = bootstrap(
        lambda draws: {"mean": draws @ values / 200}, 200, 200, resamples=4000, seed=0
    )
    assert samples["mean"].std() == pytest.approx(values.std() / np.sqrt(200), rel=0.05)
    assert samples["mean"].mean() == pytest.approx(values.mean(), abs=0.01)


def test_percentiles_leave_out_what_is_undefined() -> None:
    samples = np.r_[np.linspace(0, 1, 101), np.nan, np.nan]
    *interval, left_out = percentile_interval(samples, 0.9, 10**6)
    assert interval == pytest.approx([0.05, 0.95], abs=1e-5)
    assert left_out == 2
    assert percentile_interval(np.full(3, np.nan), 0.9, 5) == (None, None, 3)


def test_interval_of_a_mean_is_students() -> None:
    values = np.random.default_rng(0).normal(size=12)
    spread = values.std() / np.sqrt(12)  # of resampled means: smaller than the standard error
    samples = norm.ppf((np.arange(20_000) + 0.5) / 20_000) * spread + values.mean()
    low, high, _ = percentile_interval(samples, 0.95, 12)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-3)


@given(st.floats(-0.35, 0.35), st.floats(1, 4))
def test_skewed_interval_inverts_halls_transformation(skew: float, reach: float) -> None:
    low, high = skewed_interval(2.0, 0.5, skew, reach)
    for end, expected in ((low, reach), (high, -reach)):
        w = (2.0 - end) / 0.5
        assert w + skew * (w**2 / 3 + 1 / 6) + skew**2 * w**3 / 27 == pytest.approx(
            expected, abs=1e-6
        )


def test_a_dozen_lesions_do_not_blow_an_interval_up() -> None:
    assert skewed_interval(0.8, 0.1, -3.0, 2.2) == skewed_interval(0.8, 0.1, -0.35, 2.2)
    assert skewed_interval(0.8, 0.1, -3.0, 2.2)[0] > 0.4


def test_shape_of_a_mean_is_that_of_its_rows() -> None:
    values = np.random.default_rng(0).exponential(size=80)
    found = estimate_shapes(lambda draws: {"mean": draws @ values / draws.sum(axis=1)}, 80, 80)
    assert found["mean"].skew == pytest.approx(skew(values) / np.sqrt(80), rel=1e-6)
    # Of 80 values the variance has the relative variance (kurtosis + 2) / 80.
    assert found["mean"].freedom == pytest.approx(2 * 80 / (kurtosis(values) + 2), rel=1e-6)
    undefined = estimate_shapes(lambda draws: {"x": np.full(len(draws), np.nan)}, 5, 5)
    assert undefined == {"x": Shape(0, 5)}


@pytest.mark.parametrize("patients", [300, 3000])
def test_groups_of_patients_have_the_freedom_of_the_patients(patients: int) -> None:
    values = np.random.default_rng(1).normal(size=patients)
    values[:8] *= 100  # a few patients have nearly all the weight
    found = estimate_shapes(
        lambda draws: {"mean": draws @ values / draws.sum(axis=1)}, patients, patients
    )
    expected = 2 * patients / (kurtosis(values) + 2)
    assert found["mean"].freedom == pytest.approx(expected, rel=0.2)
    assert expected < 12


def test_few_influential_patients_widen_the_interval() -> None:
    samples = norm.ppf((np.arange(2000) + 0.5) / 2000) * 0.01 + 0.8
    wide, narrow = (
        summarise("auroc", 0.8, samples, Shape(0.0, freedom), 0.95, 61) for freedom in (9, 500)
    )
    share = summarise("sensitivity", 0.8, samples, Shape(0.0, 9), 0.95, 61)
    for entry, freedom in ((wide, 9), (narrow, 60), (share, 60)):  # at most the patients less 1
        assert entry["high"] == pytest.approx(
            0.8 + student.ppf(0.975, freedom) * 0.01 * np.sqrt(61 / 60), rel=1e-4
        )


def test_specificity_at_a_sensitivity_reaches_beyond_the_lowest_malignant_score() -> None:
    samples = np.r_[np.full(400, 0.6), np.full(600, 0.7)]  # no resample is below 0.6
    name = "specificity_at_95_sensitivity"
    entry = summarise(name, 0.7, samples, Shape(0.0, 40), 0.95, 45)
    low, high = logit_interval(0.7, samples.std() * np.sqrt(45 / 44), student.ppf(0.975, 44))
    assert (entry["low"], entry["high"]) == pytest.approx((low, max(high, 0.7)))
    assert low < 0.6
    for value in (0.0, 1.0):
        assert summarise(name, value, samples, None, 0.95, 45)["low"] == pytest.approx(0.6)


@pytest.mark.parametrize("positives", [12, 40])
def test_delong_covers_with_few_malignant_lesions(positives: int) -> None:
    generator = np.random.default_rng(3)
    truth = np.arange(300) < positives
    missed = np.zeros(2)
    repeats = 1000
    for _ in range(repeats):
        found = delong_interval(generator.normal(size=300) + SEPARATION * truth, truth)
        low, high = found["low"], found["high"]
        assert low is not None
        assert high is not None
        missed += low > TRUE_AUROC, high < TRUE_AUROC
    assert 0.93 <= 1 - missed.sum() / repeats <= 0.97
    assert missed.max() / repeats < 0.06


def test_an_interval_stays_where_its_metric_can_lie() -> None:
    samples = np.random.default_rng(0).normal(0.95, 0.1, size=500)
    assert summarise("auroc", 0.95, samples, Shape(0.3, 19), 0.95, 20)["high"] == 1
    assert summarise("partial_auroc", 0.19, samples - 0.76, Shape(0.3, 19), 0.95, 20)["high"] == 0.2
    slope = summarise("calibration_slope", 0.95, samples, Shape(0.3, 19), 0.95, 20)["high"]
    assert slope is not None
    assert slope > 1


@pytest.mark.parametrize(("value", "found"), [(1.0, 46), (0.0, 0)])
def test_all_or_none_is_clopper_and_pearson(value: float, found: int) -> None:
    entry = summarise("sensitivity", value, np.full(100, value), Shape(0.0, 45), 0.95, 46)
    assert entry["low"] is entry["high"] is None  # resamples that agree know nothing
    bounded = bound_extreme(entry, 0.95, 46)
    expected = binomtest(found, 46).proportion_ci(0.95, method="exact")
    assert (bounded["low"], bounded["high"]) == pytest.approx((expected.low, expected.high))
    assert bound_extreme({**entry, "value": 0.5}, 0.95, 46)["low"] is None


@pytest.mark.parametrize("auroc", [0.9, 0.97, 0.99])
def test_perfect_rankings_leave_the_truth_within_their_bound(auroc: float) -> None:
    generator = np.random.default_rng(5)
    apart = float(norm.ppf(auroc)) * np.sqrt(2)
    positives, benign = generator.normal(apart, size=(4000, 6)), generator.normal(size=(4000, 20))
    perfect = (positives.min(axis=1) > benign.max(axis=1)).mean()
    outside = auroc < perfect_ranking_bound(6, 20, 0.95)
    assert not outside or perfect < 0.05
    assert perfect_ranking_bound(6, 20, 0.95) < perfect_ranking_bound(60, 200, 0.95) < 1


def test_a_perfect_ranking_is_no_certainty() -> None:
    truth = np.arange(40) < 8
    rows = Predictions(
        image_id=np.arange(40).astype(str),
        patient_id=np.arange(40),
        target=truth.astype(np.int64),
        probabilities=np.column_stack([~truth, truth]) * 0.8 + 0.1,
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )
    found = evaluate(rows, resamples=50)["metrics"]
    assert found["auroc"]["low"] == perfect_ranking_bound(8, 32, 0.95) < 0.9
    assert found["auroc"]["high"] == 1
    assert found["sensitivity_at_90_specificity"]["low"] < 0.7
    assert found["partial_auroc"]["value"] == pytest.approx(0.2)
    assert found["partial_auroc"]["low"] is found["partial_auroc"]["high"] is None
    assert evaluate(rows, resamples=0)["metrics"]["auroc"]["low"] is None


def test_clustered_delong_covers_where_the_plain_one_does_not() -> None:
    generator = np.random.default_rng(2)
    covered = np.zeros(2)
    repeats = 300
    for _ in range(repeats):
        scores, truth, codes = binormal(generator, 80, 0.9)
        for i, patients in enumerate((codes, None)):
            found = delong_interval(scores, truth, patients)
            low, high = found["low"], found["high"]
            assert low is not None
            assert high is not None
            covered[i] += low <= TRUE_AUROC <= high
    assert 0.91 <= covered[0] / repeats <= 0.99
    assert covered[1] < covered[0]
