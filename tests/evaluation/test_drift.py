"""Distributions kept as counts, and how far rows are from them."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, entropy

from skinmm.evaluation.drift import compare_columns, describe_columns, stability_index

SEXES = pd.DataFrame({"sex": ["female"] * 3 + ["male"] * 5 + [None] * 2})


def test_values_are_counted_with_what_is_other_and_what_is_missing() -> None:
    kept = describe_columns(SEXES, ["sex"])
    assert kept == {"sex": {"values": ["female", "male"], "counts": [3, 5, 0, 2]}}
    now = pd.DataFrame({"sex": ["female", "none of these", None]})
    (shift,) = compare_columns(kept, now)
    assert shift.labels == ("female", "male", "other", "missing")
    assert shift.now.tolist() == [1, 0, 1, 1]


def test_numbers_are_divided_at_their_deciles() -> None:
    ages = pd.DataFrame({"age": [*np.arange(100.0), np.nan]})
    kept = describe_columns(ages, ["age"])
    assert kept["age"]["counts"] == [10] * 10 + [1]
    (shift,) = compare_columns(kept, ages)
    assert shift.index == 0
    assert shift.p == pytest.approx(1)
    (moved,) = compare_columns(kept, ages + 50)
    assert moved.index > 0.25
    assert moved.p is not None
    assert moved.p < 1e-6


def test_no_p_value_with_too_few_rows_for_the_test() -> None:
    kept = describe_columns(SEXES.sample(500, replace=True, random_state=0), ["sex"])
    for rows, is_tested in ((5, False), (60, True)):
        (shift,) = compare_columns(kept, SEXES.sample(rows, replace=True, random_state=1))
        assert (shift.p is not None) == is_tested


def test_rare_cells_are_pooled_before_the_test() -> None:
    kept = {"kind": {"values": ["a", "b", "c"], "counts": [300, 296, 4, 0, 0]}}
    now = pd.DataFrame({"kind": ["a"] * 30 + ["b"] * 28 + ["c"] * 2})
    (shift,) = compare_columns(kept, now)
    expected = chi2_contingency([[300, 300], [30, 30]], correction=False).pvalue
    assert shift.p == pytest.approx(expected)


def test_a_column_without_values_is_accepted() -> None:
    kept = describe_columns(pd.DataFrame({"age": [np.nan, np.nan]}), ["age"])
    (shift,) = compare_columns(kept, pd.DataFrame({"age": [5.0]}))
    assert shift.labels == ("any", "missing")
    assert compare_columns(kept, pd.DataFrame({"sex": ["male"]})) == []


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12))
def test_the_index_is_both_divergences(pairs: list[tuple[int, int]]) -> None:
    before, now = np.array(pairs).T
    first, second = before + 0.5, now + 0.5  # entropy scales them to one
    expected = entropy(first, second) + entropy(second, first)
    assert stability_index(before, now) == pytest.approx(expected, abs=1e-12)
