"""Files: reading of tables, suffixes of images, and atomic writes."""

import csv
import gzip
import os
import re
import zlib
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from io import TextIOWrapper
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final
from uuid import uuid4
from zipfile import BadZipFile

import pandas as pd

from skinmm.errors import InputError, suggest_path
from skinmm.vocabulary import COLUMN_KEYS, column_key, format_cell

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"),
    *(".heic", ".heif", ".dcm"),
)
"""Suffixes of the files that `images.decode` reads; archives also store DICOM files without one."""
OTHER_PICTURES: Final = (
    *(".avif", ".jp2", ".j2k", ".jxl", ".psd", ".svg", ".eps", ".ppm", ".pgm", ".tga"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"),
)
"""Suffixes of pictures that it cannot read, which are reported."""
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
EXCEL_SUFFIXES: Final = (".xlsx", ".xlsm")
TABLE_SUFFIXES: Final = (".csv", ".tsv", ".csv.gz", *PARQUET_SUFFIXES, *EXCEL_SUFFIXES)


def list_tables(folder: Path) -> list[str]:
    """Return the sorted names of the tables in a folder."""
    return sorted(path.name for path in folder.glob("*") if path.name.endswith(TABLE_SUFFIXES))


def read_table(path: Path | str, *, only: Collection[str] = ()) -> pd.DataFrame:
    """Read a table as text: CSV, gzipped CSV (.gz), Parquet or Excel.

    CSV means text in UTF-8, or in UTF-16 with a byte order mark. The separator is a comma, a
    semicolon, a tab or a vertical bar: the most frequent one in the header, or the one that a first
    line such as `sep=;` states. Blank lines, and columns without a name at the end, are dropped.
    Excel files are read from their first sheet. If `only` names columns, the others are left out.

    Returns:
        Cells of dtype `str`, "" where empty; whole numbers of Parquet and Excel files without
        decimals ("7"). Names of columns are stripped.

    Raises:
        InputError: two columns have the same name, a row and the header differ in length, or a cell
            of a known column contains a line break. Rows are numbered as in a spreadsheet.
    """
    if str(path).lower().endswith(PARQUET_SUFFIXES):
        chunks = list(_read_parquet(path, None, size=1 << 16))
        table = pd.concat(chunks, ignore_index=True).map(format_cell).astype(str)
    elif (unquoted := _read_unquoted_csv(path)) is not None:
        table = unquoted
    else:
        names, *rows = _read_rows(path, None)
        table = pd.DataFrame(rows, columns=names, dtype=str)
    return table[[name for name in table if name in only]] if only else table


def read_table_chunks(
    path: Path | str, size: int, *, skip: int = 0, file: Any = None
) -> Iterator[pd.DataFrame]:
    """Read a table as `read_table` does, `size` rows at a time and in constant memory.

    Skip the first `skip` rows. Read the open binary file `file` instead of `path`, if given. Cells
    of Parquet files stay Python objects, None where missing. Each chunk has an index from 0.
    """
    if str(path).lower().endswith(PARQUET_SUFFIXES):
        for chunk in _read_parquet(path, file, size):
            if len(chunk) > skip:
                yield chunk.iloc[skip:].reset_index(drop=True)
            skip = max(skip - len(chunk), 0)
        return
    rows = _read_rows(path, file)
    names, rows = next(rows), islice(rows, skip, None)
    while batch := list(islice(rows, size)):
        yield pd.DataFrame(batch, columns=names, dtype=str)


def _read_rows(path: Path | str, file: Any) -> Iterator[list[str]]:
    """Yield the names of the columns of a CSV or an Excel file, then its rows, checked."""
    records = enumerate(_read_records(path, file), 1)
    _, header = next((item for item in records if any(item[1])), (1, []))
    names, width = _check_names(header, path), len(header)
    yield names
    for number, record in records:
        # In a table of one column, a blank line is a row with an empty cell.
        row, where = record or [""] * (width == 1), f"{path}: row {number}"
        text = "".join(row)
        if len(row) != width and not text.strip():
            continue
        if len(row) != width:
            raise InputError(f"{where} has {len(row)} cells, the header has {width}")
        if any(row[len(names) :]):
            raise InputError(f"{where} has a cell in a column without a name; name the column")
        if "\n" in text or "\r" in text:
            _check_line_breaks(names, row, where)
        yield row[: len(names)]


def _check_line_breaks(names: Sequence[str], row: Sequence[str], where: str) -> None:
    for name, cell in zip(names, row, strict=False):
        if column_key(name) in COLUMN_KEYS and re.search(r"[\r\n]", cell):
            raise InputError(
                f"{where}, column {name}: the cell contains a line break; remove the "
                f"quotation mark before {cell[:40]!r}"
            )


def _check_names(header: Sequence[str], path: Path | str) -> list[str]:
    """Return the names stripped, without empty ones at the end."""
    names = [name.strip() for name in header]
    if not any(names):
        raise InputError(f"{path}: the table is empty; it needs a header and a row for each lesion")
    while not names[-1]:
        names.pop()
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise InputError(f"{path}: {count} columns are called '{name}'; rename or remove them")
    by_key: dict[str, str] = {}
    for name in names:
        key = column_key(name)
        if key in COLUMN_KEYS and by_key.setdefault(key, name) != name:
            both = f"{by_key[key]} and {name}"
            raise InputError(f"{path}: columns {both} have the same meaning; remove one of them")
    return names


@contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    """Convert errors of reading a file to `InputError`."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file{suggest_path(path)}") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 text (it has the byte 0x{error.object[error.start]:02x}; the "
            "encoding is perhaps Windows-1252); save it as UTF-8, in Excel as 'CSV UTF-8'"
        ) from error
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


@contextmanager
def _open_csv(path: Path | str, file: Any) -> Iterator[tuple[TextIOWrapper, str]]:
    """Open a CSV at its header; yield it with its separator."""
    with _reading(path), file or Path(path).open("rb") as stored:
        raw = gzip.GzipFile(fileobj=stored) if str(path).lower().endswith(".gz") else stored
        is_utf16 = raw.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE)
        raw.seek(0)
        text = TextIOWrapper(raw, "utf-16" if is_utf16 else "utf-8-sig", newline="")
        yield text, _find_separator(text)


def _find_separator(file: TextIOWrapper) -> str:
    """Return the separator of a CSV, and leave the file at the start of the header."""
    start, line = file.tell(), file.readline()
    while line and not line.strip():
        start, line = file.tell(), file.readline()
    if stated := re.fullmatch(r'"?sep=([,;\t|])"?\s*', line):
        return stated[1]
    while line.count('"') % 2 and len(line) < 1 << 16 and (more := file.readline()):
        line += more  # a quoted name contains a line break
    if re.match(r"\s*<(!doctype html|html)\b", line, re.IGNORECASE):
        raise ValueError("an HTML page and no table")
    if "\0" in line:
        raise ValueError("NUL in the header: perhaps UTF-16 without a byte order mark")
    file.seek(start)
    return max(",;\t|", key=re.sub(r'"[^"]*"', "", line).count)


def _read_records(path: Path | str, file: Any) -> Iterator[list[str]]:
    """Yield the rows of a CSV or an Excel file as lists of cells, the header first."""
    if str(path).lower().endswith(EXCEL_SUFFIXES):
        yield from _read_excel(path, file)
        return
    number = 0
    with _open_csv(path, file) as (text, separator):
        try:
            for row in csv.reader(text, delimiter=separator, strict=True):
                number += 1
                yield row
        except csv.Error as error:
            raise InputError(
                f"{path}: row {number + 1} is not CSV ({error}); close each quotation mark, and "
                "double those inside a cell"
            ) from error


def _read_unquoted_csv(path: Path | str) -> pd.DataFrame | None:
    """Read a CSV without quotation marks by pandas, which is faster; return None for any other."""
    if str(path).lower().endswith(EXCEL_SUFFIXES):
        return None
    with _open_csv(path, None) as (file, separator):
        start, separators = file.tell(), 0
        for block in iter(lambda: file.read(1 << 20), ""):
            if '"' in block:
                return None
            separators += block.count(separator)
        file.seek(start)
        header = file.readline().rstrip("\r\n").split(separator)
        names, width = _check_names(header, path), len(header)
        options: dict[str, Any] = {"names": range(width), "skip_blank_lines": width > 1}
        try:
            table = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, **options)
        except pd.errors.ParserError:
            return None
    # pandas fills rows that are too short, and uses cells of those too long as an index.
    is_exact = separators == (width - 1) * (len(table) + 1)
    if not isinstance(table.index, pd.RangeIndex) or not is_exact:
        return None
    unnamed = table.iloc[:, len(names) :]
    table = table.iloc[:, : len(names)].set_axis(names, axis=1)
    return None if (unnamed != "").any(axis=None) else table


def _read_excel(path: Path | str, file: Any) -> Iterator[list[str]]:
    try:
        from openpyxl import load_workbook
    except ImportError as error:
        advice = "pip install 'skinmm[excel]', or save the table as CSV"
        raise InputError(f"{path}: Excel files need openpyxl: {advice}") from error
    with _reading(path):
        width, book = 0, load_workbook(file or path, read_only=True, data_only=True)
        with closing(book):
            for sheet in book.worksheets:  # the size that a file states can be wrong
                sheet.reset_dimensions()
            visible = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
            used = [sheet for sheet in visible if any(map(any, sheet.values))]
            if len(used) > 1:
                titles = ", ".join(sheet.title for sheet in used)
                raise InputError(f"{path}: several sheets ({titles}); leave one, or save it as CSV")
            for row in _list_rows(used[0]) if used else ():
                while row and not row[-1]:
                    row.pop()
                width = width or len(row)
                yield row + [""] * (width - len(row)) if row else []


def _list_rows(sheet: Any) -> Iterator[list[str]]:
    """Yield rows as text; a cell merged over rows counts for each of them that has other cells."""
    from openpyxl.utils import range_boundaries

    with sheet._get_source() as source:
        areas = re.findall(rb'mergeCell\s[^>]*ref="([A-Z0-9:]+)"', source.read())
    starts: dict[int, list[tuple[int, int]]] = {}
    for column, first, _, last in (range_boundaries(area.decode()) for area in areas):
        starts.setdefault(first, []).append((column - 1, last))
    active: dict[int, tuple[int, str]] = {}  # column -> last row and value of its merged cell
    for number, cells in enumerate(sheet.values, 1):
        row = [format_cell(cell) for cell in cells]
        for column, (last, value) in active.items() if any(row) else ():
            if number <= last:
                row += [""] * (column + 1 - len(row))
                row[column] = value
        active |= {c: (last, row[c]) for c, last in starts.get(number, ()) if c < len(row)}
        yield row


def import_parquet(path: Path | str) -> Any:
    """Return the module `pyarrow.parquet`; refuse `path` if pyarrow is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{path}: Parquet needs pyarrow: pip install 'skinmm[parquet]'") from error
    return parquet


def _read_parquet(path: Path | str, file: Any, size: int) -> Iterator[pd.DataFrame]:
    parquet = import_parquet(path)
    with _reading(path):
        stored = parquet.ParquetFile(file or path)
        names = _check_names(stored.schema_arrow.names, path)
        # Python objects: a missing number must not turn a column of integers into floats.
        batches = (batch.to_pydict() for batch in stored.iter_batches(size))
        empty = dict.fromkeys(stored.schema_arrow.names, ())
        for cells in chain([next(batches, empty)], batches):
            yield pd.DataFrame(cells, dtype=object).set_axis(names, axis=1)


def user_cache() -> Path:
    """Return the folder of this package in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path(os.environ.get("HOME", "/"), ".cache")
    return Path(cache, "skinmm")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block succeeds."""
    # Process numbers repeat across machines that share a folder, hence the UUID. File names have
    # a maximum length, which the name of the file itself may use up.
    partial = path.with_name(f"{path.name[:32]}.{uuid4().hex}.part")
    try:
        yield partial
        with partial.open("r+b") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove temporary files of killed processes from a folder and its subfolders."""
    for partial in folder.rglob("*.part"):
        partial.unlink(missing_ok=True)
