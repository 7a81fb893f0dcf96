"""Rename the columns of other systems' prediction tables to the names used in this package."""

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.special import expit, softmax

from skinmm.errors import InputError
from skinmm.vocabulary import match_columns, parse_diagnosis

_PREFIX: Final = r"(?:(?:probabilities|probability|probas?|probs?|scores?|logits?|class|p)[ _.]?)"
_NUMBERED: Final = re.compile(rf"(?i){_PREFIX}*(\d+)")
_NAMED: Final = re.compile(rf"(?i){_PREFIX}+(.+)")
_SYSTEM: Final = re.compile(r"(.+):(\w+)")
_SIDES: Final = ("benign", "malignant")
_BITS: Final = ("0", "1", "0.0", "1.0")
_EXAMPLES: Final = ("akiec", "bcc", "bkl")


@dataclass(frozen=True)
class TableFormat:
    """Meaning of the columns of a prediction file that its header does not state.

    Attributes:
        classes: names of the classes, in the order of numbered columns and of a numeric truth.
        columns: column of a prediction file (`image_id`, `target`, `p_<class>`) -> name in the
            table, or in that of the labels.
        logits: the columns of the classes are logits, of which the softmax is taken.
        system: system to read, of a file of several (`SYSTEM:CLASS`).
    """

    classes: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    logits: bool = False
    system: str | None = None


def find_one_hot(table: pd.DataFrame, path: Path | str, classes: Sequence[str]) -> list[str]:
    """Return the columns of a one-hot truth with at least two classes; empty without one."""
    is_class = _class_test(classes)
    others = {*match_columns(table)} - {*classes}
    bits = [name for name in table.columns if name not in others and table[name].isin(_BITS).all()]
    for names in (bits, [name for name in bits if is_class(name)]):
        if sum(map(is_class, names)) < 2:  # noqa: PLR2004 - one column is no distribution
            return []
        totals = table[names].astype(float).sum(axis=1)
        if (totals == 1).all():
            return names
    row = int(np.flatnonzero(totals != 1)[0])
    if _has_truth(table):
        return []
    raise InputError(
        f"{path}: row {row + 2}: {totals.iloc[row]:.0f} of the classes {', '.join(names)} are 1, "
        "where one is expected; list all columns of classes with classes=[...]"
    )


def convert_labels(table: pd.DataFrame, path: Path | str, form: TableFormat) -> pd.DataFrame:
    """Rename the columns of a table of labels; a one-hot truth becomes a column `diagnosis`."""
    table = _rename(table, path, {theirs: ours for ours, theirs in form.columns.items()})
    one_hot = find_one_hot(table, path, form.classes)
    if one_hot and not _has_truth(table):
        index = table[one_hot].astype(float).to_numpy().argmax(axis=1)
        table = table.drop(columns=one_hot).assign(diagnosis=np.array(one_hot, dtype=object)[index])
    return _name_truth(table, form.classes)


def convert_predictions(
    table: pd.DataFrame, path: Path | str, form: TableFormat, labels: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Rename the columns of another system to the columns of a prediction file.

    Read are numbered classes (`probability_class_0`), a column per class (`MEL`, `prob_mel`), the
    columns of one of several systems (`SYSTEM:CLASS`), and the score `target` of a submission,
    whose truth is in the labels. The columns of prediction files stay as they are.

    Args:
        table: cells as text.
        path: of the table, for error messages.
        form: what the header does not state.
        labels: table of labels, whose one-hot columns name further classes.
    """
    further = [] if labels is None else find_one_hot(labels, path, form.classes)
    table = _rename(table, path, {theirs: ours for ours, theirs in form.columns.items()})
    table = _select_system(table, path, form.system)
    table = _rename(table, path, _find_numbered(table, path, form.classes))
    if not _has_probabilities(table):
        is_class = _class_test(form.classes, further)
        table = _rename(table, path, _find_named(table, is_class, has_labels=labels is not None))
    if labels is None:
        table = convert_labels(table, path, replace(form, columns={}))
    return _apply_softmax(table) if form.logits else table


def _rename(table: pd.DataFrame, path: Path | str, names: Mapping[str, str]) -> pd.DataFrame:
    names = {old: new for old, new in names.items() if old in table and old != new}
    for old, new in names.items():
        if new in table and new not in names:
            raise InputError(f"{path}: {old} cannot be read as {new}: there is a column {new}")
    return table.rename(columns=names)


def group_systems(names: Iterable[Any]) -> dict[str, dict[str, str]]:
    """Return system -> column -> class for columns `SYSTEM:CLASS`."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _SYSTEM.fullmatch(str(name)):
            groups.setdefault(match[1], {})[name] = match[2]
    return groups


def _select_system(table: pd.DataFrame, path: Path | str, system: str | None) -> pd.DataFrame:
    """Return the table with the columns of one system, named by class."""
    groups = group_systems(table.columns)
    if system is None and len(groups) > 1:
        raise InputError(
            f"{path} has {len(groups)} systems ({', '.join(groups)}): skinmm compare {path} "
            "compares them, system=NAME reads one"
        )
    name = next(iter(groups), "") if system is None else system
    if system is not None and system not in groups:
        raise InputError(f"{path} has no system {system}; it has {', '.join(groups) or 'one only'}")
    others = [column for other in groups if other != name for column in groups[other]]
    return _rename(table.drop(columns=others), path, groups.get(name, {}))


def _find_numbered(table: pd.DataFrame, path: Path | str, classes: Sequence[str]) -> dict[str, str]:
    """Return column -> `p_<class>` for classes that are numbered from 0."""
    matches = {name: _NUMBERED.fullmatch(str(name)) for name in table.columns}
    numbers = {name: int(match[1]) for name, match in matches.items() if match}
    is_native = any(
        name.startswith("p_") and not (name in numbers and classes) for name in table.columns
    )
    if len(numbers) < 2 or sorted(numbers.values()) != [*range(len(numbers))] or is_native:  # noqa: PLR2004
        return {}
    if len(classes) != len(numbers):
        raise InputError(
            f"{path} numbers its {len(numbers)} classes ({', '.join(numbers)}); name them in this "
            f"order, e.g. classes=[{','.join((*_EXAMPLES, '...'))}]; given: {len(classes)}"
        )
    return {name: f"p_{classes[number]}" for name, number in numbers.items()}


def _find_named(
    table: pd.DataFrame, is_class: Callable[[str], bool], *, has_labels: bool
) -> dict[str, str]:
    """Map columns named like classes, or the score of a submission, to `p_<class>`."""
    prefixed = {name: match[1] for name in table.columns if (match := _NAMED.fullmatch(str(name)))}
    named = {name: word for name, word in prefixed.items() if is_class(word)}
    if not named:
        named = {name: name for name in _find_bare(table, is_class)}
    if len(named) < 2 and has_labels:  # noqa: PLR2004
        targets = [name for name, ours in match_columns(table.columns).items() if ours == "target"]
        return {name: "p_malignant" for name in targets if _is_score(table[name])}
    return {name: f"p_{word}" for name, word in named.items()}


def _find_bare(table: pd.DataFrame, is_class: Callable[[str], bool]) -> list[str]:
    if {*_SIDES} <= {*table} and all(_is_score(table[name]) for name in _SIDES):
        return [*_SIDES]  # although a column `malignant` is otherwise the truth
    others = match_columns(table)
    return [name for name in table.columns if name not in others and is_class(name)]


def _class_test(classes: Sequence[str], further: Sequence[str] = ()) -> Callable[[str], bool]:
    """Return a function that recognises names of classes: `classes`, or else the vocabulary's."""
    words = {name.lower() for name in classes or (*further, *_SIDES)}
    return lambda name: name.lower() in words or (not classes and parse_diagnosis(name) is not None)


def _is_score(column: "pd.Series[str]") -> bool:
    """Return whether a column contains numbers in [0, 1] that are not all 0 or 1."""
    numbers = pd.to_numeric(column, errors="coerce")
    return bool(numbers.between(0, 1).all() and not numbers.isin((0, 1)).all())


def _has_probabilities(table: pd.DataFrame) -> bool:
    return any(name.startswith("p_") or name == "malignancy" for name in table.columns)


def _has_truth(table: pd.DataFrame) -> bool:
    return bool({"target", "diagnosis"} & {*match_columns(table).values()})


def _name_truth(table: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Replace class numbers in a truth column by class names."""
    for name, ours in match_columns(table).items():
        if ours in ("target", "diagnosis") and classes:
            numbers = pd.to_numeric(table[name], errors="coerce")
            if numbers.isin(range(len(classes))).all() and numbers.max() > 1:
                return table.assign(**{name: np.array(classes, object)[numbers.astype(int)]})
    return table


def _apply_softmax(table: pd.DataFrame) -> pd.DataFrame:
    names = [name for name in table.columns if name.startswith("p_")] or ["malignancy"]
    if {*names} <= {*table}:
        logits = table[names].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        table[names] = softmax(logits, axis=1) if len(names) > 1 else expit(logits)
    return table


_SCORE: Final = re.compile("score|prob|malig|risk", re.IGNORECASE)


def suggest_columns(table: pd.DataFrame, *, has_labels: bool, has_setting: bool) -> str:
    """Return advice on unrecognised columns: the setting `columns`, or other names; or ""."""
    columns = {}
    names = [name for name in table.columns if name not in {*match_columns(table).values()}]
    if "image_id" not in table:
        columns["image_id"] = [n for n in names if table[n].is_unique and not _is_number(table[n])]
    if not _has_probabilities(table):
        columns["p_malignant"] = [n for n in names if _is_score(table[n])] or [
            n for n in names if _SCORE.search(n) and table[n].str.contains(r"\d").mean() > 1 / 2
        ]
    if not has_labels and not _has_truth(table):
        columns["target"] = [n for n in names if table[n].map(_is_truth).all()]
    pairs = {ours: theirs[0] for ours, theirs in columns.items() if theirs}
    if not pairs:
        return ""
    if not has_setting:
        names = [f"{theirs!r} to {ours}" for ours, theirs in pairs.items()]
        return f"; if this is what they mean, rename {', '.join(names)}"
    setting = ", ".join(f"{ours}: {_quote(theirs)}" for ours, theirs in pairs.items())
    return f"; if this is what they mean: {shlex.quote(f'columns={{{setting}}}')}"


def _quote(name: str) -> str:
    """Quote a column for an override on the command line if its name has other characters."""
    if re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        return name
    return '"{}"'.format(name.replace('"', '\\"'))


def _is_number(column: "pd.Series[str]") -> bool:
    return bool(pd.to_numeric(column, errors="coerce").notna().any())


def _is_truth(cell: Any) -> bool:
    word = str(cell).lower()
    return word in (*_BITS, *_SIDES) or parse_diagnosis(word) is not None


def explain_numbers(table: pd.DataFrame) -> str:
    """Describe numbers that are not probabilities, such as percentages, and the remedy, or ""."""
    values = table.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    if (values < 0).any():
        return "; negative values are perhaps logits: logits=true takes their softmax"
    totals = np.nansum(values, axis=1)
    is_percent = np.median(totals) > 1.5 and totals.max() < 101  # noqa: PLR2004 - rounded to 100
    if is_percent or table.map(lambda cell: str(cell).strip().endswith("%")).any(axis=None):
        return "; percentages are not read: divide the columns by 100"
    if table.map(lambda cell: "," in str(cell)).any(axis=None):
        return "; decimal commas are not read: write 0.5, not 0,5"
    return ""
