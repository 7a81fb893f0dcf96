"""Prediction files: what every stage after the model reads, whichever system wrote them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation import reading
from skinmm.evaluation.reading import BINARY


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

    def __post_init__(self) -> None:
        """Refuses positive classes that do not divide the classes in two."""
        reading.refuse_positive(self.classes, self.positive)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.target)

    @property
    def binary(self) -> bool:
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

    def select(self, rows: Shaped[np.ndarray, " m"]) -> "Predictions":
        """The rows of a mask or of row numbers, in that order."""
        names = ("image_id", "patient_id", "target", "probabilities", "raw", "fold")
        columns = {name: getattr(self, name) for name in names}
        return replace(self, **{k: v[rows] for k, v in columns.items() if v is not None})


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
    multi-class file whose targets are 0/1 is judged as a binary one.

    Args:
        path: CSV.
        labels: CSV with an image column and `target` or `diagnosis`, joined on the image's name
            with or without its extension; its `patient_id` is used where the first has none.
        positive: classes that count as malignant; the usual ones by default.
        allow_one_class: accept a file in which all rows are malignant, or none.

    Raises:
        InputError: one line that names the file, column and row that cannot be used.
    """
    table = reading.read_table(path)
    if labels is not None:
        table = reading.join_labels(table, reading.read_table(labels), path, labels)
    table, unpredicted = reading.without_failures(table)
    if table.empty:
        raise InputError(f"{path} has no predicted row")
    reading.refuse_repeats(table, path)
    classes, probabilities = reading.parse_probabilities(table, path)
    raw = reading.parse_raw(table, classes, path)
    positive = tuple(positive or reading.usual_positive(classes, path))
    reading.refuse_positive(classes, positive)
    words = reading.parse_truth(table, labels or path)
    if classes != BINARY and reading.speaks_binary(words):
        malignancy = probabilities[:, [name in positive for name in classes]].sum(axis=1)
        probabilities, raw = np.column_stack([1 - malignancy, malignancy]).clip(0, 1), None
        classes, positive = BINARY, BINARY[1:]
    result = Predictions(
        image_id=table["image_id"].to_numpy(dtype=object),
        patient_id=reading.parse_patients(table).to_numpy(dtype=object),
        target=reading.parse_targets(words, table, classes, labels or path),
        probabilities=probabilities,
        raw=raw,
        classes=classes,
        positive=positive,
        fold=reading.parse_folds(table, path),
        unpredicted=unpredicted,
    )
    if not allow_one_class and len(set(result.malignant.tolist())) == 1:
        kind = "malignant" if result.malignant[0] else "benign"
        raise InputError(f"{path}: all {len(result)} rows are {kind}; judging needs both")
    return result


def write_predictions(path: Path | str, predictions: Predictions) -> None:
    """Writes a prediction file (`%.9g`) under a temporary name, then renames it."""
    columns: dict[str, Any] = {
        "image_id": predictions.image_id,
        "patient_id": predictions.patient_id,
    }
    if predictions.fold is not None:
        columns["fold"] = predictions.fold
    names = np.array(predictions.classes, dtype=object)
    columns["target"] = predictions.target if predictions.binary else names[predictions.target]
    for prefix, values in (("p_", predictions.probabilities), ("raw_", predictions.raw)):
        if values is not None:
            columns |= {prefix + name: values[:, i] for i, name in enumerate(predictions.classes)}
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pd.DataFrame(columns).to_csv(partial, index=False, float_format="%.9g")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
