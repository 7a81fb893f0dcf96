"""Predictions: reader and writer of prediction files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm.errors import InputError
from skinmm.evaluation.other_formats import TableFormat
from skinmm.evaluation.prediction_files import (
    BINARY,
    DECISIONS,
    EMPTY,
    REFER,
    PredictionFile,
    find_positive_classes,
    require_positive_classes,
)
from skinmm.files import atomic_write
from skinmm.vocabulary import parse_target, resolve_patients

__all__ = ["BINARY", "DECISIONS", "REFER", "Predictions", "read_predictions", "write_predictions"]

MAX_MISTAKES: Final = 8
ROW_COLUMNS: Final = (
    *("image_id", "patient_id", "target", "probabilities", "raw", "half"),
    *("fold", "decision", "sets", "ood", "called", "unit", "source", "images"),
)
"""Attributes of `Predictions` that have an entry for each row."""


@dataclass(frozen=True)
class Predictions:
    """Probabilities and truth of n rows over C classes.

    Attributes:
        image_id: name of the image of each row, unique.
        patient_id: unit of the bootstrap; the lesion, or else the image, where it is unknown.
        target: index of the true class.
        probabilities: calibrated where a calibration exists; in [0, 1], the sum of a row is 1.
        raw: probabilities before calibration.
        half: scores in [0, 1] of which a cut at 0.5 gives the called class; no probabilities.
        classes: `("benign", "malignant")` in binary files, else the diagnoses.
        positive: classes that count as malignant.
        fold: number of the fold in which a row was tested.
        unpredicted: number of rows of the file that its system could not predict.
        decision: one of `DECISIONS`.
        sets: mask of the classes in the prediction set of a row.
        ood: OOD score; above 1 a row is unlike the rows used in development; NaN where unknown.
        called: index of the class that the system predicts; None in binary files.
        unit: what `patient_id` names in each row: `patient`, `lesion` or `image`.
        source: centre of each row, None where unknown.
        images: images of each lesion, separated by `|`; `image_id` then names the lesion.
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
    unit: Shaped[np.ndarray, " n"] | None = None
    source: Shaped[np.ndarray, " n"] | None = None
    half: Float64[np.ndarray, "n c"] | None = None
    images: Shaped[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        """Raise an error unless some but not all classes are positive."""
        require_positive_classes(self.classes, self.positive)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.target)

    @property
    def is_binary(self) -> bool:
        """True if the classes are benign and malignant; targets are then written as 0 and 1."""
        return self.classes == BINARY

    @property
    def malignancy(self) -> Float64[np.ndarray, " n"]:
        """Probability of malignancy: the sum over the positive classes."""
        columns = [self.classes.index(name) for name in self.positive]
        return np.clip(self.probabilities[:, columns].sum(axis=1), 0, 1)

    @property
    def malignant(self) -> Bool[np.ndarray, " n"]:
        """True for rows whose true class is positive."""
        return np.isin(self.target, [self.classes.index(name) for name in self.positive])

    def list_units(self) -> Shaped[np.ndarray, " n"]:
        """Return the meaning of `patient_id` in each row: patient, lesion or image."""
        is_image = np.asarray(self.patient_id == self.image_id)
        return np.where(is_image, "image", "patient") if self.unit is None else self.unit

    def predicted_classes(self, threshold: float = 0.5) -> Int64[np.ndarray, " n"]:
        """Return the index of the predicted class of each row.

        In binary files by the threshold, in others the class in `called`, else the most probable.
        """
        if self.is_binary:
            return (self.malignancy >= threshold).astype(np.int64)
        return self.probabilities.argmax(axis=1) if self.called is None else self.called

    def select(self, rows: Shaped[np.ndarray, " m"]) -> "Predictions":
        """Return the rows selected by a mask, or by row numbers in their order."""
        columns = {name: getattr(self, name) for name in ROW_COLUMNS}
        return replace(self, **{k: v[rows] for k, v in columns.items() if v is not None})


def read_predictions(
    path: Path | str,
    labels: Path | str | None = None,
    positive: Sequence[str] | None = None,
    *,
    form: TableFormat | None = None,
    allow_one_class: bool = False,
) -> Predictions:
    """Read the prediction file of any system, with labels in the same or a second file.

    Required are an image column (else `lesion_id`) and one column `p_<class>` per class; for two
    classes `p_malignant` or `malignancy` is enough. The truth is in `target` (0/1, or a class), or
    else in `diagnosis`. Rows with a text in `error` and no probabilities are excluded and counted.
    A multi-class file whose targets are 0/1 is read as a binary one. The columns `decision`,
    `prediction_set`, `ood` and (multi-class) `called`, as `predict.py` writes them, are optional,
    and so is `source`, the centre of each row.
    Errors are one line that names the file, and the column and row that cannot be used.

    Args:
        path: table, see `skinmm.files.read_table`.
        labels: table with an image column and `target` or `diagnosis`, joined by the name of the
            image with or without its suffix; its `patient_id` is used if the first table has none.
        positive: classes that count as malignant; by default those known as malignant.
        form: meaning of other headers, see `skinmm.evaluation.other_formats`.
        allow_one_class: accept a file in which all rows are malignant, or none.
    """
    file = PredictionFile(path, labels, form)
    result = Predictions(
        image_id=file.table["image_id"].to_numpy(dtype=object),
        patient_id=resolve_patients(file.table).to_numpy(dtype=object),
        fold=file.parse_folds(),
        unpredicted=file.unpredicted,
        decision=file.parse_decisions(),
        ood=file.parse_ood(),
        unit=file.parse_units(),
        source=file.parse_sources(),
        images=file.parse_images(),
        **_parse_classes(file, positive),
    )
    if not allow_one_class and len(set(result.malignant.tolist())) == 1:
        kind = "malignant" if result.malignant[0] else "benign"
        raise InputError(f"{path}: all {len(result)} rows are {kind}; evaluation needs both")
    return result


def _parse_classes(file: PredictionFile, positive: Sequence[str] | None) -> dict[str, Any]:
    """Parse classes, probabilities and truth; merge the classes if the truth is 0 or 1."""
    classes, probabilities = file.parse_probabilities()
    raw, half = file.parse_raw(classes), file.parse_half(classes)
    positive = tuple(positive or find_positive_classes(classes, file.path))
    require_positive_classes(classes, positive)
    words, sets = file.parse_truth(), file.parse_sets(classes)
    truth = set(words.unique())
    is_binary = None not in map(parse_target, truth)
    is_class = {word.lower() for word in truth} <= {name.lower() for name in classes}
    if classes != BINARY and is_binary and not is_class:
        sides = np.column_stack([np.isin(classes, positive, invert=side) for side in (True, False)])
        probabilities, raw, half = (probabilities @ sides).clip(0, 1), None, None
        sets = None if sets is None else sets @ sides
        classes, positive = BINARY, BINARY[1:]
    target, called = file.parse_targets(words, classes), file.parse_called(classes, probabilities)
    columns = {"probabilities": probabilities, "raw": raw, "half": half, "sets": sets}
    return {**columns, "classes": classes, "positive": positive, "target": target, "called": called}


def write_predictions(path: Path | str, predictions: Predictions) -> None:
    """Write a prediction file (`%.9g`) atomically."""
    columns: dict[str, Any] = {
        name: getattr(predictions, name) for name in ("image_id", "patient_id", "unit", "fold")
    }
    names = np.array(predictions.classes, dtype=object)
    columns["target"] = predictions.target if predictions.is_binary else names[predictions.target]
    for prefix, name in (("p_", "probabilities"), ("raw_", "raw"), ("half_", "half")):
        if (values := getattr(predictions, name)) is not None:
            columns |= {prefix + name: values[:, i] for i, name in enumerate(predictions.classes)}
    columns |= {"decision": predictions.decision, "prediction_set": None, "ood": predictions.ood}
    if predictions.sets is not None:
        columns["prediction_set"] = format_sets(predictions.sets, predictions.classes)
    if predictions.called is not None:
        columns["called"] = names[predictions.called]
    columns["source"] = predictions.source
    if predictions.images is not None:
        columns |= {"lesion_id": predictions.image_id, "images": predictions.images}
    table = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
    with atomic_write(Path(path)) as partial:
        table.to_csv(partial, index=False, float_format="%.9g")


def format_sets(sets: Bool[np.ndarray, "n c"], classes: Sequence[str]) -> Shaped[np.ndarray, " n"]:
    """Return each prediction set as text: its classes joined by `|`, or `none` if it is empty."""
    distinct, indices = np.unique(sets, axis=0, return_inverse=True)
    names = np.array(classes, dtype=object)
    return np.array(["|".join(names[row]) or EMPTY for row in distinct], dtype=object)[indices]


def find_confident_mistakes(
    predictions: Predictions, threshold: float
) -> dict[str, Int64[np.ndarray, " k"]]:
    """Return the most confident errors, at most `MAX_MISTAKES` of each kind.

    `missed` are malignant rows below the threshold, in ascending order of probability; `flagged`
    are benign rows from the threshold on, in descending order.
    """
    p, malignant = predictions.malignancy, predictions.malignant
    missed, flagged = malignant & (p < threshold), ~malignant & (p >= threshold)
    rows = np.argsort(p, kind="stable")
    reverse = np.argsort(-p, kind="stable")
    return {
        "missed": rows[missed[rows]][:MAX_MISTAKES],
        "flagged": reverse[flagged[reverse]][:MAX_MISTAKES],
    }
