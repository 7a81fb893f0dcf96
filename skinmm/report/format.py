"""Numbers as a reader wants them; what is missing says so."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

ABSENT: Final = "\N{EM DASH}"
METRICS: Final[dict[str, str]] = {
    "auroc": "AUROC",
    "average_precision": "Average precision",
    "partial_auroc": "Partial AUROC above 80 % sensitivity (0 to 0.2)",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "f1": "F1",
    "number_needed_to_treat": "Flagged lesions for one malignant",
    "calibration_slope": "Calibration slope (1 is right)",
    "calibration_intercept": "Calibration intercept (0 is right)",
    "ece": "Expected calibration error",
    "brier": "Brier score",
    "macro_auroc": "AUROC, mean over the classes",
    "class_balanced_accuracy": "Balanced accuracy: recall, mean over the classes",
    "referred": "Referred to a person",
    "unfamiliar": "Unlike the images of validation",
    "set_size": "Classes in a prediction set, mean",
    "decided_sensitivity": "Sensitivity among the decided",
    "decided_specificity": "Specificity among the decided",
    "found_or_referred": "Malignant ones found or referred",
}
_NOTHING: Final = 1e-6  # below, the decimals that follow the point are all there is to say
_WHOLE: Final = 10  # from here on a decimal is enough


def format_number(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals, fewer from ten on; a dash for what is missing."""
    if not is_number(value):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}"
    if _NOTHING < abs(value) < 0.5 * 10.0**-digits:
        return f"{value:.1g}"
    return f"{value:,.{digits if abs(value) < _WHOLE else 1}f}"


def metric_label(name: str) -> str:
    """What a reader calls a metric."""
    plain = name.replace("_", " ").replace("auroc", "AUROC")
    return METRICS.get(name, plain[:1].upper() + plain[1:])


def metric_rows(measured: Mapping[str, Any], names: Sequence[str]) -> list[tuple[str, str]]:
    """Those of the named metrics that were measured, each with its estimate."""
    found = ((name, measured["metrics"].get(name)) for name in names)
    return [
        (metric_label(name), format_estimate(value)) for name, value in found if value is not None
    ]


def format_percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%" if is_number(value) else ABSENT


def format_interval(estimate: Mapping[str, Any] | None, *, share: bool = False) -> str:
    """`low to high`, or nothing where no interval could be had.

    Where all resamples agree, as with a group that misses nothing, the bootstrap has no answer;
    a width of zero would claim certainty.
    """
    low, high = (estimate or {}).get("low"), (estimate or {}).get("high")
    if not (is_number(low) and is_number(high)) or low == high:
        return ""
    show = format_percent if share else format_number
    return f"{show(low)} to {show(high)}"


def format_estimate(estimate: Mapping[str, Any] | None) -> str:
    """`value (low to high)`."""
    if not estimate:
        return ABSENT
    bounds = format_interval(estimate)
    return f"{format_number(estimate.get('value'))}{f' ({bounds})' if bounds else ''}"


def is_number(value: Any) -> bool:
    """Whether there is a finite number to show."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_count(count: int, noun: str) -> str:
    """`1 patient`, `2 patients`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


HEADLINE: Final = 14  # metrics shown after a run; the report has all


def format_metrics(evaluation: dict[str, Any]) -> str:
    """A run's test metrics with their intervals, one a line."""
    entries = dict(list(evaluation["metrics"].items())[:HEADLINE])
    if referred := evaluation["metrics"].get("referred"):
        entries["referred to a person"] = referred
    rows = [(name, _number(entry["value"]), _interval(entry)) for name, entry in entries.items()]
    width = max((len(name) for name, _, _ in rows), default=0)
    counts = f"test: {evaluation['n']} rows"
    if "positives" in evaluation:
        counts += f", {evaluation['positives']} malignant"
    lines = [f"  {name:<{width}}  {value:>8}  {interval}" for name, value, interval in rows]
    return "\n".join([counts, *lines])


def format_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text whose columns stand one below the other."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (zip(line, widths, strict=True) for line in (header, *rows))
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in line).rstrip() for line in lines)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
