"""Comparisons: the same rows, the same draws, honest p-values."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import t, ttest_1samp

from skinmm.errors import InputError
from skinmm.evaluation.comparison import compare, find_not_inferior
from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions


def system(seed: int, skill: float, n: int = 300) -> Predictions:
    """Cohort 0 as seen by a system of this skill; patients have two lesions each."""
    cohort = np.random.default_rng(0)
    truth = cohort.random(n) < 0.3
    noise = np.random.default_rng(seed).normal(size=n)
    scores = expit(skill * (2 * truth - 1) + noise)
    return Predictions(
        image_id=np.array([f"image{i}" for i in range(n)]),
        patient_id=np.array([f"patient{i // 2}" for i in range(n)]),
        target=truth.astype(np.int64),
        probabilities=np.column_stack([1 - scores, scores]),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )


def test_better_differs_from_equal() -> None:
    files = {"good": system(1, 1.5), "bad": system(2, 0.3), "good too": system(3, 1.5)}
    result = compare(files, resamples=300)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    pairs = {(pair["a"], pair["b"]): pair for pair in result["pairs"]}
    assert set(pairs) == {("good", "bad"), ("good", "good too"), ("bad", "good too")}
    clear = pairs["good", "bad"]["metrics"]["auroc"]
    assert clear["low"] > 0
    assert clear["p"] < 1e-6  # not limited by the number of resamples
    assert clear["p_holm"] == pytest.approx(3 * clear["p"])
    assert pairs["good", "bad"]["delong"]["p"] < 1e-4
    equal = pairs["good", "good too"]["metrics"]["auroc"]
    assert equal["low"] < 0 < equal["high"]
    assert equal["p"] > 0.05
    assert result["systems"]["good"]["auroc"]["value"] == pytest.approx(
        evaluate(files["good"], resamples=0)["metrics"]["auroc"]["value"]
    )


def test_only_the_pairs_that_were_asked_for_are_paid_for() -> None:
    files = {"good": system(1, 1.5), "bad": system(2, 0.3), "good too": system(3, 1.5)}
    result = compare(files, resamples=300, against=["bad"])
    clear, other = (pair["metrics"]["auroc"] for pair in result["pairs"])
    assert [(pair["a"], pair["b"]) for pair in result["pairs"]] == [
        ("good", "bad"),
        ("bad", "good too"),
    ]
    assert clear["difference"] > 0 > other["difference"]
    assert clear["p_holm"] == pytest.approx(2 * clear["p"])


def test_a_system_equals_itself_in_any_order_of_rows() -> None:
    one = system(1, 1)
    other = one.select(np.random.default_rng(0).permutation(len(one)))
    pair = compare({"a": one, "b": other}, resamples=50)["pairs"][0]
    for entry in pair["metrics"].values():
        assert entry["difference"] == pytest.approx(0, abs=1e-12)
    assert pair["metrics"]["auroc"]["p"] == 1


def test_only_common_rows_count() -> None:
    one, other = system(1, 1), system(2, 1)
    result = compare({"a": one.select(np.arange(200)), "b": other.select(np.arange(100, 300))})
    assert result["n"] == 100
    assert result["left_out"] == {"a": 100, "b": 100}
    rows = np.arange(100, 200)
    assert result["systems"]["b"]["brier"]["value"] == pytest.approx(
        np.mean((other.malignancy[rows] - other.malignant[rows]) ** 2)
    )


def test_every_system_has_its_own_threshold() -> None:
    one = system(1, 1)
    result = compare({"a": one, "b": one}, thresholds={"b": 0.2}, resamples=20)
    found = {name: metrics["sensitivity"]["value"] for name, metrics in result["systems"].items()}
    assert found["a"] == pytest.approx((one.malignancy >= 0.5)[one.malignant].mean())
    assert found["b"] == pytest.approx((one.malignancy >= 0.2)[one.malignant].mean())


def test_p_and_interval_are_one_t_test() -> None:
    """The Brier score of patients with one row is a mean: its test is SciPy's paired t test."""
    one, other = system(1, 1.0), system(2, 0.8)
    alone = np.array([f"patient{i}" for i in range(len(one))])
    files = {"a": replace(one, patient_id=alone), "b": replace(other, patient_id=alone)}
    result = compare(files, resamples=8000)
    losses = [(file.malignancy - file.malignant) ** 2 for file in files.values()]
    expected = ttest_1samp(losses[0] - losses[1], 0)
    entry = result["pairs"][0]["metrics"]["brier"]
    assert entry["difference"] / entry["standard_error"] == pytest.approx(
        expected.statistic, rel=0.03
    )
    # The units are the malignant patients, not all rows: the tails of Student are wider.
    units = int(one.malignant.sum())
    assert result["units"] == units
    statistic = entry["difference"] / entry["standard_error"]
    assert entry["p"] == pytest.approx(2 * t.sf(abs(statistic), units - 1))
    reach = t.ppf(0.975, units - 1) * entry["standard_error"]
    assert entry["high"] - entry["difference"] == pytest.approx(reach)


def test_p_is_small_exactly_where_the_interval_excludes_zero() -> None:
    entries = [
        entry
        for seed in range(12)
        for entry in compare(
            {"a": system(2 * seed, 1, 120), "b": system(2 * seed + 1, 1.5, 120)}, resamples=60
        )["pairs"][0]["metrics"].values()
        if entry["p"] is not None
    ]
    significant = [entry["p"] < 0.05 for entry in entries]
    assert significant == [not entry["low"] <= 0 <= entry["high"] for entry in entries]
    assert 0 < sum(significant) < len(entries)


def test_not_inferior_means_that_the_interval_lies_above_the_margin() -> None:
    files = {"good": system(1, 1.5), "bad": system(2, 0.3), "good too": system(3, 1.5)}
    result = compare(files, resamples=300, against=["good"])
    bad, equal = find_not_inferior(result, 0.1, against=["good"])
    assert [bad["system"], equal["system"]] == ["bad", "good too"]
    assert bad["difference"] < -0.1
    assert bad["p"] > 0.5
    assert equal["p"] < 0.025
    assert equal["low"] > -0.1
    # At the low end of the interval as margin, the one-sided p is half of alpha.
    (edge,) = (e for e in find_not_inferior(result, -bad["low"]) if e["system"] == "bad")
    assert edge["p"] == pytest.approx(0.025)
    assert len(find_not_inferior(result, 0.1)) == 4  # both directions of each pair


def test_files_that_cannot_be_compared_raise() -> None:
    one = system(1, 1)
    with pytest.raises(InputError, match="at least two prediction files, got 1"):
        compare({"a": one})
    with pytest.raises(InputError, match="a, b have no image in common"):
        compare({"a": one, "b": replace(one, image_id=np.char.add(one.image_id, "x"))})
    flipped = replace(one, target=np.r_[1 - one.target[:1], one.target[1:]])
    with pytest.raises(InputError, match="image image0 is malignant in one of a and b"):
        compare({"a": one, "b": flipped})


def test_p_values_of_equal_systems_are_evenly_spread() -> None:
    p = [
        compare({"a": system(2 * seed, 1, 120), "b": system(2 * seed + 1, 1, 120)}, resamples=100)[
            "pairs"
        ][0]["metrics"]["auroc"]["p"]
        for seed in range(30)
    ]
    assert np.mean(p) == pytest.approx(0.5, abs=0.2)
    assert np.mean(np.array(p) < 0.1) < 0.3


def test_the_order_of_the_files_does_not_decide_who_the_patients_are() -> None:
    rng = np.random.default_rng(0)
    target = np.tile([0, 1], 20)
    images = np.array([f"i{n}" for n in range(40)])

    def rows(patients: np.ndarray) -> Predictions:
        p = expit(rng.normal(target))
        scores = np.stack([1 - p, p], axis=1)
        return Predictions(
            images, patients, target, scores, scores, ("benign", "malignant"), ("malignant",)
        )

    named, unnamed = rows(np.array([f"P{n // 4}" for n in range(40)])), rows(images)
    results = [
        compare(files, resamples=50)
        for files in ({"a": named, "b": unnamed}, {"b": unnamed, "a": named})
    ]
    assert [result["patients"] for result in results] == [10, 10]
    halves = [np.where(np.arange(40) // 20 == part, named.patient_id, images) for part in (0, 1)]
    first, second = (replace(named, patient_id=names) for names in halves)
    one, other = ({"a": first, "b": second}, {"b": second, "a": first})
    assert compare(one, resamples=20)["patients"] == compare(other, resamples=20)["patients"] == 25
    sexes = replace(named, patient_id=np.tile(["F", "M"], 20))
    with pytest.raises(InputError, match="a and b name different patients, first for image i1"):
        compare({"a": named, "b": sexes}, resamples=20)
