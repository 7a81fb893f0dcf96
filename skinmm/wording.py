"""What the terminal shows of numbers."""

from collections.abc import Sequence
from typing import Any, Final

HEADLINE: Final = 14  # metrics shown after a run; the report has all


def metrics_table(evaluation: dict[str, Any]) -> str:
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


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of text whose columns stand one below the other."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = (zip(line, widths, strict=True) for line in (header, *rows))
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in line).rstrip() for line in lines)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _interval(entry: dict[str, Any]) -> str:
    low, high = entry.get("low"), entry.get("high")
    return "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
