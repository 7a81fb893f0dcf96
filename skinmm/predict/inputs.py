"""Inputs of a prediction job: the table of patients, and the folder of images."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from skinmm.config import Config
from skinmm.errors import InputError, suggest_path
from skinmm.evaluation.prediction_tables import TRUTH
from skinmm.files import (
    EXCEL_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_PICTURES,
    PARQUET_SUFFIXES,
    import_parquet,
    read_table_chunks,
)
from skinmm.images import shards
from skinmm.images.finder import ImageFinder, is_system_file, list_files, list_visible
from skinmm.images.source import Source, may_be_dicom, read_source, split_frame
from skinmm.vocabulary import (
    COLUMN_NAMES,
    Table,
    describe_unused_columns,
    match_columns,
)

_LABELS: Final = 10_000  # rows read at a time


def read_input(source: str, chunk: int, skip: int = 0) -> Iterator[pd.DataFrame]:
    """Read the input of a prediction job in chunks."""
    if not _is_listed(source):
        file = None
        if "://" in source:
            with _translate_storage_errors(f"input={source}") as fsspec:
                file = fsspec.open(source, "rb").open()
        return read_table_chunks(source, chunk, skip=skip, file=file)
    table = _list_images(Path(source))
    return (table.iloc[row : row + chunk] for row in range(skip, len(table), chunk))


def count_rows(source: str) -> int | None:
    """Return the approximate number of rows; None if the whole file would have to be read."""
    if "://" in source or source.lower().endswith((".gz", *EXCEL_SUFFIXES)):
        return None
    if source.lower().endswith(PARQUET_SUFFIXES):
        return int(import_parquet(source).ParquetFile(source).metadata.num_rows)
    if _is_listed(source):
        return len(_list_images(Path(source)))
    with Path(source).open("rb") as file:
        ends = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
    return max(ends - 1, 0)


def fingerprint(source: str) -> str:
    """Return a fingerprint of an input: size and time, or the names in a folder."""
    if "://" in source:
        with _translate_storage_errors(f"input={source}") as fsspec:
            filesystem, path = fsspec.core.url_to_fs(source)
            info = filesystem.info(path)
        keys = ("size", "ETag", "etag", "mtime", "created", "LastModified", "updated")
        return "|".join(str(info.get(key)) for key in keys)
    if Path(source).is_dir():
        return sha256("\0".join(_list_images(Path(source)).iloc[:, 0]).encode()).hexdigest()
    try:
        status = Path(source).stat()
    except OSError as error:
        raise InputError(
            f"input={source}: no such file; give a table of lesions or a folder of images"
            f"{suggest_path(source)}"
        ) from error
    return f"{status.st_size}|{status.st_mtime_ns}"


def contains_records(folder: Path) -> bool:
    """Return whether a folder has files with records: DICOM or TFRecord."""
    return folder.is_dir() and any(
        shards.is_tfrecord(path.name) or (may_be_dicom(path.name) and _is_image(path))
        for path in list_visible(folder)
    )


def has_predictions(source: Path) -> bool:
    """Return whether a table is a prediction file of this package."""
    if not source.is_file():
        return False
    if source.suffix not in PARQUET_SUFFIXES:
        with source.open("rb") as file:
            header = file.readline(1 << 16)
        return b"p_" in header and b"prediction_set" in header
    names = import_parquet(source).read_schema(source).names
    return "prediction_set" in names and any(name.startswith("p_") for name in names)


def has_labels(source: str, column_names: Mapping[str, str]) -> bool:
    """Return whether a table has labels, `target` or `diagnosis`; a folder of images has none."""
    for part in read_input(source, _LABELS):
        table = rename_training_columns(part, column_names)
        for name, canonical in match_columns(table.keys()).items():
            if canonical in TRUTH:
                cells = pd.Series(np.asarray(table[name], dtype=object))
                if not (cells.isna() | (cells.astype(str).str.strip() == "")).all():
                    return True
    return False


def list_training_names(configs: Sequence[Config], columns: Container[str]) -> dict[str, str]:
    """Return the names of columns in the training tables, and what they are of `columns`."""
    args = [config.data.args for config in configs if config.data.name == "csv"]
    pairs = [pair for part in args for pair in (part.get("columns") or {}).items()]
    return {public: name for name, public in pairs if name in columns}


def rename_training_columns(table: Table, column_names: Mapping[str, str]) -> Table:
    """Rename columns that have the names of the training table to canonical names.

    Labels in a column of a canonical name are used instead.
    """
    labels = {name for name in TRUTH if name in table}
    pairs = column_names.items()
    renames = {public: name for public, name in pairs if public in table and name not in labels}
    replaced = {*renames.values()} - {*renames}
    if not renames:
        return table
    columns = ((str(name), cells) for name, cells in table.items() if name not in replaced)
    return {renames.get(name, name): np.asarray(cells) for name, cells in columns}


def describe_missing_columns(names: Sequence[str], columns: Sequence[str]) -> str:
    """Return a warning about missing columns of a table; "" if there are none.

    They are the record columns and, if other columns are not used, patient and lesion.
    """
    canonical = match_columns(names, columns)
    present = {*names, *canonical.values()}
    missing = [name for name in columns if name not in present]
    used = {"image_id", "patient_id", "lesion_id", "target", *columns}
    unused = [str(name) for name in names if canonical.get(name, name) not in used]
    rest = describe_unused_columns(unused)
    if not missing:
        is_named = {"patient_id", "lesion_id"} & present
        return f"no column patient_id or lesion_id; {rest}" if rest and not is_named else ""
    synonyms = {name: f" (e.g. {', '.join(public[:3])})" for name, public in COLUMN_NAMES.items()}
    named = ", ".join(f"{name}{synonyms.get(name, '')}" for name in missing)
    lines = [f"no column for {named}: missing, unless DICOM headers have it", rest]
    return "; ".join(filter(None, lines))


def _is_listed(source: str) -> bool:
    return shards.is_tfrecord(source) or Path(source).is_dir()


def _list_images(source: Path) -> pd.DataFrame:
    """Return the table of the images in a folder, or of the records in TFRecord files."""
    files = sorted(list_visible(source)) if source.is_dir() else [source]
    records = [path for path in files if shards.is_tfrecord(path.name)]
    if records:
        return shards.read_records(records).drop(columns="path").astype(object)
    images = [path.relative_to(source) for path in files if _is_image(path)]
    stems = Counter(path.with_suffix("") for path in images)
    names = []
    for path in images:
        is_plain = path.parent == Path() and path.suffix.lower() in IMAGE_SUFFIXES
        # Public datasets drop the suffix of files directly in the folder.
        is_stem = is_plain and stems[path.with_suffix("")] == 1
        names.append(path.stem if is_stem else path.as_posix())
    return pd.DataFrame({"image": names}, dtype=object)


def _is_image(path: Path) -> bool:
    """Return whether a file has the suffix of an image, even of an unsupported format.

    DICOM files of archives often have none, so check their first bytes.
    """
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *OTHER_PICTURES):
        return path.is_file()
    if not path.is_file() or (path.suffix and not path.suffix[1:].isdigit()):
        return False
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


class ImageFolder(ImageFinder):
    """Images of a folder or URL of fsspec (`s3://`, ...), found by name; the folder is listed once.

    Images in TFRecord and HDF5 files of a local folder are found by their names too.
    """

    def __init__(self, folder: str | Path) -> None:
        self._filesystem: Any = None
        if "://" in str(folder):
            with _translate_storage_errors(f"images={folder}") as fsspec:
                self._filesystem, path = fsspec.core.url_to_fs(str(folder))
                files = self._list_url(path)
            super().__init__(files, [path], suffixes=IMAGE_SUFFIXES, list_folder=self._list_url)
        elif Path(folder).is_dir():
            super().__init__(list_files([str(folder)]), [folder])
        else:
            raise InputError(f"images={folder}: no such folder; give the folder of the images")

    def _list_url(self, folder: str) -> list[str]:
        entries = self._filesystem.ls(folder, detail=True)
        files = sorted(entry["name"] for entry in entries if entry["type"] == "file")
        return [file for file in files if not is_system_file(file.rsplit("/", 1)[-1])]

    def read(self, location: str) -> Source:
        """Read the bytes at a location that `find` returned."""
        if self._filesystem is None:
            return read_source(location)
        file, frame = split_frame(location)
        return Source(self._filesystem.cat_file(file), frame)


class InMemoryImages(ImageFinder):
    """Images in memory by name, with the interface of `ImageFolder`."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(sorted(files), suffixes=IMAGE_SUFFIXES)
        self._data = files

    def read(self, location: str) -> Source:
        """Return the bytes at a location that `find` returned."""
        name, frame = split_frame(location)
        return Source(self._data[name], frame)


Images = ImageFolder | InMemoryImages


@contextmanager
def _translate_storage_errors(setting: str) -> Iterator[Any]:
    """Yield fsspec, and convert errors of its storage services."""
    try:
        import fsspec

        yield fsspec
    except FileNotFoundError as error:
        raise InputError(f"{setting}: no such file or folder") from error
    except ImportError as error:
        raise InputError(f"{setting}: {error}") from error
    except Exception as error:  # each service has its own errors
        reason = " ".join(str(error).split())
        raise InputError(f"{setting}: cannot be reached ({reason})") from error
