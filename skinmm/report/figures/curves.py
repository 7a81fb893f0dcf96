"""Curves between axes of probabilities: ROC, precision-recall, reliability, decision, training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from skinmm.report.figures.canvas import GREY, PALETTE, line_style, render, short, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A named curve; `low` and `high`, where given, bound `y` point by point."""

    name: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"] | None = None
    high: Float[np.ndarray, " n"] | None = None


def roc(lines: Sequence[Line], chosen: Point | None = None) -> Markup:
    """Sensitivity against the false positive rate; a ring marks the chosen threshold."""
    names = ("False positive rate (1 - specificity)", "Sensitivity")
    return _unit_square("ROC curve", names, lines, chosen, chance=(0.0, 1.0))


def precision_recall(
    lines: Sequence[Line], prevalence: float, chosen: Point | None = None
) -> Markup:
    """Positive predictive value against sensitivity; the dotted level is chance."""
    names = ("Sensitivity (recall)", "Precision (PPV)")
    chance = (prevalence, prevalence)
    return _unit_square("Precision-recall curve", names, lines, chosen, chance=chance)


def reliability(line: Line) -> Markup:
    """Observed frequency against mean predicted probability, bin by bin.

    The axes end where the data end: at a prevalence of 2 % most bins lie below 0.1.
    """
    sides = [side for side in (line.x, line.y, line.high) if side is not None]
    end = min(1.0, 1.08 * max(float(side.max()) for side in sides)) or 1.0

    def paint(axes: "Axes") -> None:
        axes.plot([0, end], [0, end], color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        if line.low is not None and line.high is not None:
            axes.vlines(line.x, line.low, line.high, color=PALETTE[0], linewidth=0.9, alpha=0.7)
        axes.plot(line.x, line.y, marker="o", markersize=4.5, clip_on=False, **line_style(0))
        axes.set(xlim=(0, end), ylim=(0, end))
        axes.set(xlabel="Mean predicted probability", ylabel="Observed share malignant")

    return render(paint, label=f"Reliability diagram, {line.name}")


def decision(lines: Sequence[Line], chosen: float | None = None) -> Markup:
    """Net benefit against the threshold probability (Vickers and Elkin 2006)."""

    def paint(axes: "Axes") -> None:
        for index, line in enumerate(lines):
            axes.plot(line.x, line.y, label=line.name, **line_style(index))
        best = max(float(line.y.max()) for line in lines)
        axes.set_ylim(-0.15 * best or -0.01, 1.12 * best or 0.01)
        axes.set_xlim(float(lines[0].x[0]), float(lines[0].x[-1]))
        if chosen is not None and chosen <= lines[0].x[-1]:
            axes.axvline(chosen, color=GREY, linewidth=0.9, linestyle="--")
        axes.set(xlabel="Threshold probability", ylabel="Net benefit")
        _legend(axes)

    return render(paint, label="Decision curve")


def missing(name: str, line: Line) -> Markup:
    """A metric against the share of the record's columns that the model was not shown."""

    def paint(axes: "Axes") -> None:
        if line.low is not None and line.high is not None:
            axes.vlines(line.x, line.low, line.high, color=PALETTE[0], linewidth=0.9, alpha=0.7)
        axes.plot(line.x, line.y, marker="o", markersize=4.5, **line_style(0))
        axes.set(xlim=(-0.04, 1.04), xlabel="Share of columns missing", ylabel=name)

    return render(paint, label=f"{name} against missing columns", height=2.8)


def training(name: str, lines: Sequence[Line]) -> Markup:
    """One quantity over the epochs, one line per part of the data (or fold)."""
    from matplotlib.ticker import MaxNLocator

    def paint(axes: "Axes") -> None:
        for index, line in enumerate(lines):
            marker = "o" if len(line.x) < 30 else ""  # noqa: PLR2004 - more marks would merge
            axes.plot(
                line.x, line.y, label=line.name, marker=marker, markersize=3, **line_style(index)
            )
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="Epoch", ylabel=short(name))
        _legend(axes)

    return render(paint, label=f"Training: {name}", height=2.8)


def _unit_square(
    label: str,
    names: tuple[str, str],
    lines: Sequence[Line],
    chosen: Point | None,
    *,
    chance: Point,
) -> Markup:
    """Curves between two shares; dotted the heights of chance at the left and the right."""

    def paint(axes: "Axes") -> None:
        axes.plot([0, 1], chance, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)))
        for index, line in enumerate(lines):
            kept = thin(line.x, line.y)
            axes.plot(line.x[kept], line.y[kept], label=line.name, **line_style(index))
        if chosen is not None and np.isfinite(chosen).all():
            axes.plot(
                *chosen, "o", markersize=8, markerfacecolor="white", markeredgecolor="black",
                markeredgewidth=1.5, linestyle="none", label="chosen threshold", clip_on=False,
            )  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(0, 1.01), xlabel=names[0], ylabel=names[1])
        _legend(axes)

    return render(paint, label=label)


def _legend(axes: "Axes") -> None:
    """Below the drawing, where no curve runs."""
    handles, names = axes.get_legend_handles_labels()
    labels = [short(name, 30) for name in names]
    widest = max(map(len, labels), default=0) * 5.2 + 38  # points
    columns = min(len(labels), max(1, int(300 / widest)))
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
