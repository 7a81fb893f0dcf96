"""Smooth calibration: the curve is LOESS, its errors vanish where they should, chance is known."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binom

from skinmm.evaluation import smooth_calibration
from skinmm.evaluation.curves import log_odds
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.smooth_calibration import (
    CalibrationSmoother,
    calibration_noise,
    fit_calibration_band,
)


def calibrated(seed: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw ascending probabilities, and a truth that follows them."""
    generator = np.random.default_rng(seed)
    p = np.sort(expit(generator.normal(-1, 1.2, size=n)))
    return p, generator.random(n) < p


def test_the_curve_is_a_weighted_line_through_the_nearest_rows() -> None:
    p, truth = calibrated(0, 200)
    smoother = CalibrationSmoother(log_odds(p))
    curve = smoother.curve(np.ones((1, 200)), truth[None].astype(np.float64))[0]
    for x, y in zip(smoother.grid, curve, strict=True):
        distance = np.abs(p - x)
        width = np.sort(distance)[149]  # of 75 % of the rows
        weights = (1 - np.minimum(distance / width, 1) ** 3) ** 3
        line = np.polynomial.Polynomial.fit(p - x, truth, 1, w=np.sqrt(weights))
        assert y == pytest.approx(np.clip(line(0.0), 0, 1), abs=1e-7)


def test_a_weight_of_two_is_the_row_twice() -> None:
    p, truth = calibrated(1, 150)
    weights = np.random.default_rng(2).integers(0, 4, size=(3, 150)).astype(np.float64)
    smoother = CalibrationSmoother(log_odds(p))
    found = smoother.errors(weights, weights * truth)
    for index, row in enumerate(weights.astype(int)):
        curve = np.interp(p, smoother.grid, smoother.curve(weights, weights * truth)[index])
        errors = np.repeat(np.abs(curve - p), row)
        assert found["ici"][index] == pytest.approx(errors.mean(), abs=1e-9)
        expected = np.quantile(errors, 0.9, method="inverted_cdf")
        assert found["e90"][index] == pytest.approx(expected, abs=1e-9)


def test_a_shift_of_probabilities_is_its_own_error() -> None:
    p, _ = calibrated(3, 400)
    expected = 0.6 * p + 0.2  # a straight line, which local lines reproduce
    smoother = CalibrationSmoother(log_odds(p))
    errors = smoother.errors(np.ones((1, 400)), expected[None])
    assert errors["ici"][0] == pytest.approx(np.abs(expected - p).mean(), abs=1e-6)
    found = np.quantile(np.abs(expected - p), 0.9, method="inverted_cdf")
    assert errors["e90"][0] == pytest.approx(found, abs=1e-6)


def test_cells_of_many_rows_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    p, truth = calibrated(4, 20_000)
    cells = CalibrationSmoother(log_odds(p))
    counts = np.diff(np.r_[cells.starts, len(p)])[None].astype(np.float64)
    found = cells.errors(counts, np.add.reduceat(truth.astype(np.float64), cells.starts)[None])
    assert len(cells.x) < 300
    monkeypatch.setattr(smooth_calibration, "_EXACT_ROWS", len(p))
    exact = CalibrationSmoother(log_odds(p))
    expected = exact.errors(np.ones((1, len(p))), truth[None].astype(np.float64))
    assert found["ici"][0] == pytest.approx(expected["ici"][0], abs=3e-4)
    assert found["e90"][0] == pytest.approx(expected["e90"][0], abs=1e-3)


def test_equal_probabilities_have_their_own_frequency() -> None:
    smoother = CalibrationSmoother(log_odds(np.full(20, 0.3)))
    errors = smoother.errors(np.array([[20.0]]), np.array([[10.0]]))
    assert errors["ici"][0] == pytest.approx(0.2)
    assert errors["e90"][0] == pytest.approx(0.2)


def test_the_band_contains_the_truth_and_widens_with_patients() -> None:
    inside, alone, shared = [], [], []
    for seed in range(20):
        p, truth = calibrated(seed, 400)
        order = np.random.default_rng(seed).permutation(400)
        band = fit_calibration_band(p[order], truth[order], np.arange(400), resamples=100)
        middle = (band.x > np.quantile(p, 0.1)) & (band.x < np.quantile(p, 0.9))
        inside.append(((band.low <= band.x) & (band.x <= band.high))[middle].mean())
        alone.append((band.high - band.low)[middle].mean())
        copies = (np.repeat(a, 4) for a in (p[::4], truth[::4], np.arange(100)))
        twin = fit_calibration_band(*copies, resamples=100)
        shared.append((twin.high - twin.low)[1:-1].mean())
    assert np.mean(inside) > 0.85
    assert np.mean(shared) > 1.5 * np.mean(alone)  # 100 patients, not 400 rows


def test_chance_raises_the_error_as_the_binomial_distribution_has_it() -> None:
    """One bin of equal probabilities: the mean of |k / n - p| is known."""
    found = calibration_noise(np.full(50, 0.2), draws=4000)
    k = np.arange(51)
    expected = (binom.pmf(k, 50, 0.2) * np.abs(k / 50 - 0.2)).sum()
    assert found["ece"] == pytest.approx(expected, rel=0.05)
    assert found["ici"] == pytest.approx(expected, rel=0.05)


def test_a_calibrated_model_scores_the_noise() -> None:
    scores = []
    for seed in range(40):
        p, truth = calibrated(seed, 140)
        file = Predictions(
            image_id=np.arange(140).astype(str),
            patient_id=np.arange(140).astype(str),
            target=truth.astype(np.int64),
            probabilities=np.column_stack([1 - p, p]),
            raw=None,
            classes=("benign", "malignant"),
            positive=("malignant",),
        )
        result = evaluate(file, resamples=0)
        noise = result["calibration_noise"]
        scores.append([result["metrics"][name]["value"] / noise[name] for name in noise])
    assert np.mean(scores, axis=0) == pytest.approx([1, 1, 1], abs=0.2)
    assert result["malignant_patients"] == truth.sum()
    assert logit(p).std() > 1


def test_a_probability_of_most_rows_leaves_no_gap_in_the_curve() -> None:
    """Trees give many rows the same probability, far from those of the others."""
    p = np.r_[np.full(90, 0.1), np.full(10, 0.9)]
    truth = np.r_[np.arange(90) < 9, np.arange(10) < 9]
    band = fit_calibration_band(p, truth, np.arange(100).astype(str), resamples=20)
    np.testing.assert_allclose(band.y[[0, -1]], [0.1, 0.9], atol=1e-9)
    assert np.isfinite(band.y).all()
    assert np.isfinite([*calibration_noise(p).values()]).all()
