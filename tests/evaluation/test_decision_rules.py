"""Decision rules against closed forms of two Gaussians, scikit-learn and brute force."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from skinmm.config import read_costs
from skinmm.errors import InputError
from skinmm.evaluation.call_rules import (
    CALLS,
    FOLDS,
    CallRule,
    assign_folds,
    choose_f1_threshold,
    cross_fit_calls,
    cut_at_half,
    fit_call_rule,
    fit_pooled_thresholds,
    parse_costs,
    restore_rule,
    threshold_scores,
)
from skinmm.evaluation.comparison import compare_rules
from skinmm.evaluation.predictions import Predictions, read_predictions, write_predictions

GAP = 2.0
SHARES = [0.9, 0.1]
NONE = np.empty(0, dtype=np.int64)


def rule(name: str, shares: list[float]) -> CallRule:
    return fit_call_rule(name, np.empty((0, len(shares))), NONE, NONE, shares=shares)


def gaussians(rows: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of two Gaussians a gap apart, in their shares, and their exact probabilities."""
    counts = [round(share * rows) for share in SHARES]
    target = np.repeat([0, 1], counts)
    x = np.concatenate([norm.ppf((np.arange(n) + 0.5) / n) for n in counts]) + GAP * target
    joint = np.column_stack([share * norm.pdf(x, GAP * i) for i, share in enumerate(SHARES)])
    return target, joint / joint.sum(axis=1, keepdims=True)


def rare_classes(rows: int = 1500) -> Predictions:
    """Calibrated probabilities of four classes, two of them rare; two rows a patient."""
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet([5, 2, 1, 0.7], size=rows)
    target = (probabilities.cumsum(axis=1) < rng.random(rows)[:, None]).sum(axis=1)
    names = np.array([f"i{row}" for row in range(rows)])
    patients = np.array([f"p{row // 2}" for row in range(rows)])
    classes = ("nv", "mel", "bcc", "df")
    return Predictions(names, patients, target, probabilities, None, classes, ("mel", "bcc"))


def test_each_rule_is_the_best_at_what_it_is_for() -> None:
    target, probabilities = gaussians()
    # Calls the second class from the middle on, or from where the densities are as the shares.
    limits = {"balanced": GAP / 2, "likeliest": GAP / 2 + np.log(SHARES[0] / SHARES[1]) / GAP}
    best = {}
    for name, limit in limits.items():
        called = rule(name, SHARES).call(probabilities)
        recalls = np.array([norm.cdf(limit), norm.sf(limit, GAP)])
        found = balanced_accuracy_score(target, called), accuracy_score(target, called)
        assert found == pytest.approx((recalls.mean(), recalls @ SHARES), abs=1e-3)
        best[name] = found
    assert best["balanced"][0] > best["likeliest"][0] + 0.1
    assert best["likeliest"][1] > best["balanced"][1] + 0.05
    f1 = fit_call_rule("f1", probabilities, target, np.arange(len(target))).call(probabilities)
    scores = {name: f1_score(target, rule(name, SHARES).call(probabilities)) for name in limits}
    assert f1_score(target, f1) > max(scores.values()) + 0.005


def test_equally_frequent_classes_are_predicted_by_probability() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=500)
    for name, shares in (("balanced", [0.25] * 4), ("likeliest", [0.7, 0.1, 0.1, 0.1])):
        called = rule(name, shares).call(probabilities)
        np.testing.assert_array_equal(called, probabilities.argmax(axis=1))


def test_a_class_without_rows_is_never_predicted() -> None:
    assert rule("balanced", [0.5, 0.5, 0.0]).call(np.array([[0.2, 0.1, 0.7]])).tolist() == [0]


@pytest.mark.parametrize("digits", [1, 2, 9])
def test_the_threshold_has_the_highest_f1_of_all(digits: int) -> None:
    rng = np.random.default_rng(digits)
    for rows in (3, 20, 200):
        scores = rng.random(rows).round(digits)
        positives = rng.random(rows) < scores
        positives[0] = True
        tried = [f1_score(positives, scores >= limit) for limit in np.unique(scores)]
        threshold = choose_f1_threshold(scores, positives)
        assert f1_score(positives, scores >= threshold) == pytest.approx(max(tried))


def test_thresholds_of_f1_are_half_of_it_for_calibrated_probabilities() -> None:
    target, probabilities = gaussians(50_000)
    thresholds = fit_call_rule("f1", probabilities, target, np.arange(len(target))).divisors
    best = f1_score(target, probabilities[:, 1] >= thresholds[1])
    assert thresholds[1] == pytest.approx(best / 2, abs=0.02)


def test_thresholds_of_rare_classes_are_near_that_of_all_classes() -> None:
    rows = rare_classes()
    fit = rows.probabilities, rows.target, rows.patient_id
    seldom = np.where(rows.target == 3, 0, rows.target)
    seldom[np.flatnonzero(rows.target == 3)[0]] = 3  # a single patient
    fitted = fit_call_rule("f1", rows.probabilities, seldom, rows.patient_id).divisors
    pooled = fit_pooled_thresholds(rows.probabilities, seldom)[3]
    alone = choose_f1_threshold(rows.probabilities[:, 3], seldom == 3)
    assert abs(np.log(fitted[3] / pooled)) < abs(np.log(alone / pooled)) / 4
    assert fit_call_rule("f1", *fit).divisors != fitted


def test_pooled_thresholds_are_the_best_between_likeliest_and_balanced() -> None:
    rows = rare_classes()
    shares = np.bincount(rows.target) / len(rows)
    thresholds = fit_pooled_thresholds(rows.probabilities, rows.target)
    called = (rows.probabilities / thresholds).argmax(axis=1)
    tried = [
        f1_score(rows.target, (rows.probabilities / shares**power).argmax(axis=1), average="macro")
        for power in (0, 0.5, 1)
    ]
    assert f1_score(rows.target, called, average="macro") == pytest.approx(max(tried))
    assert tried[1] > max(tried[0], tried[2])  # neither of the two rules


def test_costs_are_the_lowest_expected_ones() -> None:
    classes = ("nv", "mel", "bcc", "df")
    given = {"mel": {"nv": 20, "bcc": 0}, "nv": {"df": 0.5}}
    costs = np.array([[0, 1, 1, 0.5], [20, 0, 0, 1], [1, 1, 0, 1], [1, 1, 1, 0]])
    assert parse_costs(given, classes) == costs.tolist()
    p = np.random.default_rng(0).dirichlet(np.ones(4), size=300)
    called = CallRule("cost", [0.25] * 4, costs.tolist()).call(p)
    expected = np.array([[sum(r[t] * costs[t, c] for t in range(4)) for c in range(4)] for r in p])
    np.testing.assert_array_equal(called, expected.argmin(axis=1))
    assert parse_costs(None, classes) is None
    assert parse_costs({"mel": {"mel": 0}}, classes) == (1 - np.eye(4)).tolist()
    mistyped = ({"mel": {"mel": 5}}, {"mel": {"nv": "x"}}, {"mel": 3}, "x")
    for wrong in ({"mole": {"nv": 1}}, {"mel": {"nv": -1}}, *mistyped):
        with pytest.raises(InputError, match=r"must be \{TRUTH: \{CALL: number\}\} .* nv, mel, bc"):
            parse_costs(wrong, classes)
    with pytest.raises(InputError, match=r"for two, set evaluation\.cost_ratio"):
        parse_costs(given, ("benign", "malignant"))


def test_costs_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "costs.yaml"
    file.write_text("mel:  # a missed melanoma\n  nv: 20\n  bkl: 20\n", encoding="utf-8")
    assert read_costs(str(file)) == {"mel": {"nv": 20, "bkl": 20}}
    assert read_costs({"mel": {"nv": 1}}) == {"mel": {"nv": 1}}
    file.write_text("20", encoding="utf-8")
    for wrong, message in ((file, "must contain TRUTH"), (tmp_path / "none.yaml", "not a YAML")):
        with pytest.raises(InputError, match=message):
            read_costs(str(wrong))


@pytest.mark.parametrize("name", CALLS)
def test_a_cut_at_half_gives_the_called_class_alone(name: str) -> None:
    rows = rare_classes()
    costs = parse_costs({"mel": {"nv": 20}}, rows.classes)
    fit = rows.probabilities, rows.target, rows.patient_id
    fitted = fit_call_rule(name, *fit, costs=costs)
    for p in (rows.probabilities, rows.probabilities.round(1), np.eye(4)):  # with ties
        called = fitted.call(p)
        halves = np.round(cut_at_half(fitted.score(p), called), 9)  # as in a file
        np.testing.assert_array_equal(halves >= 0.5, np.arange(4) == called[:, None])
        assert ((halves >= 0) & (halves <= 1)).all()


def test_a_cut_at_half_gives_the_decision_of_the_threshold() -> None:
    malignancy = np.array([0.0, 0.0099, 0.01, 0.5, 1.0])
    called = (malignancy >= 0.01).astype(np.int64)
    halves = cut_at_half(threshold_scores(malignancy, 0.01), called)
    np.testing.assert_array_equal(halves[:, 1] >= 0.5, called)
    np.testing.assert_array_equal(halves[:, 0] >= 0.5, 1 - called)
    assert (np.diff(halves[:, 1]) > 0).all()


def test_folds_separate_patients_and_spread_rare_classes() -> None:
    rows = rare_classes()
    folds = assign_folds(rows.target, rows.patient_id)
    assert all(len(set(folds[rows.patient_id == name])) == 1 for name in set(rows.patient_id))
    rare = [len(set(rows.patient_id[(folds == k) & (rows.target == 3)])) for k in range(FOLDS)]
    assert max(rare) - min(rare) <= 1
    np.testing.assert_array_equal(folds, assign_folds(rows.target, rows.patient_id))


def test_no_row_is_called_by_a_rule_that_was_fitted_to_its_patient() -> None:
    rows = rare_classes()
    fit = rows.probabilities, rows.target, rows.patient_id
    folds = assign_folds(rows.target, rows.patient_id)
    for name in ("balanced", "f1"):
        called = cross_fit_calls(name, *fit)
        for fold in range(FOLDS):
            others = folds != fold
            fitted = fit_call_rule(name, *(part[others] for part in fit))
            expected = fitted.call(rows.probabilities[~others])
            np.testing.assert_array_equal(called[~others], expected)


def test_separable_classes_are_called_correctly_by_every_rule() -> None:
    target = np.arange(60) % 3
    p = np.where(np.arange(3) == target[:, None], 0.9, 0.05)
    for name in CALLS[:3]:
        called = cross_fit_calls(name, p, target, np.arange(60) // 2)
        np.testing.assert_array_equal(called, target)


def test_the_comparison_of_rules_has_the_figures_of_scikit_learn() -> None:
    rows = rare_classes()
    fit = rows.probabilities, rows.target, rows.patient_id
    results = compare_rules(rows, costs={"mel": {"nv": 20}}, resamples=100)
    costs = np.array(parse_costs({"mel": {"nv": 20}}, rows.classes))
    assert [*results] == [*CALLS]
    for name, entries in results.items():
        called = cross_fit_calls(name, *fit, parse_costs({"mel": {"nv": 20}}, rows.classes))
        macro = f1_score(rows.target, called, average="macro")
        assert entries["macro_f1"]["value"] == pytest.approx(macro)
        accuracy = accuracy_score(rows.target, called)
        assert entries["class_accuracy"]["value"] == pytest.approx(accuracy)
        for entry in entries.values():
            assert None not in (entry["low"], entry["high"])
            assert entry["low"] < entry["value"] < entry["high"]  # type: ignore[operator]
        paid = costs[rows.target, called].mean()
        assert entries["mean_cost"]["value"] == pytest.approx(paid)
    assert min(results, key=lambda n: results[n]["mean_cost"]["value"] or 0) == "cost"
    best = {key: max(results, key=lambda n: results[n][key]["value"]) for key in results["f1"]}  # type: ignore[arg-type,return-value]
    assert best["class_accuracy"] == "likeliest"
    assert best["class_balanced_accuracy"] == "balanced"
    assert best["macro_f1"] == "f1"


def test_a_checkpoint_without_a_rule_has_that_of_its_settings() -> None:
    shares = [0.7, 0.2, 0.1]
    p = np.random.default_rng(0).dirichlet(np.ones(3), size=50)
    for name in ("likeliest", "balanced"):
        restored = restore_rule(None, name, shares)
        np.testing.assert_array_equal(restored.call(p), rule(name, shares).call(p))
    state = {"name": "f1", "divisors": [0.5, 0.2, 0.1], "costs": None}
    assert restore_rule(state, "f1", shares) == CallRule("f1", [0.5, 0.2, 0.1])


def test_scores_for_a_cut_at_half_survive_the_file(tmp_path: Path) -> None:
    rows = rare_classes(20)
    fitted = rule("likeliest", [0.25] * 4)
    called = fitted.call(rows.probabilities)
    half = cut_at_half(fitted.score(rows.probabilities), called)
    object.__setattr__(rows, "half", half)
    write_predictions(tmp_path / "p.csv", rows)
    read = read_predictions(tmp_path / "p.csv")
    assert read.half is not None
    np.testing.assert_array_equal(read.half.argmax(axis=1), called)
    np.testing.assert_array_equal(read.half >= 0.5, half >= 0.5)
