"""A run's model card as Markdown, to travel with its checkpoint: it names and shows no patient."""

import re
from dataclasses import replace
from html import escape
from typing import Final

from skinmm.report.blocks import Block, Checklist, Item, Listing, Note, Section, Table
from skinmm.report.format import format_estimate, metric_rows
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.appendix import model_card
from skinmm.report.sections.cohort import unit_of, who
from skinmm.report.sections.facts import facts_of, remarks
from skinmm.report.sections.subgroups import missing

FIGURES: Final = (
    *("auroc", "average_precision", "sensitivity", "specificity", "referred"),
    *("calibration_slope", "brier", "macro_auroc", "class_balanced_accuracy"),
)


def card_text(evidence: ReportInputs) -> str:
    """Writes the card of a run folder."""
    table = who(evidence)
    sections = [
        replace(model_card(evidence), title="The model"),
        _figures(evidence),
        Section("data", "Data", [] if table is None else [table]),
        missing(evidence),
        _use(evidence),
    ]
    written = (_markdown(section) for section in sections if section and section.blocks)
    parts = [
        f"# Model card: {_plain(evidence.title)}",
        _plain(", ".join(remarks(evidence))),
        *written,
    ]
    return "\n\n".join(parts) + "\n"


def _figures(evidence: ReportInputs) -> Section:
    lead = (
        f"Test rows, with {100 * evidence.confidence:.0f} % intervals from resampling "
        f"{unit_of(evidence)}s. "
        "Sensitivity and specificity: of malignant and benign lesions at the threshold."
    )
    measured = Table("", ("Measure", "Value (interval)"), metric_rows(evidence.measured, FIGURES))
    support = {} if evidence.predictions.is_binary else evidence.measured["support"]
    rows = [
        (
            name,
            f"{count:,}",
            *(format_estimate(evidence.estimate(f"{m}_{name}")) for m in ("auroc", "recall")),
        )
        for name, count in support.items()
    ]
    classes = [Table("", ("Class", "Images", "AUROC", "Recall"), rows)] if rows else []
    return Section("figures", "Figures", [measured, *classes], lead)


def _use(evidence: ReportInputs) -> Section:
    facts = facts_of(evidence)
    command = f"python predict.py 'checkpoint={facts['checkpoint']}' input=patients.csv images=DIR"
    lead = f"From this folder. A row of patients.csv is a lesion: {facts['inputs']} What is not "
    lead += "known stays empty."
    return Section("use", "How to use it", [Listing("", f"{command} output=out.csv")], lead)


def _markdown(section: Section) -> str:
    blocks = [_block(block) for block in section.blocks]
    return "\n\n".join(part for part in (f"## {section.title}", section.lead, *blocks) if part)


def _block(block: Block) -> str:
    """Text, tables and lists; drawings and pictures stay in the report."""
    if isinstance(block, Table):
        lines = [block.header, ["---"] * len(block.header), *block.rows]
        return "\n".join(f"| {' | '.join(map(_plain, line))} |" for line in lines)
    if isinstance(block, Listing):
        return f"```\n{block.text}\n```"
    if isinstance(block, Checklist):
        return "\n\n".join(_item(item) for item in block.parts if isinstance(item, Item))
    return _plain(block.text) if isinstance(block, Note) else ""


def _item(item: Item) -> str:
    """A question of the checklist: what several lines answer becomes a list."""
    lines = [_plain(line) for line in item.known.split("\n") if line]
    listed = [f"- {line}" for line in lines]
    known = "\n".join(["", *listed]) if len(lines) > 1 else "".join(f" {line}" for line in lines)
    left = f"*For the author to write: {_plain(item.open)}.*" if item.open else ""
    return "\n\n".join(part for part in (f"**{item.topic}.**{known}", left) if part)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\|*`\[\]])", r"\\\1", escape(" ".join(text.split()), quote=False))
