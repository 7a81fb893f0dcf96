"""Sample sizes against published tables, and promises against simulation."""

import math

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest, norm, t
from sklearn.metrics import roc_auc_score

from skinmm.errors import InputError
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.planning import (
    auroc_error,
    expected_log_odds,
    malignant_by_pairs,
    malignant_by_simulation,
    malignant_for_auroc,
    malignant_for_difference,
    malignant_for_guarantee,
    malignant_for_sensitivity,
    malignant_for_slope,
    rows_for_slope,
    simulate_widths,
)
from skinmm.evaluation.predictions import BINARY, Predictions
from skinmm.evaluation.thresholds import choose_threshold


@pytest.mark.parametrize(("target", "needed"), [(0.95, 59), (0.9, 29), (0.99, 299)])
def test_from_so_many_on_a_threshold_can_be_guaranteed(target: float, needed: int) -> None:
    assert malignant_for_guarantee(target) == needed  # Wilks 1941
    for count in (needed - 1, needed):
        scores = np.linspace(0.1, 0.9, count)
        found = choose_threshold(scores, scores > 0, np.arange(count), sensitivity=target)
        assert found.guaranteed == (count == needed)


def test_the_power_of_a_bound_is_that_of_exact_tests() -> None:
    needed = malignant_for_sensitivity(0.9, 0.97, power=0.8)
    rng = np.random.default_rng(0)
    shown = [
        binomtest(int(hits), needed, 0.9, alternative="greater").pvalue <= 0.05
        for hits in rng.binomial(needed, 0.97, size=2000)
    ]
    assert 0.78 < np.mean(shown) < 0.9
    assert needed < malignant_for_sensitivity(0.9, 0.95, power=0.8)
    assert malignant_for_sensitivity(0.95, 0.99999) == 59
    with pytest.raises(InputError, match=r"expected=0.9: must be above sensitivity=0.95"):
        malignant_for_sensitivity(0.95, 0.9)


def test_the_error_of_an_auroc_is_that_of_normal_scores() -> None:
    # Without a difference Q is 1 / 3, and the variance that of Mann and Whitney's U.
    assert auroc_error(0.5, 7, 9) == pytest.approx(math.sqrt((7 + 9 + 1) / (12 * 7 * 9)))
    rng, auroc = np.random.default_rng(1), 0.85
    target = np.r_[np.ones(30), np.zeros(270)]
    shift = math.sqrt(2) * norm.ppf(auroc)
    values = [roc_auc_score(target, rng.normal(shift * target)) for _ in range(1500)]
    assert auroc_error(auroc, 30, 270) == pytest.approx(np.std(values), rel=0.05)


def test_an_interval_has_the_width_that_was_asked_for() -> None:
    needed = malignant_for_auroc(0.85, 0.1, 0.05)
    widths = [2 * t.ppf(0.975, n - 1) * auroc_error(0.85, n, 19 * n) for n in (needed - 1, needed)]
    assert widths[1] <= 0.1 < widths[0]


@pytest.mark.parametrize(("power", "published"), [(0.8, 652), (0.9, 897), (0.95, 1131)])
def test_differences_need_what_the_table_of_hanley_and_mcneil_says(
    power: float, published: int
) -> None:
    # Their table III: AUROCs of 0.70 and 0.75, one-sided test at 5 %, equal numbers. It is for
    # exponential scores, which differ by one percent there.
    needed = malignant_for_difference(0.70, 0.05, 0.5, correlation=0.0, confidence=0.9, power=power)
    assert needed == pytest.approx(published, rel=0.013)
    paired = malignant_for_difference(0.70, 0.05, 0.5, confidence=0.9, power=power)
    assert paired == pytest.approx(needed / 2, rel=0.02)
    with pytest.raises(InputError, match="is not below 1"):
        malignant_for_difference(0.97, 0.05, 0.5)


def test_a_slope_needs_what_riley_and_others_published() -> None:
    # Heart valve failure: normal log odds with mean -5 and standard deviation 2.5, width 0.2; the
    # authors' software has 4544 rows for a million simulated ones.
    rng = np.random.default_rng(0)
    assert rows_for_slope(rng.normal(-5, 2.5, 400_000), np.ones(400_000), 0.2) == pytest.approx(
        4544, rel=0.01
    )


def test_the_slope_of_a_report_needs_more_than_the_formula() -> None:
    formula = 0.1 * rows_for_slope(*expected_log_odds(0.85, 0.1), 0.4)
    needed = malignant_for_slope(0.85, 0.4, 0.1)
    assert 1.02 < needed / formula < 1.3
    rng, spread, widths = np.random.default_rng(1), math.sqrt(2) * norm.ppf(0.85), []
    for _ in range(8):
        target = np.arange(10 * needed) < needed
        log_odds = logit(0.1) + rng.normal(np.where(target, 0.5, -0.5) * spread**2, spread)
        p, names = expit(log_odds), np.arange(10 * needed).astype(str)
        made = Predictions(names, names, target * 1, np.c_[1 - p, p], None, BINARY, ("malignant",))
        entry = evaluate(made, resamples=100)["metrics"]["calibration_slope"]
        widths.append(entry["high"] - entry["low"])
    assert np.mean(widths) == pytest.approx(0.4, abs=0.05)
    assert malignant_for_slope(0.85, 0.05, 0.1) == math.ceil(
        0.1 * rows_for_slope(*expected_log_odds(0.85, 0.1), 0.05)
    )


def test_a_difference_is_planned_from_two_systems_of_the_same_lesions() -> None:
    rng = np.random.default_rng(0)
    target = np.arange(2000) < 200
    shared = rng.normal(size=2000)
    systems = []
    for gain in (1.47, 1.47):  # AUROC 0.85
        p = expit(gain * target + (shared + rng.normal(size=2000)) / math.sqrt(2) - 2)
        names = np.arange(2000).astype(str)
        systems.append(
            Predictions(names, names, target * 1, np.c_[1 - p, p], None, BINARY, BINARY[1:])
        )
    first, second = systems
    needed = malignant_by_pairs(first, second, 0.05)
    formula = malignant_for_difference(0.85, 0.05, 0.1, correlation=0.45)
    assert needed == pytest.approx(formula, rel=0.3)
    assert malignant_by_pairs(first, second, 0.025) == pytest.approx(4 * needed, abs=4)
    with pytest.raises(InputError, match="same in every resample"):
        malignant_by_pairs(first, first, 0.05)


def test_the_expected_log_odds_have_the_auroc_and_are_calibrated() -> None:
    log_odds, weights = expected_log_odds(0.85, 0.1)
    p = expit(log_odds)
    assert np.average(p, weights=weights) == pytest.approx(0.1, abs=1e-4)
    target = np.repeat([0, 1], len(p) // 2)
    assert roc_auc_score(target, log_odds) == pytest.approx(0.85, abs=1e-3)
    assert np.average((target - p) * log_odds, weights=weights) == pytest.approx(0, abs=2e-3)


def rows(patients: int, share: float) -> Predictions:
    rng = np.random.default_rng(0)
    target = (rng.random(patients) < share).astype(np.int64)
    spread = 1.5
    p = expit(logit(share) + rng.normal((2 * target - 1) * spread**2 / 2, spread))
    names = np.arange(patients).astype(str)
    return Predictions(names, names, target, np.c_[1 - p, p], None, BINARY, BINARY[1:])


def test_simulated_widths_agree_with_the_formulas() -> None:
    predictions = rows(20_000, 0.1)
    auroc = roc_auc_score(predictions.target, predictions.malignancy)
    widths = simulate_widths(predictions, 100, repeats=400)
    assert widths["auroc"] == pytest.approx(4 * auroc_error(auroc, 100, 900), rel=0.3)
    needed = malignant_by_simulation(predictions, "calibration_slope", 0.4)
    rows_needed = rows_for_slope(logit(predictions.malignancy), np.ones(20_000), 0.4)
    expected = rows_needed * predictions.target.mean()
    assert needed == pytest.approx(expected, rel=0.25)
    assert math.isclose(simulate_widths(predictions, needed)["calibration_slope"], 0.4, rel_tol=0.1)
