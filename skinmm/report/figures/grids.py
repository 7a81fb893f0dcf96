"""Figures with rows and columns: confusion matrix, forest plot, parallel coordinates, bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from skinmm.report.figures import GREY, PALETTE, REFERENCE, figure, line_style, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABEL_LETTERS: Final = 16
_DARK: Final = 0.6  # share from which a cell has white text
_ROW: Final = 0.27  # inches


@dataclass(frozen=True)
class Axis:
    """Axis of a parallel-coordinates plot: its values are numbers or indices of `labels`."""

    name: str
    values: Float[np.ndarray, " runs"]
    labels: Sequence[str] | None = None


@figure
def draw_confusion(
    axes: "Axes",
    counts: Int[np.ndarray, "r c"],
    classes: Sequence[str],
    decisions: Sequence[str] | None = None,
) -> str:
    """Draw the counts of true classes (rows) by decisions (columns), shaded by share of the row."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    size, columns = len(classes), decisions or classes
    fits = size <= 9  # noqa: PLR2004 - classes that fit at the full size
    is_small = size <= 3  # noqa: PLR2004 - classes with large digits, and printed zeros
    font_size = 9.0 if fits else max(4.5, 81 / size)
    axes.figure.set(figheight=3.4 if fits else 4.4)
    axes.pcolormesh(shares, cmap="Blues", vmin=0, vmax=1.15, edgecolors="white", linewidth=1)
    for row, column in np.ndindex(*counts.shape):
        if counts[row, column] or is_small:
            axes.text(
                column + 0.5, row + 0.5, f"{counts[row, column]:,}", ha="center", va="center",
                color="white" if shares[row, column] > _DARK else "black",
                fontsize=11 if is_small else font_size * 0.85,
            )  # fmt: skip
    across, down = (
        [shorten(name, _LABEL_LETTERS) for name in names] for names in (columns, classes)
    )
    rotation: dict[str, Any] = {"rotation": 90} if size > 4 else {}  # noqa: PLR2004
    axes.set_xticks(np.arange(len(across)) + 0.5, across, fontsize=font_size, **rotation)
    axes.set_yticks(np.arange(size) + 0.5, down, fontsize=font_size)
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.set(xlabel="Decision", ylabel="True class")
    return f"Confusion matrix: {', '.join(columns)}"


@figure
def draw_forest(axes: "Axes", rows: Sequence[tuple[str, Mapping[str, Any]]], label: str) -> str:
    """Draw name, value and interval, one per row; the first row is the overall value."""
    bounds = [row[key] for _, row in rows for key in ("value", "low", "high")]
    values = [value for value in bounds if value is not None]
    margin = 0.05 * (max(values) - min(values)) or 0.05
    axes.figure.set(figheight=0.9 + 0.2 * len(rows))
    axes.axvline(rows[0][1]["value"], **REFERENCE)
    for index, (_, row) in enumerate(rows):
        color = PALETTE[0] if index else "black"
        if row["low"] is not None and row["high"] is not None:
            axes.hlines(index, row["low"], row["high"], color=color, linewidth=1.5)
        axes.plot(row["value"], index, "s" if index else "D", color=color, markersize=5)
    _label_rows(axes, [name for name, _ in rows])
    axes.set_xlim(min(values) - margin, max(values) + margin)
    axes.set_xlabel(label)
    return f"Forest plot: {label}"


@figure
def draw_parallel(
    axes: "Axes", axis_list: Sequence[Axis], rank: Float[np.ndarray, " systems"]
) -> str:
    """Draw one line per system across scaled vertical axes.

    A few systems have the colours of the other figures. Otherwise brighter lines (cividis) have a
    higher `rank`.
    """
    from matplotlib import colormaps

    styles = [line_style(system) for system in range(len(rank))]
    if len(rank) > len(PALETTE):
        # The top of the colour map is too pale for white paper.
        styles = [{"color": shade} for shade in colormaps["cividis"](_scale(rank) * 0.9)]
    axes.figure.set(figwidth=max(4.2, 1.1 * len(axis_list)), figheight=3.6)
    heights = np.stack([_scale(axis.values) for axis in axis_list])  # (axes, systems)
    for system in np.argsort(rank).tolist():
        axes.plot(heights[:, system], marker="o", markersize=3, **styles[system])
    for position, axis in enumerate(axis_list):
        _draw_vertical_axis(axes, position, axis)
    names = [shorten(axis.name, 14) for axis in axis_list]
    axes.set_xticks(range(len(axis_list)), names)
    axes.set(xlim=(-0.3, len(axis_list) - 0.5), ylim=(-0.08, 1.08), yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return "Parallel coordinates of the systems"


@figure
def draw_ages(axes: "Axes", groups: Mapping[str, Float[np.ndarray, " n"]]) -> str:
    """Draw median, middle half (thick) and middle 90 % (thin) of the ages of each group."""
    axes.figure.set(figheight=0.9 + _ROW * len(groups))
    for row, ages in enumerate(groups.values()):
        if not len(ages):
            continue
        lowest, low, median, high, highest = np.percentile(ages, (5, 25, 50, 75, 95)).tolist()
        axes.hlines(row, lowest, highest, color=PALETTE[0], linewidth=1.2)
        axes.hlines(row, low, high, color=PALETTE[0], linewidth=7, alpha=0.45)
        axes.plot(median, row, "D", color="black", markersize=4.5)
    _label_rows(axes, list(groups))
    axes.set_xlim(left=0)
    axes.set_xlabel("Age (years)")
    return "Age by class"


@figure
def draw_class_bars(axes: "Axes", counts: pd.DataFrame) -> str:
    """Draw one bar per row with its number of images, coloured by class (column)."""
    axes.figure.set(figheight=1.4 + _ROW * len(counts))
    ends = counts.cumsum(axis=1)
    for index, name in enumerate(counts):
        axes.barh(
            np.arange(len(counts)), counts[name], 0.7, ends[name] - counts[name],
            color=PALETTE[index % len(PALETTE)], edgecolor="white", linewidth=0,
            hatch="////" if index >= len(PALETTE) else None, label=shorten(str(name)),
        )  # fmt: skip
    _label_rows(axes, list(counts.index))
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("Images")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
    return "Images by site and class"


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
