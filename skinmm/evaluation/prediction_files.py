"""Parser of prediction files: converts the text of a table to checked arrays."""

from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm.errors import InputError, format_count
from skinmm.evaluation.other_formats import TableFormat, explain_numbers, suggest_columns
from skinmm.evaluation.prediction_tables import TRUTH, join_labels, read_tables
from skinmm.vocabulary import MALIGNANT, UNITS, name_units, parse_diagnosis, parse_target

BINARY: Final = ("benign", "malignant")
REFER: Final = "refer"
DECISIONS: Final = (*BINARY, REFER)
EMPTY: Final = "none"
"""Text of a prediction set without a class."""
SUM_TOLERANCE: Final = 0.01
"""Allowed difference of a row's sum of probabilities from 1: some systems round to few digits."""


_Mask = Bool[np.ndarray, " n"]


class PredictionFile:
    """Table of a prediction file, with methods that check and parse its columns.

    All methods raise `InputError`, which names the file, the column and the first faulty row. Rows
    without a prediction are excluded and counted in `unpredicted`.

    Args:
        path: the file; an image may have only one row.
        labels: a second table with the truth, joined by image.
        form: what the headers of another system's tables do not state.
    """

    def __init__(
        self,
        path: Path | str,
        labels: Path | str | None = None,
        form: TableFormat | None = None,
    ) -> None:
        self.path, self.truth_path, self._form = path, labels or path, form
        table, truth = read_tables(path, labels, form)
        if labels is not None and truth is not None:
            table = join_labels(table, truth, path, labels)
        failed = pd.Series(False, index=table.index)
        if "error" in table:
            failed = table["error"].notna() & table.filter(regex="^p_").isna().all(axis=1)
        self.table, self.unpredicted = table[~failed], int(failed.sum())
        if self.table.empty:
            raise InputError(f"{path}: no row has a prediction")
        repeated = self.table["image_id"].duplicated()
        if repeated.any():
            name = self.table["image_id"][repeated].iloc[0]
            rows = ", ".join(map(str, self.table.index[self.table["image_id"] == name] + 2))
            raise InputError(f"{path}: image {name} is in rows {rows}; keep one")

    def parse_probabilities(self) -> tuple[tuple[str, ...], Float64[np.ndarray, "n c"]]:
        """Return classes and probabilities; a binary file needs only `p_malignant`."""
        columns = list(self.table.columns)
        classes = tuple(name[2:] for name in columns if name.startswith("p_"))
        if set(classes) <= {"malignant"}:
            column = "p_malignant" if classes else "malignancy"
            if column not in self.table:
                raise InputError(
                    f"{self.path} has no probabilities: it needs p_malignant, or one column "
                    f"p_<class> per class; columns found: {', '.join(columns)}{self._suggest()}"
                )
            malignancy = self._parse_numbers([column])
            return BINARY, np.hstack([1 - malignancy, malignancy])
        if len(classes) == 1:
            raise InputError(f"{self.path} has one class only, {classes[0]}; add the other classes")
        classes = BINARY if set(classes) == set(BINARY) else classes
        return classes, self._parse_distribution([f"p_{name}" for name in classes])

    def parse_raw(self, classes: tuple[str, ...]) -> Float64[np.ndarray, "n c"] | None:
        """Return the probabilities before calibration, or None if the file lacks one."""
        columns = [f"raw_{name}" for name in classes]
        return self._parse_distribution(columns) if set(columns) <= set(self.table) else None

    def parse_half(self, classes: tuple[str, ...]) -> Float64[np.ndarray, "n c"] | None:
        """Return the columns `half_<class>`, or None if the file lacks any of them."""
        columns = [f"half_{name}" for name in classes]
        return self._parse_numbers(columns) if set(columns) <= set(self.table) else None

    def parse_truth(self) -> "pd.Series[str]":
        """Return the text of `target`, or else of `diagnosis`, for every row."""
        column = next((name for name in TRUTH if name in self.table), None)
        if column is None:
            raise InputError(
                f"{self.truth_path} has no column target; give labels=LABELS.csv{self._suggest()}"
            )
        empty = self.table[column].isna()
        if empty.any():
            raise InputError(
                f"{self.truth_path}: {self._name_row(empty)}: no {column} "
                f"({format_count(int(empty.sum()), 'row')} in all); label such rows or remove them"
            )
        return self.table[column].astype(str).str.strip()

    def parse_targets(
        self, words: "pd.Series[str]", classes: tuple[str, ...]
    ) -> Int64[np.ndarray, " n"]:
        """Return the index of the true class of each row, from the result of `parse_truth`."""
        indices = _find_classes(words, classes)
        bad = indices.isna()
        if bad.any():
            allowed = "0, 1, benign, malignant" if classes == BINARY else ", ".join(classes)
            raise InputError(
                f"{self.truth_path}: {self._name_row(bad)}: target {words[bad].iloc[0]!r} is "
                f"not one of {allowed}; recode the column"
            )
        return indices.to_numpy(dtype=np.int64)

    def parse_folds(self) -> Int64[np.ndarray, " n"] | None:
        """Return the fold in which each row was tested."""
        if "fold" not in self.table:
            return None
        folds = pd.to_numeric(self.table["fold"], errors="coerce")
        self._require("fold", ~(folds % 1 == 0), "is not a whole number")
        return folds.to_numpy(dtype=np.int64)

    def parse_images(self) -> Shaped[np.ndarray, " n"] | None:
        """Return the images of each lesion, as listed by `predict.py`, in a file of lesions."""
        if not {"lesion_id", "images"} <= {*self.table}:
            return None
        return self.table["images"].to_numpy(dtype=object)

    def parse_units(self) -> Shaped[np.ndarray, " n"]:
        """Return the patient of each row, or else its lesion, or else its image."""
        units = self.table["unit"] if "unit" in self.table else pd.Series(dtype=object)
        if units.empty or not units.isin(UNITS).all():  # of another system, with another meaning
            units = name_units(self.table)
        return units.to_numpy(dtype=object)

    def parse_decisions(self) -> Shaped[np.ndarray, " n"] | None:
        """Return the decision of each row."""
        if not self._has_values("decision"):
            return None
        words = self.table["decision"].str.strip().str.lower()
        reason = (
            f"is not one of {', '.join(DECISIONS)}; rename the column if it means something else"
        )
        self._require("decision", ~words.isin(DECISIONS), reason)
        return words.to_numpy(dtype=object)

    def parse_sources(self) -> Shaped[np.ndarray, " n"] | None:
        """Return the source of each row, None where empty."""
        if not self._has_values("source"):
            return None
        cells = self.table["source"].astype(object)
        return cells.where(cells.notna(), None).to_numpy(dtype=object)

    def parse_sets(self, classes: tuple[str, ...]) -> Bool[np.ndarray, "n c"] | None:
        """Return a mask of the classes in the prediction set of each row."""
        if not self._has_values("prediction_set"):
            return None
        codes, texts = pd.factorize(self.table["prediction_set"].fillna(""))
        empty = () if EMPTY in classes else (EMPTY,)
        sets = [set() if text in empty else set(text.split("|")) for text in texts]
        bad = np.array([not names <= set(classes) for names in sets])[codes]
        reason = f"is not made of {', '.join(classes)} with | between, or {EMPTY}"
        self._require("prediction_set", bad, reason)
        return np.array([[name in names for name in classes] for names in sets], dtype=bool)[codes]

    def parse_ood(self) -> Float64[np.ndarray, " n"] | None:
        """Return the OOD score of each row, NaN where empty."""
        if not self._has_values("ood"):
            return None
        values = pd.to_numeric(self.table["ood"], errors="coerce").to_numpy(dtype=np.float64)
        bad = self.table["ood"].notna().to_numpy() & ~((values >= 0) & (values < np.inf))
        reason = "is not a number from 0 up, where 1 is the limit"
        self._require("ood", bad, f"{reason}; rename the column if it means something else")
        return values

    def parse_called(
        self, classes: tuple[str, ...], probabilities: Float64[np.ndarray, "n c"]
    ) -> Int64[np.ndarray, " n"] | None:
        """Return the index of each row's predicted class, by default the most probable one.

        None for two classes, which a threshold decides, and for a column that names no class.
        """
        if classes == BINARY or "called" not in self.table:
            return None
        words = self.table["called"].fillna("").str.strip()
        indices = _find_classes(words, classes)
        if indices.isna().all():
            return None
        reason = f"is not one of {', '.join(classes)}; rename or drop the column"
        self._require("called", indices.isna() & (words != ""), reason)
        most_probable = probabilities.argmax(axis=1)
        return np.where(indices.isna(), most_probable, indices).astype(np.int64)

    def _suggest(self) -> str:
        has_labels, has_setting = self.truth_path != self.path, self._form is not None
        return suggest_columns(self.table, has_labels=has_labels, has_setting=has_setting)

    def _has_values(self, column: str) -> bool:
        return column in self.table and not self.table[column].isna().all()

    def _parse_distribution(self, columns: list[str]) -> Float64[np.ndarray, "n c"]:
        values = self._parse_numbers(columns)
        totals = values.sum(axis=1)
        bad = np.abs(totals - 1) > SUM_TOLERANCE
        if bad.any():
            sums = f"{' + '.join(columns)} is {totals[bad][0]:.6g}, not 1"
            advice = explain_numbers(self.table[columns])
            raise InputError(f"{self.path}: {self._name_row(bad)}: {sums}{advice}")
        return values

    def _parse_numbers(self, columns: list[str]) -> Float64[np.ndarray, "n k"]:
        values = np.empty((len(self.table), len(columns)))
        for i, name in enumerate(columns):
            values[:, i] = pd.to_numeric(self.table[name], errors="coerce")
            bad = ~((values[:, i] >= 0) & (values[:, i] <= 1))
            if bad.any():
                count = format_count(int(bad.sum()), "row")
                reason = f"is not a probability in [0, 1] ({count} in all)"
                self._require(name, bad, reason + explain_numbers(self.table[columns]))
        return values

    def _require(self, column: str, bad: "pd.Series[bool] | _Mask", reason: str) -> None:
        """Raise an error that names the first bad cell of a column, if there is one."""
        if bad.any():
            cell = self.table[column][bad].iloc[0]
            text = f"{column} {cell!r} {reason}"
            if pd.isna(cell):
                text = f"{column} is empty; fill it in, or remove the row"
            raise InputError(f"{self.path}: {self._name_row(bad)}: {text}")

    def _name_row(self, bad: "pd.Series[bool] | _Mask") -> str:
        row = int(np.flatnonzero(bad)[0])  # in a spreadsheet, the header is row 1
        return f"row {self.table.index[row] + 2} (image {self.table['image_id'].iloc[row]})"


def find_positive_classes(classes: tuple[str, ...], path: Path | str) -> tuple[str, ...]:
    """Return the classes that count as malignant by default."""
    positive = tuple(
        name for name in classes if name == BINARY[1] or parse_diagnosis(name) in MALIGNANT
    )
    if not positive:
        raise InputError(
            f"{path}: none of the classes {', '.join(classes)} counts as malignant; name the "
            "malignant classes with positive="
        )
    return positive


def require_positive_classes(classes: tuple[str, ...], positive: tuple[str, ...]) -> None:
    """Raise an error unless some but not all classes are positive."""
    if not positive or not set(positive) < set(classes):
        raise InputError(
            f"positive classes {', '.join(positive) or '(none)'}: name some, not all, of "
            f"{', '.join(classes)}"
        )


def _find_classes(words: "pd.Series[str]", classes: tuple[str, ...]) -> "pd.Series[float]":
    """Return the class index of each word, NaN if it names no class."""
    indices = {word: _find_class(word, classes) for word in words.unique()}
    return words.map(indices).astype("float64")


def _find_class(word: str, classes: tuple[str, ...]) -> int | None:
    diagnosis = parse_diagnosis(word)
    if classes == BINARY:
        default = None if diagnosis in (None, "unknown") else int(diagnosis in MALIGNANT)
        target = parse_target(word)
        return default if target is None else target
    if word in classes:
        return classes.index(word)
    diagnoses = [parse_diagnosis(name) for name in classes]
    return diagnoses.index(diagnosis) if diagnosis and diagnosis in diagnoses else None
