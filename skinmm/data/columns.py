"""Columns of a user's table: checks, units, types, and a list of unused columns."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from skinmm.config import DataConfig
from skinmm.errors import InputError, format_count
from skinmm.vocabulary import (
    CONVERTERS,
    column_key,
    describe_unused_columns,
    is_missing,
    map_unique,
    match_columns,
    name_units,
    parse_numbers,
    parse_truth,
)

if TYPE_CHECKING:
    from skinmm.data.cohorts.tables import CohortTable

MAX_CODES: Final = 20  # distinct numbers in a column of words

_REASONS: Final[dict[str, str]] = {
    "it is the answer, or a synonym of it": (
        "target diagnosis benign_malignant malignant melanoma dx"
    ),
    "it is known only after the diagnosis was made": (
        "dx_type diagnosis_confirm_type biopsed mel_thick_mm mel_mitotic_index"
    ),
    "it describes the camera or the archive, not the patient": (
        "width height file_size bytes megapixels pixels image_size"
    ),
    "it describes how the data were collected, not the patient": (
        "images_per_patient n_images image_id path patient_id lesion_id source cohort part fold "
        "public_fold attribution copyright_license"
    ),
}
NOT_AT_BEDSIDE: Final[dict[str, str]] = {
    name: reason for reason, names in _REASONS.items() for name in names.split()
}
"""Columns that no model may use, with the reason: they do not exist for a new patient."""


def suggest_names(name: str, names: Iterable[str]) -> list[str]:
    """Return the names that are most similar to a name; case and punctuation do not count."""
    by_key = {column_key(candidate): candidate for candidate in names}
    key = column_key(name)
    within = [candidate for candidate in by_key if key in candidate]
    keys = dict.fromkeys([*get_close_matches(key, by_key), *within])
    return [by_key[candidate] for candidate in keys][:3]


def check_columns(
    columns: Sequence[str], present: Sequence[str], names: Sequence[str] = ()
) -> None:
    """Raise InputError if record columns are unknown at prediction time, or not in the table.

    `names` are the columns of the user's table, for the message.
    """
    for name in columns:
        reason = NOT_AT_BEDSIDE.get(name)
        reason = "ISIC knows it only after histology" if name.startswith("iddx") else reason
        if reason:
            raise InputError(f"data.columns: '{name}' cannot be an input: {reason}")
        if name not in present:
            usable = [*names] or sorted(c for c in present if c not in NOT_AT_BEDSIDE)
            nearest = " or ".join(f"'{other}'" for other in suggest_names(name, usable))
            advice = f"did you mean {nearest}? " if nearest else ""
            has = f"{advice}the table has {', '.join(usable)}"
            raise InputError(f"data.columns: no column '{name}'; {has}")


def describe_columns(cohort: "CohortTable", data: DataConfig) -> list[str]:
    """Describe empty columns, missing patients, unused columns; refuse empty configured ones."""
    rows, notes = cohort.rows, []
    empty = [name for name in data.columns if name in CONVERTERS and rows[name].isna().all()]
    if data.columns != DataConfig().columns:
        present = {*match_columns(cohort.columns).values(), *(data.args.get("columns") or ())}
        absent = [name for name in empty if name not in present]
        check_columns(absent, [*rows.columns.difference(empty)], cohort.columns)
    if empty and cohort.columns:
        notes.append(f"no value of {', '.join(empty)} in any row")
    unused = describe_unused_columns(cohort.unused, ": use +data.args.columns.part=COLUMN")
    if cohort.unused and (name_units(rows) == "image").all():
        unused = f"no column patient_id or lesion_id: every image counts as a patient; {unused}"
    return [*notes, unused] if unused else notes


_UNIT_WORDS: Final = (
    "mm millimeter millimetre, cm centimeter centimetre, um \u03bcm micrometer micrometre micron, "
    "inch in inche, mm2 sqmm squaremillimeter squaremillimetre, cm2 sqcm squarecentimeter "
    "squarecentimetre, mm3, cm3, years yr year yearsold, months mo month, weeks wk week, days day, "
    "kg kilogram, lb pound, % percent pct"
)
NUMBER_UNITS: Final = {
    word: words.split()[0] for words in _UNIT_WORDS.split(", ") for word in words.split()
}
"""Word -> unit of a number in a further column, in lower case and the singular."""
_NEARLY_NUMBER: Final = re.compile(
    r"[<>\u2264\u2265~]\s*=?\s*[\d.,]+|[+-]?\d{1,3}(?:[\s'\u2019.,]\d{3})+(?:[.,]\d+)?"
)
"""A bound, or a number with thousands separators."""
_QUANTITY: Final = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*([^\W\d_][\w .^]*|%)")


def split_unit(cell: Any) -> tuple[Any, str]:
    """Split a text such as `12 mm` into number and unit; the unit of any other cell is ""."""
    match = _QUANTITY.fullmatch(cell.strip()) if isinstance(cell, str) else None
    if not match:
        return cell, ""
    word = re.sub(r"[\s.^]", "", unicodedata.normalize("NFKC", match[2]).lower())
    unit = NUMBER_UNITS.get(word) or NUMBER_UNITS.get(word.removesuffix("s"))
    return (match[1], unit) if unit else (cell, "")


def has_ambiguous_comma(cell: Any) -> bool:
    """Return whether a comma can be a decimal comma or a thousands separator: `1,033`."""
    return re.fullmatch(r"[+-]?[1-9]\d{0,2},\d{3}", str(cell).strip()) is not None


def has_thousands_point(cell: Any) -> bool:
    """Return whether a point separates thousands if other numbers have decimal commas: `1.033`."""
    return "," not in str(cell) and has_ambiguous_comma(str(cell).replace(".", ","))


def has_decimal_comma(cell: Any) -> bool:
    """Return whether a number has a comma that can only be a decimal comma: `0,5`."""
    is_number = re.fullmatch(r"[+-]?\d+,\d+", str(cell).strip()) is not None
    return is_number and not has_ambiguous_comma(cell)


def find_unit(column: "pd.Series[Any]") -> str:
    """Return the unit of a column of numbers; "" without a unit or with other texts."""
    texts = column.dropna().unique()
    words = [text for text in texts[np.isnan(parse_numbers(texts))] if not is_missing(text)]
    units = {text: split_unit(text)[1] for text in words}
    if not units or not all(units.values()):
        return ""
    cells = clear_missing(column).dropna()
    counts = Counter(units.get(text) for text in cells)
    if len(counts) > 1:
        listed = ", ".join(
            f"{n} in {unit}" if unit else f"{n} without unit" for unit, n in counts.most_common()
        )
        raise InputError(f"column '{column.name}' mixes units: {listed}; write all in one unit")
    return next(iter(units.values()))


def add_units(rows: pd.DataFrame, units: Mapping[str, str]) -> pd.DataFrame:
    """Return rows whose numbers have their units again, such as `12.0 mm`."""
    cells = {name: rows[name].map(f"{{}} {unit}".format, "ignore") for name, unit in units.items()}
    return rows.assign(**cells)


def require_same_units(first: "CohortTable", second: "CohortTable", names: Sequence[str]) -> None:
    """Raise InputError if two cohorts have a column in different units."""
    for column in first.units.keys() | second.units.keys():
        units = [cohort.units.get(column, "no unit") for cohort in (first, second)]
        if column in first.rows and column in second.rows and len({*units}) > 1:
            difference = f"in {names[0]} it has {units[0]}, in {names[1]} {units[1]}"
            raise InputError(f"column '{column}' mixes units: {difference}; write both in one unit")


def parse_extra_column(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Convert a column that is not canonical: to numbers if every cell is one, otherwise to text.

    Numbers may have a unit, the same in all cells. Spellings of true and false become `true` and
    `false`. A few words among many different numbers are refused, and so are texts that nearly all
    differ.
    """
    cells = clear_missing(column)
    if find_unit(cells):
        cells = map_unique(cells, lambda cell: split_unit(cell)[0]).rename(str(column.name))
    texts = cells.dropna().astype(str).unique()
    has_commas = any(map(has_decimal_comma, texts))
    is_ambiguous = has_thousands_point if has_commas else has_ambiguous_comma
    if ambiguous := next(filter(is_ambiguous, texts), None):
        raise InputError(f"column '{column.name}': {describe_comma(ambiguous)}")
    numbers = pd.Series(parse_numbers(cells), cells.index)
    words = cells[numbers.isna() & cells.notna()]
    if words.empty:
        return numbers
    truth = map_unique(cells, parse_truth).astype(object)
    if cells.nunique() > truth.nunique() and truth.count() == cells.count():  # several spellings
        return truth.where(truth.notna(), None)
    nearly = words[words.map(lambda word: bool(_NEARLY_NUMBER.fullmatch(str(word).strip())))]
    if numbers.count() and len(nearly):
        raise InputError(
            f"column '{column.name}' contains numbers, but also {nearly.iloc[0]!r} in row "
            f"{nearly.index[0] + 2}: write a number there, or words in every cell"
        )
    if numbers.count() > len(words) and numbers.nunique() > MAX_CODES:
        raise InputError(
            f"column '{column.name}' contains numbers, but also {format_count(len(words), 'word')}"
            f", first {words.iloc[0]!r} in row {words.index[0] + 2}; empty the cells with unknown "
            "values"
        )
    if cells.nunique() > max(MAX_CODES, cells.count() / 2):
        first = ", ".join(repr(word) for word in words.iloc[:3])
        raise InputError(
            f"column '{column.name}' contains {cells.nunique()} different texts in {cells.count()} "
            f"rows, e.g. {first}: use a column with few categories, or with numbers (without unit, "
            f"or in {', '.join(dict.fromkeys(NUMBER_UNITS.values()))})"
        )
    return cells.astype(object)


def clear_missing(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Replace words for "unknown" by None."""
    # No such word ends in a digit, but most ids do.
    values = (value for value in column.dropna().unique() if not str(value)[-1:].isdigit())
    words = {value for value in values if is_missing(value)}
    if not words:
        return column.astype(object).where(column.notna(), None)
    cells = [None if cell in words else cell for cell in column.tolist()]
    return pd.Series(cells, column.index, object, name=column.name).where(column.notna(), None)


def describe_comma(cell: str) -> str:
    """Describe the possible meanings of an ambiguous comma or point, and the remedy."""
    choices = " or ".join(re.sub("[,.]", mark, split_unit(cell)[0]) for mark in ("", "."))
    return f"{cell!r} can mean {choices}; write numbers without thousands separators"
