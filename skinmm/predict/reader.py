"""Patient tables: any usual column names in, canonical records and image paths out."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

import pandas as pd

from skinmm.data.source import FRAME
from skinmm.data.vocabulary import CONVERTERS, canonicalise, is_missing, rename_columns
from skinmm.errors import InputError

SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".dcm")


class Patients(NamedTuple):
    """Rows to predict.

    Attributes:
        table: `image_id` (the input cell unchanged, "" where empty), `patient_id`, `lesion_id`
            and the models' columns, canonical.
        unknown: by column, how many cells held a value outside the vocabulary and became missing.
    """

    table: pd.DataFrame
    unknown: Counter[str]


def read_patients(path: Path, chunk: int) -> Iterator[pd.DataFrame]:
    """Reads a CSV in chunks, every cell as text, comma or semicolon separated.

    Args:
        path: UTF-8, with or without a byte order mark.
        chunk: rows at a time.

    Raises:
        InputError: the file is missing or no such CSV; a row that does not fit the header is named.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header = file.readline()
            file.seek(0)
            separator = ";" if header.count(";") > header.count(",") else ","
            lines = csv.reader(file, delimiter=separator, strict=True)
            columns = _columns([name.strip() for name in next(lines, [])], path)
            rows = _rows(lines, len(columns), path)
            while held := list(islice(rows, chunk)):
                yield pd.DataFrame(held, columns=columns, dtype=str)
    except FileNotFoundError as error:
        raise InputError(f"input={path}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"input={path}: not a CSV in UTF-8 ({error})") from error


def canonical_patients(table: pd.DataFrame, columns: list[str], *, needs_image: bool) -> Patients:
    """Gives a table canonical names and values.

    Args:
        table: as a clinic or a public dataset wrote it.
        columns: the record columns that the models use.
        needs_image: whether a column that names images must be there.

    Raises:
        InputError: no column that names the images although the model needs them.
    """
    renamed = rename_columns(table).reset_index(drop=True)
    if "image_id" not in renamed.columns:
        if needs_image:
            raise InputError(
                "the table has no image column; call it image_name, image_id, image or path "
                f"(it has: {', '.join(map(str, table.columns))})"
            )
        renamed["image_id"] = ""
    renamed["image_id"] = renamed["image_id"].fillna("").astype(str)
    unknown: Counter[str] = Counter()
    for name in ("patient_id", "lesion_id"):
        cells = renamed.get(name, pd.Series(None, renamed.index, dtype=object)).astype(object)
        renamed[name] = cells.mask(cells.map(is_missing), None)
    for name in columns:
        if name not in renamed.columns:
            renamed[name] = None
        elif name in CONVERTERS:
            renamed[name], refused = canonicalise(renamed[name], name)
            unknown[name] += int(refused.sum())
        else:
            cells = renamed[name].map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
            renamed[name] = cells.replace("", None)
    return Patients(renamed[["image_id", "patient_id", "lesion_id", *columns]], unknown)


class ImageFolder:
    """Finds images by name, with or without a suffix; the folder is listed once."""

    def __init__(self, folder: Path) -> None:
        """Lists a folder.

        Raises:
            InputError: it does not exist.
        """
        if not folder.is_dir():
            raise InputError(f"images={folder}: no such folder")
        self._folder = folder
        self._names = set(os.listdir(folder))  # noqa: PTH208  a million entries
        self._files: dict[str, str] = {}
        for name in sorted(self._names):
            stem, suffix = os.path.splitext(name)  # noqa: PTH122
            if suffix.lower() in SUFFIXES:
                self._files.setdefault(stem, name)

    def find(self, cell: str) -> str | None:
        """The path that a table's cell names, or None; the very name goes before another suffix.

        A cell may end in `#frame=N`, and so does its path then.
        """
        name, mark, frame = cell.partition(FRAME)
        stem, suffix = os.path.splitext(name)  # noqa: PTH122
        if name in self._names:
            found: str | None = name
        else:
            found = self._files.get(name) or self._files.get(
                stem if suffix.lower() in SUFFIXES else name
            )
        path = self._folder / (found or name)
        return f"{path}{mark}{frame}" if name and path.is_file() else None


def _columns(header: list[str], path: Path) -> list[str]:
    if not any(header):
        raise InputError(f"input={path}: the table is empty")
    repeated = [name for name, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"input={path}: two columns are called '{repeated[0]}'")
    return header


def _rows(lines: Iterator[list[str]], width: int, path: Path) -> Iterator[list[str]]:
    for number, row in enumerate(lines, start=2):
        if row and len(row) != width:
            raise InputError(
                f"input={path}: row {number} has {len(row)} cells, the header has {width}"
            )
        if row:
            yield row
