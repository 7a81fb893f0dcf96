"""Conversion of cohort tables to canonical rows, and search for their images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm import files
from skinmm.config import DataConfig
from skinmm.data.columns import clear_missing, parse_extra_column
from skinmm.data.lesions import add_views
from skinmm.errors import InputError, format_count, list_words
from skinmm.files import IMAGE_SUFFIXES
from skinmm.images import shards
from skinmm.images.finder import ImageFinder, find_folders, list_files, strip_suffix
from skinmm.images.source import FRAME, HDF5_SUFFIXES
from skinmm.vocabulary import (
    CONVERTERS,
    MAX_AGE,
    SITES,
    map_unique,
    normalise_name,
    parse_column,
    parse_numbers,
    parse_target,
    rename_columns,
)

CANONICAL: Final = (
    *("image_id", "path", "patient_id", "lesion_id", "age", "sex", "site", "diagnosis", "target"),
    *("source", "width", "height"),
)
"""The columns of every cohort table, in order."""
OPTIONAL: Final = ("part", "public_fold", "duplicate_of", "view", "licence")
"""Columns of some cohorts, which `splits` uses."""
MASK_FOLDER: Final = "masks"
IN_YEARS: Final = (
    "divide ages in months by 12, or name another column: +data.args.columns.age=COLUMN"
)
_ALLOWED: Final = {
    "age": "years from 0 to 120",
    "sex": "female, male or empty",
    "site": f"{', '.join(SITES)}, a synonym, or empty",
    "target": "0 or 1, benign or malignant, no or yes",
    **dict.fromkeys(("width", "height"), "a number of pixels"),
}
FORMATS: Final[dict[str, tuple[str, ...]]] = {
    "jpeg": tuple(suffix for suffix in IMAGE_SUFFIXES if suffix != ".dcm"),
    "dicom": (".dcm",),
    "hdf5": HDF5_SUFFIXES,
    "tfrecord": shards.SUFFIXES,
}
"""`data.format` -> suffixes of its files."""


@dataclass(frozen=True)
class CohortTable:
    """Rows of a cohort, with the context that error messages need.

    Attributes:
        rows: canonical rows.
        searched: root and folders that were searched for images, by `cohort`.
        unlabelled: which of `target` and `diagnosis` a user's table lacks.
        description: path and columns of that table.
        columns: names of its columns.
        unused: those that are not used.
        notes: lines on the cohort, to be printed.
        units: further columns of numbers with a unit -> that unit.
    """

    rows: pd.DataFrame
    searched: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    unlabelled: tuple[str, ...] = ()
    description: str = ""
    columns: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    units: Mapping[str, str] = field(default_factory=dict)


def read_table(path: Path, required: Sequence[str] = (), only: Sequence[str] = ()) -> pd.DataFrame:
    """Read a table of a cohort as stripped text, None where empty; see `skinmm.files`.

    `required` names columns that the table must have, `only` those to read (empty: all).
    """
    if not path.exists():
        names = files.list_tables(path.parent)
        names[3:] = ["..."] if names[3:] else []
        others = f"; for your own table ({', '.join(names)}) see skinmm init" if names else ""
        raise InputError(
            f"{path}: no such file; data.root must be the folder that contains it{others}"
        )
    table = files.read_table(path, only=only)
    missing = [name for name in required if name not in table.columns]
    if missing:
        columns = ", ".join(table.columns)
        raise InputError(
            f"{path}: no column {', '.join(missing)}; it has {columns}; for a table of your "
            "own use data=csv, which skinmm init sets up"
        )
    if table.empty:
        raise InputError(f"{path}: the table has a header and no rows")
    # Python's strings: for columns of different values pandas takes three times as long.
    cells = {name: [cell.strip() or None for cell in table[name].tolist()] for name in table}
    return pd.DataFrame(cells, table.index, dtype=object)


def to_canonical(table: pd.DataFrame, file: Path, data: DataConfig) -> pd.DataFrame:
    """Convert text cells to canonical rows.

    Args:
        table: text under canonical names or names of public datasets; must have an image name.
        file: path for error messages.
        data: name of the cohort, which becomes the column `cohort`, and the record columns of the
            model; a column that is not canonical is added, see `parse_extra_column`.

    Returns:
        The columns `CANONICAL` and `cohort`, any of `OPTIONAL` that the table has, and the added
        ones. `target` is NaN where missing, `source` None where no centre is named.
    """
    table = rename_columns(table, data.columns)
    if data.unit == "lesion":
        table = add_views(table, data.columns, file)
    empty = pd.Series(None, index=table.index, dtype=object)
    rows = pd.DataFrame({name: table.get(name, empty) for name in CANONICAL})
    rows = rows.assign(cohort=data.name, image_id=strip_suffixes(rows["image_id"]))
    _check_names(rows["image_id"], file)
    problems = []
    for name, allowed in _ALLOWED.items():
        rows[name], invalid = _parse_cells(rows[name])
        if invalid.any():
            first = table.loc[invalid].iloc[0]
            words = Counter(map(str, table.loc[invalid, name]))
            is_high = name == "age" and (parse_numbers(words) > MAX_AGE).any()
            problems.append(
                f"row {invalid.index[invalid][0] + 2} ('{first['image_id']}'): {name} "
                f"'{first[name]}' is not recognised ({format_count(words.total(), 'such row')}: "
                f"{list_words(words)}); allowed: {allowed}{f'; {IN_YEARS}' if is_high else ''}"
            )
    if problems:
        raise InputError(f"{file}: {'; '.join(problems)}")
    for name in ("patient_id", "lesion_id", "source"):
        rows[name] = map_unique(clear_missing(rows[name]), normalise_name).astype(object)
    optional = [name for name in OPTIONAL if name != "view" or data.unit == "lesion"]
    rows = rows.assign(**{name: table[name] for name in optional if name in table})
    if "duplicate_of" in rows:
        rows["duplicate_of"] = strip_suffixes(clear_missing(rows["duplicate_of"]))
    extra = [name for name in data.columns if name in table and name not in rows]
    return rows.assign(**{name: parse_extra_column(table[name]) for name in extra})


def _parse_cells(cells: "pd.Series[Any]") -> "tuple[pd.Series[Any], pd.Series[bool]]":
    """Convert a column of `_ALLOWED`; return it with a mask of its invalid cells."""
    if cells.name in CONVERTERS:
        values, mask = parse_column(cells, str(cells.name))
        return pd.Series(values, cells.index, values.dtype), pd.Series(mask, cells.index)
    if cells.name == "target":
        numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
        numbers = numbers.fillna(map_unique(cells, parse_target).astype("float64"))
        return numbers, cells.notna() & ~numbers.isin((0, 1))
    numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    return numbers, cells.notna() & ~(numbers > 0)


def merge_companion(
    table: pd.DataFrame, key: str, file: Path, columns: Sequence[str], file_key: str = ""
) -> pd.DataFrame:
    """Add columns of a companion table; a missing file or column adds nothing.

    Rows are matched by the column `key`, in the companion `file_key` if it differs; the first row
    of the companion with a key is used.
    """
    if not file.is_file():
        return table
    file_key = file_key or key
    other = read_table(file, [file_key], only=[file_key, *columns])
    other = other.drop_duplicates(file_key).set_index(file_key)
    matched = other[[name for name in columns if name in other]].reindex(table[key])
    return table.assign(**{str(name): matched[name].to_numpy() for name in matched})


def require_choice(key: str, value: str, allowed: Sequence[str]) -> None:
    """Raise InputError if an option of an adapter has a value that is not allowed."""
    if value not in allowed:
        raise InputError(f"+data.args.{key}={value}: choose from {', '.join(allowed)}")


def require_mapping(key: str, value: Any, example: str, kind: type = object) -> dict[str, Any]:
    """Return an adapter's option if it is a mapping from names to values of the given type."""
    is_mapping = isinstance(value or {}, Mapping)
    if not is_mapping or not all(isinstance(item, kind) for item in (value or {}).values()):
        raise InputError(f"+data.args.{key}={value}: must be pairs, such as {{{example}}}")
    return dict(value or {})


def strip_suffixes(cells: "pd.Series[Any]") -> "pd.Series[Any]":
    """Remove the suffixes of image names; `#frame=N` after the suffix remains."""

    def strip(cell: str) -> str:
        if "." not in cell:
            return cell
        name, mark, frame = cell.partition(FRAME)
        return f"{strip_suffix(name)}{mark}{frame}"

    return map_unique(cells, strip).astype(object)


def _check_names(names: "pd.Series[Any]", file: Path) -> None:
    if names.isna().any():
        row = names.index[names.isna()][0] + 2  # as in a spreadsheet, where the header is row 1
        raise InputError(f"{file}: row {row}: no image name; fill or remove the row")
    repeated = names.duplicated()
    if repeated.any():
        name = names[repeated].iloc[0]
        count = format_count(int(repeated.sum()), "row")
        rows = ", ".join(str(index + 2) for index in names.index[names == name][:3])
        raise InputError(
            f"{file}: images are repeated in {count}, first '{name}' (rows {rows}); "
            "use one row per image"
        )


def require_root(data: DataConfig) -> Path:
    """Return the folder of the cohort; refuse a missing one."""
    if not data.root:
        raise InputError(f"data={data.name} needs data.root=DIR, the folder of the dataset")
    root = Path(data.root).expanduser().absolute()
    if not root.is_dir():
        advice = (
            "only data=packed reads a URL"
            if "://" in data.root
            else "give the folder of the dataset"
        )
        raise InputError(f"data.root={data.root}: no such folder; {advice}")
    return root


def exclude_rows(cohort: CohortTable, name: Any) -> CohortTable:
    """Leave out the rows that a table names, such as the test set of a comparison.

    Args:
        cohort: rows of a cohort.
        name: path of a table with a column `image_id`, `lesion_id` or `patient_id`, or several. A
            row is left out if one of its names is in the column of the same kind.
    """
    file = Path(str(name)).expanduser()
    if not file.is_file():
        raise InputError(f"+data.args.exclude={name}: no such file")
    table, rows = rename_columns(read_table(file)), cohort.rows
    columns = [column for column in ("image_id", "lesion_id", "patient_id") if column in table]
    if not columns:
        raise InputError(
            f"+data.args.exclude={name}: needs a column image_id, lesion_id or patient_id; it has "
            f"{', '.join(map(str, table))}"
        )
    is_named, images = pd.Series(data=False, index=rows.index), 0
    for column in columns:
        cells = table[column].dropna()
        names = strip_suffixes(cells) if column == "image_id" else cells.map(normalise_name)
        is_named |= rows[column].isin(names)
        images += column == "image_id" and int(names[~names.isin(rows[column])].nunique())
    if not is_named.any():
        raise InputError(f"+data.args.exclude={name}: names no row of the dataset")
    lesions = rows.loc[is_named, "lesion_id"].dropna()
    others = int((rows["lesion_id"].isin(lesions) & ~is_named).sum())
    notes = [
        f"{int(is_named.sum()):,} of {len(rows):,} rows are left out, because {name} names them",
        f"{images:,} of its images are not in the cohort" if images else "",
        f"{others:,} other images of their lesions stay; to leave them out as well, add the column "
        "lesion_id"
        if others
        else "",
    ]
    note = "; ".join(filter(None, notes))
    return replace(cohort, rows=rows[~is_named].reset_index(drop=True), notes=(*cohort.notes, note))


def attach_images(
    rows: pd.DataFrame,
    root: Path,
    image_format: str,
    folders: Sequence[str],
    schema: shards.Schema = shards.PLAIN,
    cells: Sequence[str] | None = None,
) -> CohortTable:
    """Fill the column `path` with the location of each image; None if it is not found.

    Args:
        rows: canonical rows.
        root: folder of the dataset.
        image_format: a key of `FORMATS`, or auto: the one with most of the images,
            and any other for the rest.
        folders: folders to search under the root (see `find_folders`); missing ones are skipped.
        schema: features of TFRecord files that contain the name and the image.
        cells: names of the images in a user's table, which may have folders and suffixes. A JPEG
            and a DICOM file of one name are refused; in an archive they are the same image.
    """
    searched = find_folders(root, folders)
    files = list_files(searched)
    formats = [*FORMATS.values()] if image_format == "auto" else [FORMATS[image_format]]
    if cells is not None and image_format == "auto":
        formats[:2] = [IMAGE_SUFFIXES]
    names = rows["image_id"].tolist() if cells is None else cells
    locations: list[list[str | None]] = []
    for suffixes in formats:
        finder = ImageFinder(files, [root, *searched], suffixes=suffixes, schema=schema)
        locations.append(finder.find_all(names))
        if None not in locations[-1]:
            break
    locations.sort(key=lambda paths: paths.count(None))
    paths = [next(filter(None, candidates), None) for candidates in zip(*locations, strict=True)]
    rows = rows.assign(path=pd.Series(paths, rows.index, dtype=object))
    return CohortTable(rows, dict.fromkeys(rows["cohort"], (root, *searched)))
