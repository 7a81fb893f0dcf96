"""Prediction by lesion: grouping of image rows, in memory or on disk."""

import json
import sqlite3
from collections.abc import Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from skinmm.data.lesions import (
    SEPARATOR,
    choose_views,
    find_view_column,
    list_groups,
    parse_views,
    split_image_columns,
    spread_columns,
)
from skinmm.errors import InputError
from skinmm.images.dicom import read_dicom_lesion
from skinmm.images.source import may_be_dicom
from skinmm.predict.inputs import Images
from skinmm.vocabulary import (
    CONVERTERS,
    Table,
    format_cell,
    is_missing,
    match_columns,
    normalise_name,
    parse_column,
    parse_diagnosis,
)

LESIONS: Final = 256
"""Lesions per table that is read back from disk."""
_ROW: Final = "row"
"""Name of an index with the numbers of the rows in the whole input."""


class GroupedRows(NamedTuple):
    """Table with one row per lesion, and the problems found while grouping its images.

    Attributes:
        table: a row per lesion; `image_id` and `view` list its images with `|` between them.
        errors: row -> contradiction between the images of the lesion.
        unread: unknown words for views, which count as unstated.
        limited: number of lesions with more images than allowed.
    """

    table: pd.DataFrame
    errors: dict[int, str]
    unread: list[tuple[str, str]]
    limited: int


def group_rows(table: Table, columns: Sequence[str], limit: int) -> GroupedRows:
    """Group the image rows of a table by lesion, in the order of their first images.

    A row without a lesion is a separate lesion, named after its image. At most `limit` images of a
    lesion are used, see `skinmm.data.lesions.choose_views`. `columns`: record columns of the model.
    """
    frame = _to_frame(table, columns)
    frame, unread = _read_views(frame)
    frame = spread_columns(frame, columns)
    codes = pd.factorize(frame["lesion_id"])[0]
    label = "target" if "target" in frame else "diagnosis"
    checked = [n for n in ("patient_id", label, *columns) if n in frame]
    values = {name: _compare_values(frame[name], name).to_numpy(object) for name in checked}
    first = frame.groupby(codes, sort=False).first()
    errors, images, views, limited = {}, [], [], 0
    all_names, all_kinds = (frame[name].to_numpy(object) for name in ("image_id", "view"))
    for number, rows in enumerate(list_groups(codes)):
        names, kinds = all_names[rows], all_kinds[rows]
        named = np.flatnonzero(names != "")
        picks = named[choose_views(kinds[named].tolist(), limit)]
        limited += len(picks) < len(named)
        images.append(SEPARATOR.join(names[picks]))
        views.append(SEPARATOR.join(kinds[picks]))
        for name, cells in values.items() if len(rows) > 1 else ():
            distinct = dict.fromkeys(cell for cell in cells[rows] if not pd.isna(cell))
            if len(distinct) > 1:
                texts = " and ".join(map(str, distinct))
                errors[number] = f"the images of the lesion contradict each other: {name} {texts}"
        if len({*names[named]}) < len(named):
            errors[number] = "the lesion names an image twice"
    first = first.assign(image_id=images, view=views).reset_index(drop=True)
    return GroupedRows(first, errors, unread, limited)


def _to_frame(table: Table, columns: Sequence[str]) -> pd.DataFrame:
    """Return a row per image, with canonical names, `image_id` and missing cells as None."""
    cells_of = {str(name): np.asarray(cells, object) for name, cells in table.items()}
    index = table.index if isinstance(table, pd.DataFrame) and table.index.name == _ROW else None
    frame = split_image_columns(pd.DataFrame(cells_of, index))
    frame = frame.rename(columns=match_columns(frame.columns, columns))
    for name in frame.columns.difference(["target"]):
        frame[name] = pd.Series(map(_read_cell, frame[name]), frame.index, dtype=object)
    if "image_id" not in frame:
        frame["image_id"] = ""
    frame["image_id"] = frame["image_id"].map(format_cell)
    if "lesion_id" not in frame:
        frame["lesion_id"] = None
    names = [None if is_missing(cell) else normalise_name(cell) for cell in frame["lesion_id"]]
    rows = (f"row {row + 1}" for row in frame.index)
    named = zip(names, frame["image_id"], rows, strict=True)
    frame["lesion_id"] = [lesion or image or row for lesion, image, row in named]
    return frame


def _read_cell(cell: Any) -> Any:
    if not isinstance(cell, Hashable):  # lists and structs of Parquet
        return str(cell)
    return None if is_missing(cell) else cell


def _read_views(frame: pd.DataFrame) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Split cells that list several images, and parse their views."""
    column = find_view_column(frame)
    frame = frame.assign(view=None if column is None else frame[column])
    if frame["image_id"].str.contains(SEPARATOR, regex=False).any():
        names = frame["image_id"].str.split(SEPARATOR, regex=False)
        cells = ["" if is_missing(cell) else str(cell) for cell in frame["view"]]
        pairs = zip(cells, names, strict=True)
        parts = [(cell.split(SEPARATOR) + len(row) * [""])[: len(row)] for cell, row in pairs]
        frame = frame.assign(image_id=names, view=pd.Series(parts, frame.index))
        frame = frame.explode(["image_id", "view"], ignore_index=True)
    views, unknown = parse_views(frame["view"].astype(object))
    unread = [("view", word) for word, count in unknown.items() for _ in range(count)]
    return frame.assign(view=views.fillna("")), unread


def _compare_values(cells: "pd.Series[Any]", name: str) -> "pd.Series[Any]":
    """Normalise cells for a comparison within a lesion; None if missing."""
    if name in CONVERTERS:
        return pd.Series(parse_column(cells, name)[0], cells.index)
    texts = [None if is_missing(cell) else normalise_name(cell) for cell in cells]
    if name == "diagnosis":
        return pd.Series([text and (parse_diagnosis(text) or text) for text in texts], cells.index)
    numbers = pd.to_numeric(pd.Series(texts, cells.index, dtype=object), errors="coerce")
    return numbers.where(numbers.notna(), pd.Series(texts, cells.index, dtype=object))


def fill_from_headers(table: Table, columns: Sequence[str], images: Images) -> Table:
    """Add lesion and view, from DICOM headers, to a table without a column of lesions.

    An existing column of views is unchanged. `columns` are the record columns of the model.
    """
    canonical = {name: public for public, name in match_columns(table.keys(), columns).items()}
    if "lesion_id" in canonical or "image_id" not in canonical:
        return table
    lesions, views = [], []
    for cell in np.asarray(table[canonical["image_id"]], object):
        lesion, view = None, ""
        with suppress(InputError, OSError):  # the prediction has the error
            location = None if is_missing(cell) else images.find(format_cell(cell))
            if location and may_be_dicom(location):
                data = images.read(location).data
                lesion, view = read_dicom_lesion(data) if data[128:132] == b"DICM" else (None, "")
        lesions.append(lesion)
        views.append(view)
    added = {"lesion_id": np.array(lesions, object)}
    if find_view_column(table.keys()) is None:
        added["view"] = np.array(views, object)
    return {**{str(name): np.asarray(cells) for name, cells in table.items()}, **added}


def sort_by_lesion(
    tables: Iterable[pd.DataFrame], columns: Sequence[str], folder: Path, skip: int = 0
) -> Generator[pd.DataFrame]:
    """Yield rows sorted by lesion, in order of appearance; a lesion is never split between tables.

    The rows are stored in a temporary database in `folder`, so that memory does not depend on
    their number. The first `skip` lesions are left out.
    """
    with TemporaryDirectory(prefix=".lesions-", dir=folder) as temporary:
        database = sqlite3.connect(Path(temporary) / "rows.db", isolation_level=None)
        try:
            header = _store_rows(database, tables, columns)
            yield from _read_lesions(database, header, skip)
        finally:
            database.close()


def _store_rows(
    database: sqlite3.Connection, tables: Iterable[pd.DataFrame], columns: Sequence[str]
) -> list[str]:
    database.execute("PRAGMA journal_mode=OFF")
    database.execute("PRAGMA synchronous=OFF")
    database.execute("CREATE TABLE lesions (number INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    database.execute(
        "CREATE TABLE rows (lesion INTEGER, row INTEGER, cells TEXT, PRIMARY KEY (lesion, row)) "
        "WITHOUT ROWID"
    )
    header: list[str] = []
    count = 0
    for table in tables:
        header = header or [str(name) for name in table.columns]
        names = name_rows(table, columns, count)
        cells = (json.dumps(row, default=str) for row in table.to_numpy(object).tolist())
        numbers = range(count, count + len(table))
        count += len(table)
        database.execute("BEGIN")
        database.executemany(
            "INSERT OR IGNORE INTO lesions (name) VALUES (?)", [(name,) for name in names]
        )
        database.executemany(
            "INSERT INTO rows SELECT number, ?, ? FROM lesions WHERE name = ?",
            zip(numbers, cells, names, strict=True),
        )
        database.execute("COMMIT")
    return header


def name_rows(table: pd.DataFrame, columns: Sequence[str], start: int = 0) -> list[str]:
    """Return the lesion of each row, or else its image, or else a unique name."""
    canonical = {name: public for public, name in match_columns(table.columns, columns).items()}
    names = [f"\0row {start + row}" for row in range(len(table))]
    for key in ("image_id", "lesion_id"):
        if key in canonical:
            cells = zip(table[canonical[key]], names, strict=True)
            names = [name if is_missing(cell) else normalise_name(cell) for cell, name in cells]
    return names


def _read_lesions(
    database: sqlite3.Connection, header: list[str], skip: int
) -> Iterator[pd.DataFrame]:
    rows = database.execute(
        "SELECT lesion, row, cells FROM rows WHERE lesion > ? ORDER BY lesion, row", (skip,)
    )
    for _, block in groupby(rows, key=lambda row: (row[0] - 1) // LESIONS):
        _, numbers, texts = zip(*block, strict=True)
        index = pd.Index(numbers, name=_ROW)
        yield pd.DataFrame(map(json.loads, texts), index, columns=header, dtype=object)
