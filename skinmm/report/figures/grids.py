"""Figures with rows and columns: confusion matrix, forest plot, parallel coordinates, bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from jaxtyping import Float, Int
from markupsafe import Markup

from skinmm.report.figures import GREY, PALETTE, REFERENCE, line_style, render, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_LETTERS: Final = 16
_DARK: Final = 0.6  # share from which a cell has white text
_SMALL: Final = 3  # classes up to which zeros are printed, in large digits
_UPRIGHT: Final = 4  # classes up to which labels are horizontal
_FULL_SIZE: Final = 9  # classes that fit at the full font size
_PERCENTILES: Final = (5, 25, 50, 75, 95)
_ROW: Final = 0.27  # inches


@dataclass(frozen=True)
class Estimate:
    """Row of a forest plot; the interval is None if it is undefined."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def from_entry(cls, name: str, entry: Mapping[str, Any]) -> "Estimate":
        """Return the row of a metric's value, low and high."""
        return cls(name, entry["value"], entry["low"], entry["high"])


@dataclass(frozen=True)
class Axis:
    """Axis of a parallel-coordinates plot: numbers, or indices into `labels`."""

    name: str
    values: Float[np.ndarray, " runs"]
    labels: Sequence[str] | None = None


def draw_confusion(
    counts: Int[np.ndarray, "r c"], classes: Sequence[str], decisions: Sequence[str] | None = None
) -> Markup:
    """Draw counts of true class (rows) by decision (columns), shaded by the share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size, columns = len(classes), decisions or classes
    font_size = 9.0 if size <= _FULL_SIZE else max(4.5, 81 / size)

    def draw(axes: "Axes") -> None:
        axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1)
        for row, column in np.ndindex(*counts.shape):
            if counts[row, column] or size <= _SMALL:
                axes.text(
                    column + 0.5, row + 0.5, f"{counts[row, column]:,}", ha="center", va="center",
                    color="white" if shares[row, column] > _DARK else "black",
                    fontsize=11 if size <= _SMALL else font_size * 0.85,
                )  # fmt: skip
        across, down = (
            [shorten(name, _LABEL_LETTERS) for name in names] for names in (columns, classes)
        )
        rotation: dict[str, Any] = {"rotation": 90} if size > _UPRIGHT else {}
        axes.set_xticks(np.arange(len(across)) + 0.5, across, fontsize=font_size, **rotation)
        axes.set_yticks(np.arange(size) + 0.5, down, fontsize=font_size)
        axes.invert_yaxis()
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.set(xlabel="Decision", ylabel="True class")

    label = f"Confusion matrix: {', '.join(columns)}"
    return render(draw, label=label, height=3.4 if size <= _FULL_SIZE else 4.4)


def draw_forest(groups: Sequence[Estimate], overall: Estimate, *, label: str) -> Markup:
    """Draw estimates with intervals, one per row; the dotted line is the overall value."""
    rows = [overall, *groups]
    values = [v for row in rows for v in (row.value, row.low, row.high) if v is not None]
    margin = 0.05 * (max(values) - min(values)) or 0.05

    def draw(axes: "Axes") -> None:
        axes.axvline(overall.value, **REFERENCE)
        for index, row in enumerate(rows):
            color = PALETTE[0] if index else "black"
            if row.low is not None and row.high is not None:
                axes.hlines(index, row.low, row.high, color=color, linewidth=1.5)
            axes.plot(row.value, index, "s" if index else "D", color=color, markersize=5)
        _label_rows(axes, [row.name for row in rows])
        axes.set_xlim(min(values) - margin, max(values) + margin)
        axes.set_xlabel(label)

    return render(draw, label=f"Forest plot: {label}", height=0.9 + 0.2 * len(rows))


def draw_parallel(
    axis_list: Sequence[Axis], rank: Float[np.ndarray, " systems"], *, label: str
) -> Markup:
    """Draw one line per system across scaled vertical axes.

    A few systems have the colours of the other figures. Otherwise brighter lines (cividis) have a
    higher `rank`.
    """
    from matplotlib import colormaps

    styles = [line_style(system) for system in range(len(rank))]
    if len(rank) > len(PALETTE):
        # The top of the colour map is too pale for white paper.
        styles = [{"color": shade} for shade in colormaps["cividis"](_scale(rank) * 0.9)]

    def draw(axes: "Axes") -> None:
        heights = np.stack([_scale(axis.values) for axis in axis_list])  # (axes, systems)
        for system in np.argsort(rank).tolist():
            axes.plot(heights[:, system], marker="o", markersize=3, **styles[system])
        for position, axis in enumerate(axis_list):
            _draw_vertical_axis(axes, position, axis)
        names = [shorten(axis.name, _LABEL_LETTERS) for axis in axis_list]
        axes.set_xticks(range(len(axis_list)), names)
        axes.set(xlim=(-0.3, len(axis_list) - 0.5), ylim=(-0.08, 1.08), yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)

    return render(draw, label=label, width=max(4.2, 1.1 * len(axis_list)), height=3.6)


def draw_ages(groups: Mapping[str, Float[np.ndarray, " n"]]) -> Markup:
    """Draw median, middle half (thick) and middle 90 % (thin) of the ages of each group."""

    def draw(axes: "Axes") -> None:
        for row, ages in enumerate(groups.values()):
            if not len(ages):
                continue
            lowest, low, median, high, highest = np.percentile(ages, _PERCENTILES).tolist()
            axes.hlines(row, lowest, highest, color=PALETTE[0], linewidth=1.2)
            axes.hlines(row, low, high, color=PALETTE[0], linewidth=7, alpha=0.45)
            axes.plot(median, row, "D", color="black", markersize=4.5)
        _label_rows(axes, list(groups))
        axes.set_xlim(left=0)
        axes.set_xlabel("Age (years)")

    return render(draw, label="Age by class", height=0.9 + _ROW * len(groups))


def draw_class_bars(
    counts: Int[np.ndarray, "values classes"], values: Sequence[str], classes: Sequence[str]
) -> Markup:
    """Draw one bar per value with its number of images, coloured by class."""

    def draw(axes: "Axes") -> None:
        ends = counts.cumsum(axis=1)
        for index, name in enumerate(classes):
            axes.barh(
                np.arange(len(values)), counts[:, index], 0.7, ends[:, index] - counts[:, index],
                color=PALETTE[index % len(PALETTE)], edgecolor="white", linewidth=0,
                hatch="////" if index >= len(PALETTE) else None, label=shorten(name),
            )  # fmt: skip
        _label_rows(axes, values)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("Images")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    return render(draw, label="Images by site and class", height=1.4 + _ROW * len(values))


def _label_rows(axes: "Axes", names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [shorten(name) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _draw_vertical_axis(axes: "Axes", position: int, axis: Axis) -> None:
    axes.axvline(position, color=GREY, linewidth=0.8, zorder=0)
    values = np.unique(axis.values[np.isfinite(axis.values)])
    ticks = values if axis.labels is not None or not values.size else values[[0, -1]]
    for value, height in zip(ticks, _scale(ticks), strict=True):
        text = axis.labels[int(value)] if axis.labels is not None else f"{value:.4g}"
        axes.text(
            position + 0.04, height + 0.01, shorten(text, _LABEL_LETTERS), fontsize=7.5,
            va="bottom", bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip


def _scale(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Scale to [0, 1]; constants become 0.5 and missing values 0."""
    is_finite = np.isfinite(values)
    finite = values[is_finite]
    scaled = np.zeros(len(values))
    spread = np.ptp(finite) if finite.size else 0.0
    scaled[is_finite] = (finite - finite.min()) / spread if spread else 0.5
    return scaled
