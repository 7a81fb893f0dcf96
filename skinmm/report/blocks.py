"""Blocks of a page as values without HTML, images as `data:` addresses, formatted numbers.

Each kind of block has a macro in `templates/blocks.html`, named as its class in lower case.
The template escapes all text. Only `Plot.svg` is markup, and only `skinmm.report.figures` makes it.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import simplejpeg
import yaml
from jaxtyping import UInt8
from markupsafe import Markup

from skinmm.errors import InputError, format_count
from skinmm.evaluation.intervals import MIN_MALIGNANT_PATIENTS
from skinmm.images.decode import decode_within
from skinmm.images.source import read_source

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Note:
    """Paragraph, highlighted if it is a `warning`."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Warnings:
    """Highlighted list of warnings."""

    texts: Sequence[str]


@dataclass(frozen=True)
class Verdict:
    """Conclusion of a page in one sentence, and the sentences that explain it."""

    title: str
    lines: Sequence[str]


class Tile(NamedTuple):
    """Headline number: label, value, interval and meaning."""

    label: str
    value: str
    interval: str = ""
    meaning: str = ""


class Item(NamedTuple):
    """Question of a checklist: the answer from the files, and points for the author to add."""

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
    """Rows of text under a header; `stack` shows rows as cards on a narrow screen.

    `skinmm compare` prints the tables with `is_printed` in the terminal.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    stack: bool = False
    is_printed: bool = False


@dataclass(frozen=True)
class _Parts:
    parts: Sequence[Tile | Item | Plot | Table]


class Tiles(_Parts):
    """Headline numbers in a row."""


class Row(_Parts):
    """Figures and tables next to each other, in as many columns as fit."""


class Checklist(_Parts):
    """Questions and answers, with open points highlighted."""


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


@dataclass(frozen=True)
class Fold:
    """Blocks behind a title that the reader opens; open in print."""

    title: str
    blocks: "Sequence[Block]"


Text = Note | Warnings | Verdict | Listing | Checklist
Block = Text | Tiles | Plot | Table | Row | Gallery | Pairs | Fold


@dataclass(frozen=True)
class Section:
    """Chapter of a page; `anchor` is its address within the page.

    A section with `is_folded` has only its title until a reader opens it, or follows a link to it.
    """

    anchor: str
    title: str
    blocks: Sequence[Block]
    lead: str = ""
    is_folded: bool = False


def to_data_url(image: bytes | UInt8[np.ndarray, "height width 3"], quality: int = 80) -> str:
    """Return a JPEG file, or RGB pixels to be encoded as JPEG, as a `data:` address."""
    if isinstance(image, bytes):
        jpeg = image
    else:
        pixels = np.ascontiguousarray(image)
        jpeg = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def thumbnail(*paths: Any) -> str | None:
    """Return the images at paths of a cohort, side by side, as a small `data:` address.

    None if a path is missing or the image cannot be read: reports are often made later and on
    another machine than the run, and a missing image must not prevent the page.
    """
    if not all(isinstance(path, str) and path for path in paths):
        return None
    try:
        sources = map(read_source, paths)
        # About twice the size on the page.
        pictures = [decode_within(s.data, max_side=240, frame=s.frame) for s in sources]
    except (OSError, InputError):
        return None
    return to_data_url(join_pictures(pictures))


def join_pictures(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]],
) -> UInt8[np.ndarray, "height width 3"]:
    """Return pictures side by side, on a white background."""
    height = max(map(len, pictures))
    padded = [
        np.pad(picture, ((0, height - len(picture)), (0, 0), (0, 0)), constant_values=255)
        for picture in pictures
    ]
    return np.hstack(padded)


ABSENT: Final = "\N{EM DASH}"
TEXTS: Final[dict[str, Any]] = yaml.safe_load(
    (files("skinmm.report") / "templates" / "texts.yaml").read_text("utf-8")
)
"""Static texts of the pages, and labels of metrics under `metrics`."""
MALIGNANCY: Final = ("auroc", "average_precision", "sensitivity", "specificity", "ppv", "npv")
"""Metrics of malignancy, printed after the metrics of several classes."""
NARROW: Final = " *"
HEADLINE: Final = 14  # metrics printed after a run; the report lists all


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: Any, digits: int = 3) -> str:
    """Format with `digits` decimals (one from 10 on); a dash if the value is not finite."""
    if not is_number(value):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}"
    if 1e-6 < abs(value) < 0.5 * 10.0**-digits:  # noqa: PLR2004 - smaller ones are zero
        return f"{value:.1g}"
    return f"{value:,.{digits if abs(value) < 10 else 1}f}"  # noqa: PLR2004 - as documented


def format_p(p: float) -> str:
    """Format a p-value: three decimals, or `<0.001`."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"  # noqa: PLR2004 - smaller ones say no more


def format_percent(value: Any, digits: int = 1) -> str:
    """Format a fraction as a percentage with fixed decimals."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%" if is_number(value) else ABSENT


def format_share(mask: "pd.Series[bool]") -> str:
    """Format `count (percentage)` of the true rows; 100 % without decimals."""
    return f"{int(mask.sum()):,} ({format_percent(float(mask.mean()), 0 if mask.all() else 1)})"


def format_interval(entry: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    """Format `low to high`; empty if the interval is undefined.

    The interval of a bootstrap in which all resamples agree is empty too: a width of zero would
    claim certainty.
    """
    low, high = (entry or {}).get("low"), (entry or {}).get("high")
    if not (is_number(low) and is_number(high)) or low == high:
        return ""
    format_bound = format_percent if percent else format_number
    return f"{format_bound(low)} to {format_bound(high)}"


def format_estimate(entry: Mapping[str, Any] | None) -> str:
    """Format `value (low to high)`."""
    if not entry:
        return ABSENT
    interval = format_interval(entry)
    return f"{format_number(entry.get('value'))}{f' ({interval})' if interval else ''}"


def format_estimates(metrics: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Format the named metrics; a dash for missing ones."""
    return [format_estimate(metrics.get(name)) for name in names]


def metric_label(name: str) -> str:
    """Return the label of a metric."""
    words = name.replace("_", " ").replace("auroc", "AUROC")
    return TEXTS["metrics"].get(name, words[:1].upper() + words[1:])


def metric_table(caption: str, measured: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return a table of the named metrics that were measured."""
    entries = {name: e for name in names if (e := measured["metrics"].get(name))}
    rows = [(metric_label(name), mark_estimate(name, e, measured)) for name, e in entries.items()]
    if any(cell.endswith(NARROW) for _, cell in rows):
        caption = ". ".join(filter(None, (caption, describe_narrow(measured))))
    return Table(caption, ("Measure", "Value (interval)"), rows)


def order_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the main metrics in order; for several classes, class metrics precede malignancy."""
    if "macro_auroc" not in metrics:
        names = list(metrics)[:HEADLINE]
    else:
        names = [name for name in metrics if name.startswith("recall_")]
        names = ["macro_auroc", "class_balanced_accuracy", *names, *MALIGNANCY]
    for name in ("auroc", "macro_auroc"):  # of all pairs, then of pairs of the same source
        if name in names and f"within_source_{name}" in metrics:
            names.insert(names.index(name) + 1, f"within_source_{name}")
    return {name: metrics[name] for name in names}


def mark_estimate(name: str, entry: Mapping[str, Any] | None, measured: Mapping[str, Any]) -> str:
    """Format an estimate; mark its interval if too few malignant patients make it too narrow."""
    text, patients = format_estimate(entry), measured.get("malignant_patients")
    is_narrow = patients is not None and patients < MIN_MALIGNANT_PATIENTS.get(name, 0)
    return text + NARROW if is_narrow and format_interval(entry) else text


def describe_narrow(measured: Mapping[str, Any]) -> str:
    """Explain the mark of `mark_estimate`."""
    units = measured.get("units") or {"patient": 1}  # older files resampled patients
    noun = f"malignant {max(units, key=units.__getitem__)}"
    return TEXTS["narrow"].format(format_count(measured["malignant_patients"], noun))
