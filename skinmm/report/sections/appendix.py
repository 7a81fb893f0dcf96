"""Sections on training, all metrics, checklists and configuration.

The checklists are tables under `templates/`. The column `answer` names facts in braces; if one of
them is unknown, the item is left to the author.
"""

import csv
from collections.abc import Iterator, Mapping
from importlib.resources import files
from string import Formatter
from typing import Any

import numpy as np
import pandas as pd
import yaml

from skinmm.report.blocks import Block, Checklist, Item, Listing, Note, Plot, Row, Section, Table
from skinmm.report.figures.curves import Line, draw_training
from skinmm.report.format import TEXTS, format_estimate, metric_label
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.facts import collect_facts


def build_training(inputs: ReportInputs) -> Section | None:
    """Build one figure per logged quantity, with training and validation together."""
    blocks: list[Block] = []
    if weights := inputs.metrics.get("initialisation"):
        blocks.append(Note(f"Initial weights: {weights}."))
    if inputs.history is not None:
        quantities = _split_quantities(inputs.history)
        blocks.append(Row([_plot_quantity(name, rows) for name, rows in quantities]))
    return Section("training", "Training", blocks) if blocks else None


def _split_quantities(history: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    names = history["name"].str.partition("/")
    table = history.assign(part=names[0], quantity=names[2].where(names[2] != "", names[0]))
    # The test part is measured once: it has no curve.
    table = table[np.isfinite(table["value"]) & table["epoch"].notna() & (table["part"] != "test")]
    quantities = [(str(name), rows) for name, rows in table.groupby("quantity", sort=False)]
    return sorted(quantities, key=lambda item: item[0] != "loss")


def _plot_quantity(name: str, rows: pd.DataFrame) -> Plot:
    has_folds = rows["run"].nunique() > 1
    lines = []
    for (part, run), values in rows.groupby(["part", "run"]):
        means = values.groupby("epoch")["value"].mean()
        label = f"{part} {run}" if has_folds else str(part)
        lines.append(Line(label, means.index.to_numpy(float), means.to_numpy(float)))
    return Plot(name, draw_training(name, lines))


def build_metrics(inputs: ReportInputs) -> Section:
    """Build the table of all test metrics, next to those of validation if available."""
    validation = inputs.metrics.get("val", {}).get("metrics", {})
    header = ("Metric", "Test", "Validation") if validation else ("Metric", "Test")
    columns = [inputs.measured["metrics"], *([validation] if validation else [])]
    rows = [
        (metric_label(name), *(format_estimate(column.get(name)) for column in columns))
        for name in columns[0]
    ]
    return Section("metrics", "All metrics", [Table("", header, rows)], TEXTS["metrics_lead"])


def build_configuration(inputs: ReportInputs) -> Section | None:
    """Build the table of the environment and the configuration."""
    blocks: list[Listing | Table] = []
    if inputs.environment:
        rows = list(_flatten_values(inputs.environment))
        blocks.append(Table("Environment", ("Item", "Value"), rows))
    if inputs.config:
        text = yaml.safe_dump(dict(inputs.config), sort_keys=False, allow_unicode=True)
        blocks.append(Listing("Configuration", text))
    return Section("configuration", "Configuration", blocks) if blocks else None


def _flatten_values(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten_values(value, f"{prefix}{name} ")
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield f"{prefix}{name}", text


def build_model_card(inputs: ReportInputs) -> Section:
    """Build the model card: purpose, data, performance and limits (Mitchell et al. 2019)."""
    return Section("card", "Model card", [Checklist(_load_items("model_card.csv", inputs))])


def build_tripod(inputs: ReportInputs) -> Section:
    """Build the TRIPOD+AI checklist (Collins et al. 2024, doi:10.1136/bmj-2023-078378)."""
    items = _load_items("tripod_ai_2024.csv", inputs)
    lead = TEXTS["tripod"].format(sum(bool(item.answer) for item in items), len(items))
    return Section("tripod", "TRIPOD+AI 2024", [Checklist(items)], lead)


def _load_items(name: str, inputs: ReportInputs) -> list[Item]:
    facts = collect_facts(inputs)
    with (files("skinmm.report") / "templates" / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        answer = _fill_in(row["answer"], facts)
        left_open = row["open"] if answer else row["open"] or "the whole item"
        items.append(Item(row["item"], row["topic"], row["question"], answer, left_open))
    return items


def _fill_in(text: str, facts: Mapping[str, str]) -> str:
    """Fill facts into the text; empty if one of them is unknown."""
    names = [name for _, name, _, _ in Formatter().parse(text) if name]
    filled = text.format_map(facts) if all(facts[name] for name in names) else ""
    return filled[:1].upper() + filled[1:]
