"""Every metric against scikit-learn, torchmetrics or its definition; ties, one class, one row."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchmetrics.functional.classification as torch_metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Bool, Float64
from prediction_cases import binary, multiclass, rows, unzip, values
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from skinmm.errors import InputError
from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.metrics import describe_probabilities, evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.statistics import build_statistic


def challenge_score(
    truth: Bool[np.ndarray, " n"], scores: Float64[np.ndarray, " n"], floor: float = 0.8
) -> float:
    """The ISIC 2024 challenge's published definition: flip the curve, cut it at 1 - floor."""
    fpr, tpr, _ = sk.roc_curve(1 - truth, 1 - scores)
    cut = 1 - floor
    stop = int(np.searchsorted(fpr, cut, "right"))
    edge = np.interp(cut, fpr[stop - 1 : stop + 1], tpr[stop - 1 : stop + 1])
    return float(sk.auc(np.append(fpr[:stop], cut), np.append(tpr[:stop], edge)))


@given(rows)
def test_ranking_metrics(data: list[tuple[float, bool]]) -> None:
    scores, truth = unzip(data)
    found = values(binary(scores, truth))
    if len(set(truth)) == 1:
        assert found["auroc"] is None
        assert found["average_precision"] is None
        assert found["partial_auroc"] is None
        assert found["sensitivity_at_90_specificity"] is None
        return
    fpr, tpr, _ = sk.roc_curve(truth, scores, drop_intermediate=False)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(truth, scores), abs=1e-9)
    expected = sk.average_precision_score(truth, scores)
    assert found["average_precision"] == pytest.approx(expected, abs=1e-9)
    assert found["partial_auroc"] == pytest.approx(challenge_score(truth, scores), abs=1e-9)
    for least in (90, 95):
        best = tpr[1 - fpr >= least / 100 - 1e-9].max()
        assert found[f"sensitivity_at_{least}_specificity"] == pytest.approx(best, abs=1e-9)
        best = 1 - fpr[tpr >= least / 100 - 1e-9].min()
        assert found[f"specificity_at_{least}_sensitivity"] == pytest.approx(best, abs=1e-9)


@given(rows, st.integers(0, 20).map(lambda k: k / 20))
def test_decision_metrics(data: list[tuple[float, bool]], threshold: float) -> None:
    scores, truth = unzip(data)
    called = scores >= threshold
    found = values(binary(scores, truth), threshold=threshold)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, called), abs=1e-9)
    expected = {
        "precision": (sk.precision_score, called.any()),
        "recall": (sk.recall_score, truth.any()),
        "f1": (sk.f1_score, truth.any() or called.any()),
        "balanced_accuracy": (sk.balanced_accuracy_score, truth.any() and not truth.all()),
    }
    for name, (score, defined) in expected.items():
        assert found[name] == (pytest.approx(score(truth, called), abs=1e-9) if defined else None)
    negative = sk.recall_score(~truth, ~called) if not truth.all() else None
    assert found["specificity"] == (None if negative is None else pytest.approx(negative, abs=1e-9))
    assert found["ppv"] == pytest.approx(found["precision"])
    assert found["npv"] == (
        pytest.approx(sk.precision_score(~truth, ~called), abs=1e-9) if not called.all() else None
    )
    if threshold < 1:
        hits, alarms = (called & truth).mean(), (called & ~truth).mean()
        benefit = hits - alarms * threshold / (1 - threshold)
        assert found["net_benefit"] == pytest.approx(benefit, abs=1e-9)
    else:
        assert found["net_benefit"] is None


@given(rows)
def test_probability_metrics(data: list[tuple[float, bool]]) -> None:
    scores, truth = unzip(data)
    found = values(binary(scores, truth))
    assert found["brier"] == pytest.approx(np.mean((scores - truth) ** 2), abs=1e-9)
    assert found["log_loss"] == pytest.approx(
        sk.log_loss(truth, scores, labels=[False, True]), abs=1e-9
    )
    frequency, mean = calibration_curve(truth, scores, n_bins=15, strategy="quantile")
    edges = np.percentile(scores, np.linspace(0, 1, 16) * 100)
    counts = np.bincount(np.searchsorted(edges[1:-1], scores), minlength=15)
    expected = np.sum(np.abs(frequency - mean) * counts[counts > 0]) / len(scores)
    assert found["ece"] == pytest.approx(expected, abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(30, 300))
@settings(max_examples=20)
def test_torchmetrics_agrees(seed: int, n: int) -> None:
    generator = np.random.default_rng(seed)
    scores = np.round(generator.random(n), 3)
    truth = generator.random(n) < 0.3
    truth[:2] = True, False
    found = values(binary(scores, truth), threshold=0.4)
    p, y = torch.from_numpy(scores), torch.from_numpy(truth).long()
    expected = {
        "auroc": torch_metrics.binary_auroc(p, y),
        "average_precision": torch_metrics.binary_average_precision(p, y),
        "specificity": torch_metrics.binary_specificity(p, y, threshold=0.3999999),
        "f1": torch_metrics.binary_f1_score(p, y, threshold=0.3999999),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), abs=1e-6)


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 3), st.floats(-4, 4))
@settings(max_examples=30)
def test_calibration_line_is_a_logistic_regression(seed: int, scale: float, shift: float) -> None:
    generator = np.random.default_rng(seed)
    z = generator.normal(size=400)
    truth = generator.random(400) < expit(z)
    truth[:2] = True, False
    scores = expit(scale * z + shift)
    found = values(binary(scores, truth))
    line = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(logit(scores)[:, None], truth)
    assert found["calibration_slope"] == pytest.approx(line.coef_[0, 0], rel=1e-5)
    intercept = found["calibration_intercept"]
    assert intercept is not None
    # The likelihood equation of an intercept beside an offset.
    assert expit(logit(scores) + intercept).sum() == pytest.approx(truth.sum(), abs=1e-6)


def test_separated_classes_have_no_calibration_line() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    found = values(binary(scores, scores > 0.5))
    assert found["calibration_slope"] is None
    assert found["calibration_intercept"] == pytest.approx(0, abs=1e-9)
    assert found["auroc"] == 1
    for constant in (np.full(6, 0.5), 0.5 + 1e-6 * np.array([1, 3, 2, 2, 3, 4])):
        assert values(binary(constant, scores > 0.5))["calibration_slope"] is None


def test_values_at_the_prevalence_of_a_clinic() -> None:
    """Each value as in a file whose benign rows are repeated until the prevalence is right."""
    truth = np.repeat([True, False], [10, 40])
    scores = np.r_[np.repeat([0.9, 0.1], [8, 2]), np.repeat([0.9, 0.1], [8, 32])]
    names = np.array(["malignant", "refer", "benign"] * 2, dtype=object)
    decision = np.repeat(names, [6, 3, 1, 2, 8, 30])
    file = replace(binary(scores, truth), decision=decision)
    found = evaluate(file, threshold=0.3, prevalence=0.02, resamples=100)
    assert found["prevalence"] == 0.2
    assert found["metrics"]["ppv"]["value"] == 0.5
    clinic = {name: entry["value"] for name, entry in found["clinic"]["metrics"].items()}
    again = np.r_[np.arange(10), np.tile(np.arange(10, 50), 49)]  # 10 of 1,970 malignant
    share = 10 / 1970
    assert found["clinic"]["prevalence"] == 0.02
    ids = np.arange(len(again)).astype(str)
    many = replace(file.select(again), image_id=ids, patient_id=ids)
    repeated = evaluate(many, threshold=0.3, resamples=0)
    restated = evaluate(file, threshold=0.3, prevalence=share, resamples=0)["clinic"]["metrics"]
    for name, entry in restated.items():
        assert entry["value"] == pytest.approx(repeated["metrics"][name]["value"]), name
    ppv = 0.8 * 0.02 / (0.8 * 0.02 + 0.2 * 0.98)  # Bayes
    assert clinic["number_needed_to_treat"] == pytest.approx(1 / ppv)
    assert clinic["decided_npv"] == pytest.approx(0.98 * 0.75 / (0.98 * 0.75 + 0.02 * 0.1))
    entry = found["clinic"]["metrics"]["decided_ppv"]
    assert entry["low"] < clinic["decided_ppv"] < entry["high"]


def test_clinic_is_restated_only_where_the_prevalence_differs() -> None:
    scores = np.linspace(0, 1, 1000)
    for count, is_restated in ((9, False), (35, False), (8, True), (36, True)):
        found = evaluate(binary(scores, scores > scores[-count - 1]), resamples=0)["clinic"]
        assert (found is not None) == is_restated
    alone = evaluate(binary(scores, scores > 2), prevalence=0.1, resamples=0)
    assert alone["clinic"] is None


def test_no_error_in_the_data_is_an_exact_bound_at_the_clinic() -> None:
    truth = np.repeat([True, False], [20, 80])
    found = evaluate(binary(np.where(truth, 0.9, 0.2), truth), resamples=100, prevalence=0.05)
    entry = found["clinic"]["metrics"]["npv"]
    missed = 1 - 0.025 ** (1 / 20)  # Clopper and Pearson: none of 20
    assert entry["high"] == 1
    assert entry["low"] == pytest.approx(0.95 / (0.95 + 0.05 * missed))
    for name in ("net_benefit", "net_benefit_gain"):  # no false alarms: prevalence * sensitivity
        entry = found["clinic"]["metrics"][name]
        assert (entry["value"], entry["high"]) == pytest.approx((0.05, 0.05))
        assert entry["low"] == pytest.approx(0.05 * (1 - missed))
    everyone = evaluate(binary(np.full(100, 0.9), truth), resamples=100, prevalence=0.05)
    entry = everyone["clinic"]["metrics"]["number_needed_to_treat"]
    assert (entry["value"], entry["low"]) == pytest.approx((20, 20))  # 1 + 19 false alarms per hit
    assert entry["high"] == pytest.approx(1 + 19 / (1 - missed))


def test_the_number_needed_to_treat_has_an_interval_around_its_value() -> None:
    truth = np.repeat([True, False], [50, 200])
    scores = np.r_[np.repeat([0.9, 0.1], [40, 10]), np.repeat([0.9, 0.1], [40, 160])]
    clinic = evaluate(binary(scores, truth), resamples=300, prevalence=0.05)["clinic"]["metrics"]
    entry, ppv = clinic["number_needed_to_treat"], clinic["ppv"]
    assert 1 <= entry["low"] < entry["value"] < entry["high"]
    assert entry["low"] == pytest.approx(1 / ppv["high"])
    assert entry["high"] == pytest.approx(1 / ppv["low"])


def test_net_benefit_is_compared_with_calling_all_and_none() -> None:
    truth = np.repeat([True, False], [10, 40])
    scores = np.r_[np.repeat([0.9, 0.1], [8, 2]), np.repeat([0.9, 0.1], [8, 32])]
    for threshold, best in ((0.12, 0.2 - 0.8 * 0.12 / 0.88), (0.3, 0.0)):
        found = values(binary(scores, truth), threshold=threshold)
        gain = 0.16 - 0.16 * threshold / (1 - threshold) - best
        assert found["net_benefit_gain"] == pytest.approx(gain)
    assert values(binary(scores, truth), threshold=0.05)["net_benefit_gain"] == pytest.approx(0)


@given(rows, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_a_resample_is_its_rows_written_out(data: list[tuple[float, bool]], seed: int) -> None:
    scores, truth = unzip(data)
    generator = np.random.default_rng(seed)
    patients = generator.integers(0, 4, size=len(scores))
    predictions = binary(scores, truth, patients)
    codes, count = patient_codes(predictions.patient_id)
    draws = generator.multinomial(count, np.full(count, 1 / count))
    written = np.repeat(np.arange(len(scores)), draws[codes])
    weighted = build_statistic(predictions, codes, threshold=0.3, exact=True)(draws[None])
    plain = values(binary(scores[written], truth[written]), threshold=0.3)
    for name, value in plain.items():
        if name in ("ici", "e90"):  # their neighbourhoods are those of the data, not resampled
            continue
        expected = np.nan if value is None else value
        assert weighted[name][0] == pytest.approx(expected, abs=1e-9, nan_ok=True), name


def test_calibration_error_has_an_interval_that_knows_its_bias() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for seed in range(40):
        scores = generator.random(400) * 0.2
        truth = generator.random(400) < scores
        found = evaluate(binary(scores, truth), resamples=100, seed=seed)["metrics"]["ece"]
        assert 0 <= found["low"] <= found["value"] <= found["high"]
        covered += found["low"] == 0  # which is the truth; the value is some 0.03
    assert covered >= 35
    scores = generator.random(400)
    found = evaluate(binary(scores, np.arange(400) < 360), resamples=100)["metrics"]["ece"]
    assert found["low"] > 0.2


def test_result_is_plain_and_repeatable() -> None:
    predictions = multiclass(1)
    result = evaluate(predictions, threshold=0.4, resamples=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["auroc_delong"]["value"] == pytest.approx(result["metrics"]["auroc"]["value"])
    order = np.random.default_rng(0).permutation(len(predictions))
    again = evaluate(predictions.select(order), threshold=0.4, resamples=50)
    assert again["metrics"]["auroc"]["value"] == pytest.approx(result["metrics"]["auroc"]["value"])
    assert evaluate(predictions, threshold=0.4, resamples=50) == result


def test_folds_are_pooled_and_reported() -> None:
    predictions = multiclass(2)
    folds = np.arange(len(predictions)) % 3
    pooled = Predictions(**{**vars(predictions), "fold": folds})
    result = evaluate(pooled, resamples=0)
    rows = folds == 1
    expected = sk.roc_auc_score(pooled.malignant[rows], pooled.malignancy[rows])
    assert result["folds"]["1"] == pytest.approx(expected)
    assert result["metrics"] == evaluate(predictions, resamples=0)["metrics"]


def test_numbers_out_of_range_raise() -> None:
    predictions = multiclass(0)
    with pytest.raises(InputError, match=r"threshold 1\.5 is outside"):
        evaluate(predictions, threshold=1.5)
    with pytest.raises(InputError, match="prevalence"):
        evaluate(predictions, prevalence=-0.1)
    with pytest.raises(InputError, match="no rows"):
        evaluate(predictions.select(np.zeros(len(predictions), dtype=bool)))


def test_an_overconfident_system_has_a_slope_where_newton_overshoots() -> None:
    scores = np.r_[expit(np.linspace(-6, -1, 100)), np.ones(10)]
    truth = np.r_[np.arange(100) >= 98, np.arange(10) < 5]
    inside = logit(np.clip(scores, 0, 1 - np.finfo(np.float64).eps))
    line = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000).fit(inside[:, None], truth)
    found = values(binary(scores, truth))["calibration_slope"]
    assert found == pytest.approx(line.coef_[0, 0], rel=1e-6)


def test_groups_of_similar_probability_have_wilson_s_interval() -> None:
    scores = np.random.default_rng(0).permutation(200) / 200
    rows = binary(scores, scores > 0.5, np.arange(200) // 2)
    groups = describe_probabilities(rows)
    assert groups["rows"] == [20] * 10
    assert sum(groups["positives"]) == rows.malignant.sum()
    assert groups["last"] == pytest.approx(np.arange(1, 11) / 10 - 0.005)
    middle = (scores >= 0.5) & (scores < 0.6)  # of 20 rows 19 are malignant
    patients = len(set(rows.patient_id[middle]))
    bound = binomtest(round(0.95 * patients), patients).proportion_ci(method="wilson").low
    assert groups["low"][5] == pytest.approx(bound)
