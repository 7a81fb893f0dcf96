"""Columns of a prediction file, checked: the text of a table in, arrays out."""

import re
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64, Shaped

from skinmm import files
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.vocabulary import MALIGNANT, parse_diagnosis, rename_columns

BINARY: Final = ("benign", "malignant")
REFER: Final = "refer"
DECISIONS: Final = (*BINARY, REFER)
EMPTY: Final = "none"
"""A prediction set without a class."""
SUM_TOLERANCE: Final = 0.01
"""How far a row's probabilities may be from adding up to 1: other systems round to few digits."""

_BINARY_WORDS: Final = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "benign": 0, "malignant": 1}
_EXTENSIONS: Final = rf"(?i)(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})$"
_TRUTH: Final = ("target", "diagnosis")


def read_table(path: Path | str) -> pd.DataFrame:
    """Read a table as text with canonical column names; fill empty cells of `image_id`."""
    table = files.read_table(path)
    table = rename_columns(table.mask(table == ""))
    if "image_id" not in table:
        raise InputError(f"{path} has no column image_id; it has {', '.join(table.columns)}")
    names = pd.Series([f"row {row + 1}" for row in range(len(table))], dtype=object)
    return table.assign(image_id=table["image_id"].fillna(names))


def read_rows(path: Path | str, labels: Path | str | None) -> tuple[pd.DataFrame, int]:
    """The rows that were predicted, each image once, and how many were not."""
    table = read_table(path)
    if labels is not None:
        table = _join_labels(table, read_table(labels), path, labels)
    failed = pd.Series(False, index=table.index)
    if "error" in table:
        failed = table["error"].notna() & table.filter(regex="^p_").isna().all(axis=1)
    table = table[~failed]
    if table.empty:
        raise InputError(f"{path} has no predicted row")
    twice = table["image_id"].duplicated()
    if twice.any():
        name = table["image_id"][twice].iloc[0]
        rows = ", ".join(str(row + 1) for row in table.index[table["image_id"] == name])
        raise InputError(f"{path}: image {name} is in rows {rows}; keep one")
    return table, int(failed.sum())


def _join_labels(
    table: pd.DataFrame, labels: pd.DataFrame, path: Path | str, labels_path: Path | str
) -> pd.DataFrame:
    """Takes truth, and the patients that are not known yet, from a second table by image name."""
    labels = labels.assign(image_id=_stem(labels["image_id"]))
    known = [name for name in _TRUTH if name in labels]
    if not known:
        raise InputError(f"{labels_path} has neither a column target nor a column diagnosis")
    labels = labels.drop_duplicates(["image_id", *known])
    twice = labels["image_id"].duplicated()
    if twice.any():
        name = labels["image_id"][twice].iloc[0]
        raise InputError(f"{labels_path} gives image {name} two different labels")
    wanted = [*known, *({"patient_id", "lesion_id"} & set(labels) - set(table))]
    table = table.drop(columns=[name for name in _TRUTH if name in table])
    found = labels.set_index("image_id")[wanted].reindex(_stem(table["image_id"]))
    if found[known].isna().all(axis=None):
        raise InputError(f"{labels_path} has no label for any image of {path}")
    return table.assign(**{name: found[name].to_numpy(dtype=object) for name in wanted})


def parse_probabilities(
    table: pd.DataFrame, path: Path | str
) -> tuple[tuple[str, ...], Float64[np.ndarray, "n c"]]:
    """Classes and probabilities; one column of malignancy is enough in a binary file."""
    classes = tuple(name[2:] for name in table.columns if name.startswith("p_"))
    if set(classes) <= {"malignant"}:
        column = "p_malignant" if classes else "malignancy"
        if column not in table:
            raise InputError(
                f"{path} has no probabilities: it needs p_malignant, or one column p_<class> per "
                f"class; it has {', '.join(table.columns)}"
            )
        malignancy = _numbers(table, [column], path)
        return BINARY, np.hstack([1 - malignancy, malignancy])
    if len(classes) == 1:
        raise InputError(f"{path} has one class only, {classes[0]}; add the others' p_<class>")
    classes = BINARY if set(classes) == set(BINARY) else classes
    return classes, _distribution(table, [f"p_{name}" for name in classes], path)


def parse_raw(
    table: pd.DataFrame, classes: tuple[str, ...], path: Path | str
) -> Float64[np.ndarray, "n c"] | None:
    """Probabilities before calibration, where the file has them for every class."""
    columns = [f"raw_{name}" for name in classes]
    return _distribution(table, columns, path) if set(columns) <= set(table) else None


def usual_positive(classes: tuple[str, ...], path: Path | str) -> tuple[str, ...]:
    """The classes that count as malignant unless someone says otherwise."""
    found = tuple(
        name for name in classes if name == BINARY[1] or parse_diagnosis(name) in MALIGNANT
    )
    if not found:
        raise InputError(
            f"{path}: none of the classes {', '.join(classes)} is known as malignant; name those "
            f"that are with positive="
        )
    return found


def refuse_positive(classes: tuple[str, ...], positive: tuple[str, ...]) -> None:
    """Positive classes must divide the classes in two."""
    if not positive or not set(positive) < set(classes):
        raise InputError(
            f"positive classes {', '.join(positive) or '(none)'}: name some, not all, of "
            f"{', '.join(classes)}"
        )


def parse_truth(table: pd.DataFrame, path: Path | str) -> "pd.Series[str]":
    """The words of `target`, or else of `diagnosis`, one for every row."""
    column = next((name for name in _TRUTH if name in table), None)
    if column is None:
        raise InputError(f"{path} has no column target; give labels=LABELS.csv")
    words = table[column]
    if words.isna().any():
        raise InputError(
            f"{path}: {_place(table, words.isna())}: no {column}; {int(words.isna().sum())} rows "
            "have none; label them or leave them out"
        )
    return words.astype(str).str.strip()


def parse_targets(
    words: "pd.Series[str]", table: pd.DataFrame, classes: tuple[str, ...], path: Path | str
) -> Int64[np.ndarray, " n"]:
    """Index of each row's class, told by the words of its truth."""
    indices = _class_indices(words, classes)
    bad = indices.isna()
    if bad.any():
        allowed = "0, 1, benign, malignant" if classes == BINARY else ", ".join(classes)
        said = words[bad].iloc[0]
        raise InputError(f"{path}: {_place(table, bad)}: target {said!r} is none of {allowed}")
    return indices.to_numpy(dtype=np.int64)


def speaks_binary(words: "pd.Series[str]", classes: tuple[str, ...]) -> bool:
    """Whether the truth is told as malignant or not, rather than by the names of the classes."""
    said = set(words.unique())
    return said <= set(_BINARY_WORDS) and not said <= set(classes)


def parse_folds(table: pd.DataFrame, path: Path | str) -> Int64[np.ndarray, " n"] | None:
    """The fold that each row was tested in."""
    if "fold" not in table:
        return None
    folds = pd.to_numeric(table["fold"], errors="coerce")
    _refuse(table, "fold", folds.isna() | (folds % 1 != 0), path, "is not a whole number")
    return folds.to_numpy(dtype=np.int64)


def parse_decisions(table: pd.DataFrame, path: Path | str) -> Shaped[np.ndarray, " n"] | None:
    """What was decided for each row; None where nothing was."""
    if "decision" not in table or table["decision"].isna().all():
        return None
    words = table["decision"].str.strip().str.lower()
    allowed = f"is none of {', '.join(DECISIONS)}; rename the column if it means something else"
    _refuse(table, "decision", ~words.isin(DECISIONS), path, allowed)
    return words.to_numpy(dtype=object)


def parse_sets(
    table: pd.DataFrame, classes: tuple[str, ...], path: Path | str
) -> Bool[np.ndarray, "n c"] | None:
    """Which classes each row's prediction set holds; None where there are no sets."""
    if "prediction_set" not in table or table["prediction_set"].isna().all():
        return None
    codes, words = pd.factorize(table["prediction_set"].fillna(""))
    named = [[] if word == EMPTY and EMPTY not in classes else word.split("|") for word in words]
    bad = np.array([not set(names) <= set(classes) for names in named])[codes]
    allowed = f"is not made of {', '.join(classes)} with | between, or {EMPTY}"
    _refuse(table, "prediction_set", bad, path, allowed)
    held = np.array([[name in names for name in classes] for names in named], dtype=bool)
    sets: Bool[np.ndarray, "n c"] = held[codes]
    return sets


def parse_unfamiliarity(table: pd.DataFrame, path: Path | str) -> Float64[np.ndarray, " n"] | None:
    """How unlike the validation rows each row is; NaN where a row does not say, None if none does.

    Raises:
        InputError: what is there is no number from 0 up.
    """
    if "ood" not in table or table["ood"].isna().all():
        return None
    values = pd.to_numeric(table["ood"], errors="coerce").to_numpy(dtype=np.float64)
    bad = table["ood"].notna().to_numpy() & ~((values >= 0) & (values < np.inf))
    allowed = "is not a number from 0 up, where 1 is the limit"
    _refuse(table, "ood", bad, path, f"{allowed}; rename the column if it means something else")
    return values


def parse_calls(
    table: pd.DataFrame,
    classes: tuple[str, ...],
    probabilities: Float64[np.ndarray, "n c"],
    path: Path | str,
) -> Int64[np.ndarray, " n"] | None:
    """Index of the class that each row calls, of an empty cell the most probable one.

    None for two classes, where a threshold decides, and for a foreign column, without a class.
    """
    if classes == BINARY or "called" not in table:
        return None
    words = table["called"].fillna("").str.strip()
    calls = _class_indices(words, classes)
    if calls.isna().all():
        return None
    allowed = f"is none of {', '.join(classes)}; rename or drop the column"
    _refuse(table, "called", calls.isna() & (words != ""), path, allowed)
    return np.where(calls.isna(), probabilities.argmax(axis=1), calls).astype(np.int64)


def _class_indices(words: "pd.Series[str]", classes: tuple[str, ...]) -> "pd.Series[float]":
    """Of each word the class, NaN where it is none."""
    known = {word: _class_index(word, classes) for word in words.unique()}
    return words.map(known).astype("float64")


def _class_index(word: str, classes: tuple[str, ...]) -> int | None:
    diagnosis = parse_diagnosis(word)
    if classes == BINARY:
        known = diagnosis is not None and diagnosis != "unknown"
        return _BINARY_WORDS.get(word, int(diagnosis in MALIGNANT) if known else None)
    if word in classes:
        return classes.index(word)
    diagnoses = [parse_diagnosis(name) for name in classes]
    return diagnoses.index(diagnosis) if diagnosis and diagnosis in diagnoses else None


def _distribution(
    table: pd.DataFrame, columns: list[str], path: Path | str
) -> Float64[np.ndarray, "n c"]:
    values = _numbers(table, columns, path)
    totals = values.sum(axis=1)
    bad = np.abs(totals - 1) > SUM_TOLERANCE
    if bad.any():
        raise InputError(
            f"{path}: {_place(table, bad)}: {' + '.join(columns)} is {totals[bad][0]:.6g}, not 1"
        )
    return values


def _numbers(
    table: pd.DataFrame, columns: list[str], path: Path | str
) -> Float64[np.ndarray, "n k"]:
    values = np.empty((len(table), len(columns)))
    for i, name in enumerate(columns):
        values[:, i] = pd.to_numeric(table[name], errors="coerce")
        bad = ~((values[:, i] >= 0) & (values[:, i] <= 1))
        reason = f"is not a probability in [0, 1]; {int(bad.sum())} rows have none"
        _refuse(table, name, bad, path, reason)
    return values


def _refuse(table: pd.DataFrame, column: str, bad: Any, path: Path | str, reason: str) -> None:
    """Names the first bad cell of a column, if there is one."""
    if bad.any():
        cell = table[column][bad].iloc[0]
        shown = "empty" if pd.isna(cell) else repr(cell)
        raise InputError(f"{path}: {_place(table, bad)}: {column} {shown} {reason}")


def _place(table: pd.DataFrame, bad: "pd.Series[Any] | Bool[np.ndarray, ' n']") -> str:
    row = int(np.flatnonzero(bad)[0])
    return f"row {table.index[row] + 1} (image {table['image_id'].iloc[row]})"


def _stem(names: "pd.Series[str]") -> "pd.Series[str]":
    return names.str.replace(_EXTENSIONS, "", regex=True)
