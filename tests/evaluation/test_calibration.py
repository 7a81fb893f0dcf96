"""Prior correction and calibration methods against references and simulated truth."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float64, Int64
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.calibration import _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from skinmm.errors import InputError
from skinmm.evaluation.calibration import (
    METHODS,
    Calibration,
    fit_calibration,
    group_folds,
)
from skinmm.evaluation.correction import correct_prior
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions


def two(malignancy: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, "n c"]:
    return np.column_stack([1 - malignancy, malignancy])


def rows(
    seed: int, n: int = 2000, prevalence: float = 0.1
) -> tuple[Float64[np.ndarray, "n c"], Int64[np.ndarray, " n"]]:
    """Overconfident probabilities and the truth."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=n) + logit(prevalence)
    return two(expit(2 * z + 1)), (generator.random(n) < expit(z)).astype(np.int64)


@given(st.floats(0.001, 0.999), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
def test_prior_correction_shifts_the_log_odds(p: float, trained: float, deployed: float) -> None:
    corrected = correct_prior(
        two(np.array([p])), two(np.array([trained]))[0], two(np.array([deployed]))[0]
    )
    expected = logit(p) - logit(trained) + logit(deployed)
    assert logit(corrected[0, 1]) == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**32 - 1))
def test_prior_correction_is_bayes_theorem(seed: int) -> None:
    generator = np.random.default_rng(seed)
    likelihood = generator.random((5, 4))
    trained, deployed = generator.dirichlet(np.ones(4), size=2)
    posterior = likelihood * trained / (likelihood @ trained)[:, None]
    expected = likelihood * deployed / (likelihood @ deployed)[:, None]
    np.testing.assert_allclose(correct_prior(posterior, trained, deployed), expected, atol=1e-12)


def test_prior_correction_of_classes_that_are_not_there() -> None:
    p = np.array([[0.5, 0.3, 0.2]])
    none = np.array([0.5, 0.5, 0.0])
    np.testing.assert_allclose(correct_prior(p, none, none), [[0.625, 0.375, 0]])
    with pytest.raises(InputError, match="has a class with share 0 in training"):
        correct_prior(p, none, np.array([0.4, 0.4, 0.2]))
    with pytest.raises(InputError, match=r"deployed prior .* is not a distribution"):
        correct_prior(p, none, np.array([0.5, 0.6, 0.0]))


def test_balanced_sampling_is_undone() -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(size=(33_126, 3))
    truth = generator.random(33_126) < expit(features @ [1.0, 0.7, 0.4] - 5)
    weights = np.where(truth, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
    sampled = generator.choice(33_126, size=33_126, p=weights / weights.sum())
    model = LogisticRegression().fit(features[sampled], truth[sampled])
    raw = model.predict_proba(features)
    prevalence = truth.mean()
    p = correct_prior(raw, np.array([0.5, 0.5]), np.array([1 - prevalence, prevalence]))
    assert raw[:, 1].mean() > 0.2
    # A draw of 33,126 is itself no exact half: the share that was drawn is known in training.
    drawn = truth[sampled].mean()
    assert drawn == pytest.approx(0.5, abs=0.01)
    assert p[:, 1].mean() == pytest.approx(prevalence, rel=0.02)
    assert evaluated(p, truth)["ece"] < 0.005


def evaluated(p: Float64[np.ndarray, "n c"], truth: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    names = np.arange(len(p)).astype(str)
    predictions = Predictions(
        image_id=names,
        patient_id=names,
        target=truth.astype(np.int64),
        probabilities=p,
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )
    result = evaluate(predictions, resamples=0)
    return {name: entry["value"] for name, entry in result["metrics"].items()}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_platt_is_scikit_learns(seed: int) -> None:
    raw, targets = rows(seed, 500)
    log_odds = logit(raw[:, 1])
    platt = fit_calibration(raw, targets, np.arange(500), method="platt")
    expected = _SigmoidCalibration().fit(log_odds, targets).predict(log_odds)
    np.testing.assert_allclose(platt.apply(raw)[:, 1], expected, atol=1e-5)


def test_temperature_has_the_slope_of_a_logistic_regression_and_the_mean_of_many_rows() -> None:
    raw, targets = rows(1, 20_000, prevalence=0.02)
    log_odds = logit(raw[:, 1])[:, None]
    fitted = fit_calibration(raw, targets, np.arange(20_000), method="temperature")
    regression = LogisticRegression(C=1e9).fit(log_odds, targets)
    assert fitted.state["scale"] == pytest.approx(regression.coef_[0, 0], rel=0.02)
    assert fitted.apply(raw)[:, 1].mean() == pytest.approx(targets.mean(), rel=0.02)
    order = np.argsort(raw[:, 1])
    assert (np.diff(fitted.apply(raw)[order, 1]) >= 0).all()


def test_few_rows_hardly_move_the_temperature() -> None:
    """Four rows that speak against the network, and a hundred times as many."""
    raw = two(np.array([0.2, 0.3, 0.6, 0.7]))
    targets, patients = np.array([1, 0, 1, 0]), np.arange(4)
    few = fit_calibration(raw, targets, patients, method="temperature")
    many = fit_calibration(
        np.tile(raw, (100, 1)), np.tile(targets, 100), np.arange(400), method="temperature"
    )
    assert few.state["scale"] > 0.7
    assert many.state["scale"] < 0.2


def test_more_rows_move_the_mean_further() -> None:
    """From 0.2 towards the 0.5 of ten rows, of a thousand."""
    raw, means = two(np.array([0.1, 0.3])), []
    for copies in (5, 500):
        targets = np.tile([0, 1], copies)
        shown = np.tile(raw, (copies, 1))
        fitted = fit_calibration(shown, targets, np.arange(2 * copies), method="temperature")
        means.append(fitted.apply(raw)[:, 1].mean())
    assert 0.25 < means[0] < 0.45
    assert means[1] == pytest.approx(0.5, abs=0.01)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_isotonic_is_scikit_learns_kept_from_0_and_1(seed: int) -> None:
    raw, targets = rows(seed, 400)
    raw = np.round(raw, 2)
    fitted = fit_calibration(raw, targets, np.arange(400), method="isotonic")
    expected = IsotonicRegression(y_min=1 / 402, y_max=401 / 402).fit_transform(raw[:, 1], targets)
    np.testing.assert_allclose(fitted.apply(raw)[:, 1], expected, atol=1e-9)
    beyond = fitted.apply(two(np.array([0.0, 1.0])))
    assert np.all((beyond > 0) & (beyond < 1))


def test_several_classes_are_scaled_and_shifted() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(4000, 3))
    truth = softmax(scores, axis=1)
    targets = (generator.random(4000)[:, None] > truth.cumsum(axis=1)).sum(axis=1)
    raw = softmax(3 * scores + np.array([0, 1, -1]), axis=1)
    before = -log_softmax(3 * scores + np.array([0, 1, -1]), axis=1)[np.arange(4000), targets]
    platt = fit_calibration(raw, targets, np.arange(4000), method="platt")
    assert platt.state["scale"] == pytest.approx(1 / 3, rel=0.1)
    assert platt.state["shifts"] == pytest.approx([0, -1 / 3, 1 / 3], abs=0.1)
    losses = fit_calibration(raw, targets, np.arange(4000)).losses
    assert set(losses) == {"temperature", "platt", "isotonic"}
    assert losses["platt"] < before.mean()
    assert losses["temperature"] == pytest.approx(losses["platt"], abs=1e-3)


@given(st.integers(0, 2**32 - 1), st.sampled_from(tuple(METHODS)), st.integers(2, 5))
@settings(max_examples=30)
def test_calibrated_rows_are_distributions_and_the_state_is_plain(
    seed: int, method: str, classes: int
) -> None:
    generator = np.random.default_rng(seed)
    raw = generator.dirichlet(np.full(classes, 0.2), size=60)
    targets = generator.integers(0, classes, size=60)
    prior = (np.full(classes, 1 / classes), generator.dirichlet(np.ones(classes)))
    fitted = fit_calibration(
        raw, targets, generator.integers(0, 20, size=60), prior=prior, method=method
    )
    p = fitted.apply(raw)
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-9)
    assert np.all((p >= 0) & (p <= 1))
    state = json.loads(json.dumps(asdict(fitted), allow_nan=False))
    assert state == asdict(fitted)
    np.testing.assert_array_equal(Calibration(**state).apply(raw), p)


def test_calibration_finds_the_prior_too() -> None:
    raw, targets = rows(3, 20_000, prevalence=0.05)
    p = fit_calibration(raw, targets, np.arange(20_000)).apply(raw)
    found = evaluated(p, targets == 1)
    assert found["mean_probability"] == pytest.approx(targets.mean(), rel=0.02)
    assert found["calibration_slope"] == pytest.approx(1, abs=0.05)


def test_calibrated_probabilities_hardly_change() -> None:
    scales = []
    for seed in range(20):
        raw, targets = rows(seed, 1000)
        true = two(expit((logit(raw[:, 1]) - 1) / 2))
        fitted = fit_calibration(true, targets, np.arange(1000) // 3)
        if fitted.method == "temperature":
            scales.append(fitted.state["scale"])
    assert len(scales) >= 18
    assert np.mean(scales) == pytest.approx(1, abs=0.05)
    assert np.std(scales) < 0.15


def test_log_odds_of_a_rare_class_that_are_too_far_apart_are_scaled_down() -> None:
    """A quarter too far: a hundred melanomas of validation say so, though log loss hardly does."""
    slopes = []
    for seed in range(10):
        parts = []
        for half in range(2):
            generator = np.random.default_rng((seed, half))
            z = generator.normal(-4.4, 0.8, size=6600)
            parts.append((two(expit(1.25 * (z + 4.4) - 4.4)), generator.random(6600) < expit(z)))
        (val, truth), (test, other) = parts
        fitted = fit_calibration(val, truth.astype(np.int64), np.arange(6600) // 8)
        slopes.append(evaluated(fitted.apply(test), other)["calibration_slope"])
    assert np.mean(slopes) == pytest.approx(1, abs=0.1)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_groups_stay_together_and_classes_are_spread(seed: int) -> None:
    generator = np.random.default_rng(seed)
    groups = generator.integers(0, 40, size=200)
    targets = (generator.random(200) < 0.1).astype(np.int64)
    folds = group_folds(targets, groups, 2)
    pairs = {(group, fold) for group, fold in zip(groups, folds, strict=True)}
    assert len(pairs) == len(set(groups))
    holders = [len(set(groups[(folds == fold) & (targets == 1)])) for fold in set(folds)]
    assert max(holders) - min(holders) <= 1


def test_one_class_or_one_patient_leaves_only_the_prior() -> None:
    raw, targets = rows(0, 20, prevalence=0.5)
    prior = (np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    for truth, groups in ((np.zeros(20, dtype=int), np.arange(20)), (targets, np.zeros(20))):
        fitted = fit_calibration(raw, truth, groups, prior=prior)
        assert fitted.method == "none"
        np.testing.assert_array_equal(fitted.apply(raw), correct_prior(raw, *prior))
    with pytest.raises(InputError, match="no calibration 'beta'; choose from auto, none, temp"):
        fit_calibration(raw, targets, np.arange(20), method="beta")


def test_platt_preserves_the_mean_if_its_scale_is_at_a_bound() -> None:
    """A network that ranks a rare class the wrong way round tells nothing but how rare it is."""
    generator = np.random.default_rng(0)
    targets = (generator.random(3000) < 0.02).astype(np.int64)
    raw = two(expit(generator.normal(-4, 1, size=3000) - 2 * targets))
    platt = fit_calibration(raw, targets, np.arange(3000), method="platt")
    assert platt.state["scale"] == 0.01
    assert platt.apply(raw)[:, 1].mean() == pytest.approx(targets.mean(), rel=0.02)


@pytest.mark.parametrize("seed", range(8))
def test_platt_converges_on_probabilities_that_are_rounded_to_0_and_1(seed: int) -> None:
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(1000, 7)) + generator.normal(0, 1.5, size=7)
    targets = (generator.random(1000)[:, None] > softmax(z, axis=1).cumsum(axis=1)).sum(axis=1)
    raw = np.round(softmax(6 * z, axis=1), 3)
    raw /= raw.sum(axis=1, keepdims=True)
    fitted = fit_calibration(raw, targets, np.arange(1000), method="platt")
    shares = np.bincount(targets) / 1000
    loss = -np.log(fitted.apply(raw)[np.arange(1000), targets]).mean()
    assert loss < 0.92 * -np.log(shares[targets]).mean()
