"""Groups divide the rows; a planted gap in sensitivity is found with its interval."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, fisher_exact, norm

from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.subgroups import (
    Group,
    _widest_gap,
    build_groups,
    evaluate_subgroups,
    heterogeneity_p,
    sensitivity_gaps,
)


def cohort(n: int = 600) -> tuple[Predictions, pd.DataFrame]:
    """Melanomas of women are found in 90 of 100 cases, those of men in 60; age does not matter."""
    generator = np.random.default_rng(0)
    sex = np.where(generator.random(n) < 0.5, "female", "male")
    malignant = generator.random(n) < 0.4
    found = generator.random(n) < np.where(sex == "female", 0.9, 0.6)
    scores = np.where(malignant, np.where(found, 0.8, 0.2), np.where(found, 0.1, 0.6))
    records = pd.DataFrame({"sex": sex, "age": generator.integers(20, 90, size=n).astype(float)})
    records.loc[:9, "age"] = np.nan
    records["width"], records["height"] = np.where(malignant, 640.0, 1024.0), 480.0
    predictions = Predictions(
        image_id=np.arange(n).astype(str),
        patient_id=(np.arange(n) // 2).astype(str),
        target=malignant.astype(np.int64),
        probabilities=np.column_stack([1 - scores, scores]),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )
    return predictions, records


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "sex": st.sampled_from(("female", "male", None)),
                "age": st.one_of(st.none(), st.floats(0, 110)),
                "site": st.one_of(st.none(), st.text("abcdefghij", min_size=1, max_size=1)),
                "width": st.one_of(st.none(), st.sampled_from((640.0, 1024.0))),
                "height": st.just(480.0),
            }
        ),
        min_size=1,
        max_size=30,
    )
)
def test_groups_of_a_column_divide_the_rows(records: list[dict[str, object]]) -> None:
    groups = build_groups(pd.DataFrame(records))
    for column in {group.column for group in groups}:
        masks = np.array([group.rows for group in groups if group.column == column])
        assert len(masks) > 1
        assert masks.any(axis=1).all()
        np.testing.assert_array_equal(masks.sum(axis=0), 1)


def test_age_bands_and_sizes_are_named() -> None:
    records = pd.DataFrame({"age": [39.9, 40.0, np.nan], "width": [640.0, 640.0, None]})
    records["height"] = 480.0
    names = [(group.column, group.name) for group in build_groups(records)]
    assert names == [
        ("age", "under 40"),
        ("age", "40 to 59"),
        ("age", "not known"),
        ("image size", "640x480"),
        ("image size", "not known"),
    ]


def test_each_group_is_evaluated_alone() -> None:
    predictions, records = cohort()
    groups = build_groups(records)
    found = evaluate_subgroups(predictions, groups, threshold=0.5, resamples=0)
    assert [entry["group"] for entry in found[:2]] == ["female", "male"]
    women = predictions.select((records["sex"] == "female").to_numpy())
    expected = evaluate(women, threshold=0.5, resamples=0)
    assert found[0] == {"column": "sex", "group": "female", **expected}
    wide = next(entry for entry in found if entry["group"] == "1024x480")
    assert wide["metrics"]["auroc"]["value"] is None


def test_gap_is_the_planted_one() -> None:
    predictions, records = cohort()
    groups = build_groups(records)
    gaps = sensitivity_gaps(predictions, groups, threshold=0.5)
    assert [gap["column"] for gap in gaps] == ["sex", "age"]
    sex, age = gaps
    assert (sex["lowest"], sex["highest"]) == ("male", "female")
    measured = evaluate_subgroups(predictions, groups[:2], threshold=0.5, resamples=0)
    women, men = (entry["metrics"]["sensitivity"]["value"] for entry in measured)
    assert sex["value"] == pytest.approx(women - men)
    assert 0 < sex["low"] < 0.3 < sex["high"]
    assert sex["p_holm"] == pytest.approx(2 * sex["p"])
    assert sex["p"] < 0.001
    assert age["low"] < 0 < age["high"]
    assert age["p"] > 0.05
    assert age["groups"] == 4
    assert "not known" not in (age["lowest"], age["highest"])


def test_groups_of_few_malignant_rows_have_no_gap() -> None:
    predictions, _ = cohort()
    few = np.arange(len(predictions)) < 5
    groups = [Group("site", "torso", few), Group("site", "head/neck", ~few)]
    assert sensitivity_gaps(predictions, groups, threshold=0.5) == []


def lesions(seed: int, rates: tuple[float, ...], count: int) -> tuple[np.ndarray, ...]:
    """Draw hits, patients of one lesion, and the masks of groups of equal size."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(rates)), count)
    hits = generator.random(len(group)) < np.array(rates)[group]
    return hits, np.arange(len(group)), group == np.arange(len(rates))[:, None]


def test_permutation_test_agrees_with_pearson_and_fisher() -> None:
    hits, patients, masks = lesions(0, (0.9, 0.8, 0.75), 200)
    table = [masks @ hits.astype(int), masks @ (~hits).astype(int)]
    expected = chi2_contingency(table, correction=False).pvalue
    found = heterogeneity_p(hits, patients, masks, 20_000, 0)
    assert found == pytest.approx(expected, abs=0.012)
    hits, patients, masks = lesions(3, (0.95, 0.6), 12)
    table = [masks @ hits.astype(int), masks @ (~hits).astype(int)]
    found = heterogeneity_p(hits, patients, masks, 20_000, 0)
    assert found == pytest.approx(fisher_exact(table).pvalue, abs=0.012)


def test_two_groups_have_the_interval_of_agresti_and_caffo() -> None:
    hits, patients, masks = lesions(1, (0.9, 0.7), 40)
    predictions = Predictions(
        image_id=patients.astype(str),
        patient_id=patients.astype(str),
        target=np.ones(len(hits), dtype=np.int64),
        probabilities=np.column_stack([~hits, hits]).astype(np.float64),
        raw=None,
        classes=("benign", "malignant"),
        positive=("malignant",),
    )
    groups = [Group("site", str(index), rows) for index, rows in enumerate(masks)]
    (gap,) = sensitivity_gaps(predictions, groups, threshold=0.5)
    x, n, z = masks @ hits.astype(int), masks.sum(axis=1), norm.ppf(0.975)
    p = (x + z**2 / 4) / (n + z**2 / 2)
    half = z * np.sqrt((p * (1 - p) / (n + z**2 / 2)).sum())
    assert gap["low"] == pytest.approx(p[0] - p[1] - half, abs=1e-4)
    assert gap["high"] == pytest.approx(p[0] - p[1] + half, abs=1e-4)


def test_patients_of_many_lesions_are_one_observation_each() -> None:
    """Lesions of a patient that share one result prove no more than one lesion."""
    hits, patients, masks = lesions(5, (0.95, 0.55), 12)
    alone = heterogeneity_p(hits, patients, masks, 20_000, 0)
    hits, patients, masks = (np.repeat(array, 5, axis=-1) for array in (hits, patients, masks))
    assert heterogeneity_p(hits, patients, masks, 20_000, 0) == pytest.approx(alone, abs=0.01)


def test_without_a_gap_few_columns_show_one() -> None:
    p, excluded = [], 0
    for seed in range(200):
        hits, patients, masks = lesions(seed, (0.9,) * 5, 30)
        p.append(heterogeneity_p(hits, patients // 2, masks, 200, seed))
        found = _widest_gap(hits, patients // 2, masks, [*"abcde"], 0.95)
        excluded += found["low"] > 0
    assert np.mean(np.array(p) < 0.05) < 0.09  # three standard errors above 0.05
    assert np.mean(np.array(p) < 0.5) > 0.35
    assert excluded / 200 < 0.09
