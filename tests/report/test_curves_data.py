"""Points of curves against scikit-learn, SciPy and the definition, on real probabilities."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import fitted
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, roc_auc_score

from skinmm.report.figures.curves import (
    net_benefit_lines,
    precision_line,
    reliability_line,
    roc_line,
)

Rows = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def rows() -> Rows:
    table = fitted()
    return table["p_malignant"].to_numpy(), table["target"].to_numpy(bool)


def test_roc_encloses_the_area_that_its_name_says(rows: Rows) -> None:
    line = roc_line("x", *rows)
    area = roc_auc_score(rows[1], rows[0])
    assert np.trapezoid(line.y, line.x) == pytest.approx(area, abs=1e-12)
    assert line.name == f"x ({area:.3f})"


def test_precision_steps_add_up_to_average_precision(rows: Rows) -> None:
    line = precision_line("x", *rows)
    steps = np.diff(line.x, prepend=0)
    assert np.sum(steps * line.y) == pytest.approx(average_precision_score(rows[1], rows[0]))


def test_reliability_bins_are_those_of_scikit_learn(rows: Rows) -> None:
    scores = rows[0] + np.linspace(0, 1e-9, len(rows[0]))  # without ties the bins are unambiguous
    line = reliability_line("x", scores, rows[1])
    observed, mean = calibration_curve(rows[1], scores, n_bins=10, strategy="quantile")
    np.testing.assert_allclose(line.x, mean, atol=1e-12)
    np.testing.assert_allclose(line.y, observed, atol=1e-12)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.7]), min_size=1, max_size=60))
def test_reliability_keeps_ties_together(values: list[float]) -> None:
    scores = np.array(values)
    line = reliability_line("x", scores, scores > 0.5)
    assert len(line.x) <= len(set(values))
    np.testing.assert_allclose(line.y, line.x > 0.5)


def test_net_benefit_is_its_definition(rows: Rows) -> None:
    scores, malignant = rows
    model, everyone, nobody = net_benefit_lines(scores, malignant)
    assert not nobody.y.any()
    for place in (0, 50, 120, 199):
        threshold = model.x[place]
        odds = threshold / (1 - threshold)
        for line, flagged in ((model, scores >= threshold), (everyone, np.full(700, True))):
            benefit = np.mean(flagged & malignant) - np.mean(flagged & ~malignant) * odds
            assert line.y[place] == pytest.approx(benefit, abs=1e-12)
