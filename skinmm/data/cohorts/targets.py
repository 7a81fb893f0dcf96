"""What is learned: the target of each row, the classes, and which of them count as malignant."""

from collections.abc import Sequence
from typing import Final

import pandas as pd

from skinmm.config import DataConfig
from skinmm.errors import InputError
from skinmm.vocabulary import CLASSES, MALIGNANT, parse_diagnosis

BINARY: Final = ("benign", "malignant")
LACKS: Final = "lacks"
"""Of a table's `attrs`: column of which a target is made and that its file lacks -> what it has."""


def add_targets(table: pd.DataFrame, data: DataConfig) -> pd.DataFrame:
    """Gives every row its target: 0/1 when `data.target=malignant`, else the class name.

    Malignancy is the cohort's own 0/1 column where it has one, else it follows from the diagnosis;
    with `data.positive` it follows from the diagnosis where there is one.

    Raises:
        InputError: a row without target, a single class, or a class that may be malignant or not.
    """
    diagnosis, own = table["diagnosis"], table["target"]
    if data.target == "diagnosis":
        target = diagnosis.astype(object)
    else:
        asked = diagnosis.notna() & (own.isna() | bool(data.positive))
        positive = _malignant(diagnosis[asked].unique().tolist(), data)
        target = own.where(~asked, diagnosis.isin(positive).astype("float64"))
    unlabelled = target.isna()
    if unlabelled.all():
        _refuse_lacking(table, data.target)
    if unlabelled.any():
        names = ", ".join(table.loc[unlabelled, "image_id"].iloc[:3])
        raise InputError(f"{int(unlabelled.sum())} rows have no {data.target} target, e.g. {names}")
    if target.nunique() < 2:  # noqa: PLR2004  it takes two to tell apart
        raise InputError(
            f"data={data.name}: every row has the same target, {target.iloc[0]}; two are needed"
        )
    return table.assign(target=target if data.target == "diagnosis" else target.astype("int64"))


def _refuse_lacking(table: pd.DataFrame, target: str) -> None:
    lacks = table.attrs.get(LACKS, {})
    wanted = ("diagnosis",) if target == "diagnosis" else ("target", "diagnosis")
    if all(name in lacks for name in wanted):
        typed = " or ".join(f"+data.args.columns.{name}=COLUMN" for name in wanted)
        raise InputError(f"no column {' or '.join(wanted)} in {lacks[wanted[0]]}; name it: {typed}")


def list_classes(table: pd.DataFrame, data: DataConfig) -> tuple[str, ...]:
    """Class names in the order of the logits: the vocabulary's, then foreign ones by alphabet."""
    if data.target == "malignant":
        return BINARY
    return tuple(sorted(table["target"].unique(), key=_rank))


def list_positive_classes(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    """The classes that count as malignant: `data.positive`, else those known to be.

    Raises:
        InputError: `data.positive` names no class, or is empty and a class is a foreign one.
    """
    return BINARY[1:] if data.target == "malignant" else _malignant(classes, data)


def _malignant(classes: Sequence[str], data: DataConfig) -> tuple[str, ...]:
    if not classes:
        return ()
    there = ", ".join(sorted(classes, key=_rank))
    if data.positive:
        return _named(classes, data.positive, there)
    foreign = [name for name in classes if parse_diagnosis(name) is None]
    unclear = [name for name in foreign if name.lower() not in BINARY]
    chosen = tuple(name for name in classes if (parse_diagnosis(name) or name.lower()) in _KNOWN)
    if unclear or not chosen:
        which = f"'{unclear[0]}' is" if unclear else "one of them is"
        raise InputError(
            f"nothing says whether {which} malignant: set data.positive=[...] from {there}"
        )
    return chosen


def _named(classes: Sequence[str], wanted: Sequence[str], there: str) -> tuple[str, ...]:
    """Matches names as written, or as words for the same class of the vocabulary."""
    chosen = set()
    for word in wanted:
        known = parse_diagnosis(word)
        same = {name for name in classes if name == word}
        same = same or {name for name in classes if known and parse_diagnosis(name) == known}
        if not same and known is None:
            raise InputError(f"data.positive: no class '{word}'; the classes are {there}")
        chosen |= same
    if not chosen:
        raise InputError(f"data.positive: none of {', '.join(wanted)} is among the classes {there}")
    return tuple(name for name in classes if name in chosen)


_KNOWN: Final = frozenset((*MALIGNANT, BINARY[1]))


def _rank(name: str) -> tuple[int, str]:
    known = parse_diagnosis(name)
    return (CLASSES.index(known) if known else len(CLASSES), name)
