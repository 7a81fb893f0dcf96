"""Drawings over rows and columns: confusion, forest plot, parallel coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from skinmm.report.figures import GREY, PALETTE, line_style, render, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from collections.abc import Mapping
from typing import TYPE_CHECKING

_LONGEST: Final = 16
_LIGHT: Final = 0.6


@dataclass(frozen=True)
class Estimate:
    """One row of a forest plot; `low` and `high` may be absent where none can be had."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axis:
    """One upright of a parallel-coordinates plot: numbers, or places with names."""

    name: str
    values: Float[np.ndarray, " runs"]
    labels: Sequence[str] | None = None


def confusion(
    counts: Int[np.ndarray, "r c"], classes: Sequence[str], decided: Sequence[str] | None = None
) -> Markup:
    """Counts of true class (down) against decided class (across), shaded by the row's share."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size = len(classes)
    small = 9.0 if size <= 9 else max(4.5, 81 / size)  # noqa: PLR2004 - a page holds nine at 9 pt

    def paint(axes: "Axes") -> None:
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column] or size <= 3:  # noqa: PLR2004 - zeros clutter a large table
                ink = "white" if shares[row, column] > _LIGHT else "black"
                text = f"{counts[row, column]:,}"
                axes.text(
                    column + 0.5, row + 0.5, text, color=ink, ha="center", va="center",
                    fontsize=11 if size <= 3 else small * 0.85,  # noqa: PLR2004
                )  # fmt: skip
        down, across = (
            [short(name, _LONGEST) for name in names] for names in (classes, decided or classes)
        )
        turned: dict[str, Any] = {"rotation": 90} if size > 4 else {}  # noqa: PLR2004
        axes.set_xticks(np.arange(len(across)) + 0.5, across, fontsize=small, **turned)
        axes.set_yticks(np.arange(size) + 0.5, down, fontsize=small)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.set(xlabel="Decided", ylabel="True")

    label = f"Confusion matrix: {', '.join(decided or classes)}"
    return render(paint, label=label, height=3.4 if size <= 9 else 4.4)  # noqa: PLR2004


def forest(groups: Sequence[Estimate], overall: Estimate, *, label: str) -> Markup:
    """Estimates with intervals one below the other, against the overall value (dotted)."""
    rows = [overall, *groups]

    def paint(axes: "Axes") -> None:
        axes.axvline(overall.value, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        for place, row in enumerate(rows):
            color = "black" if place == 0 else PALETTE[0]
            if row.low is not None and row.high is not None:
                axes.hlines(place, row.low, row.high, color=color, linewidth=1.5)
            axes.plot(row.value, place, "s" if place else "D", color=color, markersize=5)
        axes.set_yticks(range(len(rows)), [short(row.name) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlim(*_span(rows))
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(label)

    return render(paint, label=f"Forest plot: {label}", height=0.9 + 0.2 * len(rows))


def parallel(axes_: Sequence[Axis], rank: Float[np.ndarray, " systems"], *, label: str) -> Markup:
    """One line per system across scaled uprights.

    Few systems have the colours of the other drawings; with many, the brighter (cividis) the
    higher their `rank`.
    """

    def paint(axes: "Axes") -> None:
        heights = np.stack([_scaled(axis.values) for axis in axes_])  # (axes, systems)
        styles = _styles(rank)
        for system in np.argsort(rank).tolist():
            axes.plot(heights[:, system], marker="o", markersize=3, **styles[system])
        for place, axis in enumerate(axes_):
            _upright(axes, place, axis)
        axes.set_xticks(range(len(axes_)), [short(axis.name, _LONGEST) for axis in axes_])
        axes.set(xlim=(-0.3, len(axes_) - 0.5), ylim=(-0.08, 1.08), yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return render(paint, label=label, width=max(4.2, 1.1 * len(axes_)), height=3.6)


def _styles(rank: Float[np.ndarray, " systems"]) -> list[dict[str, Any]]:
    from matplotlib import colormaps

    if len(rank) <= len(PALETTE):
        return [line_style(system) for system in range(len(rank))]
    # The top of the scale is too pale for white paper.
    return [{"color": shade} for shade in colormaps["cividis"](_scaled(rank) * 0.9)]


def _upright(axes: "Axes", place: int, axis: Axis) -> None:
    axes.axvline(place, color=GREY, linewidth=0.8, zorder=0)
    known = np.unique(axis.values[np.isfinite(axis.values)])
    ticks = known if axis.labels is not None else known[[0, -1]] if known.size else known
    for value, height in zip(ticks, _scaled(ticks), strict=True):
        text = axis.labels[int(value)] if axis.labels is not None else f"{value:.4g}"
        axes.text(
            place + 0.04, height + 0.01, short(text, _LONGEST), fontsize=7.5, va="bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip


def _scaled(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """To [0, 1]; a constant stands in the middle, what is missing at the foot."""
    finite = np.isfinite(values)
    known = values[finite]
    scaled = np.zeros(len(values))
    scaled[finite] = (known - known.min()) / np.ptp(known) if known.size and np.ptp(known) else 0.5
    return scaled


def _span(rows: Sequence[Estimate]) -> tuple[float, float]:
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    margin = 0.05 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin


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
        _label_rows(axes, list(groups))
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
        _label_rows(axes, values)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("Images")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return render(paint, label="Images by site and class", height=1.4 + _ROW * len(values))


def _label_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
