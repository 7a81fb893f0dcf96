"""Dice and Jaccard: identities, plain NumPy, and what a patient's several pictures do."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, jaccard_score

from skinmm.segmentation.results import mean_overlaps, overlaps


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=5)
def test_dice_is_f1_and_jaccard_is_jaccard(seed: int) -> None:
    one, other = np.random.default_rng(seed).random((2, 5, 40)) > 0.5
    areas = [(one & other).sum(axis=1), one.sum(axis=1), other.sum(axis=1)]
    scores = overlaps(*(area.astype(np.float64) for area in areas))
    for row, score in scores.iterrows():
        place = int(str(row))
        assert score["dice"] == pytest.approx(f1_score(other[place], one[place]))
        assert score["jaccard"] == pytest.approx(jaccard_score(other[place], one[place]))
    np.testing.assert_allclose(scores["jaccard"], scores["dice"] / (2 - scores["dice"]))


def test_empty_masks_fit_and_foreign_ones_do_not() -> None:
    zero, five = np.zeros(1), np.array([5.0])
    assert overlaps(zero, zero, zero).to_numpy().tolist() == [[1, 1]]
    assert overlaps(zero, five, five).to_numpy().tolist() == [[0, 0]]
    assert overlaps(zero, zero, five).to_numpy().tolist() == [[0, 0]]


def test_means_are_over_pictures_and_intervals_over_patients() -> None:
    values = np.random.default_rng(0).uniform(0.8, 1, 40)
    scores = pd.DataFrame({"dice": values.repeat(5)})

    def told(patients: np.ndarray) -> dict[str, float]:
        return mean_overlaps(scores, patients, resamples=400, confidence=0.95)["metrics"]["dice"]

    together, apart = told(np.arange(40).repeat(5)), told(np.arange(200))
    for entry in (together, apart):
        assert entry["value"] == pytest.approx(values.mean())
        assert entry["low"] < entry["value"] < entry["high"]
    # Five equal pictures of a patient say no more than one.
    error = values.std(ddof=1) / np.sqrt(40)
    assert together["high"] - together["low"] == pytest.approx(4 * error, rel=0.2)
    assert apart["high"] - apart["low"] < 0.6 * (together["high"] - together["low"])


def test_without_resamples_or_with_one_patient_there_is_no_interval() -> None:
    scores = pd.DataFrame({"dice": [0.5, 0.7]})
    for patients, resamples in ((["a", "b"], 0), (["a", "a"], 50)):
        told = mean_overlaps(scores, np.array(patients), resamples=resamples, confidence=0.95)
        assert told["n"] == 2
        entry = told["metrics"]["dice"]
        assert (entry["value"], entry["low"], entry["high"]) == (pytest.approx(0.6), None, None)
