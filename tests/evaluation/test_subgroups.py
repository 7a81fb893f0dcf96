"""Groups divide the rows; a planted gap in sensitivity is found with its interval."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skinmm.evaluation.metrics import evaluate
from skinmm.evaluation.predictions import Predictions
from skinmm.evaluation.subgroups import (
    Group,
    build_groups,
    evaluate_subgroups,
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
    gaps = sensitivity_gaps(predictions, groups, threshold=0.5, resamples=300)
    assert [gap["column"] for gap in gaps] == ["sex", "age"]
    sex, age = gaps
    assert (sex["lowest"], sex["highest"]) == ("male", "female")
    measured = evaluate_subgroups(predictions, groups[:2], threshold=0.5, resamples=0)
    women, men = (entry["metrics"]["sensitivity"]["value"] for entry in measured)
    assert sex["value"] == pytest.approx(women - men)
    assert 0 < sex["low"] < 0.3 < sex["high"]
    assert age["low"] < 0.1
    assert "not known" not in (age["lowest"], age["highest"])


def test_groups_of_few_malignant_rows_have_no_gap() -> None:
    predictions, _ = cohort()
    few = np.arange(len(predictions)) < 5
    groups = [Group("site", "torso", few), Group("site", "head/neck", ~few)]
    assert sensitivity_gaps(predictions, groups, threshold=0.5) == []
