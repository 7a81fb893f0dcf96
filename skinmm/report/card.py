"""Model card of a run as Markdown, to accompany its checkpoint; without names of patients."""

import re
from dataclasses import replace
from html import escape
from typing import Final

from skinmm.report.blocks import Block, Checklist, Item, Listing, Note, Section, Table
from skinmm.report.format import format_estimate, format_markdown, metric_table
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.appendix import build_model_card
from skinmm.report.sections.cohort import build_characteristics, resampling_unit
from skinmm.report.sections.facts import collect_facts, describe_run
from skinmm.report.sections.subgroups import build_missing

FIGURES: Final = (
    *("auroc", "average_precision", "sensitivity", "specificity", "referred"),
    *("calibration_slope", "brier", "macro_auroc", "class_balanced_accuracy"),
)


def build_card(inputs: ReportInputs) -> str:
    """Return the card of a run folder as Markdown."""
    table = build_characteristics(inputs)
    sections = [
        replace(build_model_card(inputs), title="The model"),
        _build_figures(inputs),
        Section("data", "Data", [] if table is None else [table]),
        build_missing(inputs),
        _build_usage(inputs),
    ]
    parts = [f"# Model card: {_escape(inputs.title)}", _escape(", ".join(describe_run(inputs)))]
    parts += [_to_markdown(section) for section in sections if section and section.blocks]
    return "\n\n".join(parts) + "\n"


def _build_figures(inputs: ReportInputs) -> Section:
    lead = (
        f"Test rows, with {100 * inputs.confidence:.0f} % intervals from resampling "
        f"{resampling_unit(inputs)}s. "
        "Sensitivity and specificity refer to malignant and benign lesions at the threshold."
    )
    tables = [metric_table("", inputs.measured, FIGURES)]
    if not inputs.predictions.is_binary:
        rows = [
            (
                name,
                f"{count:,}",
                format_estimate(inputs.estimate(f"auroc_{name}")),
                format_estimate(inputs.estimate(f"recall_{name}")),
            )
            for name, count in inputs.measured["support"].items()
        ]
        tables.append(Table("", ("Class", "Images", "AUROC", "Recall"), rows))
    return Section("figures", "Figures", tables, lead)


def _build_usage(inputs: ReportInputs) -> Section:
    facts = collect_facts(inputs)
    command = f"python predict.py 'checkpoint={facts['checkpoint']}' input=patients.csv images=DIR"
    lead = (
        f"Run in this folder. Each row of patients.csv is a lesion: {facts['inputs']} Leave "
        "unknown values empty."
    )
    return Section("use", "How to use it", [Listing("", f"{command} output=out.csv")], lead)


def _to_markdown(section: Section) -> str:
    blocks = [_format_block(block) for block in section.blocks]
    return "\n\n".join(part for part in (f"## {section.title}", section.lead, *blocks) if part)


def _format_block(block: Block) -> str:
    """Format text, tables and lists; figures and images are in the report only."""
    if isinstance(block, Table):
        rows = [[_escape(cell) for cell in row] for row in block.rows]
        return format_markdown([_escape(name) for name in block.header], rows).rstrip("\n")
    if isinstance(block, Listing):
        return f"```\n{block.text}\n```"
    if isinstance(block, Checklist):
        return "\n\n".join(_format_item(item) for item in block.parts if isinstance(item, Item))
    return _escape(block.text) if isinstance(block, Note) else ""


def _format_item(item: Item) -> str:
    """Format a question of the checklist; an answer of several lines becomes a list."""
    lines = [_escape(line) for line in item.answer.split("\n") if line]
    answer = "".join(f"\n- {line}" if len(lines) > 1 else f" {line}" for line in lines)
    left_open = f"*To be completed by the author: {_escape(item.open)}.*" if item.open else ""
    return "\n\n".join(part for part in (f"**{item.topic}.**{answer}", left_open) if part)


def _escape(text: str) -> str:
    """Escape text so that Markdown shows it unchanged."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))
