"""One way from a drawing to inline SVG: no pyplot, no fonts, no address outside the page."""

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup, escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008) without yellow, which does not show on white paper.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: Final = "#6b7280"
POINTS: Final = 400

_DASHES: Final = ("-", "--", ":", "-.")
_STYLE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#374151",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.7,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "path.simplify": True,
    # Names in the data are text, not formulas; the browser's fonts draw them.
    "text.parse_math": False,
    "text.usetex": False,
    "svg.fonttype": "none",
}
_METADATA: Final = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def line_style(index: int) -> dict[str, Any]:
    """Colour and dash of the `index`-th line; past the palette the dash changes."""
    turn, place = divmod(index, len(PALETTE))
    return {"color": PALETTE[place], "linestyle": _DASHES[turn % len(_DASHES)]}


def short(name: str, letters: int = 24) -> str:
    """A name that fits a drawing: its middle gives way, its end (often a number) stays."""
    name = " ".join(name.split())
    if len(name) <= letters:
        return name
    tail = letters // 3
    return f"{name[: letters - tail - 1]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def thin(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], points: int = POINTS
) -> Int[np.ndarray, " k"]:
    """Indices of at most about `points` vertices that keep a curve's look.

    The vertices are spread evenly along the curve's length (both axes span [0, 1]), so steep
    parts keep as many as flat ones; the ends always stay.
    """
    if len(x) <= points:
        return np.arange(len(x))
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    chosen = np.searchsorted(along, np.linspace(0.0, along[-1], points))
    return np.unique(np.concatenate([[0], chosen.clip(max=len(x) - 1), [len(x) - 1]]))


def render(
    paint: Callable[["Axes"], None], *, label: str, width: float = 4.2, height: float = 3.4
) -> Markup:
    """Draws on one pair of axes and returns an `<svg>` element to stand inside HTML.

    Args:
        paint: puts the drawing on the axes it is given.
        label: what a screen reader says; it may hold anything.
        width: natural width, inches; the page may show it smaller.
        height: natural height, inches.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    target = io.StringIO()
    style: Any = {**_STYLE, "svg.hashsalt": label}
    with mpl.rc_context(style), warnings.catch_warnings():
        # The layout font lacks some scripts; the browser that shows the text does not.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        # Laid out once; left in place, the layout would be found anew at every pass of saving.
        ConstrainedLayoutEngine().execute(figure)
        figure.savefig(target, format="svg", metadata=_METADATA, transparent=True)
    return _inline(target.getvalue(), label)


def _inline(document: str, label: str) -> Markup:
    """The drawing alone: without prolog, namespaces and names that would clash on one page."""
    head, body = document[document.index("<svg") :].split(">", 1)
    box = re.search(r'viewBox="([\d. ]+)"', head)
    if box is None:  # pragma: no cover - the SVG backend always writes one
        raise ValueError("the drawing has no size")
    width = float(box[1].split()[2])
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*">', "<g>", re.sub(r'<g id="[^"]*"/>', "", body))
    body = re.sub(r"\n\s+", "\n", body)
    opening = f'<svg role="img" viewBox="{box[1]}" style="max-width:{width * 4 / 3:.0f}px"'
    return Markup(f'{opening} aria-label="{escape(label)}">{body}')  # noqa: S704 - our own drawing
