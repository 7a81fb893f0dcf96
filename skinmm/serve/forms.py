"""Forms of the API: their fields, limits and checks; uploads stay in memory."""

import io
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, TypeVar

from fastapi import UploadFile
from pydantic import BaseModel, Field, ValidationError, create_model
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import Request

from skinmm.data.lesions import VIEW_WORDS, parse_view
from skinmm.errors import InputError
from skinmm.files import IMAGE_SUFFIXES, read_table_chunks
from skinmm.images.decode import MAX_PIXELS, DecodeError, ImageInfo, probe
from skinmm.images.source import split_frame
from skinmm.predict.cases import Case
from skinmm.predict.loading import CaseImage
from skinmm.serve.responses import ProblemError
from skinmm.vocabulary import COLUMN_KEYS, SEXES, SITES, column_key

MAX_IMAGE: Final = 20_000_000  # bytes
MAX_BATCH: Final = 100_000_000  # bytes
MAX_TABLE: Final = 1_000_000  # bytes
MAX_TEXT: Final = 1_000  # bytes of a field
_FORM_OVERHEAD: Final = 100_000  # bytes of boundaries, headers and fields next to an image
_FILE_NAME: Final = re.compile(r"(?!\.)[\w .()+-]{1,200}")
_UNKNOWN: Final = "; another value counts as missing and is listed in `unknown`"
_COLUMNS: Final[dict[str, dict[str, Any]]] = {
    "age": {"description": f"years, 0 to 120{_UNKNOWN}", "examples": ["55"]},
    "sex": {"description": f"{', '.join(SEXES)}{_UNKNOWN}", "examples": [SEXES[0]]},
    "site": {"description": f"{', '.join(SITES)}{_UNKNOWN}", "examples": [SITES[4]]},
    "patient_id": {"description": "patient of the stored case"},
}
_BINARY: Final[dict[str, Any]] = {"format": "binary"}
Rows = list[dict[str, str]]
M = TypeVar("M", bound=BaseModel)
MultiPartParser.spool_max_size = 2 * MAX_BATCH  # uploads are never written to a disk


class CaseForm(BaseModel, extra="forbid"):
    """Form of one lesion; `case_form` adds a field for each column of the record."""

    image: UploadFile | None = None
    frame: int | None = None


class LesionForm(BaseModel, extra="forbid"):
    """Form of one lesion for a model that combines its images."""

    image: list[UploadFile] = []
    view: list[str] = []
    frame: list[Annotated[int, Field(ge=1)] | None] = []


class BatchForm(BaseModel, extra="forbid"):
    """Form of several lesions."""

    table: UploadFile = Field(description="CSV as `predict.py` reads it", json_schema_extra=_BINARY)
    images: list[UploadFile] = Field([], description="image files that the table names")


def case_form(
    columns: Sequence[str], *, needs_image: bool, max_images: int | None = None
) -> type[CaseForm | LesionForm]:
    """Return the form of one lesion for a model that reads `columns`.

    With `max_images`, the model combines at most so many images of a lesion.
    """
    fields: dict[str, Any] = {
        f"column_{number}": (str, Field(None, alias=name, **_COLUMNS.get(name, {})))
        for number, name in enumerate(columns)
    }
    kinds, frames = "JPEG, PNG, DICOM and others", "frame of a DICOM file with several"
    default = ... if needs_image else None
    if max_images is None:
        image = Field(default, description=kinds, json_schema_extra=_BINARY)
        frame = Field(None, ge=1, description=frames)
        fields |= {"image": (UploadFile, image), "frame": (int, frame)}
        return create_model("CaseForm", __base__=CaseForm, **fields)
    order = "; of each image in turn, empty where not stated"
    views: Any = Field([], description=f"{', '.join(VIEW_WORDS)} or a synonym{order}")
    images: Any = Field(default or [], description=kinds, max_length=max_images)
    fields |= {"image": (list[UploadFile], images), "view": (list[str], views)}
    frame_type = LesionForm.model_fields["frame"].annotation
    fields["frame"] = (frame_type, Field([], description=f"{frames}{order}"))
    return create_model("LesionForm", __base__=LesionForm, **fields)


def body_limit(path: str, images: int = 1) -> int:
    """Return the largest body of a request in bytes, for a maximum number of images."""
    if path.startswith("/v1/cases"):
        return MAX_TEXT
    if path == "/v1/predict/batch":
        return MAX_BATCH
    return min(images * MAX_IMAGE + _FORM_OVERHEAD, MAX_BATCH)


async def read_case(
    request: Request, model: type[CaseForm | LesionForm], max_images: int = 1
) -> Case:
    """Read the form of one lesion; unrecognised values count as missing."""
    lists = [*LesionForm.model_fields] if issubclass(model, LesionForm) else []
    fields = len(model.model_fields) + 2 * max_images
    async with _open_form(request, files=max_images, fields=fields) as form:
        for name in form:
            if name not in lists and len(form.getlist(name)) > 1:
                raise ProblemError.unusable(f"the field {name[:50]} is given twice")
        cells: dict[str, Any] = {
            name: cell for name, cell in form.items() if name != "frame" or cell != ""
        }
        cells |= {name: form.getlist(name) for name in lists if name in form}
        if "frame" in lists:
            cells["frame"] = [cell or None for cell in form.getlist("frame")]
        values = _validate(model, cells)
        images = await _read_images(values)
    record = {
        field.alias: cell
        for name, field in model.model_fields.items()
        if field.alias and (cell := getattr(values, name)) is not None
    }
    return Case(images, record)


async def _read_images(values: CaseForm | LesionForm) -> list[CaseImage]:
    """Read and check the images of a form."""
    if isinstance(values, CaseForm):
        uploads, frames, views = [values.image] if values.image else [], [values.frame], [""]
    else:
        uploads, frames, views = values.image, values.frame, values.view
    images = []
    for name, cells in ("frame", frames), ("view", views):
        if isinstance(values, LesionForm) and len(cells) not in (0, len(uploads)):
            raise ProblemError.unusable(
                f"{name}: {len(cells)} values for {len(uploads)} images; send one for each image, "
                "empty if not stated, or none"
            )
    for number, upload in enumerate(uploads):
        data = await upload.read()
        if not data:
            raise ProblemError.unusable("the field image has no file, or an empty one")
        check_image(data)
        word = views[number].strip() if views else ""
        view = parse_view(word) if word else ""
        if view is None:
            allowed = ", ".join(VIEW_WORDS)
            raise ProblemError.unusable(
                f"view: {word[:50]!r} is not a view; allowed: {allowed}, a synonym, or empty"
            )
        images.append(CaseImage(data, frames[number] if frames else None, view=view))
    return images


async def read_batch(request: Request, max_rows: int) -> tuple[Rows, dict[str, bytes]]:
    """Read the form of several lesions; refuse a table that names a path."""
    files: dict[str, bytes] = {}
    async with _open_form(request, files=max_rows + 1, fields=0) as form:
        if len(form.getlist("table")) > 1:
            raise ProblemError.unusable("send exactly one file in the field table")
        values = _validate(BatchForm, {**form, "images": form.getlist("images")})
        for upload in values.images:
            name = check_name(upload.filename or "")
            if name in files:
                raise ProblemError.unusable(f"two images are named {name!r}")
            files[name] = await upload.read()
        rows = _read_rows(await values.table.read(), max_rows)
    return rows, files


def check_image(data: bytes) -> ImageInfo:
    """Raise ProblemError if an image is unusable or too large; it is not decoded."""
    if len(data) > MAX_IMAGE:
        raise ProblemError(413, f"the image has {len(data):,} bytes, the limit is {MAX_IMAGE:,}")
    try:
        info = probe(data)
    except DecodeError as error:
        raise ProblemError.unusable(f"the image cannot be used: {error}") from None
    if info.width * info.height > MAX_PIXELS:
        raise ProblemError(
            413,
            f"the image has {info.width} x {info.height} pixels, the limit is "
            f"{MAX_PIXELS // 1_000_000} megapixels",
        )
    return info


def read_upload(upload: str) -> bytes:
    """Return the content of an upload."""
    try:
        return Path(upload).read_bytes()
    except FileNotFoundError:
        raise ProblemError.unusable("The uploaded file has expired; choose it again.") from None


def delete_upload(upload: str) -> None:
    """Delete an upload, and its folder if it is empty."""
    Path(upload).unlink(missing_ok=True)
    with suppress(OSError):
        Path(upload).parent.rmdir()


def check_name(name: str) -> str:
    """Return an image's file name, with or without `#frame=N`; refuse paths and other types."""
    try:
        file, _ = split_frame(name)
    except InputError as error:
        raise ProblemError.unusable(str(error)) from None
    suffix = PurePosixPath(file).suffix.lower()
    if _FILE_NAME.fullmatch(file) and (suffix in ("", *IMAGE_SUFFIXES) or suffix[1:].isdecimal()):
        return name
    allowed = ", ".join(IMAGE_SUFFIXES)
    raise ProblemError.unusable(
        f"{name[:100]!r} is not the name of an image ({allowed}): letters, digits "
        "and ' .()+-_' are allowed, folders are not"
    )


@asynccontextmanager
async def _open_form(request: Request, files: int, fields: int) -> AsyncIterator[FormData]:
    """Parse a form within its limits and close its files afterwards."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise ProblemError(
            415, f"the content type is {kind[:50] or 'missing'}; send multipart/form-data"
        )
    try:
        form = await request.form(max_files=files, max_fields=fields, max_part_size=MAX_TEXT)
    except HTTPException as error:
        if error.detail.startswith("Too many files"):
            most = f"{files} files" if files > 1 else "one file"
            raise ProblemError.unusable(f"the form has more than {most}; send fewer") from None
        raise ProblemError(400, f"not a form: {error.detail}") from None
    except FormParserError as error:  # some versions of Starlette do not translate it
        raise ProblemError(400, f"not a form: {error}") from None
    try:
        yield form
    finally:
        await form.close()


def _validate(model: type[M], cells: Mapping[str, Any]) -> M:
    """Validate a form; error messages do not repeat the submitted values."""
    try:
        return model.model_validate(cells)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
    name = ".".join(map(str, problem["loc"]))[:50]
    message = f"{name}: {problem['msg']}"
    if problem["type"] == "extra_forbidden":
        allowed = ", ".join(field.alias or key for key, field in model.model_fields.items())
        message = f"unknown field {name!r}; the fields are {allowed}"
    elif problem["type"] == "missing":
        message = f"the field {name} is required: send a file"
    raise ProblemError.unusable(message)


def _read_rows(data: bytes, max_rows: int) -> Rows:
    """Return the rows of a CSV; refuse image names with folders."""
    if len(data) > MAX_TABLE:
        raise ProblemError(413, f"the table is longer than {MAX_TABLE:,} bytes")
    try:  # the name "table" begins the messages; a name without suffix is read as CSV
        chunks = list(read_table_chunks("table", max_rows + 1, file=io.BytesIO(data)))
    except InputError as error:
        raise ProblemError.unusable(str(error)) from None
    records = [record for chunk in chunks for record in chunk.to_dict("records")]
    rows = [{str(name): cell for name, cell in record.items()} for record in records]
    if not rows:
        raise ProblemError.unusable("the table has no rows")
    if len(rows) > max_rows:
        raise ProblemError.unusable(f"the table has {len(rows)} rows, the limit is {max_rows}")
    image_columns = [name for name in rows[0] if COLUMN_KEYS.get(column_key(name)) == "image_id"]
    for row, name in product(rows, image_columns):
        if row[name]:
            check_name(row[name])
    return rows
