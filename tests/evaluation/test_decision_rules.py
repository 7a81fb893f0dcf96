"""The predicted class of each decision rule, against closed forms of two Gaussians."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from skinmm.evaluation.thresholds import decision_priors, predict_classes

GAP = 2.0
SHARES = (0.9, 0.1)


def gaussians(rows: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of two Gaussians a gap apart, in their shares, and their exact probabilities."""
    counts = [round(share * rows) for share in SHARES]
    target = np.repeat([0, 1], counts)
    x = np.concatenate([norm.ppf((np.arange(n) + 0.5) / n) for n in counts]) + GAP * target
    joint = np.column_stack([share * norm.pdf(x, GAP * i) for i, share in enumerate(SHARES)])
    return target, joint / joint.sum(axis=1, keepdims=True)


def test_each_rule_is_the_best_at_what_it_is_for() -> None:
    target, probabilities = gaussians()
    # Calls the second class from the middle on, or from where the densities are as the shares.
    limits = {"balanced": GAP / 2, "likeliest": GAP / 2 + np.log(SHARES[0] / SHARES[1]) / GAP}
    best = {}
    for rule, limit in limits.items():
        called = predict_classes(probabilities, decision_priors(rule, SHARES))
        recalls = np.array([norm.cdf(limit), norm.sf(limit, GAP)])
        found = balanced_accuracy_score(target, called), accuracy_score(target, called)
        assert found == pytest.approx((recalls.mean(), recalls @ SHARES), abs=1e-3)
        best[rule] = found
    assert best["balanced"][0] > best["likeliest"][0] + 0.1
    assert best["likeliest"][1] > best["balanced"][1] + 0.05


def test_equally_frequent_classes_are_predicted_by_probability() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), size=500)
    for rule, shares in (("balanced", [0.25] * 4), ("likeliest", [0.7, 0.1, 0.1, 0.1])):
        called = predict_classes(probabilities, decision_priors(rule, shares))
        np.testing.assert_array_equal(called, probabilities.argmax(axis=1))


def test_a_class_without_rows_is_never_predicted() -> None:
    shares = decision_priors("balanced", [0.5, 0.5, 0.0])
    assert predict_classes(np.array([[0.2, 0.1, 0.7]]), shares).tolist() == [0]
