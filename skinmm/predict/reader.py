"""Patient tables: any usual column names in, canonical records out."""

import csv
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from hashlib import sha256
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from skinmm.errors import InputError
from skinmm.images import shards as tfrecord
from skinmm.images.source import may_be_dicom
from skinmm.predict.images import SUFFIXES
from skinmm.vocabulary import (
    COLUMN_NAMES,
    CONVERTERS,
    Table,
    count_table_rows,
    is_missing,
    match_columns,
    normalise_name,
    parse_column,
)

PARQUET: Final = (".parquet", ".pq")
SHOWN: Final = 10  # columns that are named


class Patients(NamedTuple):
    """Rows to predict.

    Attributes:
        cells: by column: `image_id` (the input cell unchanged, "" where empty), `patient_id`,
            `lesion_id` and the models' columns, canonical.
        unknown: by column, how many cells held a value outside the vocabulary and became missing.
        target: as the table has it, if it does.
    """

    cells: dict[str, np.ndarray]
    unknown: Counter[str]
    target: np.ndarray | None


def read_tables(source: str | Path, chunk: int, skip: int = 0) -> Iterator[pd.DataFrame]:
    """Reads a table in chunks: CSV (every cell as text, comma or semicolon) or Parquet.

    A folder becomes the table of its images, and of the columns of its TFRecord files.

    Args:
        source: a file, a folder, or a URL that fsspec knows; CSV is UTF-8, with or without a byte
            order mark.
        chunk: rows at a time.
        skip: rows to leave out at the beginning.

    Raises:
        InputError: the table is missing or none; a row that does not fit the header is named.
    """
    name = str(source)
    if name.lower().endswith(PARQUET):
        return _parquet(name, chunk, skip)
    if Path(name).is_dir() or name.lower().endswith(tfrecord.SUFFIXES):
        whole = _listed(Path(name))
        return (whole.iloc[row : row + chunk] for row in range(skip, len(whole), chunk))
    return _csv(name, chunk, skip)


def count_rows(source: str | Path) -> int | None:
    """How many rows a table has, about; None where it would have to be fetched first."""
    name = str(source)
    if "://" in name:
        return None
    if name.lower().endswith(PARQUET):
        return int(pyarrow_parquet(name).ParquetFile(name).metadata.num_rows)
    if Path(name).is_dir() or name.lower().endswith(tfrecord.SUFFIXES):
        return len(_listed(Path(name)))
    with Path(name).open("rb") as file:
        ends = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return max(ends - 1, 0)


def fingerprint(source: str | Path) -> str:
    """What changes when a table does.

    Raises:
        InputError: there is none.
    """
    name = str(source)
    if "://" in name:
        from skinmm.predict.remote_files import fingerprint as remote_fingerprint

        return remote_fingerprint(name)
    if Path(name).is_dir():
        return sha256("\0".join(_listed(Path(name)).iloc[:, 0]).encode()).hexdigest()
    try:
        status = Path(name).stat()
    except OSError as error:
        raise InputError(f"input={name}: no such file") from error
    return f"{status.st_size}|{status.st_mtime_ns}"


def rename_training_columns(table: Table, names: Mapping[str, str]) -> Table:
    """A table with the columns that training was told of under the names it gave them.

    Args:
        table: as it was written.
        names: of the columns, and what training calls them; what is not there is not missed.
    """
    there = {theirs: own for theirs, own in names.items() if theirs in table}
    shadowed = {*there.values()} - {*there}
    if not there:
        return table
    kept = ((str(name), cells) for name, cells in table.items() if name not in shadowed)
    return {there.get(name, name): np.asarray(cells) for name, cells in kept}


def canonical_patients(table: Table, columns: Sequence[str], *, needs_image: bool) -> Patients:
    """Gives a table canonical names and values.

    Args:
        table: as a clinic or a public dataset wrote it.
        columns: the record columns that the models use.
        needs_image: whether a column that names images must be there.

    Raises:
        InputError: no column that names the images although the model needs them.
    """
    given = {canonical: public for public, canonical in match_columns(table.keys()).items()}
    if needs_image and "image_id" not in given:
        raise InputError(
            "the table has no image column; call it image_name, image_id, image or path "
            f"(it has: {', '.join(map(str, table.keys()))})"
        )
    empty = np.full(count_table_rows(table), None, dtype=object)
    wanted = ("image_id", "patient_id", "lesion_id", *columns)
    named = {name: given.get(name, name) for name in wanted}
    cells = {
        name: _hashable(np.asarray(table[public], object)) if public in table else empty
        for name, public in named.items()
    }
    unknown: Counter[str] = Counter()
    for name, held in cells.items():
        if name in CONVERTERS:
            cells[name], refused = parse_column(held, name)
            unknown.update({name: int(refused.sum())} if refused.any() else {})
        else:
            cells[name] = np.array([_PLAIN.get(name, _stripped)(cell) for cell in held], object)
    target = np.asarray(table["target"]) if "target" in table else None
    return Patients(cells, unknown, target)


def describe_missing_columns(names: Sequence[str], columns: Sequence[str]) -> str:
    """One line on a table that lacks columns of the record; empty where it has them all.

    Args:
        names: of the table's columns.
        columns: the record columns that the models use.
    """
    given = match_columns(names)
    lacking = [name for name in columns if name not in {*names, *given.values()}]
    used = {"image_id", "patient_id", "lesion_id", "target", *columns}
    unused = [str(name) for name in names if given.get(name, name) not in used]
    more = [f"{len(unused) - SHOWN} more"] if len(unused) > SHOWN else []
    others = {name: f" (known: {', '.join(names)})" for name, names in COLUMN_NAMES.items()}
    known = (f"{name}{others.get(name, '')}" for name in lacking)
    said = f"no column for {', '.join(known)}: missing, unless DICOM headers have it"
    left = f"; columns not used: {', '.join([*unused[:SHOWN], *more])}" if unused else ""
    return said + left if lacking else ""


def contains_records(folder: Path) -> bool:
    """Whether it is a folder of DICOM or TFRecord files, some at least: these hold records."""
    return folder.is_dir() and any(
        path.name.lower().endswith(tfrecord.SUFFIXES)
        or (may_be_dicom(path.name) and _is_image(path))
        for path in folder.rglob("*")
    )


def _hashable(cells: np.ndarray) -> np.ndarray:
    """Cells as they are; lists and structs, as Parquet has them, are text that nobody knows."""
    return np.array([cell if isinstance(cell, Hashable) else str(cell) for cell in cells], object)


def _name(cell: Any) -> Any:
    return None if is_missing(cell) else normalise_name(cell)


def _stripped(cell: Any) -> Any:
    return cell.strip() or None if isinstance(cell, str) else cell


_PLAIN: Final[dict[str, Callable[[Any], Any]]] = {
    "image_id": lambda cell: "" if pd.isna(cell) else str(cell),
    "patient_id": _name,
    "lesion_id": _name,
}


def _open(name: str) -> Any:
    if "://" in name:
        from skinmm.predict.remote_files import opened

        return opened(name)
    return Path(name).open("rb")


def _csv(name: str, chunk: int, skip: int) -> Iterator[pd.DataFrame]:
    try:
        with _open(name) as raw:
            header = raw.readline()
            raw.seek(0)
            separator = ";" if header.count(b";") > header.count(b",") else ","
            file = TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            lines = csv.reader(file, delimiter=separator, strict=True)
            columns = _columns([name.strip() for name in next(lines, [])], name)
            rows = islice(_rows(lines, len(columns), name), skip, None)
            while held := list(islice(rows, chunk)):
                yield pd.DataFrame(held, columns=columns, dtype=str)
    except FileNotFoundError as error:
        raise InputError(f"input={name}: no such file") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"input={name}: not a CSV in UTF-8 ({error})") from error


def _parquet(name: str, chunk: int, skip: int) -> Iterator[pd.DataFrame]:
    parquet = pyarrow_parquet(name)
    try:
        with _open(name) as file:
            for batch in parquet.ParquetFile(file).iter_batches(chunk):
                # Cells as Python has them: a missing number must not turn its column into floats.
                held = pd.DataFrame(batch.to_pydict(), dtype=object).iloc[skip:]
                skip = max(skip - len(batch), 0)
                if len(held):
                    yield held.reset_index(drop=True)
    except FileNotFoundError as error:
        raise InputError(f"input={name}: no such file") from error
    except OSError as error:
        raise InputError(f"input={name}: not a Parquet file ({error})") from error


def pyarrow_parquet(name: str) -> Any:
    """What reads and writes Parquet.

    Raises:
        InputError: it is not installed, and `name` needs it.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{name}: Parquet needs pyarrow: pip install 'skinmm[parquet]'") from error
    return parquet


def _listed(place: Path) -> pd.DataFrame:
    """The table that files make by themselves: names, and what TFRecord files hold beside them."""
    below = sorted(place.rglob("*")) if place.is_dir() else [place]
    shards = [path for path in below if path.name.lower().endswith(tfrecord.SUFFIXES)]
    if shards:
        return tfrecord.read_records(shards).drop(columns="path").astype(object)
    images = [path.relative_to(place) for path in below if _is_image(path)]
    stems = Counter(path.with_suffix("") for path in images)
    names = [_id(path) if stems[path.with_suffix("")] == 1 else path.as_posix() for path in images]
    return pd.DataFrame({"image": names}, dtype=object)


def _id(path: Path) -> str:
    """As the datasets name images: without the suffix, where `ImageFolder` finds it so."""
    plain = path.parent == Path() and path.suffix.lower() in SUFFIXES
    return path.stem if plain else path.as_posix()


def _is_image(path: Path) -> bool:
    """By its suffix; a name without one, as archives give DICOM files, by its first bytes."""
    if path.suffix.lower() in SUFFIXES:
        return path.is_file()
    if not path.is_file() or (path.suffix and not path.suffix[1:].isdigit()):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _columns(header: list[str], name: str) -> list[str]:
    if not any(header):
        raise InputError(f"input={name}: the table is empty")
    repeated = [each for each, count in Counter(header).items() if count > 1]
    if repeated:
        raise InputError(f"input={name}: two columns are called '{repeated[0]}'")
    return header


def _rows(lines: Iterator[list[str]], width: int, name: str) -> Iterator[list[str]]:
    for number, row in enumerate(lines, start=2):
        cells = row or [""] * (width == 1)  # an empty cell of a single column is an empty line
        if cells and len(cells) != width:
            raise InputError(
                f"input={name}: row {number} has {len(cells)} cells, the header has {width}"
            )
        if cells:
            yield cells
