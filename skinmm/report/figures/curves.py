"""Curves between axes of probabilities: ROC, precision-recall, reliability, decision, training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from skinmm.report.figures import GREY, PALETTE, line_style, render, short, thin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
from typing import Final

from jaxtyping import Bool, Int
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from skinmm.evaluation.statistics import net_benefit

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


BINS: Final = 10
_Z: Final = 1.959964  # two-sided 95 % of the normal distribution

Scores = Float[np.ndarray, " n"]
Truth = Bool[np.ndarray, " n"]


def roc_line(name: str, scores: Scores, positives: Truth) -> Line:
    """Sensitivity over the false positive rate; the name says the area under it."""
    false_alarms, sensitivity, _ = roc_curve(positives, scores)
    return Line(f"{name} ({auc(false_alarms, sensitivity):.3f})", false_alarms, sensitivity)


def precision_line(name: str, scores: Scores, positives: Truth) -> Line:
    """Positive predictive value over sensitivity, without the arbitrary point at sensitivity 0."""
    precision, recall, _ = precision_recall_curve(positives, scores)
    return Line(name, recall[-2::-1], precision[-2::-1])


def reliability_line(name: str, scores: Scores, positives: Truth, bins: int = BINS) -> Line:
    """Observed share over mean probability in bins of equal mass, with Wilson 95 % intervals.

    Ties stay in one bin, so that a model of few distinct probabilities has fewer bins.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, scores, side="left")
    count = np.bincount(place, minlength=len(edges) + 1)
    held = count > 0
    count = count[held]
    mean = np.bincount(place, scores, minlength=len(held))[held] / count
    observed = np.bincount(place, positives, minlength=len(held))[held] / count
    return Line(name, mean, observed, *wilson(observed, count))


def wilson(
    share: Float[np.ndarray, " k"], count: Int[np.ndarray, " k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """The 95 % interval of a share of `count` rows (Wilson 1927)."""
    centre = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z / (1 + _Z**2 / count) * np.sqrt(share * (1 - share) / count + (_Z / count / 2) ** 2)
    # Rounding must not push a bound past the share itself, 0 and 1 above all.
    return np.clip(centre - half, 0, share), np.clip(centre + half, share, 1)


def net_benefit_lines(scores: Scores, positives: Truth) -> list[Line]:
    """Net benefit of the model, of calling every lesion malignant, and of calling none.

    The thresholds run up to where a decision is still in question: three times the share of
    malignant lesions, from 0.1 to 0.8 (Vickers and Elkin 2006, doi:10.1177/0272989X06295361).
    """
    share = float(positives.mean())
    thresholds = np.linspace(0, min(0.8, max(0.1, 3 * share)), 200)
    hits, alarms = (
        _at_least(np.sort(scores[mask]), thresholds) for mask in (positives, ~positives)
    )
    ours = net_benefit(hits / len(scores), alarms / len(scores), thresholds)
    everyone = net_benefit(np.full_like(thresholds, share), np.asarray(1 - share), thresholds)
    return [
        Line("model", thresholds, ours),
        Line("call all malignant", thresholds, everyone),
        Line("call none", thresholds, np.zeros_like(thresholds)),
    ]


def _at_least(rising: Scores, thresholds: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    return (len(rising) - np.searchsorted(rising, thresholds, side="left")).astype(np.float64)
