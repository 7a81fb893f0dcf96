"""Loading of the images of rows for prediction; an error becomes part of the result."""

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped, UInt8

from skinmm.data.dataset import View, decode_image
from skinmm.data.lesion_finder import LesionFinder
from skinmm.data.lesions import SEPARATOR, UNSTATED
from skinmm.errors import InputError
from skinmm.images.base import MIN_SIDE, require_colours
from skinmm.images.source import Source, may_be_dicom, read_header_record
from skinmm.predict.inputs import Images
from skinmm.vocabulary import VIEW_TYPES, is_missing


class CaseImage(NamedTuple):
    """Encoded image with DICOM frame (from 1), location, and view and name in a lesion."""

    data: bytes
    frame: int | None = None
    path: str = ""
    view: str = ""
    name: str = ""


class LoadedRow(NamedTuple):
    """Loaded image of one row, or images of one lesion.

    Attributes:
        pixels: (size, size, 3), or (images, size, size, 3) of a lesion, by view of the models.
        record: values read from header or image.
        error: why the row cannot be predicted.
        types: code of the type of each image of a lesion.
        lost: names of the images of a lesion that cannot be used.
    """

    pixels: Mapping[View, UInt8[np.ndarray, "... _ _ 3"]]
    record: Mapping[str, Any]
    error: str
    types: tuple[int, ...] = ()
    lost: tuple[str, ...] = ()


def load_row(
    name: str,
    read_header: bool,
    images: Images | None,
    views: Collection[View],
    *,
    needs_image: bool,
    finder: LesionFinder | None = None,
) -> LoadedRow:
    """Load the image named in a cell; an error becomes part of the result.

    `views` is empty if no model has an image branch. The record has the values of a DICOM header,
    if `read_header` is true, and the measurements of `finder`.
    """
    if not (views or read_header or finder):
        return LoadedRow({}, {}, "")
    name = name.strip()  # as training reads cells
    try:
        location = images.find(name) if images else None
        if images is None or location is None:
            not_found = images.describe_missing(name) if views and name and images else ""
            no_name = "no image named, and this model needs one" if needs_image else ""
            return LoadedRow({}, {}, not_found or no_name)
        read_header = read_header and may_be_dicom(location)
        if not (views or read_header or finder):
            return LoadedRow({}, {}, "")
        source = images.read(location)
        record = read_header_record(location, BytesIO(source.data)) if read_header else {}
        if finder:
            record = {**record, **finder.measure(source)}
        return LoadedRow({view: decode_usable(source, view) for view in views}, record, "")
    except Exception as error:  # whatever is wrong with one image, the other rows continue
        return LoadedRow({}, {}, describe_error(error))


def load_lesion(
    cells: tuple[str, str],
    read_header: bool,
    images: Images | None,
    views: Collection[View],
    *,
    needs_image: bool,
    finder: LesionFinder | None = None,
) -> LoadedRow:
    """Load the images of a lesion; unusable ones are left out.

    A cell lists images, or their views, with `|` between them. Further arguments as of `load_row`.
    """
    names, kinds = (cell.split(SEPARATOR) for cell in cells)
    load = partial(load_row, needs_image=needs_image, finder=finder)
    rows = [load(name, read_header, images, views) for name in names]
    good = [
        number for number, row in enumerate(rows) if not row.error and (row.pixels or not views)
    ]
    if not good:
        return next((row for row in rows if row.error), rows[0])
    pixels = {view: np.stack([rows[number].pixels[view] for number in good]) for view in views}
    record: dict[str, Any] = {}
    for number in reversed(good):
        record |= {
            k: v for k, v in rows[number].record.items() if k == "unknown" or not is_missing(v)
        }
    types = tuple(VIEW_TYPES.index(kinds[number] or UNSTATED) for number in good)
    lost = tuple(name for name, row in zip(names, rows, strict=True) if row.error)
    return LoadedRow(pixels, record, "", types, lost)


def describe_error(error: Exception) -> str:
    """Return an error as one line, with the class name if it is unexpected."""
    message = " ".join(str(error).split())
    is_expected = isinstance(error, OSError | InputError)
    return message if is_expected else f"{type(error).__name__}: {message}"


def decode_usable(source: Source, view: View) -> UInt8[np.ndarray, "size size 3"]:
    """Decode and preprocess an image; refuse tiny and single-coloured ones."""
    pixels = decode_image(source, view, MIN_SIDE)
    require_colours(pixels)
    return pixels


def stack_images(
    view: View | None,
    images: Sequence[Mapping[View, UInt8[np.ndarray, "... _ _ 3"]]],
    types: Sequence[tuple[int, ...]] | None,
) -> tuple[UInt8[np.ndarray, "b *views _ _ 3"] | None, Shaped[np.ndarray, "b *views"]]:
    """Return the images of a batch as one array, and a mask of the rows with an image.

    With `types`, rows are lesions: the second array has the type of each image, 0 where there is
    none. Without a view, the model takes no images.
    """
    if types is None:
        has_image = np.array([view is None or view in image for image in images])
    else:
        has_image = np.zeros((len(types), max(1, *map(len, types))), np.int64)
        for row, codes in enumerate(types):
            has_image[row, : len(codes)] = codes
    if view is None:
        return None, has_image
    pixels = np.zeros((*has_image.shape, view.size, view.size, 3), np.uint8)
    for row, image in enumerate(images):
        if view in image:
            target = (row,) if types is None else (row, slice(len(image[view])))
            pixels[target] = image[view]
    return pixels, has_image
