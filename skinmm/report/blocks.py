"""What a page is made of: plain values that know nothing of HTML.

Text stays text until the template escapes it; only `Plot.svg` is markup, and only
`skinmm.report.figures` makes it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from markupsafe import Markup

from skinmm.errors import InputError


@dataclass(frozen=True)
class Note:
    """A paragraph; `loud` is for what nobody may overlook."""

    text: str
    loud: bool = False
    kind: ClassVar[str] = "note"


class Tile(NamedTuple):
    """One headline number: what it is, its value, its interval, what it means."""

    label: str
    value: str
    interval: str = ""
    meaning: str = ""


class Item(NamedTuple):
    """One question of a checklist: what is known, and what is left for the author to write."""

    number: str
    topic: str
    asks: str
    known: str = ""
    open: str = ""


@dataclass(frozen=True)
class Plot:
    """One drawing with its title and a caption that says how to read it."""

    title: str
    svg: Markup
    caption: str = ""
    kind: ClassVar[str] = "plot"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; `stack` turns rows into cards on a narrow screen."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    stack: bool = False
    kind: ClassVar[str] = "table"


@dataclass(frozen=True)
class _Parts:
    parts: Sequence[Tile | Item | Plot | Table]


class Tiles(_Parts):
    """The headline numbers, side by side."""

    kind: ClassVar[str] = "tiles"


class Row(_Parts):
    """Drawings and tables side by side, as many columns as fit."""

    kind: ClassVar[str] = "row"


class Checklist(_Parts):
    """Questions with their answers; gaps are marked."""

    kind: ClassVar[str] = "checklist"


@dataclass(frozen=True)
class Card:
    """One lesion: its picture and heat map (`data:` addresses) where they are, and its record."""

    title: str
    lines: Sequence[str]
    picture: str | None = None
    heat: str | None = None


@dataclass(frozen=True)
class Gallery:
    """Lesions side by side."""

    caption: str
    cards: Sequence[Card]
    kind: ClassVar[str] = "gallery"

    @property
    def illustrated(self) -> bool:
        """Whether any card has a picture, so that a missing one is told."""
        return any(card.picture for card in self.cards)


@dataclass(frozen=True)
class Pairs:
    """Lesions two by two, to be told apart or not."""

    caption: str
    pairs: Sequence[tuple[Card, Card]]
    kind: ClassVar[str] = "pairs"


@dataclass(frozen=True)
class Listing:
    """Text whose spaces matter, such as YAML."""

    caption: str
    text: str
    kind: ClassVar[str] = "listing"


Block = Note | Tiles | Plot | Table | Row | Checklist | Gallery | Pairs | Listing


@dataclass(frozen=True)
class Section:
    """A chapter of the page; `anchor` is its address within the page."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""


SIDE: Final = 240  # pixels of the longer side; twice the size on the page, for dense screens
QUALITY: Final = 80


def embedded(path: Path) -> str | None:
    """A JPEG that a run left, as a `data:` address; None where it is gone."""
    if not path.is_file():
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def thumbnail(path: Any) -> str | None:
    """The picture behind a cohort's path as a JPEG `data:` address.

    A report is read long after a run, often elsewhere: an image that is gone or broken is no
    reason to lose the page, so it gives None, as does a missing path.
    """
    import simplejpeg

    from skinmm.images.decode import decode, probe
    from skinmm.images.source import read_source

    if not isinstance(path, str) or not path:
        return None
    try:
        source = read_source(path)
        info = probe(source.data)
        scale = min(1.0, SIDE / max(info.width, info.height))
        size = (max(1, round(info.height * scale)), max(1, round(info.width * scale)))
        pixels = decode(source.data, size=size, frame=source.frame)
    except (OSError, InputError):
        return None
    jpeg = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
