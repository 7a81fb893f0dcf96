"""A CSV that someone else wrote -> canonical rows; what cannot be used is named by file and row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm import files
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images.source import FRAME
from skinmm.vocabulary import SITES, is_missing, map_unique, parse_column, parse_numbers

CANONICAL: Final = (
    *("image_id", "path", "patient_id", "lesion_id", "age", "sex", "site", "diagnosis", "target"),
    *("source", "width", "height"),
)
"""The columns of every cohort table, in order."""
OPTIONAL: Final = ("part", "public_fold", "duplicate_of")
"""Columns that some cohorts bring beside them; `splits` says what they do."""
CODES: Final = 20  # different numbers that a column of words may hold

_ALLOWED: Final = {
    "age": "years from 0 to 120",
    "sex": "female, male or empty",
    "site": f"{', '.join(SITES)}, a word for one of them, or empty",
}


def read_table(path: Path, required: Sequence[str] = (), only: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of a cohort as text; `skinmm.files` says which formats are supported.

    Args:
        path: the file.
        required: columns it must have.
        only: the columns to return; empty: all columns.

    Returns:
        Cells as stripped text, None where empty.

    Raises:
        InputError: the table cannot be read, has no rows or lacks a required column.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file; data.root must be the folder that contains it")
    table = files.read_table(path, only=only)
    missing = [name for name in required if name not in table.columns]
    if missing:
        has = ", ".join(table.columns)
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {has}")
    if table.empty:
        raise InputError(f"{path}: the table has a header and no rows")
    table = table.apply(lambda column: column.str.strip())
    return table.astype(object).where(table != "", None)


def canonical(
    table: pd.DataFrame, where: Path, source: str, columns: Sequence[str]
) -> pd.DataFrame:
    """Turns text cells under canonical column names into canonical rows.

    Args:
        table: text; `image_id` is needed, of the other canonical columns what there is.
        where: the file, for messages.
        source: name of the cohort.
        columns: record columns the model will ask for; those that are not canonical are kept too,
            as numbers where every cell is one, else as text.

    Returns:
        The columns `CANONICAL`, the `OPTIONAL` ones that the table has, and the kept ones. `target`
        is NaN where not given.

    Raises:
        InputError: an image named twice or not at all, or a cell outside the vocabulary.
    """
    blank = pd.Series(None, index=table.index, dtype=object)
    rows = pd.DataFrame({name: table.get(name, blank) for name in CANONICAL}).assign(source=source)
    rows["image_id"] = without_suffix(rows["image_id"])
    _check_names(rows["image_id"], where)
    for name, allowed in _ALLOWED.items():
        cells, found = parse_column(rows[name], name)
        rows[name] = pd.Series(cells, rows.index, cells.dtype)
        if (refused := pd.Series(found, rows.index)).any():
            raise InputError(_message(table, refused, name, where, allowed))
    for name in ("patient_id", "lesion_id"):
        rows[name] = _known(rows[name])
    for name in ("target", "width", "height"):
        rows[name] = _numbers(table, rows[name], name, where)
    for name in OPTIONAL:
        if name in table:
            rows[name] = table[name]
    if "duplicate_of" in rows:
        rows["duplicate_of"] = without_suffix(_known(rows["duplicate_of"]))
    kept = [name for name in columns if name in table and name not in rows]
    return rows.assign(**{name: declared(table[name]) for name in kept})


def joined(
    table: pd.DataFrame, key: str, file: Path, columns: Sequence[str], their_key: str = ""
) -> pd.DataFrame:
    """Adds the columns of a companion table, as far as it and they are there.

    Args:
        table: rows with the column `key`.
        key: what rows are matched by.
        file: the companion; its first row for a key counts.
        columns: what to add.
        their_key: the companion's name for `key`, where it is another.
    """
    if not file.is_file():
        return table
    other = read_table(file, [their_key or key]).drop_duplicates(their_key or key)
    other = other.set_index(their_key or key)
    found = [name for name in columns if name in other]
    return table.assign(**{name: table[key].map(other[name]) for name in found})


def choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Checks an option of an adapter.

    Raises:
        InputError: the value is none of those allowed.
    """
    if value not in allowed:
        raise InputError(f"+data.args.{key}={value}: choose from {', '.join(allowed)}")


def pairs(key: str, value: Any, example: str) -> dict[str, Any]:
    """An option of an adapter that maps names.

    Raises:
        InputError: it is no mapping.
    """
    if not isinstance(value or {}, Mapping):
        raise InputError(f"+data.args.{key}={value}: must be pairs, such as {{{example}}}")
    return dict(value or {})


def without_suffix(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """Image names without .jpg and the like; `#frame=N` behind it stays."""
    return map_unique(cells, _without_suffix).astype(object)


def declared(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A further column: numbers where every known cell is one, else text; None where not known.

    Raises:
        InputError: most cells are numbers, too many different ones to be codes, but not all.
    """
    known = _known(column)
    numbers = pd.Series(parse_numbers(known), known.index)
    words = known[numbers.isna() & known.notna()]
    if words.empty:
        return numbers
    if numbers.count() > len(words) and numbers.nunique() > CODES:
        raise InputError(
            f"column '{column.name}' holds numbers, but also {len(words)} words, e.g. "
            f"{words.iloc[0]!r}; empty the cells where nothing is known"
        )
    return known.astype(object)


def _known(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """None in place of words for "not known"."""
    words = [value for value in column.dropna().unique() if is_missing(value)]
    return column.where(column.notna() & ~column.isin(words), None)


def _without_suffix(cell: str) -> str:
    name, mark, frame = cell.partition(FRAME)
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{mark}{frame}" if f"{dot}{suffix.lower()}" in IMAGE_SUFFIXES else cell


def _check_names(names: "pd.Series[Any]", where: Path) -> None:
    if names.isna().any():
        raise InputError(
            f"{where}: row {_line(names.isna())}: no image name; fill or remove the row"
        )
    twice = names.duplicated()
    if twice.any():
        name = names[twice].iloc[0]
        rows = ", ".join(str(index + 2) for index in names.index[names == name][:3])
        raise InputError(
            f"{where}: {int(twice.sum())} rows repeat an image, first '{name}' (rows {rows}); "
            "keep one row per image"
        )


def _numbers(
    table: pd.DataFrame, column: "pd.Series[Any]", name: str, where: Path
) -> "pd.Series[Any]":
    numbers = pd.to_numeric(column, errors="coerce").astype("float64")
    allowed = numbers.isin((0, 1)) if name == "target" else numbers > 0
    refused = column.notna() & ~allowed
    if refused.any():
        words = "0 or 1" if name == "target" else "a number of pixels"
        raise InputError(_message(table, refused, name, where, words))
    return numbers


def _message(
    table: pd.DataFrame, refused: "pd.Series[Any]", name: str, where: Path, allowed: str
) -> str:
    first = table.loc[refused].iloc[0]
    return (
        f"{where}: row {_line(refused)} ('{first['image_id']}'): {name} '{first[name]}' is not "
        f"understood ({int(refused.sum())} such rows); allowed: {allowed}"
    )


def _line(mask: "pd.Series[Any]") -> int:
    """The spreadsheet's number of the first marked row; the header is row 1."""
    return int(mask.index[mask][0]) + 2
