"""How training went, and what the model started from."""

import csv
from collections.abc import Iterator, Mapping
from importlib.resources import files
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinmm.report.blocks import Block, Checklist, Item, Listing, Note, Plot, Row, Section, Table
from skinmm.report.figures import curves
from skinmm.report.figures.curves import Line
from skinmm.report.format import format_estimate, metric_label
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.facts import facts_of


def training(evidence: ReportInputs) -> Section | None:
    """One drawing per logged quantity; training and validation share one where both have it."""
    blocks: list[Block] = []
    if evidence.initialisation:
        blocks.append(Note(f"Initialisation: {evidence.initialisation}."))
    if evidence.history is not None:
        plots = [_plot(name, rows) for name, rows in _quantities(evidence.history)]
        blocks.append(Row(plots))
    return Section("training", "Training", blocks) if blocks else None


def _quantities(history: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    parts = history["name"].str.partition("/")
    table = history.assign(part=parts[0], quantity=parts[2].where(parts[2] != "", parts[0]))
    # What was measured once, on the test part, has no course.
    table = table[np.isfinite(table["value"]) & table["epoch"].notna() & (table["part"] != "test")]
    quantities = [(str(name), rows) for name, rows in table.groupby("quantity", sort=False)]
    return sorted(quantities, key=lambda item: item[0] != "loss")


def _plot(name: str, rows: pd.DataFrame) -> Plot:
    several = rows["run"].nunique() > 1
    lines = []
    for (part, run), values in rows.groupby(["part", "run"]):
        means = values.groupby("epoch")["value"].mean()
        label = f"{part} {run}" if several else str(part)
        lines.append(Line(label, means.index.to_numpy(float), means.to_numpy(float)))
    return Plot(name, curves.training(name, lines))


def metrics(evidence: ReportInputs) -> Section:
    """Every metric of the test rows, beside those of validation where there are any."""
    validation = evidence.metrics.get("val", {}).get("metrics", {})
    header = ("Metric", "Test", "Validation") if validation else ("Metric", "Test")
    rows = []
    for name, found in evidence.measured["metrics"].items():
        beside = [format_estimate(validation.get(name))] if validation else []
        rows.append((metric_label(name), format_estimate(found), *beside))
    lead = "Values with intervals; a dash means that the data do not define the metric."
    return Section("metrics", "All metrics", [Table("", header, rows)], lead)


def configuration(evidence: ReportInputs) -> Section | None:
    """The composed configuration and the machine."""
    blocks: list[Listing | Table] = []
    if evidence.environment:
        rows = list(_flat(evidence.environment))
        blocks.append(Table("Environment", ("What", "Value"), rows))
    if evidence.config:
        text = yaml.safe_dump(dict(evidence.config), sort_keys=False, allow_unicode=True)
        blocks.append(Listing("Configuration", text))
    return Section("configuration", "Configuration", blocks) if blocks else None


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text


def model_card(evidence: ReportInputs) -> Section:
    """What the model is, for whom, how it was judged (Mitchell et al. 2019)."""
    return Section("card", "Model card", [Checklist(_items("model_card.csv", evidence))])


def tripod(evidence: ReportInputs) -> Section:
    """TRIPOD+AI item by item (Collins et al. 2024, doi:10.1136/bmj-2023-078378)."""
    items = _items("tripod_ai_2024.csv", evidence)
    lead = (
        f"{sum(bool(item.known) for item in items)} of {len(items)} items are answered from the "
        "files, wholly or in part; the others are the author's to write. Wording shortened from "
        "the published checklist."
    )
    return Section("tripod", "TRIPOD+AI 2024", [Checklist(items)], lead)


def _items(name: str, evidence: ReportInputs) -> list[Item]:
    facts = facts_of(evidence)
    with (files("skinmm.report") / "templates" / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        known = _filled(row["known"], facts)
        left = row["left"] if known else row["left"] or "the whole item"
        items.append(Item(row["item"], row["topic"], row["asks"], known, left))
    return items


def _filled(text: str, facts: Mapping[str, str]) -> str:
    """The text with its facts, or nothing where one of them is not known."""
    needed = [name for _, name, _, _ in Formatter().parse(text) if name]
    filled = text.format_map(facts) if all(facts[name] for name in needed) else ""
    return filled[:1].upper() + filled[1:]
