"""Number and table formatting for pages, cards and the terminal."""

import math
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import yaml

from skinmm.report.blocks import Table

if TYPE_CHECKING:
    import pandas as pd

ABSENT: Final = "\N{EM DASH}"
TEXTS: Final[dict[str, Any]] = yaml.safe_load(
    (files("skinmm.report") / "templates" / "texts.yaml").read_text("utf-8")
)
"""Static texts of the pages, and labels of metrics under `metrics`."""
HEADLINE: Final = 14  # metrics printed after a run; the report lists all


def is_number(value: Any) -> bool:
    """Return whether the value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def format_number(value: Any, digits: int = 3) -> str:
    """Format with `digits` decimals, or one from ten on; a dash if the value is not a number."""
    if not is_number(value):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}"
    if 1e-6 < abs(value) < 0.5 * 10.0**-digits:  # noqa: PLR2004 - smaller ones are zero
        return f"{value:.1g}"
    return f"{value:,.{digits if abs(value) < 10 else 1}f}"  # noqa: PLR2004 - as documented


def format_percent(value: Any, digits: int = 1) -> str:
    """Format a fraction as a percentage with fixed decimals."""
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%" if is_number(value) else ABSENT


def format_count(count: int, noun: str) -> str:
    """Format `1 patient`, `2 patients`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def format_share(mask: "pd.Series[bool]") -> str:
    """Format `count (percentage)` of the true rows."""
    return f"{int(mask.sum()):,} ({format_percent(float(mask.mean()))})"


def format_interval(entry: Mapping[str, Any] | None, *, percent: bool = False) -> str:
    """Format `low to high`; empty if the interval is undefined.

    The interval of a bootstrap in which all resamples agree is empty too: a width of zero would
    claim certainty.
    """
    low, high = (entry or {}).get("low"), (entry or {}).get("high")
    if not (is_number(low) and is_number(high)) or low == high:
        return ""
    format_bound = format_percent if percent else format_number
    return f"{format_bound(low)} to {format_bound(high)}"


def format_estimate(entry: Mapping[str, Any] | None) -> str:
    """Format `value (low to high)`."""
    if not entry:
        return ABSENT
    interval = format_interval(entry)
    return f"{format_number(entry.get('value'))}{f' ({interval})' if interval else ''}"


def format_estimates(metrics: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Format the named metrics; a dash for those that were not measured."""
    return [format_estimate(metrics.get(name)) for name in names]


def metric_label(name: str) -> str:
    """Return the name of a metric in words."""
    words = name.replace("_", " ").replace("auroc", "AUROC")
    return TEXTS["metrics"].get(name, words[:1].upper() + words[1:])


def metric_table(caption: str, measured: Mapping[str, Any], names: Sequence[str]) -> Table:
    """Return a table of the named metrics; those that were not measured are left out."""
    entries = [(name, measured["metrics"].get(name)) for name in names]
    rows = [(metric_label(name), format_estimate(entry)) for name, entry in entries if entry]
    return Table(caption, ("Measure", "Value (interval)"), rows)


def format_metrics(evaluation: Mapping[str, Any]) -> str:
    """Format a run's test metrics with intervals for the terminal, one per line."""
    metrics = evaluation["metrics"]
    entries = dict(list(metrics.items())[:HEADLINE])
    if metrics.get("referred"):
        entries["referred to a person"] = metrics["referred"]
    width = max(map(len, entries), default=0)
    lines = [f"test: {evaluation['n']} rows"]
    if "positives" in evaluation:
        lines[0] += f", {evaluation['positives']} malignant"
    for name, entry in entries.items():
        value, low, high = (entry.get(key) for key in ("value", "low", "high"))
        text = "undefined" if value is None else f"{value:.4g}"
        interval = "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
        lines.append(f"  {name:<{width}}  {text:>8}  {interval}")
    return "\n".join(lines)


def format_columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as text with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (zip(line, widths, strict=True) for line in (header, *rows))
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in line).rstrip() for line in lines)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
