"""What a request may weigh, and what a file or a cell may be called."""

import csv
import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from skinmm.errors import InputError
from skinmm.images.decode import DecodeError, ImageInfo, probe
from skinmm.images.finder import ImageFinder
from skinmm.images.source import split_frame
from skinmm.predict.single_case import Case
from skinmm.serve.problems import ProblemError
from skinmm.vocabulary import COLUMN_NAMES, match_columns

MAX_IMAGE: Final = 20_000_000  # bytes
MAX_BATCH: Final = 100_000_000
MAX_PIXELS: Final = 200_000_000
MAX_TEXT: Final = 1_000  # bytes of a field
_ROOM: Final = 100_000  # bytes around an image: boundaries, headers, fields
_NAME: Final = re.compile(r"(?!\.)[\w .()+-]{1,200}")
_SUFFIXES: Final = frozenset({"", ".jpg", ".jpeg", ".png", ".dcm"})


def longest_body(path: str) -> int:
    """How many bytes a request may have."""
    if path.startswith("/v1/cases"):
        return MAX_TEXT
    return MAX_BATCH if path == "/v1/predict/batch" else MAX_IMAGE + _ROOM


def check_image(data: bytes) -> ImageInfo:
    """Looks at an image's header, before anything is decoded.

    Raises:
        ProblemError: too many bytes or pixels, or no picture that can be used.
    """
    if len(data) > MAX_IMAGE:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the image has {len(data):,} bytes, the limit is {MAX_IMAGE:,}",
        )
    try:
        info = probe(data)
    except DecodeError as error:
        raise ProblemError.unusable(f"the image cannot be used: {error}") from None
    if info.width * info.height > MAX_PIXELS:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the image has {info.width} x {info.height} pixels, the limit is "
            f"{MAX_PIXELS // 1_000_000} megapixels",
        )
    return info


def check_name(name: str) -> str:
    """Takes the plain name of an image file, with `#frame=N` behind it or not.

    Raises:
        ProblemError: a path, a hidden file, or a name that could mean another kind of file.
    """
    try:
        plain, _ = split_frame(name)
    except InputError as error:
        raise ProblemError.unusable(str(error)) from None
    suffix = PurePosixPath(plain).suffix.lower()
    if _NAME.fullmatch(plain) and (suffix in _SUFFIXES or suffix[1:].isdecimal()):
        return name
    raise ProblemError.unusable(
        f"{name[:100]!r} is not the plain name of a .jpg, .jpeg, .png or .dcm file: letters, "
        "digits and ' .()+-_', no folders",
    )


MAX_TABLE: Final = 1_000_000  # bytes


class Batch(NamedTuple):
    """Rows of a table, and the images that they name."""

    rows: list[dict[str, str]]
    files: dict[str, bytes]


async def read_case(request: Request, columns: Sequence[str], *, needs_image: bool) -> Case:
    """One lesion: the file `image`, and a field for each column that is known.

    A word that nobody knows counts as missing, as in `predict.py`; the answer says so.

    Args:
        request: multipart/form-data.
        columns: of the record.
        needs_image: whether there must be one.

    Raises:
        ProblemError: no such form, or something in it cannot be used.
    """
    allowed = ("image", "frame", *columns)
    async with _form(request, files=1, fields=len(allowed)) as form:
        _check_fields(form, allowed)
        upload = form.get("image")
        image = await upload.read() if isinstance(upload, UploadFile) else None
        texts = {name: cell for name, cell in form.items() if isinstance(cell, str)}
    if upload is not None and not image:
        raise ProblemError.unusable("the field image holds no file")
    if image is None and needs_image:
        raise ProblemError.unusable("this model needs an image: send the file as the field image")
    if image is not None:
        check_image(image)
    frame = _frame(texts.pop("frame", ""))
    return Case(image, texts, frame)


def _check_fields(form: FormData, allowed: Sequence[str]) -> None:
    for name, cell in form.multi_items():
        if name not in allowed:
            known = ", ".join(allowed)
            raise ProblemError.unusable(f"unknown field {name[:50]!r}; there are {known}")
        if len(form.getlist(name)) > 1:
            raise ProblemError.unusable(f"the field {name} is there twice")
        if name != "image" and isinstance(cell, UploadFile):
            raise ProblemError.unusable("only the field image holds a file")


async def read_batch(request: Request, most: int) -> Batch:
    """Several lesions: `table`, a CSV as `predict.py` takes it, and the `images` that it names.

    Raises:
        ProblemError: no such form, a table that is no CSV, too long, or names a path.
    """
    files: dict[str, bytes] = {}
    async with _form(request, files=most + 1, fields=0) as form:
        tables = form.getlist("table")
        if set(form) - {"table", "images"} or len(tables) != 1:
            raise ProblemError.unusable("send one file as table (a CSV), and any number as images")
        for name, upload in form.multi_items():
            if name == "images" and isinstance(upload, UploadFile):
                plain = check_name(upload.filename or "")
                if plain in files:
                    raise ProblemError.unusable(f"two images are called {plain!r}")
                files[plain] = await upload.read()
            elif isinstance(upload, UploadFile):
                rows = _rows(await upload.read(), most)
    return Batch(rows, files)


def named_case(row: Mapping[str, str], files: Mapping[str, bytes]) -> Case:
    """A row of a table with the file that it names, if that was sent."""
    canonical = match_columns(row)
    cells = {canonical.get(name, name): cell for name, cell in row.items()}
    plain = split_frame(cells.get("image_id", ""))[0]
    found = ImageFinder(sorted(files)).find_cell(plain)
    return Case(files[found] if found else None, cells)


@asynccontextmanager
async def _form(request: Request, files: int, fields: int) -> AsyncIterator[FormData]:
    """The parsed body, whose files are closed afterwards."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ProblemError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the body is {kind[:50] or 'of no stated type'}; send multipart/form-data",
        )
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=files,
        max_fields=fields,
        max_part_size=MAX_TEXT,
    )
    parser.spool_max_size = 2 * MAX_BATCH  # never on a disk
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise ProblemError(HTTPStatus.BAD_REQUEST, f"not a form: {error.message}") from None
    try:
        yield form
    finally:
        await form.close()


def _frame(text: str) -> int | None:
    if not text.strip():
        return None
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ProblemError.unusable(f"frame={text[:20]!r} is not a number from 1")
    return int(text)


def _rows(data: bytes, most: int) -> list[dict[str, str]]:
    """The rows of a CSV, whose images have plain names."""
    if len(data) > MAX_TABLE:
        raise ProblemError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the table is longer than {MAX_TABLE:,} bytes"
        )
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProblemError.unusable(f"the table is not a CSV in UTF-8 ({error})") from None
    header, *body = [line for line in lines if line] or [[]]
    names = [name.strip() for name in header]
    wrong = next((line for line in body if len(line) != len(names)), None)
    if not body or wrong is not None or len(set(names)) < len(names):
        raise ProblemError.unusable(
            "the table has no rows, a row of another length, or a column twice"
        )
    if len(body) > most:
        raise ProblemError.unusable(f"the table has {len(body)} rows, at most {most} are taken")
    rows = [dict(zip(names, line, strict=True)) for line in body]
    _check_cells(rows)
    return rows


def _check_cells(rows: Sequence[Mapping[str, str]]) -> None:
    for row in rows:
        for name in COLUMN_NAMES["image_id"]:
            if row.get(name):
                check_name(row[name])
