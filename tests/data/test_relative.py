"""Columns relative to the patient: against pandas and by hand, in parts, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from skinmm.config import DataConfig
from skinmm.data.cohorts import load_cohort
from skinmm.data.relative import PatientStatistics, compare_rows
from skinmm.errors import InputError


def test_by_hand() -> None:
    patients = ["a", "b", "a", "a", None, "c", "c", "d", "d", "d"]
    values = np.array([[1, 5, 4, 10, 7, 2, 8, 0.1, 0.1, 0.1]]).T
    difference, score = compare_rows(patients, values).T
    nan = np.nan
    np.testing.assert_allclose(difference[:7], [1 - 7, nan, 4 - 5.5, 10 - 2.5, nan, -6, 6])
    spread = np.sqrt(21)  # of 1, 4 and 10, around 5
    np.testing.assert_allclose(
        score[:7], [-4 / spread, nan, -1 / spread, 5 / spread, nan, nan, nan]
    )
    np.testing.assert_allclose(difference[7:], 0, atol=1e-15)
    assert score[7:].tolist() == [0, 0, 0]  # equal values, also if their mean is rounded


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_against_pandas_in_any_number_of_parts(parts: int) -> None:
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"patient": [f"P{n}" for n in rng.integers(0, 60, 200)]})
    values = np.stack([rng.normal(1e6, 1, 200), rng.exponential(size=200)], axis=1)
    values[rng.random((200, 2)) < 0.2] = np.nan
    table[["x", "y"]] = values
    groups = table.groupby("patient")[["x", "y"]]
    count, mean = groups.transform("count"), groups.transform("mean")
    others = (groups.transform("sum") - table[["x", "y"]]) / (count - 1)
    expected = {
        "difference": (table[["x", "y"]] - others).where(count > 1),
        "score": ((table[["x", "y"]] - mean) / groups.transform("std")).where(count > 2),
    }
    statistics = PatientStatistics(2)
    for rows in np.array_split(np.arange(200), parts):
        statistics.add(table["patient"].iloc[rows].tolist(), values[rows])
    columns = statistics.compare(table["patient"].tolist(), values)
    assert np.isfinite(columns).sum() > 400
    for number, name in enumerate(("x", "y")):
        for step, kind in enumerate(expected):
            actual = columns[:, 2 * number + step]
            np.testing.assert_allclose(actual, expected[kind][name], rtol=1e-6, atol=1e-9)
    assert np.isnan(statistics.compare(["new", None], np.ones((2, 2)))).all()


def test_a_copy_of_a_row_does_not_count() -> None:
    patients, images = ["a", "a", "a", "b", None], ["I0", "I1", "I2", "I3", "I4"]
    values = np.array([[1.0, 4, 10, 2, 3]]).T
    expected = compare_rows(patients, values)
    twice = compare_rows(patients * 2, np.tile(values, (2, 1)), images * 2)
    np.testing.assert_array_equal(twice, np.tile(expected, (2, 1)))
    statistics = PatientStatistics(1)
    for _ in range(3):
        statistics.add(patients, values, images)
    np.testing.assert_array_equal(statistics.compare(patients, values), expected)
    # Without a name, or with another value, a row is another one.
    others = compare_rows(["b", "b", "b"], np.array([[2.0, 2, 5]]).T, ["", "", "I3"])
    np.testing.assert_allclose(others[:, 0], [-1.5, -1.5, 3])


def write_cohort(folder: Path, **columns: Any) -> DataConfig:
    table = pd.DataFrame(
        {
            "image_id": [f"I{n}" for n in range(12)],
            "patient_id": [f"P{n // 3}" for n in range(12)],
            "target": [n % 2 for n in range(12)],
            "age": 50,
            "area": [f"{n * n}.5 mm2" for n in range(12)],
            "grade": list("abc") * 4,
        }
    )
    table.assign(**columns).to_csv(folder / "cohort.csv", index=False)
    settings = {"columns": ["age", "area", "grade"], "relative": ["area"]}
    return DataConfig(name="csv", root=str(folder), **settings)  # type: ignore[arg-type]


def test_a_cohort_has_the_columns_also_of_rows_without_a_target(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, target=[0, None, 1, *[0, 1] * 4, 0])
    data.missing = "drop"
    rows = load_cohort(data).rows
    assert len(rows) == 11
    area = np.arange(12.0) ** 2 + 0.5
    expected = compare_rows([f"P{n // 3}" for n in range(12)], area[:, None])[np.arange(12) != 1]
    actual = rows[["area difference within patient", "area z-score within patient"]]
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"relative": ["depth"]}, "'depth' is not in data.columns"),
        ({"relative": ["age"]}, "'age' is refused: age, sex and site cannot be compared"),
        ({"relative": ["grade"]}, "'grade' is a column of words"),
        ({"allow_leaks": True}, "remove data.allow_leaks=true"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    data = write_cohort(tmp_path)
    for name, value in settings.items():
        setattr(data, name, value)
    with pytest.raises(InputError, match=message):
        load_cohort(data)


def test_a_cohort_without_patients_is_refused(tmp_path: Path) -> None:
    data = write_cohort(tmp_path, patient_id=None)
    with pytest.raises(InputError, match="no patient has several rows with a number"):
        load_cohort(data)
