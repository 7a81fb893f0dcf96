"""Figures as inline SVG, in one style, safe for colour-blind readers and legible in print."""

import io
import re
import warnings
from collections.abc import Callable
from functools import wraps
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup, escape

from skinmm.errors import require_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008) without yellow, which is invisible on white paper.
PALETTE: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY: Final = "#6b7280"
REFERENCE: Final[dict[str, Any]] = {"color": GREY, "linewidth": 0.9, "linestyle": (0, (1, 2))}

_STYLE: Final = files("skinmm.report") / "templates" / "figures.mplstyle"
P = ParamSpec("P")


def line_style(index: int) -> dict[str, Any]:
    """Return colour and dash of a line; after each pass through the palette, the dash changes."""
    turn, color = divmod(index, len(PALETTE))
    return {"color": PALETTE[color], "linestyle": ("-", "--", ":", "-.")[turn % 4]}


def shorten(name: str, letters: int = 24) -> str:
    """Shorten a long name in its middle, because its end is often a number."""
    name = " ".join(name.split())
    if len(name) <= letters:
        return name
    tail = letters // 3
    return f"{name[: letters - tail - 1]}\N{HORIZONTAL ELLIPSIS}{name[-tail:]}"


def thin_curve(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], points: int = 400
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


def figure(draw: Callable[Concatenate["Axes", P], str]) -> Callable[P, Markup]:
    """Turn a function that draws on axes and returns a label into one that returns an `<svg>`.

    The label is for screen readers and may have any characters. The natural size of a figure is
    4.2 by 3.4 inches, unless the function sets `figwidth` or `figheight`; a page may shrink it.
    """

    @wraps(draw)
    def render(*args: P.args, **kwargs: P.kwargs) -> Markup:
        require_package("matplotlib", "drawing figures", "train")
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine

        target = io.StringIO()
        with mpl.rc_context(fname=str(_STYLE)), warnings.catch_warnings():
            # The layout font lacks some scripts; the fonts of the browser have them.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas = FigureCanvasSVG(Figure(figsize=(4.2, 3.4)))
            label = draw(canvas.figure.add_subplot(), *args, **kwargs)
            mpl.rcParams["svg.hashsalt"] = label
            # Run the layout once; a layout that stays set is recomputed at every pass of savefig.
            ConstrainedLayoutEngine().execute(canvas.figure)
            metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
            canvas.figure.savefig(target, format="svg", metadata=metadata, transparent=True)
        return _to_inline_svg(target.getvalue(), label)

    return render


def _to_inline_svg(document: str, label: str) -> Markup:
    """Remove prolog, style sheet and group names, which would clash on a page."""
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
