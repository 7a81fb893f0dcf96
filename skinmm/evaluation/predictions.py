"""Prediction files: what every stage after the model reads, whichever system wrote them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation import prediction_files
from skinmm.evaluation.prediction_files import BINARY, DECISIONS, REFER
from skinmm.files import atomic_write
from skinmm.vocabulary import resolve_patients

__all__ = ["BINARY", "DECISIONS", "REFER", "Predictions", "read_predictions", "write_predictions"]

MAX_MISTAKES: Final = 8


@dataclass(frozen=True)
class Predictions:
    """Probabilities and truth of n rows over C classes.

    Attributes:
        image_id: one name per row.
        patient_id: the unit of the bootstrap; the lesion, then the image where it is not known.
        target: index of the true class.
        probabilities: calibrated where a calibration exists; in [0, 1], each row adds up to 1.
        raw: before calibration, or None.
        classes: `("benign", "malignant")` in binary files, else the diagnoses.
        positive: the classes that count as malignant.
        fold: number of the fold that a row was tested in, or None.
        unpredicted: rows of the file that its system could not predict, and that are not here.
        decision: one of `DECISIONS`, or None.
        sets: whether a row's prediction set holds a class, or None.
        ood: how unlike the validation rows a row is, 1 is the limit; NaN or None where not known.
        called: index of the class that the row's system calls, or None; of binary files never.
    """

    image_id: Shaped[np.ndarray, " n"]
    patient_id: Shaped[np.ndarray, " n"]
    target: Int64[np.ndarray, " n"]
    probabilities: Float64[np.ndarray, "n c"]
    raw: Float64[np.ndarray, "n c"] | None
    classes: tuple[str, ...]
    positive: tuple[str, ...]
    fold: Int64[np.ndarray, " n"] | None = None
    unpredicted: int = 0
    decision: Shaped[np.ndarray, " n"] | None = None
    sets: Bool[np.ndarray, "n c"] | None = None
    ood: Float64[np.ndarray, " n"] | None = None
    called: Int64[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Refuses positive classes that do not divide the classes in two."""
        prediction_files.refuse_positive(self.classes, self.positive)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.target)

    @property
    def is_binary(self) -> bool:
        """Whether the classes are benign and malignant, so that targets are written 0 and 1."""
        return self.classes == BINARY

    @property
    def malignancy(self) -> Float64[np.ndarray, " n"]:
        """Probability of malignancy: the sum over the positive classes."""
        columns = [self.classes.index(name) for name in self.positive]
        return np.clip(self.probabilities[:, columns].sum(axis=1), 0, 1)

    @property
    def malignant(self) -> Bool[np.ndarray, " n"]:
        """Whether the true class is a positive one."""
        return np.isin(self.target, [self.classes.index(name) for name in self.positive])

    def predicted_classes(self, threshold: float = 0.5) -> Int64[np.ndarray, " n"]:
        """Index of the called class.

        Binary files call malignant from the threshold on; others the class that the file says, or
        else the most probable one.
        """
        if self.is_binary:
            return (self.malignancy >= threshold).astype(np.int64)
        return self.probabilities.argmax(axis=1) if self.called is None else self.called

    def select(self, rows: Shaped[np.ndarray, " m"]) -> "Predictions":
        """The rows of a mask or of row numbers, in that order."""
        columns = {name: getattr(self, name) for name in ROW_COLUMNS}
        return replace(self, **{k: v[rows] for k, v in columns.items() if v is not None})


ROW_COLUMNS: Final = (
    "image_id",
    "patient_id",
    "target",
    "probabilities",
    "raw",
    "fold",
    "decision",
    "sets",
    "ood",
    "called",
)
"""Attributes that have an entry for each row."""


def read_predictions(
    path: Path | str,
    labels: Path | str | None = None,
    positive: Sequence[str] | None = None,
    *,
    allow_one_class: bool = False,
) -> Predictions:
    """Reads the prediction file of any system, with its labels inside or in a second file.

    Needed are an image column and one column `p_<class>` per class; `p_malignant` or `malignancy`
    alone is enough for a binary file. Truth is the column `target` (0/1, or a class), or else
    `diagnosis`. Rows with a reason in `error` and no probabilities are left out and counted. A
    multi-class file whose targets are 0/1 is judged as a binary one. What stands in `decision`,
    `prediction_set`, `ood` and (several classes) `called`, as `predict.py` writes them, is judged
    too.

    Args:
        path: CSV.
        labels: CSV with an image column and `target` or `diagnosis`, joined on the image's name
            with or without its extension; its `patient_id` is used where the first has none.
        positive: classes that count as malignant; the usual ones by default.
        allow_one_class: accept a file in which all rows are malignant, or none.

    Raises:
        InputError: one line that names the file, column and row that cannot be used.
    """
    table, unpredicted = prediction_files.read_rows(path, labels)
    classes, probabilities = prediction_files.parse_probabilities(table, path)
    raw = prediction_files.parse_raw(table, classes, path)
    positive = tuple(positive or prediction_files.usual_positive(classes, path))
    prediction_files.refuse_positive(classes, positive)
    words = prediction_files.parse_truth(table, labels or path)
    sets = prediction_files.parse_sets(table, classes, path)
    if classes != BINARY and prediction_files.speaks_binary(words, classes):
        sides = np.column_stack([np.isin(classes, positive, invert=side) for side in (True, False)])
        probabilities, raw = (probabilities @ sides).clip(0, 1), None
        sets = None if sets is None else sets @ sides
        classes, positive = BINARY, BINARY[1:]
    result = Predictions(
        image_id=table["image_id"].to_numpy(dtype=object),
        patient_id=resolve_patients(table).to_numpy(dtype=object),
        target=prediction_files.parse_targets(words, table, classes, labels or path),
        probabilities=probabilities,
        raw=raw,
        classes=classes,
        positive=positive,
        fold=prediction_files.parse_folds(table, path),
        unpredicted=unpredicted,
        decision=prediction_files.parse_decisions(table, path),
        sets=sets,
        ood=prediction_files.parse_unfamiliarity(table, path),
        called=prediction_files.parse_calls(table, classes, probabilities, path),
    )
    if not allow_one_class and len(set(result.malignant.tolist())) == 1:
        kind = "malignant" if result.malignant[0] else "benign"
        raise InputError(f"{path}: all {len(result)} rows are {kind}; judging needs both")
    return result


def find_confident_mistakes(
    predictions: Predictions, threshold: float
) -> dict[str, Int64[np.ndarray, " k"]]:
    """Rows called wrongly that the model was surest of, at most `MAX_MISTAKES` of either kind.

    `missed` are malignant lesions below the threshold, the least suspected first; `flagged` are
    benign ones from there on, the most suspected first.
    """
    chance, malignant = predictions.malignancy, predictions.malignant
    above = chance >= threshold
    kinds = {"missed": (malignant & ~above, chance), "flagged": (~malignant & above, -chance)}
    found = {}
    for kind, (wrong, key) in kinds.items():
        rows = np.flatnonzero(wrong)
        found[kind] = rows[np.argsort(key[rows], kind="stable")][:MAX_MISTAKES]
    return found


def write_predictions(path: Path | str, predictions: Predictions) -> None:
    """Writes a prediction file (`%.9g`) under a temporary name, then renames it."""
    columns: dict[str, Any] = {
        "image_id": predictions.image_id,
        "patient_id": predictions.patient_id,
    }
    if predictions.fold is not None:
        columns["fold"] = predictions.fold
    names = np.array(predictions.classes, dtype=object)
    columns["target"] = predictions.target if predictions.is_binary else names[predictions.target]
    for prefix, values in (("p_", predictions.probabilities), ("raw_", predictions.raw)):
        if values is not None:
            columns |= {prefix + name: values[:, i] for i, name in enumerate(predictions.classes)}
    if predictions.decision is not None:
        columns["decision"] = predictions.decision
    if predictions.sets is not None:
        columns["prediction_set"] = format_sets(predictions.sets, predictions.classes)
    if predictions.ood is not None:
        columns["ood"] = predictions.ood
    if predictions.called is not None:
        columns["called"] = names[predictions.called]
    with atomic_write(Path(path)) as partial:
        pd.DataFrame(columns).to_csv(partial, index=False, float_format="%.9g")


def format_sets(sets: Bool[np.ndarray, "n c"], classes: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """Each row's set as a file holds it: its classes with `|` between, `none` where it is empty."""
    kinds, kind = np.unique(sets, axis=0, return_inverse=True)
    names = [
        "|".join(np.array(classes, dtype=object)[held]) or prediction_files.EMPTY for held in kinds
    ]
    return np.array(names, dtype=object)[kind]
