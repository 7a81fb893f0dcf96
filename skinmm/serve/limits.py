"""What a request may weigh, and what a file or a cell may be called."""

import re
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Final

from skinmm.errors import InputError
from skinmm.images.decode import DecodeError, ImageInfo, probe
from skinmm.images.source import split_frame
from skinmm.serve.problems import ProblemError

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
