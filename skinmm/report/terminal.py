"""Metrics, tables and the list of runs as text, for the terminal and Markdown files."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from skinmm.errors import InputError
from skinmm.report.blocks import ABSENT, format_estimate, metric_label, order_metrics
from skinmm.report.inputs import read_mapping

HEADER: Final = ("date", "data", "model", "fusion", "first metric", "run")
MAX_DEPTH: Final = 4  # folders between the given folder and a run


def format_metrics(evaluation: Mapping[str, Any]) -> str:
    """Format a run's test metrics with intervals for the terminal, one per line."""
    metrics = evaluation["metrics"]
    entries = order_metrics(metrics)
    if metrics.get("referred"):
        entries["referred to a person"] = metrics["referred"]
    width = max(map(len, entries), default=0)
    lines = [f"test: {evaluation['n']} rows"]
    if "positives" in evaluation:
        lines[0] += f", {evaluation['positives']} malignant"
    if units := evaluation.get("units"):
        lines[0] += f"; {units['patient']} rows name a patient"
    for name, entry in entries.items():
        value, low, high = (entry.get(key) for key in ("value", "low", "high"))
        text = "undefined" if value is None else f"{value:.4g}"
        interval = "" if low is None or high is None else f"[{low:.4g}, {high:.4g}]"
        lines.append(f"  {name:<{width}}  {text:>8}  {interval}")
    return "\n".join(lines)


def format_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Format a table as text with aligned columns.

    A table that is wider than `width` is transposed, in as many blocks of rows as needed.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if width is not None and sum(widths) + 2 * len(widths) - 2 > width:
        return "\n\n".join(_transpose(header, rows, width))
    lines = (zip(line, widths, strict=True) for line in (header, *rows))
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in line).rstrip() for line in lines)


def _transpose(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield transposed tables of as many rows as fit into a width, but at least one."""
    start, used = 0, max(map(len, header))
    for number, row in enumerate(rows):
        needed = max(map(len, row)) + 2
        if used + needed > width and number > start:
            first, *others = zip(header, *rows[start:number], strict=True)
            yield format_columns(first, others)
            start, used = number, max(map(len, header))
        used += needed
    first, *others = zip(header, *rows[start:], strict=True)
    yield format_columns(first, others)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def list_runs(folder: Path) -> list[list[str]]:
    """Return a row of `HEADER` for each run below a folder, oldest first.

    The folds and the final network of a run with `data.fold=all` are part of their run.

    Raises:
        InputError: the folder does not exist, or contains no run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    patterns = (f"{'*/' * depth}config.yaml" for depth in range(MAX_DEPTH + 1))
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    runs = [file.parent for file in files if not _is_part(file.parent)]
    if not runs:
        raise InputError(f"{folder}: contains no run, which is a folder with config.yaml")
    dates = {run: (run / "config.yaml").stat().st_mtime for run in runs}
    return [_describe(run, dates[run]) for run in sorted(runs, key=dates.__getitem__)]


def _is_part(run: Path) -> bool:
    is_named = run.name == "final" or run.name.removeprefix("fold_").isdecimal()
    return is_named and (run.parent / "config.yaml").is_file()


def _describe(run: Path, timestamp: float) -> list[str]:
    config, metrics = read_mapping(run / "config.yaml"), read_mapping(run / "metrics.json")
    date = f"{datetime.fromtimestamp(timestamp, UTC).astimezone():%Y-%m-%d %H:%M}"
    names = [
        str(config.get(group, {}).get("name", ABSENT)) for group in ("data", "model", "fusion")
    ]
    return [date, *names, _first_metric(metrics), str(run)]


def _first_metric(metrics: Mapping[str, Any]) -> str:
    """Return the main metric of the task, with its interval."""
    if not metrics:
        return "not finished"
    entries = order_metrics(metrics.get("test", {}).get("metrics", {}))
    name = next(iter(entries), None)
    return f"{metric_label(name)} {format_estimate(entries[name])}" if name else ABSENT
