"""Damages of cohort tables; see `damaged_tables.py`."""

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from io import BytesIO, StringIO
from pathlib import Path
from typing import Final, Literal
from unicodedata import normalize

import numpy as np
import pandas as pd

from skinmm.vocabulary import COLUMN_NAMES

ROWS: Final = 24
SHARE_OF_ROWS: Final = 0.7  # that remain where rows are removed


@dataclass(frozen=True)
class Table:
    """Text of a table, and what its damage leaves open.

    Attributes:
        order: undamaged row that each row of the file contains.
        unsure: rows whose cells may be read in any way, if both readers agree.
        unsure_columns: columns for which the same holds in all rows.
        images: allowed locations of damaged image cells, by row.
        data: bytes of the file; None: written from names and rows.
    """

    names: list[str]
    rows: list[list[str]]
    order: list[int]
    unsure: frozenset[int] = frozenset()
    unsure_columns: frozenset[str] = frozenset()
    images: dict[int, set[str | None]] = field(default_factory=dict)
    data: bytes | None = None
    file: str = "damaged.csv"

    def text(self, sep: str = ",", ending: str = "\n", quote_all: bool = False) -> str:
        """Return the table as CSV."""
        out = StringIO()
        quoting: Literal[0, 1] = csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL
        writer = csv.writer(out, delimiter=sep, lineterminator=ending, quoting=quoting)
        writer.writerows([self.names, *self.rows])
        return out.getvalue()

    def cells(self, row: int, column: int, cell: str) -> list[list[str]]:
        """Return the rows with one cell replaced."""
        rows = [list(cells) for cells in self.rows]
        rows[row][column] = cell
        return rows


@dataclass(frozen=True)
class Cohort:
    """A cohort in a folder; `images` is the folder that prediction is given."""

    root: Path
    images: Path
    columns: list[str]
    table: Table


Rng = np.random.Generator
Damage = Callable[[Rng, Cohort], Table]
DAMAGES: dict[str, Damage] = {}


def damage(function: Damage) -> Damage:
    """Register a damage under the name of its function."""
    DAMAGES[function.__name__.strip("_").replace("_", " ")] = function
    return function


def written(table: Table, text: str, encoding: str = "utf-8") -> Table:
    """Return the table with the bytes of its file."""
    return replace(table, data=text.encode(encoding, "replace"))


@damage
def _file_cut(rng: Rng, cohort: Cohort) -> Table:
    text = cohort.table.text()
    end = int(rng.integers(text.index("\n") + 2, len(text)))
    count = text.count("\n", 0, end) - (text[end - 1] == "\n")
    order = cohort.table.order[: max(count, 1)]
    return written(replace(cohort.table, order=order, unsure=frozenset({count - 1})), text[:end])


@damage
def _rows_removed(rng: Rng, cohort: Cohort) -> Table:
    order = [row for row in cohort.table.order if rng.random() < SHARE_OF_ROWS] or [0]
    return replace(cohort.table, rows=[cohort.table.rows[row] for row in order], order=order)


@damage
def _rows_shuffled(rng: Rng, cohort: Cohort) -> Table:
    order = rng.permutation(len(cohort.table.rows)).tolist()
    return replace(cohort.table, rows=[cohort.table.rows[row] for row in order], order=order)


@damage
def _row_repeated(rng: Rng, cohort: Cohort) -> Table:
    row, table = int(rng.integers(ROWS)), cohort.table
    return replace(table, rows=[*table.rows, table.rows[row]], order=[*table.order, row])


@damage
def _stray_quote(rng: Rng, cohort: Cohort) -> Table:
    text = cohort.table.text()
    at = int(rng.integers(text.index("\n") + 1, len(text) - 1))
    row = text.count("\n", 0, at) - 1
    return written(replace(cohort.table, unsure=frozenset({row})), text[:at] + '"' + text[at:])


@damage
def _header_respelt(rng: Rng, cohort: Cohort) -> Table:
    ways: list[Callable[[str], str]] = [str.upper, str.title, lambda name: f" {name} "]
    ways += [lambda name: name.replace("_", "-"), lambda name: name.replace("_", " ").title()]
    extra = {"smoker", "diameter", "remark"}
    names = [name if name in extra else ways[rng.integers(5)](name) for name in cohort.table.names]
    return replace(cohort.table, names=names)


@damage
def _header_synonym(rng: Rng, cohort: Cohort) -> Table:
    public = [(canonical, names) for canonical, names in COLUMN_NAMES.items()]
    canonical = {name: names for _, names in public for name in names}
    names = [str(rng.choice(canonical.get(name, (name,)))) for name in cohort.table.names]
    return replace(cohort.table, names=names)


@damage
def _header_unknown(rng: Rng, cohort: Cohort) -> Table:
    names = list(cohort.table.names)
    column = int(rng.integers(len(names)))
    unsure = {names[column], "patient" if names[column].endswith("_id") else ""}
    names[column] = f"x{names[column]}x"
    return replace(cohort.table, names=names, unsure_columns=frozenset(unsure))


@damage
def _columns_shuffled(rng: Rng, cohort: Cohort) -> Table:
    order, table = rng.permutation(len(cohort.table.names)), cohort.table
    rows = [[row[i] for i in order] for row in table.rows]
    return replace(table, names=[table.names[i] for i in order], rows=rows)


@damage
def _column_repeated(rng: Rng, cohort: Cohort) -> Table:
    table, column = cohort.table, int(rng.integers(len(cohort.table.names)))
    at = rng.permutation(len(table.rows))
    rows = [[*row, table.rows[i][column]] for row, i in zip(table.rows, at, strict=True)]
    name = table.names[column]
    return replace(table, names=[*table.names, rng.choice([name, f" {name}"])], rows=rows)


@damage
def _other_dialect(rng: Rng, cohort: Cohort) -> Table:
    sep, ending = str(rng.choice([",", ";", "\t"])), str(rng.choice(["\n", "\r\n"]))
    text = cohort.table.text(sep, ending, quote_all=bool(rng.choice([False, True])))
    text = rng.choice(["", f"sep={sep}{ending}", ending]) + text
    return written(cohort.table, text, str(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))


@damage
def _other_encoding(rng: Rng, cohort: Cohort) -> Table:
    return written(cohort.table, cohort.table.text(), str(rng.choice(["cp1252", "utf-16-le"])))


@damage
def _compressed(rng: Rng, cohort: Cohort) -> Table:
    data = gzip.compress(cohort.table.text().encode())
    data = data if rng.choice([True, False]) else data[: int(rng.integers(len(data)))]
    return replace(cohort.table, data=data, file="damaged.csv.gz")


@damage
def _carriage_returns(rng: Rng, cohort: Cohort) -> Table:
    text = cohort.table.text()
    at = [i for i, sign in enumerate(text) if sign == "\n"]
    chosen = set(at) if rng.choice([True, False]) else {int(rng.choice(at))}
    return written(cohort.table, "".join("\r" if i in chosen else c for i, c in enumerate(text)))


@damage
def _separators_in_one_row(rng: Rng, cohort: Cohort) -> Table:
    lines, row = cohort.table.text().splitlines(), int(rng.integers(ROWS))
    lines[row + 1] = lines[row + 1].replace(",", str(rng.choice([";", "\t", ", "])))
    unsure = frozenset() if ", " in lines[row + 1] else frozenset({row})
    return written(replace(cohort.table, unsure=unsure), "\n".join(lines))


@damage
def _separator_moved(rng: Rng, cohort: Cohort) -> Table:
    lines, row = cohort.table.text().splitlines(), int(rng.integers(ROWS))
    signs = list(lines[row + 1])
    commas = [i for i, sign in enumerate(signs) if sign == ","]
    signs.insert(int(rng.integers(len(signs))), signs.pop(int(rng.choice(commas))))
    lines[row + 1] = "".join(signs)
    return written(replace(cohort.table, unsure=frozenset({row})), "\n".join(lines))


@damage
def _trailing_commas(rng: Rng, cohort: Cohort) -> Table:
    lines = cohort.table.text().splitlines()
    chosen = range(len(lines)) if rng.choice([True, False]) else [int(rng.integers(1, len(lines)))]
    for line in chosen:
        lines[line] += "," * int(rng.integers(1, 4)) if len(chosen) == 1 else ",,"
    return written(cohort.table, "\n".join(lines))


@damage
def _blank_lines(rng: Rng, cohort: Cohort) -> Table:
    lines = cohort.table.text().splitlines()
    for _ in range(3):
        lines.insert(int(rng.integers(len(lines) + 1)), str(rng.choice(["", "  ", ",,"])))
    return written(cohort.table, "\n".join(lines))


@damage
def _row_short(rng: Rng, cohort: Cohort) -> Table:
    rows, row = [list(cells) for cells in cohort.table.rows], int(rng.integers(ROWS))
    del rows[row][int(rng.integers(len(rows[row])))]
    return replace(cohort.table, rows=rows, unsure=frozenset({row}))


@damage
def _cells_swapped(rng: Rng, cohort: Cohort) -> Table:
    rows, row = [list(cells) for cells in cohort.table.rows], int(rng.integers(ROWS))
    first, second = rng.permutation(len(rows[row]))[:2]
    rows[row][first], rows[row][second] = rows[row][second], rows[row][first]
    return replace(cohort.table, rows=rows, unsure=frozenset({row}))


@damage
def _blanks_around_cells(rng: Rng, cohort: Cohort) -> Table:
    pads = ["", " ", "  ", "\t", "\u00a0"]
    rows = [
        [f"{rng.choice(pads)}{cell}{rng.choice(pads)}" for cell in row] for row in cohort.table.rows
    ]
    return written(cohort.table, replace(cohort.table, rows=rows).text(quote_all=True))


@damage
def _line_break_in_a_cell(rng: Rng, cohort: Cohort) -> Table:
    row, column = int(rng.integers(ROWS)), int(rng.integers(len(cohort.table.names)))
    cell = cohort.table.rows[row][column]
    at = int(rng.integers(len(cell) + 1))
    rows = cohort.table.cells(row, column, f"{cell[:at]}\n{cell[at:]}")
    return replace(cohort.table, rows=rows, unsure=frozenset({row}))


@damage
def _cell_of_another_kind(rng: Rng, cohort: Cohort) -> Table:
    row, column = int(rng.integers(ROWS)), int(rng.integers(len(cohort.table.names)))
    words = ["", "n/a", "x", "?", "-1", "1e3", "0x1f", "1,033", "nan", "12 mm", "TRUE", "½"]
    rows = cohort.table.cells(row, column, str(rng.choice(words)))
    return replace(cohort.table, rows=rows, unsure=frozenset({row}))


@damage
def _decimal_commas(_: Rng, cohort: Cohort) -> Table:
    table, rows = cohort.table, [list(row) for row in cohort.table.rows]
    for column in _find_numbers(table):
        for row in rows:
            row[column] = row[column].replace(".", ",")
    return written(table, replace(table, rows=rows).text(";"))


@damage
def _zeros_after_numbers(rng: Rng, cohort: Cohort) -> Table:
    table, rows = cohort.table, [list(row) for row in cohort.table.rows]
    for column in _find_numbers(table):
        for row in rows:
            zeros = "0" * int(rng.integers(1, 3))
            row[column] += f"{'' if '.' in row[column] else '.'}{zeros}" if row[column] else ""
    return replace(table, rows=rows)


def _find_numbers(table: Table) -> list[int]:
    names = ("age", "diameter", "patient_id")
    return [column for column, name in enumerate(table.names) if name in names]


def _to_typed(table: Table) -> pd.DataFrame:
    """Return the table as a spreadsheet stores it, with numbers."""
    frame = pd.DataFrame(table.rows, columns=table.names).replace("", None)
    for name in (table.names[column] for column in _find_numbers(table)):
        frame[name] = pd.to_numeric(frame[name])
    return frame.assign(target=frame["target"].astype(int))


@damage
def _excel_file(_: Rng, cohort: Cohort) -> Table:
    out = BytesIO()
    _to_typed(cohort.table).to_excel(out, index=False)
    return replace(cohort.table, data=out.getvalue(), file="damaged.xlsx")


@damage
def _parquet_file(rng: Rng, cohort: Cohort) -> Table:
    frame = _to_typed(cohort.table)
    if rng.choice([True, False]) and "patient_id" in frame:
        frame["patient_id"] = frame["patient_id"].astype(float)
    return replace(cohort.table, data=frame.to_parquet(index=False), file="damaged.parquet")


@damage
def _header_cell_removed(rng: Rng, cohort: Cohort) -> Table:
    names = list(cohort.table.names)
    del names[int(rng.integers(len(names)))]
    return written(cohort.table, replace(cohort.table, names=names).text())


@damage
def _decomposed_letters(_: Rng, cohort: Cohort) -> Table:
    return written(cohort.table, normalize("NFD", cohort.table.text()))


def files_of(cohort: Cohort, cell: str) -> set[str | None]:
    """Return the files that a cell can mean: the very path, or the stem of a single file."""
    path = cohort.images / cell
    if path.suffix:
        same = [f for f in path.parent.glob("*") if f.name.lower() == path.name.lower()]
    else:
        same = [f for f in path.parent.glob("*") if f.stem == path.name]
    return {str(same[0].resolve()) if len(same) == 1 else None}


def with_image(rng: Rng, cohort: Cohort, change: Callable[[str], str]) -> Table:
    """Change some image cells."""
    rows, images = [list(row) for row in cohort.table.rows], {}
    for row in rng.choice(ROWS, 3, replace=False).tolist():
        cell = change(rows[row][0])
        rows[row][0], images[row] = cell, {None, *files_of(cohort, cell.replace("\\", "/"))}
    return replace(cohort.table, rows=rows, images=images)


@damage
def _suffix_shuffled(rng: Rng, cohort: Cohort) -> Table:
    suffixes = [".jpg", ".jpeg", ".png", ".dcm", ".JPG", ".tif", ""]
    return with_image(rng, cohort, lambda cell: cell.split(".")[0] + str(rng.choice(suffixes)))


@damage
def _folder_wrong(rng: Rng, cohort: Cohort) -> Table:
    folders = ["left/", "right/", "images/", "nowhere/", "../", "Left/", ""]
    return with_image(rng, cohort, lambda c: str(rng.choice(folders)) + c.rsplit("/", 1)[-1])


@damage
def _name_in_another_case(rng: Rng, cohort: Cohort) -> Table:
    return with_image(rng, cohort, lambda cell: str(rng.choice([cell.upper(), cell.lower()])))


@damage
def _windows_paths(_: Rng, cohort: Cohort) -> Table:
    rows = [[row[0].replace("/", "\\"), *row[1:]] for row in cohort.table.rows]
    return replace(cohort.table, rows=rows)
