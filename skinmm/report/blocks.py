"""Blocks of a page as plain values without HTML, and images as `data:` addresses.

Each kind of block has a macro in `templates/blocks.html`, named as its class in lower case.
The template escapes all text. Only `Plot.svg` is markup, and only `skinmm.report.figures` makes it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from markupsafe import Markup

from skinmm.errors import InputError
from skinmm.images.decode import decode_within
from skinmm.images.source import read_source


@dataclass(frozen=True)
class Note:
    """Paragraph; a `warning` is highlighted."""

    text: str
    warning: bool = False


class Tile(NamedTuple):
    """Headline number: label, value, interval and meaning."""

    label: str
    value: str
    interval: str = ""
    meaning: str = ""


class Item(NamedTuple):
    """Question of a checklist: the answer from the files, and what the author has to add."""

    number: str
    topic: str
    question: str
    answer: str = ""
    open: str = ""


@dataclass(frozen=True)
class Plot:
    """Figure with a title and a caption."""

    title: str
    svg: Markup
    caption: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `stack` turns rows into cards on a narrow screen."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    stack: bool = False


@dataclass(frozen=True)
class _Parts:
    parts: Sequence[Tile | Item | Plot | Table]


class Tiles(_Parts):
    """Headline numbers in a row."""


class Row(_Parts):
    """Figures and tables next to each other, in as many columns as fit."""


class Checklist(_Parts):
    """Questions and answers; open points are highlighted."""


@dataclass(frozen=True)
class Card:
    """One lesion: its record, and its image and heat map as `data:` addresses if available."""

    title: str
    lines: Sequence[str]
    picture: str | None = None
    heat_map: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Cards of lesions in a grid."""

    caption: str
    cards: Sequence[Card]


@dataclass(frozen=True)
class Pairs:
    """Pairs of lesions to compare."""

    caption: str
    pairs: Sequence[tuple[Card, Card]]


@dataclass(frozen=True)
class Listing:
    """Preformatted text, such as YAML."""

    caption: str
    text: str


Block = Note | Tiles | Plot | Table | Row | Checklist | Gallery | Pairs | Listing


@dataclass(frozen=True)
class Section:
    """Chapter of a page; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


def to_data_url(image: bytes | UInt8[np.ndarray, "height width 3"], quality: int = 80) -> str:
    """Return a JPEG file, or RGB pixels to be encoded as JPEG, as a `data:` address."""
    if isinstance(image, bytes):
        jpeg = image
    else:
        pixels = np.ascontiguousarray(image)
        jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def thumbnail(path: Any) -> str | None:
    """Return the image at a path of a cohort as a small `data:` address.

    None if the path is missing or the image cannot be read: reports are often made later and on
    another machine than the run, and a missing image must not prevent the page.
    """
    if not isinstance(path, str) or not path:
        return None
    try:
        source = read_source(path)
        # About twice the size on the page.
        return to_data_url(decode_within(source.data, max_side=240, frame=source.frame))
    except (OSError, InputError):
        return None
