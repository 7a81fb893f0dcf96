"""Curves and their figures: ROC, precision-recall, calibration, decision, training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.special import logit
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from skinmm.evaluation.intervals import patient_codes
from skinmm.evaluation.statistics import net_benefit
from skinmm.report.figures import GREY, PALETTE, REFERENCE, figure, line_style, shorten, thin_curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
Scores = Float[np.ndarray, " n"]
Mask = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Line:
    """Named curve; `low` and `high` are pointwise bounds of `y`."""

    name: str
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    low: Float[np.ndarray, " n"] | None = None
    high: Float[np.ndarray, " n"] | None = None


def roc_line(name: str, scores: Scores, positives: Mask) -> Line:
    """Return sensitivity against the false positive rate, with the AUROC appended to its name."""
    false_positive_rate, sensitivity, _ = roc_curve(positives, scores)
    area = auc(false_positive_rate, sensitivity)
    return Line(f"{name} ({area:.3f})", false_positive_rate, sensitivity)


def precision_line(name: str, scores: Scores, positives: Mask) -> Line:
    """Return precision against sensitivity, without the arbitrary point at sensitivity 0."""
    precision, recall, _ = precision_recall_curve(positives, scores)
    return Line(name, recall[-2::-1], precision[-2::-1])


def reliability_line(name: str, scores: Scores, positives: Mask, bins: int = 10) -> Line:
    """Return observed shares against mean probabilities, in bins with equally many rows.

    Equal scores share a bin, so a model with few distinct probabilities has fewer bins.
    """
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_index = np.searchsorted(edges, scores, side="left")
    rows = np.bincount(bin_index, minlength=len(edges) + 1)
    filled = rows > 0
    mean = np.bincount(bin_index, scores, minlength=len(filled))[filled] / rows[filled]
    hits = np.bincount(bin_index[positives], minlength=len(filled))[filled]
    return Line(name, mean, hits / rows[filled])


def net_benefit_lines(scores: Scores, positives: Mask) -> list[Line]:
    """Return the net benefit of the model, of flagging every lesion, and of flagging none.

    The thresholds end where a decision is no longer in question: at three times the share of
    malignant lesions, between 0.1 and 0.8 (Vickers and Elkin 2006, doi:10.1177/0272989X06295361).
    """
    share = float(positives.mean())
    thresholds = np.linspace(0, min(0.8, max(0.1, 3 * share)), 200)
    hits, false_alarms = (
        (mask.sum() - np.searchsorted(np.sort(scores[mask]), thresholds)).astype(np.float64)
        for mask in (positives, ~positives)
    )
    model = net_benefit(hits / len(scores), false_alarms / len(scores), thresholds)
    treat_all = net_benefit(np.full_like(thresholds, share), np.asarray(1 - share), thresholds)
    return [
        Line("model", thresholds, model),
        Line("flag every lesion", thresholds, treat_all),
        Line("flag no lesion", thresholds, np.zeros_like(thresholds)),
    ]


def net_benefit_band(
    scores: Scores,
    positives: Mask,
    patients: Shaped[np.ndarray, " n"],
    thresholds: Float[np.ndarray, " k"],
    confidence: float,
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the percentile interval of the net benefit at each threshold, over patients."""
    codes, count = patient_codes(patients)
    odds = thresholds / (1 - thresholds)
    # Of each patient and threshold, the last one passed: sums from there on are cumulative.
    passed = np.searchsorted(thresholds, scores, side="right")
    gains = np.zeros((count, len(thresholds)))
    for side, weight in ((positives, np.ones_like(odds)), (~positives, -odds)):
        cells = np.zeros((count, len(thresholds) + 1))
        np.add.at(cells, (codes[side], passed[side]), 1)
        gains += cells[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:] * weight
    rng = np.random.default_rng(0)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=300)
    benefits = draws @ gains / (draws @ np.bincount(codes))[:, None]
    low, high = np.quantile(benefits, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def referral_lines(scores: Scores, positives: Mask, threshold: float) -> list[Line]:
    """Return the share of each class without wrong decisions, against the share referred.

    The rows whose log odds are nearest to the log odds of the threshold are referred first.
    """
    tiny = 1e-12
    odds = logit(np.clip(scores, tiny, 1 - tiny)) - logit(np.clip(threshold, tiny, 1 - tiny))
    order = np.argsort(np.abs(odds), kind="stable")
    wrong = (scores >= threshold) != positives
    lines = []
    for name, side in (
        ("malignant, not decided benign", positives),
        ("benign, not decided malignant", ~positives),
    ):
        left = (wrong & side).sum() - np.r_[0, np.cumsum((wrong & side)[order])]
        lines.append(Line(name, np.linspace(0, 1, len(scores) + 1), 1 - left / side.sum()))
    return lines


@figure
def draw_ranking(
    axes: "Axes",
    lines: Sequence[Line],
    chosen: Point | None = None,
    prevalence: float | None = None,
) -> str:
    """Draw ROC curves, or precision-recall curves if the prevalence is given."""
    is_roc = prevalence is None
    axes.plot([0, 1], (0.0, 1.0) if prevalence is None else (prevalence, prevalence), **REFERENCE)
    for index, line in enumerate(lines):
        vertices = thin_curve(line.x, line.y)
        axes.plot(line.x[vertices], line.y[vertices], label=line.name, **line_style(index))
    if chosen is not None and np.isfinite(chosen).all():
        axes.plot(
            *chosen, "o", markersize=8, markerfacecolor="white", markeredgecolor="black",
            markeredgewidth=1.5, linestyle="none", label="chosen threshold", clip_on=False,
        )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    if is_roc:
        axes.set(xlabel="False positive rate (1 - specificity)", ylabel="Sensitivity")
    else:
        axes.set(xlabel="Sensitivity (recall)", ylabel="Precision (PPV)")
    _add_legend(axes)
    return "ROC curve" if is_roc else "Precision-recall curve"


@figure
def draw_reliability(axes: "Axes", bins: Line, smooth: Line) -> str:
    """Draw the smooth calibration curve with its band, and the observed share of each bin.

    The axes end after the last bin and the curve: at a prevalence of 2 % most rows lie below 0.1.
    """
    highest = 1.25 * max(float(bins.x.max()), float(bins.y.max()))
    end = min(1.0, max(highest, float(np.nanmax(smooth.y)))) or 1.0
    axes.plot([0, end], [0, end], **REFERENCE)
    if smooth.low is not None and smooth.high is not None:
        axes.fill_between(smooth.x, smooth.low, smooth.high, color=PALETTE[0], alpha=0.2, lw=0)
    axes.plot(smooth.x, smooth.y, **line_style(0))
    axes.plot(bins.x, bins.y, "o", color=PALETTE[0], markersize=4.5, clip_on=False)
    axes.set(xlim=(0, end), ylim=(0, end))
    axes.set(xlabel="Predicted probability", ylabel="Observed share malignant")
    return f"Calibration curve, {bins.name}"


@figure
def draw_decision(axes: "Axes", lines: Sequence[Line], chosen: float | None = None) -> str:
    """Draw the net benefit against the threshold probability (Vickers and Elkin 2006)."""
    for index, line in enumerate(lines):
        style = line_style(index)
        axes.plot(line.x, line.y, label=line.name, **style)
        if line.low is not None and line.high is not None:
            axes.fill_between(line.x, line.low, line.high, color=style["color"], alpha=0.15, lw=0)
    best = max(float(line.y.max()) for line in lines)
    axes.set_ylim(-0.15 * best or -0.01, 1.12 * best or 0.01)
    axes.set_xlim(float(lines[0].x[0]), float(lines[0].x[-1]))
    if chosen is not None and chosen <= lines[0].x[-1]:
        axes.axvline(chosen, color=GREY, linewidth=0.9, linestyle="--")
    axes.set(xlabel="Threshold probability", ylabel="Net benefit")
    _add_legend(axes)
    return "Decision curve"


@figure
def draw_referral(
    axes: "Axes", lines: Sequence[Line], points: Sequence[tuple[float | None, float | None]]
) -> str:
    """Draw the share of each class without wrong decisions against the share of referred rows."""
    for index, (line, (referred, share)) in enumerate(zip(lines, points, strict=True)):
        vertices = thin_curve(line.x, line.y)
        style = line_style(index)
        axes.plot(line.x[vertices], line.y[vertices], label=line.name, **style)
        if referred is not None and share is not None:
            axes.plot(
                referred, share, "o", markersize=7, markerfacecolor="white", clip_on=False,
                markeredgecolor=style["color"], markeredgewidth=1.5,
            )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(min(float(line.y.min()) for line in lines), 1.01))
    axes.set(xlabel="Share referred to a person", ylabel="Share not decided wrongly")
    _add_legend(axes)
    return "Coverage against referral"


@figure
def draw_missing(axes: "Axes", line: Line) -> str:
    """Draw a metric against the share of withheld record columns."""
    axes.figure.set(figheight=2.8)
    _plot_with_intervals(axes, line, markersize=4.0)
    axes.set(xlim=(-0.04, 1.04), xlabel="Share of columns missing", ylabel=line.name)
    return f"{line.name} against missing columns"


@figure
def draw_sizes(axes: "Axes", lines: Sequence[Line]) -> str:
    """Draw the width of intervals against the number of malignant lesions, on log scales."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for index, line in enumerate(lines):
        axes.loglog(line.x, line.y, label=line.name, **line_style(index))
    axes.set(xlabel="Malignant lesions", ylabel="Width of the interval")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter(NullFormatter())
    _add_legend(axes)
    return "Width of intervals against malignant lesions"


@figure
def draw_training(axes: "Axes", name: str, lines: Sequence[Line]) -> str:
    """Draw one quantity over the epochs, with one line per part of the data and fold."""
    from matplotlib.ticker import MaxNLocator

    axes.figure.set(figheight=2.8)
    for index, line in enumerate(lines):
        marker = "o" if len(line.x) < 30 else ""  # noqa: PLR2004 - more markers overlap
        style = line_style(index)
        axes.plot(line.x, line.y, label=line.name, marker=marker, markersize=3, **style)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="Epoch", ylabel=shorten(name))
    _add_legend(axes)
    return f"Training: {name}"


def _plot_with_intervals(axes: "Axes", line: Line, markersize: float) -> None:
    if line.low is not None and line.high is not None:
        axes.vlines(line.x, line.low, line.high, color=PALETTE[0], linewidth=0.9, alpha=0.7)
    style = line_style(0)
    axes.plot(line.x, line.y, marker="o", markersize=markersize, clip_on=False, **style)


def _add_legend(axes: "Axes") -> None:
    """Add a legend below the axes, away from the curves."""
    handles, names = axes.get_legend_handles_labels()
    labels = [shorten(name, 30) for name in names]
    widest = max(map(len, labels), default=0) * 5.2 + 38  # points
    columns = min(len(labels), max(1, int(300 / widest)))
    axes.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=columns)
