"""Labels of a cohort: the diagnosis and the target of each row, and the malignant classes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.errors import InputError, format_count, warn
from skinmm.vocabulary import CLASSES, MALIGNANT, is_missing, map_unique, parse_diagnosis

if TYPE_CHECKING:
    from skinmm.data.cohorts.tables import CohortTable

BINARY: Final = ("benign", "malignant")
_IDDX: Final = (
    *(("melanoma", "mel"), ("basal cell", "bcc"), ("squamous cell", "scc")),
    *(("actinic keratosis", "akiec"), ("keratosis", "bkl"), ("lentigo", "bkl")),
    *(("dermatofibroma", "df"), ("nevus", "nv"), ("angioma", "vasc"), ("vascular", "vasc")),
)
"""Words in ISIC's diagnosis path (`iddx_full`) and the class of the first that occurs."""


def add_targets(cohort: "CohortTable", data: DataConfig) -> pd.DataFrame:
    """Give every row its target: 0/1 if `data.target=malignant`, otherwise the class name.

    Malignancy is the cohort's 0/1 column if it has one, otherwise it follows from the diagnosis;
    with `data.positive` the diagnosis takes precedence.
    """
    rows = cohort.rows
    diagnosis, target = rows["diagnosis"], rows["target"]
    if data.target == "diagnosis":
        target = diagnosis.astype(object)
    else:
        derived = diagnosis.notna() & (target.isna() | bool(data.positive))
        stated = [] if data.positive or not target.eq(1).any() else [BINARY[1]]
        positive = select_malignant([*diagnosis[derived].unique().tolist(), *stated], data)
        target = target.where(~derived, diagnosis.isin(positive).astype("float64"))
    unlabelled = target.isna()
    needed = ("diagnosis",) if data.target == "diagnosis" else ("target", "diagnosis")
    if unlabelled.all() and set(needed) <= set(cohort.unlabelled):
        options = " or ".join(f"+data.args.columns.{name}=COLUMN" for name in needed)
        raise InputError(
            f"no column {' or '.join(needed)} in {cohort.description}; name it: {options}"
        )
    if unlabelled.any():
        names = ", ".join(rows.loc[unlabelled, "image_id"].iloc[:3])
        count = format_count(int(unlabelled.sum()), "row")
        message = f"the target is empty or unknown in {count}, e.g. {names}"
        if data.missing != "drop" or unlabelled.all():
            raise InputError(f"{message}; set data.missing=drop to leave them out")
        warn(f"{message}: left out")
        rows, target = rows[~unlabelled].reset_index(drop=True), target[~unlabelled]
        target = target.reset_index(drop=True)
    if target.nunique() < 2:  # noqa: PLR2004  a classifier needs two classes
        raise InputError(
            f"data={data.name}: every row has the same target, {target.iloc[0]}; two are needed: "
            "check data.positive and data.target"
        )
    return rows.assign(target=target if data.target == "diagnosis" else target.astype("int64"))


def select_malignant(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """Return the classes that count as malignant: `data.positive`, or else the vocabulary's."""
    if not classes:
        return ()
    diagnoses = {name: parse_diagnosis(name) for name in classes}
    available = ", ".join(sorted(classes, key=sort_key))
    if data.positive:
        return _match_classes(diagnoses, data.positive, available)
    unclear = [name for name in classes if diagnoses[name] is None and name.lower() not in BINARY]
    malignant = (*MALIGNANT, BINARY[1])
    chosen = tuple(name for name in classes if (diagnoses[name] or name.lower()) in malignant)
    if unclear:
        raise InputError(
            f"cannot determine whether '{unclear[0]}' is malignant: set data.positive=[...] to "
            f"some of {available}"
        )
    if not chosen:
        choice = ", or set data.positive=[...] to the classes to detect" * (len(classes) > 1)
        raise InputError(f"no row is malignant, all are {available}; add malignant rows{choice}")
    return chosen


def _match_classes(
    diagnoses: dict[str, str | None], positive: Sequence[str], available: str
) -> tuple[str, ...]:
    """Match class names exactly, or as synonyms of the same class of the vocabulary."""
    chosen, names = set[str](), {name.casefold(): name for name in diagnoses}
    for stated in positive:
        word = stated if stated in diagnoses else names.get(stated.casefold(), stated)
        diagnosis = parse_diagnosis(word)
        if diagnosis is None and word not in diagnoses:
            raise InputError(f"data.positive: no class '{word}'; the classes are {available}")
        synonyms = (name for name, value in diagnoses.items() if value and value == diagnosis)
        chosen.update([word] if word in diagnoses else synonyms)
    if not chosen:
        raise InputError(
            f"data.positive: none of {', '.join(positive)} is among the classes {available}"
        )
    return tuple(name for name in diagnoses if name in chosen)


def sort_key(name: str) -> tuple[int, str]:
    """Return the key that sorts classes: the vocabulary's order, then others by name."""
    diagnosis = parse_diagnosis(name)
    return (CLASSES.index(diagnosis) if diagnosis else len(CLASSES), name)


def decode_one_hot(table: pd.DataFrame, file: Path) -> "pd.Series[str]":
    """Return the class of each row of a one-hot ground truth."""
    classes = {name: parse_diagnosis(name) for name in table.columns}
    names = [name for name, diagnosis in classes.items() if diagnosis]
    marks = table[names].apply(pd.to_numeric, errors="coerce") == 1
    wrong = marks.sum(axis=1) != 1
    if wrong.any():
        line = int(wrong.to_numpy().argmax()) + 2
        raise InputError(f"{file}: row {line}: exactly one class must be 1 ({', '.join(names)})")
    return marks.idxmax(axis=1).map(classes)


def find_one_hot(table: pd.DataFrame) -> list[str]:
    """Return the one-hot columns named like classes; empty with fewer than two classes."""
    names = [
        str(name)
        for name in table
        if parse_diagnosis(name) and {*table[name].dropna()} <= {"0", "1", "0.0", "1.0"}
    ]
    return names if len({*map(parse_diagnosis, names)}) > 1 else []


_ONE_CLASS: Final = ("mel", "nv", "bcc", "scc", "df")
"""Classes whose words are spellings of one diagnosis, not subtypes."""


def merge_spellings(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """Give all spellings of a class its most frequent spelling; unknown diagnoses become None."""
    spellings: dict[str, str] = {}
    first: dict[str, str] = {}
    for word in cells.value_counts().index:
        diagnosis = parse_diagnosis(word)
        key = diagnosis if diagnosis in _ONE_CLASS else re.sub(r"[\s_-]+", " ", word.lower())
        key = word if re.search(r"\d", word) or not key.strip() else key  # grade 1-2, 1.1
        spellings[word] = first.setdefault(key, word)
    return map_unique(cells, lambda word: None if is_missing(word) else spellings[word])


def require_consistent_targets(rows: pd.DataFrame, file: Path) -> None:
    """Raise InputError for melanomas and carcinomas with target 0, and nevi with target 1."""
    diagnosis = map_unique(rows["diagnosis"], parse_diagnosis)
    wrong = diagnosis.isin(("mel", "bcc", "scc")) & rows["target"].eq(0)
    wrong |= diagnosis.eq("nv") & rows["target"].eq(1)
    if wrong.any():
        first = rows[wrong].iloc[0]
        raise InputError(
            f"{file}: {int(wrong.sum())} rows whose target contradicts their diagnosis, first "
            f"{first['image_id']}: target {int(first['target'])}, {first['diagnosis']}; correct "
            "them, or set data.positive=[...] to derive the target from the diagnosis"
        )


def name_iddx(path: str) -> str:
    """Return the class of a path in ISIC's tree of diagnoses (lower case), or `unknown`."""
    return next((name for word, name in _IDDX if word in path), "unknown")
