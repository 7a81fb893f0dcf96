"""Sections on training, all metrics, checklists and configuration; sections of the model card.

The checklists are tables under `templates/`. The column `answer` names facts in braces; if one of
them is unknown, the item is left to the author.
"""

import csv
from collections.abc import Container
from dataclasses import replace
from importlib.resources import files
from string import Formatter
from typing import Final

import numpy as np
import yaml

from skinmm.config import flatten
from skinmm.report.blocks import (
    NARROW,
    TEXTS,
    Block,
    Checklist,
    Item,
    Listing,
    Note,
    Plot,
    Row,
    Section,
    Table,
    describe_narrow,
    format_estimates,
    mark_estimate,
    metric_label,
    metric_table,
)
from skinmm.report.figures.curves import Line, draw_training
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import build_characteristics, resampling_unit
from skinmm.report.sections.facts import collect_facts
from skinmm.report.sections.subgroups import build_missing

FIGURES: Final = (
    *("auroc", "within_source_auroc", "average_precision", "sensitivity", "specificity"),
    "referred",
    *("decided_npv", "decided_ppv", "net_benefit_gain"),
    *("calibration_slope", "brier", "macro_auroc", "within_source_macro_auroc"),
    "class_balanced_accuracy",
)
_TRIPOD: Final = "tripod_ai_2024.csv"


def build_training(inputs: ReportInputs) -> Section | None:
    """Build one figure per logged quantity, with both training and validation."""
    blocks: list[Block] = []
    if weights := inputs.metrics.get("initialisation"):
        blocks.append(Note(f"Initial weights: {weights}."))
    if (table := inputs.history) is not None:
        names = table["name"].str.partition("/")
        table = table.assign(part=names[0], quantity=names[2].where(names[2] != "", names[0]))
        # The test part is measured once: it has no curve.
        is_drawn = np.isfinite(table["value"]) & table["epoch"].notna() & (table["part"] != "test")
        plots = []
        for quantity, rows in table[is_drawn].groupby("quantity", sort=False):
            has_folds, lines = rows["run"].nunique() > 1, []
            for (part, run), values in rows.groupby(["part", "run"]):
                means = values.groupby("epoch")["value"].mean()
                label = f"{part} {run}" if has_folds else str(part)
                lines.append(Line(label, means.index.to_numpy(float), means.to_numpy(float)))
            plots.append(Plot(str(quantity), draw_training(str(quantity), lines)))
        plots.sort(key=lambda plot: plot.title != "loss")
        blocks.append(Row(plots))
    return Section("training", "Training", blocks, is_folded=True) if blocks else None


def build_metrics(inputs: ReportInputs) -> Section:
    """Build the table of all test metrics, next to the validation metrics if available."""
    columns = {"Test": inputs.measured}
    if (validation := inputs.metrics.get("val", {})).get("metrics"):
        columns["Validation"] = validation
    rows = [
        (
            metric_label(name),
            *(mark_estimate(name, c["metrics"].get(name), c) for c in columns.values()),
        )
        for name in inputs.measured["metrics"]
    ]
    lead = TEXTS["metrics_lead"]
    if any(row[1].endswith(NARROW) for row in rows):
        lead += f" {describe_narrow(inputs.measured)}"
    return Section(
        "metrics", "All metrics", [Table("", ("Metric", *columns), rows)], lead, is_folded=True
    )


def build_configuration(inputs: ReportInputs) -> Section | None:
    """Build the table of the environment and the configuration."""
    blocks: list[Listing | Table] = []
    if inputs.environment:
        rows = []
        for name, value in flatten(inputs.environment).items():
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((name.replace(".", " "), text))
        blocks.append(Table("Environment", ("Item", "Value"), rows))
    if inputs.config:
        text = yaml.safe_dump(dict(inputs.config), sort_keys=False, allow_unicode=True)
        blocks.append(Listing("Configuration", text))
    return Section("configuration", "Configuration", blocks, is_folded=True) if blocks else None


def build_model_card(inputs: ReportInputs) -> Section:
    """Build the model card: purpose, data, performance and limits (Mitchell et al. 2019)."""
    return Section(
        "card", "Model card", [Checklist(_load_items("model_card.csv", inputs))], is_folded=True
    )


def build_tripod(inputs: ReportInputs) -> Section:
    """Build the TRIPOD+AI checklist (Collins et al. 2024, doi:10.1136/bmj-2023-078378)."""
    return _build_checklist("tripod", "TRIPOD+AI 2024", _TRIPOD, inputs)


def build_stard(inputs: ReportInputs) -> Section:
    """Build the STARD-AI list (Sounderajah et al. 2025, doi:10.1038/s41591-025-03953-8)."""
    return _build_checklist("stard", "STARD-AI 2025", "stard_ai_2025.csv", inputs)


def build_claim(inputs: ReportInputs) -> Section:
    """Build the CLAIM list (Tejani et al. 2024, doi:10.1148/ryai.240300)."""
    return _build_checklist("claim", "CLAIM 2024", "claim_2024.csv", inputs)


def _build_checklist(key: str, title: str, name: str, inputs: ReportInputs) -> Section:
    """Build a checklist; the answers of the others refer to items of TRIPOD+AI."""
    items = _load_items(_TRIPOD, inputs)
    if name != _TRIPOD:
        items = _load_items(name, inputs, {item.number for item in items if item.answer})
    lead = TEXTS["tripod"].format(sum(bool(item.answer) for item in items), len(items))
    return Section(key, title, [Checklist(items)], lead, is_folded=True)


def _load_items(name: str, inputs: ReportInputs, answered: Container[str] = ()) -> list[Item]:
    """Return the items of a checklist; `answered` are items of TRIPOD+AI to refer to."""
    facts = collect_facts(inputs)
    with (files("skinmm.report") / "templates" / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    items = []
    for row in rows:
        names = [name for _, name, _, _ in Formatter().parse(row["answer"]) if name]
        answer = row["answer"].format_map(facts) if all(facts[name] for name in names) else ""
        if numbers := [number for number in row.get("tripod", "").split() if number in answered]:
            answer = f"{answer} See TRIPOD+AI {', '.join(numbers)}.".strip()
        answer = answer[:1].upper() + answer[1:]
        left_open = row["open"] if answer else row["open"] or "the whole item"
        items.append(Item(row["item"], row["topic"], row["question"], answer, left_open))
    return items


def build_card(inputs: ReportInputs) -> list[Section | None]:
    """Build the sections of the Markdown card: the model, figures, data and usage."""
    facts, characteristics = collect_facts(inputs), build_characteristics(inputs)
    lead = TEXTS["card_figures"].format(100 * inputs.confidence, resampling_unit(inputs))
    tables = [metric_table("", inputs.measured, FIGURES)]
    if not inputs.predictions.is_binary:
        metrics = inputs.measured["metrics"]
        rows = [
            (name, f"{count:,}", *format_estimates(metrics, (f"auroc_{name}", f"recall_{name}")))
            for name, count in inputs.measured["support"].items()
        ]
        tables.append(Table("", ("Class", "Images", "AUROC", "Recall"), rows))
    command = f"python predict.py 'checkpoint={facts['checkpoint']}' input=patients.csv images=DIR"
    usage = [Listing("", f"{command} output=out.csv")]
    return [
        replace(build_model_card(inputs), title="The model"),
        Section("figures", "Figures", tables, lead),
        Section("data", "Data", [characteristics] if characteristics else []),
        build_missing(inputs),
        Section("use", "How to use it", usage, TEXTS["card_usage"].format(facts["inputs"])),
    ]
