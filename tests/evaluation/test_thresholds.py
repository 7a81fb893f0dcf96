"""Threshold rules against their definitions, and the guaranteed sensitivity on new patients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Int64
from scipy.special import logit
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_curve

from skinmm.errors import InputError
from skinmm.evaluation.thresholds import (
    ReferralBand,
    RiskLimit,
    Threshold,
    average_bands,
    average_thresholds,
    choose_threshold,
    fit_band,
    sensitivity_bound,
)


@given(st.integers(1, 300), st.data())
def test_bound_is_scipys(positives: int, data: st.DataObject) -> None:
    found = data.draw(st.integers(0, positives))
    test = binomtest(found, positives, alternative="greater")
    expected = test.proportion_ci(confidence_level=0.9, method="exact").low
    assert sensitivity_bound(found, positives, 0.9) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("positives", "guaranteed"), [(58, False), (59, True), (93, True)])
def test_59_positives_are_needed(positives: int, guaranteed: bool) -> None:
    scores = np.linspace(0.01, 0.99, 200)
    truth = np.zeros(200, dtype=bool)
    truth[-positives:] = True
    chosen = choose_threshold(scores, truth, np.arange(200))
    assert chosen.guaranteed is guaranteed
    assert chosen.rule == "sensitivity"
    # 59: no miss is allowed; 93: one; 58, without a guarantee: 5 % are two.
    misses = {58: 2, 59: 0, 93: 1}[positives]
    assert (scores[truth] < chosen.value).sum() == misses


@given(st.integers(0, 2**32 - 1), st.sampled_from((0.8, 0.9, 0.95)))
@settings(max_examples=50)
def test_highest_threshold_that_reaches_the_target(seed: int, target: float) -> None:
    generator = np.random.default_rng(seed)
    scores = np.round(generator.random(200), 2)
    truth = generator.random(200) < 0.5
    patients = generator.integers(0, 120, size=200)
    chosen = choose_threshold(scores, truth, patients, sensitivity=target)
    malignant = sorted(set(patients[truth]))
    lowest = np.array([scores[truth & (patients == patient)].min() for patient in malignant])

    def bound(threshold: float) -> float:
        return sensitivity_bound(int((lowest >= threshold).sum()), len(lowest), 0.95)

    higher = scores[scores > chosen.value + 1e-5]
    if chosen.guaranteed:
        assert bound(chosen.value) >= target
        assert higher.size == 0 or bound(higher.min()) < target
    else:
        assert (scores[truth] >= chosen.value).mean() >= target
        assert (scores[truth] >= higher.min()).mean() < target


def test_bound_holds_on_new_patients() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        codes = np.repeat(np.arange(100), 2)
        scores = norm.cdf(generator.normal(size=100)[codes] + generator.normal(size=200))
        chosen = choose_threshold(scores, np.ones(200, dtype=bool), codes)
        assert chosen.guaranteed
        # Sensitivity over lesions: N(0, 2) above the threshold.
        held += norm.sf(norm.ppf(chosen.value) / np.sqrt(2)) >= 0.95
    assert held / 400 >= 0.94


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_youden_is_the_roc_curves(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.round(generator.random(100), 2)
    truth = np.r_[True, False, generator.random(98) < scores[2:]]
    chosen = choose_threshold(scores, truth, np.arange(100), rule="youden")
    fpr, tpr, _ = roc_curve(truth, scores)
    called = scores >= chosen.value
    assert called[truth].mean() - called[~truth].mean() == pytest.approx((tpr - fpr).max())


def test_cost_is_the_closed_form() -> None:
    scores, truth = np.array([0.2, 0.4]), np.array([False, True])
    chosen = choose_threshold(scores, truth, np.arange(2), rule="cost", cost_ratio=49.0)
    assert chosen == Threshold(0.02, "cost", guaranteed=False)


@given(st.floats(1e-12, 1))
def test_value_is_rounded_down_to_six_digits(score: float) -> None:
    value = choose_threshold(np.array([score]), np.array([True]), np.array(["a"])).value
    assert value <= score
    assert value == pytest.approx(score, rel=1.1e-5)
    assert float(f"{value:.6g}") == value


def test_mean_threshold_is_on_the_logit_scale() -> None:
    pair = [Threshold(0.1, "youden", guaranteed=True), Threshold(0.4, "youden", guaranteed=False)]
    mean = average_thresholds(pair)
    assert logit(mean.value) == pytest.approx((logit(0.1) + logit(0.4)) / 2)
    assert not mean.guaranteed


@given(st.floats(0, 1))
def test_the_mean_of_one_threshold_is_itself(value: float) -> None:
    alone = Threshold(value, "sensitivity", guaranteed=True)
    assert average_thresholds([alone]) == alone
    assert average_thresholds([alone, alone]) == alone


def test_invalid_input_raises() -> None:
    scores, benign, names = np.array([0.2, 0.4]), np.zeros(2, dtype=bool), np.arange(2)
    cases: dict[str, dict[str, str | float]] = {
        "no threshold rule 'f1'; choose from sensitivity, youden, cost": {"rule": "f1"},
        "none of 2 rows is malignant": {},
        r"sensitivity 1\.0 of a threshold is not between": {"sensitivity": 1.0},
        r"confidence 0\.0": {"confidence": 0.0},
        "needs cost_ratio": {"rule": "cost"},
    }
    for message, given_ in cases.items():
        with pytest.raises(InputError, match=message):
            choose_threshold(scores, benign, names, **given_)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="none of the rows is benign"):
        choose_threshold(scores, ~benign, names, rule="youden")


def patient_rates(
    wrong: Bool[np.ndarray, " n"], rows: Bool[np.ndarray, " n"], patients: Int64[np.ndarray, " n"]
) -> list[float]:
    """Share of wrong ones among the rows of each patient who has any."""
    return [wrong[rows & (patients == name)].mean() for name in np.unique(patients[rows])]


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.6), st.floats(0.01, 0.6))
@settings(max_examples=60)
def test_band_is_the_narrowest_whose_risk_is_controlled(
    seed: int, miss_rate: float, false_alarm_rate: float
) -> None:
    generator = np.random.default_rng(seed)
    patients = generator.integers(0, 12, size=40)
    positives = np.r_[True, False, generator.random(38) < 0.3]
    scores = generator.integers(1, 15, size=40) / 16  # six digits are exact
    band = fit_band(
        scores, positives, patients, miss_rate=miss_rate, false_alarm_rate=false_alarm_rate
    )
    lows = np.unique(scores)
    highs = [*lows, (1 + lows[-1]) / 2]  # at the ends, no row is decided

    def low_bound(limit: float) -> float:
        rates = patient_rates(scores < limit, positives, patients)
        return (sum(rates) + 1) / (len(rates) + 1)

    def high_bound(limit: float) -> float:
        rates = patient_rates(scores >= limit, ~positives, patients)
        return (sum(rates) + 1) / (len(rates) + 1)

    malignant, benign = (len(np.unique(patients[rows])) for rows in (positives, ~positives))
    assert (band.low.patients, band.high.patients) == (malignant, benign)
    certified = max(miss_rate, 1 / (malignant + 1))
    assert band.low.certified == pytest.approx(certified)
    assert band.low.value == max(v for v in lows if low_bound(v) <= certified + 1e-9)
    certified = max(false_alarm_rate, 1 / (benign + 1))
    assert band.high.certified == pytest.approx(certified)
    assert band.high.value == min(v for v in highs if high_bound(v) <= certified + 1e-9)


def test_rates_of_new_patients_are_below_both_targets() -> None:
    """Clustered patients; the mean over 400 validation sets, known to 0.003."""
    generator = np.random.default_rng(0)

    def draw(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        patients = np.repeat(np.arange(count), generator.integers(1, 8, size=count))
        positives = generator.random(len(patients)) < 0.2
        shared = generator.normal(size=count)[patients]
        noise = 0.7 * shared + 0.7 * generator.normal(size=len(patients))
        return norm.cdf(1.5 * positives - 1 + noise), positives, patients

    scores, positives, patients = draw(20_000)
    missed: list[float] = []
    alarmed: list[float] = []
    is_below_bound = []
    for _ in range(400):
        band = fit_band(*draw(120), miss_rate=0.05, false_alarm_rate=0.1)
        assert (band.low.certified, band.high.certified) == (0.05, 0.1)
        for rates, rows, wrong, limit in (
            (missed, positives, scores < band.low.value, band.low),
            (alarmed, ~positives, scores >= band.high.value, band.high),
        ):
            own = np.bincount(patients[rows], weights=wrong[rows])
            size = np.bincount(patients[rows])
            rates.append((own[size > 0] / size[size > 0]).mean())
            is_below_bound.append(rates[-1] <= limit.upper_bound())
    assert 0.035 < np.mean(missed) < 0.053
    assert 0.085 < np.mean(alarmed) < 0.103
    assert np.mean(is_below_bound) > 0.94


@pytest.mark.parametrize(("misses", "patients"), [(0, 28), (0, 99), (2, 428)])
def test_bound_of_a_limit_is_that_of_clopper_and_pearson(misses: int, patients: int) -> None:
    limit = RiskLimit(0.1, 0.01, (misses + 1) / (patients + 1), patients)
    exact = binomtest(misses, patients, alternative="less").proportion_ci(0.95).high
    assert limit.upper_bound(0.95) == pytest.approx(exact)
    assert RiskLimit(0.0, 0.01, 1.0, 0).upper_bound() == 1


def test_a_band_of_few_patients_names_the_rate_that_they_certify() -> None:
    scores = np.linspace(0.01, 0.99, 100)
    positives = np.isin(np.arange(100), [30, 60, 90])
    band = fit_band(scores, positives, np.arange(100), miss_rate=0.01, false_alarm_rate=0.009)
    assert band.low == RiskLimit(0.306969, 0.01, 1 / 4, 3)  # none of three is missed
    assert band.high == RiskLimit(
        0.995, 0.009, round(1 / 98, 12), 97
    )  # the highest score is benign
    assert not band.is_safe(scores > 0, scores).any()
    band = fit_band(scores, positives, np.arange(100), miss_rate=0.01, false_alarm_rate=0.021)
    called = scores >= 0.5
    safe = band.is_safe(called, scores)
    assert safe[:30].all()
    assert not safe[30:50].any()
    assert safe[-1]


def test_a_single_level_of_scores_decides_no_row_to_be_benign() -> None:
    positives = np.arange(10) < 3
    settings = {"miss_rate": 0.01, "false_alarm_rate": 0.1}
    band = fit_band(np.full(10, 0.25), positives, np.arange(10), **settings)
    assert not band.is_safe(np.zeros(10, bool), np.full(10, 0.25)).any()
    assert not band.is_safe(np.ones(10, bool), np.full(10, 0.25)).any()
    no_malignant = fit_band(scores := np.linspace(0, 1, 9), scores > 2, scores, **settings)
    assert (no_malignant.low.value, no_malignant.low.certified) == (0, 1)


def test_mean_band_is_on_the_logit_scale() -> None:
    bands = [
        ReferralBand(RiskLimit(v, 0.01, c, n), RiskLimit(0.5, 0.1, 0.1, 9))
        for v, c, n in ((0.1, 0.02, 50), (0.3, 0.04, 20))
    ]
    mean = average_bands(bands)
    assert logit(mean.low.value) == pytest.approx((logit(0.1) + logit(0.3)) / 2)
    assert mean.low.certified == 0.04
    assert mean.low.patients == 20
    assert mean.high == bands[0].high
    assert average_bands(bands[:1]) == bands[0]


def test_a_mean_band_is_the_strictest_where_one_certifies_nothing() -> None:
    usual = ReferralBand(RiskLimit(0.2, 0.01, 0.01, 200), RiskLimit(0.6, 0.1, 0.1, 200))
    empty = ReferralBand(RiskLimit(0.0, 0.01, 1.0, 0), RiskLimit(0.9, 0.1, 1.0, 0))
    for bands in ([usual, empty], [empty, usual]):
        mean = average_bands(bands)
        assert mean == empty
        assert not mean.is_safe(np.array([False, True]), np.array([1e-5, 0.85])).any()


@pytest.mark.parametrize("side", ["low", "high"])
def test_rounding_a_limit_decides_no_further_row(side: str) -> None:
    """Scores that agree in six digits, at both ends of the range."""
    generator = np.random.default_rng(0)
    edge = np.sort(generator.uniform(1.6e-7, 1e-6, 1000))
    scores = np.r_[1 - edge, 1 - 1.5e-7] if side == "high" else np.r_[edge + 0.1, 0.1]
    positives = np.arange(1001) == 1000 if side == "high" else np.arange(1001) < 1000
    band = fit_band(scores, positives, np.arange(1001), miss_rate=0.05, false_alarm_rate=0.05)
    limit = getattr(band, side)
    called = np.full(1000, side == "high")
    decided = band.is_safe(called, scores[:1000])
    assert limit.certified == 0.05
    assert (decided.sum() + 1) / 1001 <= 0.05
    assert side == "low" or decided.sum() == 49
