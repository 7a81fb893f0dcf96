"""Metrics, tables and the list of runs as text, for the terminal and Markdown files."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any, Final

from skinmm.config import name_cohort
from skinmm.config.checkpoints import is_part_of_run
from skinmm.errors import InputError, print_line, warn
from skinmm.report.blocks import (
    ABSENT,
    Table,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_label,
    order_metrics,
)
from skinmm.report.inputs import ReportInputs, read_mapping, read_run
from skinmm.report.sections.headline import build_tiles, collect_warnings
from skinmm.report.sections.verdict import build_verdict

HEADER: Final = ("date", "data", "model", "fusion", "main metric", "run")
MAX_LINES: Final = 8  # of the closing table
MAX_CELL: Final = 35  # characters of a line of a transposed table's cell
MAX_DEPTH: Final = 4  # folders between the given folder and a run


def summarize_run(run: Path) -> tuple[str, list[str]]:
    """Return the closing table of a run for the terminal, and the warnings of its report.

    The table has the main numbers of the report with their intervals, and the sensitivity that
    the configuration asks for.
    """
    metrics = read_mapping(run / "metrics.json")
    if "task" in metrics:
        entries = metrics["test"]["metrics"].items()
        overlaps = [(name, format_number(e["value"], 4), format_interval(e)) for name, e in entries]
        header = (f"test: {metrics['test']['n']:,} images", "", "interval")
        return format_columns(header, overlaps), []
    return summarize(read_run(run, pictures=False))


def summarize(inputs: ReportInputs) -> tuple[str, list[str]]:
    """Return the closing table and the verdict of a report for the terminal, and its warnings."""
    tiles = build_tiles(inputs)[:MAX_LINES]
    asked = {}
    if inputs.fitted("threshold").get("rule") == "sensitivity" and inputs.evaluation:
        target = format_percent(inputs.evaluation.get("sensitivity"))
        asked = {metric_label("sensitivity"): target}
    rows = [(tile.label, tile.value, tile.interval, asked.get(tile.label, "")) for tile in tiles]
    count = f"test: {len(inputs.predictions):,} rows, {inputs.measured['positives']:,} malignant"
    table = format_columns((count, "", "interval", "asked" if asked else ""), rows)
    text = f"{table}\n{build_verdict(inputs).title}"
    text, *warnings = (
        line.replace("\N{NO-BREAK SPACE}", " ") for line in (text, *collect_warnings(inputs))
    )
    return text, warnings


def print_summary(summary: tuple[str, list[str]]) -> None:
    """Print the result of `summarize`: the table, and the warnings to standard error."""
    text, warnings = summary
    print_line(text)
    for warning in warnings:
        warn(warning)


def format_table(table: Table, width: int | None = None) -> str:
    """Format a table under its caption; see `format_columns`."""
    text = format_columns(table.header, table.rows, width)
    return f"{table.caption}\n{text}" if table.caption else text


def format_columns(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None
) -> str:
    """Format a table as aligned text, transposed in blocks of rows if wider than `width`."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    if width is not None and sum(widths) + 2 * len(widths) - 2 > width:
        return "\n\n".join(_transpose(header, rows, width))
    lines = (zip(line, widths, strict=True) for line in (header, *rows))
    return "\n".join("  ".join(f"{cell:<{n}}" for cell, n in line).rstrip() for line in lines)


def _transpose(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """Yield a transposed table in blocks that fit the width of the terminal."""
    wrapped = [[wrap(cell, MAX_CELL, break_long_words=False) for cell in row] for row in rows]
    widths = [max((len(line) for cell in row for line in cell), default=0) + 2 for row in wrapped]
    start, used = 0, max(map(len, header))
    for number, needed in enumerate(widths):
        if used + needed > width and number > start:
            yield _format_wrapped(header, wrapped[start:number])
            start, used = number, max(map(len, header))
        used += needed
    yield _format_wrapped(header, wrapped[start:])


def _format_wrapped(header: Sequence[str], rows: Sequence[Sequence[list[str]]]) -> str:
    """Format a transposed table whose cells are lists of lines."""
    cells = zip(([name] for name in header), *rows, strict=True)
    first, *others = (line for row in cells for line in zip_longest(*row, fillvalue=""))
    return format_columns(first, others)


def format_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table as Markdown."""
    lines = (header, ["---"] * len(header), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def list_runs(folder: Path) -> list[list[str]]:
    """Return a row of `HEADER` for each run below a folder, oldest first.

    The folds and the final network of a run with `data.fold=all` are part of their run.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder that contains runs")
    patterns = (f"{'*/' * depth}config.yaml" for depth in range(MAX_DEPTH + 1))
    files = [file for pattern in patterns for file in folder.glob(pattern)]
    runs = [file.parent for file in files if _is_run(file.parent)]
    if not runs:
        raise InputError(
            f"{folder}: contains no run, which is a folder with the config.yaml of a training"
        )
    dates = {run: (run / "config.yaml").stat().st_mtime for run in runs}
    return [_describe(run, dates[run]) for run in sorted(runs, key=dates.__getitem__)]


def _is_run(folder: Path) -> bool:
    """Return whether a folder is a whole run, not a fold and not a folder of other software."""
    if is_part_of_run(folder.name) and (folder.parent / "config.yaml").is_file():
        return False
    return {"data", "fusion"} <= read_mapping(folder / "config.yaml").keys()


def _describe(run: Path, timestamp: float) -> list[str]:
    config, metrics = read_mapping(run / "config.yaml"), read_mapping(run / "metrics.json")
    date = f"{datetime.fromtimestamp(timestamp, UTC).astimezone():%Y-%m-%d %H:%M}"
    names = [str(config.get(group, {}).get("name", ABSENT)) for group in ("model", "fusion")]
    head = config.get("head", {}).get("name", "neural")
    names[-1] += "" if head == "neural" else f", {head}"
    return [date, name_cohort(config["data"]) or ABSENT, *names, _first_metric(metrics), str(run)]


def _first_metric(metrics: Mapping[str, Any]) -> str:
    """Return the main metric of the task, with its interval."""
    if not metrics:
        return "not finished"
    entries = order_metrics(metrics.get("test", {}).get("metrics", {}))
    name = next(iter(entries), None)
    return f"{metric_label(name)} {format_estimate(entries[name])}" if name else ABSENT
