"""Who is in a cohort: ages, and the classes that a value goes with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from skinmm.report.figures.canvas import PALETTE, render, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHARES: Final = (5, 25, 50, 75, 95)
_ROW: Final = 0.27  # inches


def ages(groups: Mapping[str, Float[np.ndarray, " n"]]) -> Markup:
    """Of each group the median, the middle half (thick) and the middle 90 % (thin) of its ages."""

    def paint(axes: "Axes") -> None:
        for place, values in enumerate(groups.values()):
            if not len(values):
                continue
            lowest, low, median, high, highest = np.percentile(values, _SHARES).tolist()
            axes.hlines(place, lowest, highest, color=PALETTE[0], linewidth=1.2)
            axes.hlines(place, low, high, color=PALETTE[0], linewidth=7, alpha=0.45)
            axes.plot(median, place, "D", color="black", markersize=4.5)
        _rows(axes, list(groups))
        axes.set_xlim(left=0)
        axes.set_xlabel("Age (years)")

    return render(paint, label="Age by class", height=0.9 + _ROW * len(groups))


def shares(
    counts: Int[np.ndarray, "values classes"], values: Sequence[str], classes: Sequence[str]
) -> Markup:
    """One bar for each value, as long as it has images, coloured by class."""

    def paint(axes: "Axes") -> None:
        ends = counts.cumsum(axis=1)
        for place, name in enumerate(classes):
            shade = PALETTE[place % len(PALETTE)]
            hatch = "////" if place >= len(PALETTE) else None
            axes.barh(
                np.arange(len(values)), counts[:, place], 0.7, ends[:, place] - counts[:, place],
                color=shade, hatch=hatch, edgecolor="white", linewidth=0, label=short(name),
            )  # fmt: skip
        _rows(axes, values)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("Images")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return render(paint, label="Images by site and class", height=1.4 + _ROW * len(values))


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
