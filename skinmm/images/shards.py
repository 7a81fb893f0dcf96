"""Access to TFRecord files as a table and as images by name, with checked CRCs.

Records are read by position (`pread`). A memory map saves 4 us for each image
(`benchmarks/results/tfrecord_reading.md`), but an epoch leaves the whole file resident, and a file
that is truncated meanwhile kills the process. Forked loader workers may share a descriptor that is
only read by position.
"""

import os
import re
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

import pandas as pd

from skinmm.images.bucket import is_uncached, read_range
from skinmm.images.tfrecord import (
    DAMAGED,
    FOOTER,
    HEADER,
    TFRecordError,
    Values,
    decode_text,
    has_valid_crc,
    load_index,
    load_stored_index,
    parse_example,
)
from skinmm.vocabulary import COLUMN_KEYS, column_key


@dataclass(frozen=True)
class Schema:
    """Names of the features of a file, and words for its integer codes.

    Attributes:
        image: feature with the encoded image.
        name: feature with the name of the image.
        columns: feature -> column name, if they differ.
        codes: feature -> texts of its integers 0, 1, ...; any other integer means missing.
        missing: feature -> integers that mean a missing value.
    """

    image: str = "image"
    name: str = "image_name"
    columns: Mapping[str, str] = field(default_factory=dict)
    codes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    missing: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


SIIM: Final = Schema(
    codes={
        "sex": ("male", "female"),
        "anatom_site_general_challenge": (
            *("head/neck", "upper extremity", "lower extremity"),
            *("torso", "palms/soles", "oral/genital"),
        ),
        "diagnosis": (
            *("unknown", "nevus", "melanoma", "seborrheic keratosis", "lentigo NOS"),
            *("lichenoid keratosis", "solar lentigo", "cafe-au-lait macule"),
            "atypical melanocytic proliferation",
        ),
    },
    missing={"age_approx": (48, 49), "patient_id": (-1,)},
)
"""Schema of the public SIIM-ISIC 2020 files. Codes number the values in order of train.csv, then of
test.csv (`pandas.factorize`; diagnosis: train.csv only), so -1 is missing. A missing age became the
mean age cut to an integer (48.9 in train.csv, 49.0 in both); real ages are multiples of five.
Source: public notebooks that write such files (`comb[c].factorize()`, "Imputing Age NaN count"),
and one that reads them with the same codes (`read_meta_tfrecord`: -1 NaN; 0 male, 1 female; 0
head/neck to 5 oral/genital). Files of other years have other codes, which is detected by a
diagnosis that contradicts the target."""

SUFFIXES: Final = (".tfrec", ".tfrecord", ".tfrecords")
ENDING: Final = r"\.tfrec(?:ords?)?(?:-\d+-of-\d+)?"
"""One of the suffixes, and the number of a shard as TensorFlow Datasets appends it."""
_LOCATION: Final = re.compile(
    rf"(?P<path>.+?{ENDING})(?:\?(?P<keys>[^#]*))?#(?P<name>.+)", re.IGNORECASE | re.DOTALL
)
_IS_TFRECORD: Final = re.compile(rf"{ENDING}$", re.IGNORECASE)
_IDENTIFIERS: Final = ("patient_id", "lesion_id")  # text, although some files number them

PLAIN: Final = Schema()  # leaves text and numbers unchanged


class TFRecordFile:
    """Random access to one file by image name; may be forked and pickled.

    Args:
        path: TFRecord file; its index is loaded or built at once. It may be a file in the cache of
            a bucket (`skinmm.images.bucket`), whether it was fetched or not.
        schema: features that contain the name and the image.

    Attributes:
        names: image names in file order.
    """

    def __init__(self, path: Path | str, schema: Schema = PLAIN) -> None:
        self.path = Path(path)
        index = None
        if is_uncached(self.path):
            index = load_stored_index(self.path, [schema.name, schema.image])
        self._index = index or load_index(self.path, schema.name, schema.image)
        self.names = self._index.names
        self._rows = {name: row for row, name in enumerate(self.names)}
        self._descriptor: int | None = None

    def read(self, name: str) -> dict[str, Values]:
        """Read all features of one record, each a list of bytes, int or float."""
        body, _, where = self._read_body(name)
        return parse_example(memoryview(body)[:-FOOTER], where)

    def image(self, name: str) -> bytes:
        """Read the encoded image of one record."""
        body, image, _ = self._read_body(name)
        return body[image]

    def _read_body(self, name: str) -> tuple[bytes, slice, str]:
        """Read the payload of a record and check its CRC.

        Returns:
            Payload and CRC, the image's slice of them, and a description of the record for errors.
        """
        if (row := self._rows.get(name)) is None:
            raise TFRecordError(
                f"{self.path}: no image named {name!r} in {len(self._rows)} records"
            )
        start, size, image_start, image_size = self._index.spans[row].tolist()
        where = f"{self.path}: record {row} at byte {start}"
        try:
            if self._descriptor is None and is_uncached(self.path):
                body = read_range(self.path, start + HEADER, start + size)
            else:
                body = os.pread(self._open(), size - HEADER, start + HEADER)
        except OSError as error:
            raise TFRecordError(f"{where}: {error.strerror or error}") from error
        if not has_valid_crc(body):
            raise TFRecordError(f"{where}: wrong checksum: {DAMAGED}")
        image_start -= start + HEADER
        return body, slice(image_start, image_start + image_size), where

    def _open(self) -> int:
        """Return the file descriptor; open the file at the first call."""
        if self._descriptor is None:
            descriptor = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
            if not self._index.is_current(os.fstat(descriptor)):
                raise TFRecordError(f"{self.path}: the file changed while it was used; start again")
            self._descriptor = descriptor
        return self._descriptor

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes except the descriptor, which belongs to one process."""
        return self.__dict__ | {"_descriptor": None}


def format_location(path: Path, name: str, schema: Schema = PLAIN) -> str:
    """Return the location of an image, `FILE#image_name`.

    `FILE?image=FEATURE&name=FEATURE#image_name` if the features have other names than usual.
    """
    features = {"image": schema.image, "name": schema.name}
    is_usual = features == {"image": PLAIN.image, "name": PLAIN.name}
    return f"{path}#{name}" if is_usual else f"{path}?{urlencode(features)}#{name}"


def is_tfrecord(name: str) -> bool:
    """Return whether a file name is the name of a TFRecord file."""
    return _IS_TFRECORD.search(name) is not None


def is_tfrecord_location(text: str) -> bool:
    """Return whether a location is in a TFRecord file."""
    return _LOCATION.fullmatch(text) is not None


def read_tfrecord_image(text: str) -> bytes:
    """Read the encoded image at a location; files stay open."""
    if (parts := _LOCATION.fullmatch(text)) is None:
        raise TFRecordError(f"{text}: write FILE.tfrec#image_name")
    return _open_file(parts["path"], parts["keys"] or "").image(parts["name"])


@lru_cache(maxsize=256)
def _open_file(path: str, keys: str) -> TFRecordFile:
    features: dict[str, Any] = dict(parse_qsl(keys))
    return TFRecordFile(path, Schema(**features))


def read_records(
    files: Iterable[Path | str], schema: Schema = PLAIN, used: Collection[str] = ()
) -> pd.DataFrame:
    """Read the records of files as a table, without the images.

    Args:
        files: TFRecord files, read in this order.
        schema: meaning of their features; `SIIM` for the public SIIM-ISIC files.
        used: columns that need a single value in each record, besides the canonical ones.

    Returns:
        Columns image_name, path (see `format_location`) and the other features; None where missing.
    """
    rows = (row for file in files for row in _iterate_rows(Path(file), schema, used))
    return pd.DataFrame(list(rows))


def _iterate_rows(path: Path, schema: Schema, used: Collection[str]) -> Iterator[dict[str, Any]]:
    file = TFRecordFile(path, schema)
    has_siim_codes = schema.codes.get("diagnosis") == SIIM.codes["diagnosis"]
    for name in file.names:
        features = file.read(name)
        location = format_location(path.absolute(), name, schema)
        row: dict[str, Any] = {"image_name": name, "path": location}
        for feature in sorted(features.keys() - {schema.name, schema.image}):
            column = schema.columns.get(feature, feature)
            value = _to_cell(feature, features[feature], schema, f"{path}: {name}")
            is_used = column in used or column_key(column) in COLUMN_KEYS
            if isinstance(value, list) and is_used:
                raise TFRecordError(
                    f"{path}: {name}: feature '{feature}' is a list of {len(value)} values; a "
                    "column needs one value"
                )
            row[column] = str(value) if column in _IDENTIFIERS and value is not None else value
        diagnosis, target = row.get("diagnosis"), row.get("target")
        is_other = (diagnosis == "melanoma") != (target == 1)
        if has_siim_codes and diagnosis and "target" in row and is_other:
            raise TFRecordError(
                f"{path}: {name} has the diagnosis {diagnosis!r} but target {target}, so the file"
                " does not use the codes of the schema; give a schema with the right codes"
            )
        yield row


def _to_cell(feature: str, values: Values, schema: Schema, where: str) -> Any:
    """Return a feature as a cell: text, number, None if missing, or a list of several values."""
    if len(values) != 1:
        return values or None
    value = values[0]
    if isinstance(value, int) and feature in schema.codes:
        codes = schema.codes[feature]
        return codes[value] if 0 <= value < len(codes) else None
    if isinstance(value, int) and value in schema.missing.get(feature, ()):
        return None
    return decode_text(value, where) or None if isinstance(value, bytes) else value
