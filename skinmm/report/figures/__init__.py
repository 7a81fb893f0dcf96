"""Figures as inline SVG: one renderer and style, colour-blind safe and legible in print."""

import io
import re
import warnings
from collections.abc import Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008) without yellow, which is invisible on white paper.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: Final = "#6b7280"
REFERENCE: Final[dict[str, Any]] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (1, 2))}
POINTS: Final = 400

_DASHES: Final = ("-", "--", ":", "-.")
_STYLE: Final = files("skinmm.report") / "templates" / "figures.mplstyle"
_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dash of a line; the dash changes after every pass of the palette."""
    turn, color = divmod(index, len(PALETTE))
    return {"color": PALETTE[color], "linestyle": _DASHES[turn % len(_DASHES)]}


def shorten(name: str, letters: int = 24) -> str:
    """Cut the middle of a long name; the end, often a number, stays."""
    name = " ".join(name.split())
    if len(name) <= letters:
        return name
    tail = letters // 3
    return f"{name[: letters - tail - 1]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def thin_curve(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], points: int = POINTS
) -> Int[np.ndarray, " k"]:
    """Return the indices of about `points` vertices that preserve the shape of a curve.

    The vertices are evenly spaced along the curve (both axes span [0, 1]), so steep parts have as
    many as flat ones. Both ends are included.
    """
    if len(x) <= points:
        return np.arange(len(x))
    length = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    indices = np.searchsorted(length, np.linspace(0.0, length[-1], points))
    return np.unique(np.concatenate([[0], indices.clip(max=len(x) - 1), [len(x) - 1]]))


def render(
    draw: Callable[["Axes"], None], *, label: str, width: float = 4.2, height: float = 3.4
) -> Markup:
    """Draw on one pair of axes and return an `<svg>` element for an HTML page.

    Args:
        draw: function that draws on the axes.
        label: text for screen readers; any characters.
        width: natural width, inches; the page may shrink it.
        height: natural height, inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    target = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": label}, str(_STYLE)), warnings.catch_warnings():
        # The layout font lacks some scripts; the fonts of the browser have them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        # Run the layout once; a layout that stays set is recomputed at every pass of savefig.
        ConstrainedLayoutEngine().execute(figure)
        figure.savefig(target, format="svg", metadata=_METADATA, transparent=True)
    return _to_inline_svg(target.getvalue(), label)


def _to_inline_svg(document: str, label: str) -> Markup:
    """Remove the prolog, style sheet and group names, which would clash on a page."""
    head, body = document[document.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="([\d. ]+)"', head)
    if box is None:  # pragma: no cover - the SVG backend always writes one
        raise ValueError("the SVG document has no viewBox")
    width = float(box[1].split()[2])
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", re.sub(r'<g id="[^"]*"/>', "", body))
    body = re.sub(r"\n\s+", "\n", body)
    opening = f'<svg role="img" viewBox="{box[1]}" style="max-width:{width * 4 / 3:.0f}px"'
    return Markup(f'{opening} aria-label="{escape(label)}">{body}')  # noqa: S704 - our own SVG
