"""From a user's CSV to canonical rows; an error names the file and the row."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
"""Columns of some cohorts, which `splits` uses."""
MAX_CODES: Final = 20  # distinct numbers in a column of words

_ALLOWED: Final = {
    "age": "years from 0 to 120",
    "sex": "female, male or empty",
    "site": f"{', '.join(SITES)}, a synonym, or empty",
}


@dataclass(frozen=True)
class CohortTable:
    """Rows of a cohort, and facts for error messages.

    Attributes:
        rows: canonical rows.
        searched: folders that were searched for images.
        unlabelled: which of `target` and `diagnosis` a user's table lacks.
        description: path and columns of that table.
    """

    rows: pd.DataFrame
    searched: tuple[Path, ...] = ()
    unlabelled: tuple[str, ...] = ()
    description: str = ""


def read_table(path: Path, required: Sequence[str] = (), only: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of a cohort as text; see `skinmm.files` for the formats.

    Args:
        path: file to read.
        required: columns that the table must have.
        only: columns to read; empty: all columns.

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
        columns = ", ".join(table.columns)
        raise InputError(f"{path}: no column {', '.join(missing)}; it has {columns}")
    if table.empty:
        raise InputError(f"{path}: the table has a header and no rows")
    table = table.apply(lambda column: column.str.strip())
    return table.astype(object).where(table != "", None)


def to_canonical(
    table: pd.DataFrame, file: Path, source: str, columns: Sequence[str]
) -> pd.DataFrame:
    """Convert text cells under canonical column names to canonical rows.

    Args:
        table: text; must have `image_id`, may have any other canonical column.
        file: path for error messages.
        source: name of the cohort.
        columns: record columns of the model; those that are not canonical are added, as numbers if
            every cell is one, otherwise as text.

    Returns:
        The columns `CANONICAL`, those of `OPTIONAL` that the table has, and the added ones.
        `target` is NaN where missing.

    Raises:
        InputError: a missing or repeated image name, or a cell outside the vocabulary.
    """
    empty = pd.Series(None, index=table.index, dtype=object)
    rows = pd.DataFrame({name: table.get(name, empty) for name in CANONICAL}).assign(source=source)
    rows["image_id"] = strip_suffixes(rows["image_id"])
    _check_names(rows["image_id"], file)
    for name, allowed in _ALLOWED.items():
        cells, mask = parse_column(rows[name], name)
        rows[name] = pd.Series(cells, rows.index, cells.dtype)
        _check_cells(table, pd.Series(mask, rows.index), name, file, allowed)
    for name in ("patient_id", "lesion_id"):
        rows[name] = _clear_missing(rows[name])
    for name, allowed in {"target": "0 or 1", **_PIXELS}.items():
        numbers = pd.to_numeric(rows[name], errors="coerce").astype("float64")
        valid = numbers.isin((0, 1)) if name == "target" else numbers > 0
        _check_cells(table, rows[name].notna() & ~valid, name, file, allowed)
        rows[name] = numbers
    for name in OPTIONAL:
        if name in table:
            rows[name] = table[name]
    if "duplicate_of" in rows:
        rows["duplicate_of"] = strip_suffixes(_clear_missing(rows["duplicate_of"]))
    extra = [name for name in columns if name in table and name not in rows]
    return rows.assign(**{name: to_extra_column(table[name]) for name in extra})


_PIXELS: Final = dict.fromkeys(("width", "height"), "a number of pixels")


def merge_companion(
    table: pd.DataFrame, key: str, file: Path, columns: Sequence[str], file_key: str = ""
) -> pd.DataFrame:
    """Add columns of a companion table; a missing file or column adds nothing.

    Args:
        table: rows with the column `key`.
        key: column by which rows are matched.
        file: the companion, whose first row for a key is used.
        columns: columns to add.
        file_key: name of the key in the companion, if it differs.
    """
    if not file.is_file():
        return table
    file_key = file_key or key
    other = read_table(file, [file_key]).drop_duplicates(file_key).set_index(file_key)
    return table.assign(**{c: table[key].map(other[c]) for c in columns if c in other})


def require_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Check an option of an adapter.

    Raises:
        InputError: the value is not allowed.
    """
    if value not in allowed:
        raise InputError(f"+data.args.{key}={value}: choose from {', '.join(allowed)}")


def require_mapping(key: str, value: Any, example: str) -> dict[str, Any]:
    """Return an option of an adapter that maps names.

    Raises:
        InputError: the value is not a mapping.
    """
    if not isinstance(value or {}, Mapping):
        raise InputError(f"+data.args.{key}={value}: must be pairs, such as {{{example}}}")
    return dict(value or {})


def strip_suffixes(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """Remove the suffixes of image names; `#frame=N` after the suffix is kept."""
    return map_unique(cells, _strip_suffix).astype(object)


def to_extra_column(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Convert a column that is not canonical: to numbers if every cell is one, otherwise to text.

    Raises:
        InputError: a few words among many different numbers.
    """
    cells = _clear_missing(column)
    numbers = pd.Series(parse_numbers(cells), cells.index)
    words = cells[numbers.isna() & cells.notna()]
    if words.empty:
        return numbers
    if numbers.count() > len(words) and numbers.nunique() > MAX_CODES:
        raise InputError(
            f"column '{column.name}' contains numbers, but also {len(words)} words, e.g. "
            f"{words.iloc[0]!r}; empty the cells with unknown values"
        )
    return cells.astype(object)


def _clear_missing(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Replace words for "unknown" by None."""
    words = [value for value in column.dropna().unique() if is_missing(value)]
    return column.where(column.notna() & ~column.isin(words), None)


def _strip_suffix(cell: str) -> str:
    name, mark, frame = cell.partition(FRAME)
    stem, dot, suffix = name.rpartition(".")
    return f"{stem}{mark}{frame}" if f"{dot}{suffix.lower()}" in IMAGE_SUFFIXES else cell


def _check_names(names: "pd.Series[Any]", file: Path) -> None:
    if names.isna().any():
        row = _row_number(names.isna())
        raise InputError(f"{file}: row {row}: no image name; fill or remove the row")
    repeated = names.duplicated()
    if repeated.any():
        name = names[repeated].iloc[0]
        rows = ", ".join(str(index + 2) for index in names.index[names == name][:3])
        raise InputError(
            f"{file}: {int(repeated.sum())} rows repeat an image, first '{name}' (rows {rows}); "
            "use one row per image"
        )


def _check_cells(
    table: pd.DataFrame, invalid: "pd.Series[Any]", name: str, file: Path, allowed: str
) -> None:
    if invalid.any():
        first = table.loc[invalid].iloc[0]
        raise InputError(
            f"{file}: row {_row_number(invalid)} ('{first['image_id']}'): {name} '{first[name]}' "
            f"is not understood ({int(invalid.sum())} such rows); allowed: {allowed}"
        )


def _row_number(mask: "pd.Series[Any]") -> int:
    """Return the spreadsheet's number of the first marked row; the header is row 1."""
    return int(mask.index[mask][0]) + 2
