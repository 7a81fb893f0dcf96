"""Columns that compare a row with the other rows of its patient (`data.relative`)."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64

from skinmm.config import DataConfig, name_relative
from skinmm.errors import InputError
from skinmm.images.measure import MEASUREMENTS
from skinmm.vocabulary import CONVERTERS

_EQUAL: Final = 1e-10  # standard deviation, as a share of the mean, that rounding alone can cause


class PatientStatistics:
    """Count, mean and sum of squared deviations of numeric columns for each patient.

    Rows are added in parts. Memory has the patients, and a number for each image with a name.

    Args:
        width: number of columns.

    Attributes:
        codes: number of each patient, from 1; 0 is for rows without a patient.
    """

    def __init__(self, width: int) -> None:
        self.codes: dict[str, int] = {}
        self._images = set[int]()
        self._moments = np.zeros((3, 1, width))

    def add(
        self,
        patients: Sequence[str | None],
        values: Float64[np.ndarray, "n width"],
        images: Sequence[str] = (),
    ) -> None:
        """Add rows; a row without a patient and a value that is not finite do not count.

        Several rows with the same patient, values and name in `images` count once.

        The moments of both parts are combined by Chan, Golub and LeVeque (1983), which unlike the
        sum of squares is accurate for large means.
        """
        for patient in patients:
            if patient is not None:
                self.codes.setdefault(patient, len(self.codes) + 1)
        patients = self._drop_copies(patients, values, images)
        if (lacking := len(self.codes) + 1 - self._moments.shape[1]) > 0:
            lacking = max(lacking, self._moments.shape[1])  # few copies of the whole
            self._moments = np.pad(self._moments, ((0, 0), (0, lacking), (0, 0)))
        codes, groups = np.unique(self._encode(patients), return_inverse=True)
        before, mean, squares = self._moments[:, codes]
        added, new_mean, new_squares = _compute_moments(values, groups, len(codes))
        share = added / np.maximum(before + added, 1)
        squares += new_squares + (new_mean - mean) ** 2 * before * share
        self._moments[:, codes] = before + added, mean + (new_mean - mean) * share, squares
        self._moments[:, 0] = 0

    def compare(
        self, patients: Sequence[str | None], values: Float64[np.ndarray, "n width"]
    ) -> Float64[np.ndarray, "n columns"]:
        """Return the columns `name_relative` of rows that were added before.

        They are the difference to the mean of the patient's other rows, and the z-score among the
        patient's rows by the standard deviation of a sample, 0 if all values are equal. They are
        NaN without a patient or a value, or if fewer than two rows (z-score: three) have a value.
        """
        number, mean, squares = self._moments[:, self._encode(patients)]
        others = np.maximum(number - 1, 1)
        deviation, scale = values - mean, np.sqrt(squares / others)
        is_equal = scale <= _EQUAL * np.abs(mean)
        score = np.where(is_equal, 0, deviation / np.where(is_equal, 1, scale))
        columns = np.stack([deviation * number / others, score], axis=2)
        columns[~np.isfinite(values)] = np.nan
        columns[np.stack([number < 2, number < 3], axis=2)] = np.nan  # noqa: PLR2004
        return columns.reshape(len(values), -1)

    def _drop_copies(
        self,
        patients: Sequence[str | None],
        values: Float64[np.ndarray, "n width"],
        images: Sequence[str],
    ) -> list[str | None]:
        """Return the patient of each row, None for a copy of a row that was added before."""
        counted = [*patients]
        for row, image in enumerate(images):
            key = hash((patients[row], image, values[row].tobytes()))
            if image and patients[row] is not None:
                counted[row] = None if key in self._images else patients[row]
                self._images.add(key)
        return counted

    def _encode(self, patients: Sequence[str | None]) -> Int64[np.ndarray, " n"]:
        codes = [0 if patient is None else self.codes.get(patient, 0) for patient in patients]
        return np.array(codes, np.int64)


def _compute_moments(
    values: Float64[np.ndarray, "n width"], groups: Int64[np.ndarray, " n"], count: int
) -> Float64[np.ndarray, "3 count width"]:
    """Return count, mean and sum of squared deviations of the finite values in each group."""
    is_finite = np.isfinite(values)
    number, total, squares = np.zeros((3, count, values.shape[1]))
    np.add.at(number, groups, is_finite)
    np.add.at(total, groups, np.where(is_finite, values, 0))
    mean = total / np.maximum(number, 1)
    np.add.at(squares, groups, np.where(is_finite, values - mean[groups], 0) ** 2)
    return np.stack([number, mean, squares])


def compare_rows(
    patients: Sequence[str | None],
    values: Float64[np.ndarray, "n width"],
    images: Sequence[str] = (),
) -> Float64[np.ndarray, "n columns"]:
    """Compare the rows of one table; see `PatientStatistics.compare`."""
    statistics = PatientStatistics(values.shape[1])
    statistics.add(patients, values, images)
    return statistics.compare(patients, values)


def add_relative(rows: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Add the columns of `data.relative` to the canonical rows of a cohort.

    Names of patients are unique within a cohort only, so that rows of `data.extra` are compared
    with each other.
    """
    names = [*dict.fromkeys(data.relative)]
    if not names:
        return rows
    _require_comparable(rows, data)
    patients = rows["cohort"].astype(str) + "\0" + rows["patient_id"].astype(str)
    columns = compare_rows(patients.tolist(), rows[names].to_numpy(np.float64))
    if np.isnan(columns).all():
        raise InputError(
            f"data.relative={names}: no patient has several rows with a number; name the patients "
            "in a column patient_id, or remove data.relative"
        )
    return rows.assign(**dict(zip(name_relative(names), columns.T, strict=True)))


def _require_comparable(rows: pd.DataFrame, data: DataConfig) -> None:
    """Raise InputError if columns cannot be compared, or parts may divide patients."""
    if data.allow_leaks:
        raise InputError(
            "data.relative compares rows of a patient, which have to be in one part of the split; "
            "remove data.allow_leaks=true or data.relative"
        )
    for name in data.relative:
        reason = "not in data.columns; add it there" if name not in data.columns else ""
        if name in CONVERTERS:
            reason = "refused: age, sex and site cannot be compared within a patient"
        elif name in MEASUREMENTS:
            reason = "measured on the image; name columns of the table"
        elif not reason and not pd.api.types.is_numeric_dtype(rows[name]):
            reason = "a column of words; name columns of numbers"
        if reason:
            raise InputError(f"data.relative: '{name}' is {reason}")
