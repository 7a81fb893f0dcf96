"""Conformal sets cover every class; features far from training are told from those near it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float64
from scipy.special import softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.uncertainty import (
    Conformal,
    Familiarity,
    describe_sets,
    fit_conformal,
    fit_familiarity,
)

CLASSES = ("bkl", "mel", "nv")


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


def test_every_class_is_covered() -> None:
    generator = np.random.default_rng(0)
    coverage = []
    for _ in range(60):
        fitted = fit_conformal(rows(generator, 500), coverage=0.9)
        found = describe_sets(fitted, rows(generator, 2000))["coverage"]
        coverage.append([found[name]["value"] for name in CLASSES])
    np.testing.assert_allclose(np.mean(coverage, axis=0), 0.9, atol=0.02)


@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
@settings(max_examples=30)
def test_limit_is_the_conformal_quantile(seed: int, coverage: float) -> None:
    predictions = rows(np.random.default_rng(seed), 60)
    fitted = fit_conformal(predictions, coverage=coverage)
    for index in range(3):
        scores = np.sort(1 - predictions.probabilities[predictions.target == index, index])
        rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
        expected = scores[rank - 1] if rank <= len(scores) else 1
        assert 1 - fitted.limits[index] == pytest.approx(expected)


def test_decisions_are_of_one_side_or_referred() -> None:
    fitted = Conformal(CLASSES, ("mel",), 0.9, (0.3, 0.3, 0.5))
    p = np.array([[0.4, 0.1, 0.5], [0.1, 0.8, 0.1], [0.35, 0.35, 0.3], [0.28, 0.27, 0.45]])
    assert fitted.decide(p).tolist() == ["benign", "malignant", "refer", "refer"]
    assert fitted.sets(p).sum(axis=1).tolist() == [2, 1, 2, 0]


def test_description_of_sets() -> None:
    fitted = Conformal(CLASSES, ("mel",), 0.9, (0.3, 0.3, 0.5))
    predictions = Predictions(
        image_id=np.array(["a", "b", "c"]),
        patient_id=np.array(["a", "b", "c"]),
        target=np.array([2, 1, 1]),
        probabilities=np.array([[0.2, 0.2, 0.6], [0.1, 0.8, 0.1], [0.35, 0.35, 0.3]]),
        raw=None,
        classes=CLASSES,
        positive=("mel",),
    )
    found = describe_sets(fitted, predictions)
    assert found["coverage"]["mel"] == {"n": 2, "value": 1}
    assert found["coverage"]["bkl"] == {"n": 0, "value": None}
    assert found["referred"] == pytest.approx(1 / 3)
    assert found["sensitivity"] == found["specificity"] == 1
    with pytest.raises(InputError, match=r"coverage 1\.5"):
        fit_conformal(predictions, coverage=1.5)


def features(seed: int, n: int, width: int = 12) -> Float64[np.ndarray, "n d"]:
    mixing = np.random.default_rng(0).normal(size=(width, width))
    return np.random.default_rng(seed).normal(size=(n, width)) @ mixing + 3


def test_distance_is_mahalanobis_when_every_direction_is_kept() -> None:
    training = features(1, 300)
    fitted = fit_familiarity(training, training)
    expected = EmpiricalCovariance().fit(training).mahalanobis(training) * 299 / 300 / 12
    np.testing.assert_allclose(fitted.score(training), expected, rtol=1e-6)
    assert fitted.score(training).mean() == pytest.approx(1, abs=0.01)


def test_distance_inverts_the_covariance_of_principal_components() -> None:
    training = features(2, 300)
    fitted = fit_familiarity(training, training, components=4)
    values, vectors = np.linalg.eigh(np.cov(training.T))
    values[:-4] = values[:-4].mean()
    precision = vectors / values @ vectors.T
    centred = training - training.mean(axis=0)
    expected = np.einsum("nd,de,ne->n", centred, precision, centred) / 12
    np.testing.assert_allclose(fitted.score(training), expected, rtol=1e-6)


def test_far_features_are_found_and_near_ones_stay_below_the_limit() -> None:
    fitted = fit_familiarity(features(3, 400), features(4, 400), components=6)
    near, far = features(5, 400), features(6, 400)[:, ::-1] * 2
    assert np.mean(fitted.score(near) <= fitted.limit) == pytest.approx(0.99, abs=0.03)
    scores = fitted.score(np.vstack([near, far]).astype(np.float32))
    assert roc_auc_score(np.repeat([False, True], 400), scores) > 0.95


@pytest.mark.parametrize("shape", [(5, 40), (40, 3), (2, 1)])
def test_few_rows_and_dead_features_are_no_obstacle(shape: tuple[int, int]) -> None:
    training = np.random.default_rng(0).normal(size=shape)
    training[:, 1:2] = 7
    fitted = fit_familiarity(training, training)
    scores = fitted.score(training)
    assert np.all(np.isfinite(scores))
    if shape[1] > 1:
        assert fitted.score(training + np.eye(shape[1])[1]).min() > scores.max()


def test_states_are_plain() -> None:
    fitted = fit_familiarity(features(1, 50), features(2, 50), components=3)
    state = json.loads(json.dumps(fitted.to_state(), allow_nan=False))
    again = Familiarity.from_state(state)
    np.testing.assert_array_equal(again.score(features(3, 9)), fitted.score(features(3, 9)))
    conformal = fit_conformal(rows(np.random.default_rng(0), 100))
    state = json.loads(json.dumps(conformal.to_state(), allow_nan=False))
    assert Conformal.from_state(state) == conformal


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(InputError, match="1 training and 5 validation rows are too few"):
        fit_familiarity(np.ones((1, 3)), np.ones((5, 3)))
    with pytest.raises(InputError, match="the same in all training rows"):
        fit_familiarity(np.ones((4, 3)), np.ones((5, 3)))
