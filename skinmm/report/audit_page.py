"""The page of an audit: what leaks, and the offending images side by side."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any, Final

import pandas as pd

from skinmm.report.blocks import Block, Card, Note, Pairs, Section, Table
from skinmm.report.cohorts import Cohort, lesion_card
from skinmm.report.format import plural
from skinmm.report.page import write_page
from skinmm.report.sections.cohort import PARTS, audit_blocks, characteristics

SHOWN: Final = 40  # pairs of each kind
NAMED: Final = 100  # unreadable images
NOT_COMPARED: Final = (
    "Pixels were not compared: near=true also looks for images that are nearly the same."
)


def audit_page(cohort: Cohort, findings: Mapping[str, Any], output: Path) -> Path:
    """Writes the page, in place of an earlier one.

    Args:
        cohort: the rows with their `part`.
        findings: what `audit` returned, and `absent`, what was said of images that are not there;
            where pixels were compared also `compared`, how many images, and `unreadable`,
            name -> reason.
        output: the page to write.

    Returns:
        The page.
    """
    sections = [_findings(cohort, findings), _pairs(cohort, findings), _unreadable(findings)]
    made = [section for section in sections if section is not None]
    return write_page(output, title="Audit", facts=cohort.facts, sections=made)


def _findings(cohort: Cohort, findings: Mapping[str, Any]) -> Section:
    compared = findings.get("compared")
    lead = NOT_COMPARED if compared is None else f"{plural(compared, 'image')} compared by pixels."
    rows = cohort.rows
    parts = {label: rows[rows["part"] == part] for part, label in PARTS.items()}
    parts = {label: part for label, part in parts.items() if len(part)}
    blocks = [*audit_blocks(findings), characteristics("The split", parts)]
    return Section("findings", "Findings", blocks, lead)


def _pairs(cohort: Cohort, findings: Mapping[str, Any]) -> Section | None:
    blocks: list[Block] = []
    for kind, total in findings["across_parts"].items():
        pairs = _pairs_of(kind, cohort.rows, findings)[:SHOWN]
        rows = cohort.rows[cohort.rows["image_id"].isin({name for pair in pairs for name in pair})]
        cards = {row["image_id"]: _card(row) for row in rows.to_dict("records")}
        if pairs:
            caption = f"{kind.capitalize()} in two parts: {len(pairs)} of {total:,}"
            blocks.append(
                Pairs(caption, [(cards[first], cards[second]) for first, second in pairs])
            )
    lead = "Left and right are in different parts: a model would be asked what it has seen before."
    return Section("pairs", "The images", blocks, lead) if blocks else None


def _pairs_of(kind: str, rows: pd.DataFrame, findings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The found pairs of a kind; of every torn patient or lesion an image of either part."""
    if f"{kind}_id" not in rows:
        return [(one["first"], one["second"]) for one in findings["pairs"] if one["kind"] == kind]
    used = rows[rows["part"].isin(PARTS)].dropna(subset=[f"{kind}_id"])
    by_group = used.drop_duplicates([f"{kind}_id", "part"]).groupby(f"{kind}_id", sort=False)
    images = by_group["image_id"].agg(list)
    return [(names[0], names[1]) for names in images if len(names) > 1]


def _card(row: Mapping[Hashable, Any]) -> Card:
    patient = [] if row["patient_id"] == row["image_id"] else [f"patient {row['patient_id']}"]
    return lesion_card(row, f"{PARTS[row['part']].lower()}, {row['class']}", *patient)


def _unreadable(findings: Mapping[str, Any]) -> Section | None:
    absent, unreadable = findings.get("absent"), findings.get("unreadable")
    blocks: list[Block] = [Note(f"{absent}.", loud=True)] if absent else []
    if unreadable:
        said = f"{plural(len(unreadable), 'image')} could not be read or compared."
        rows = list(unreadable.items())[:NAMED]
        blocks += [Note(said, loud=True), Table("", ("Image", "Reason"), rows)]
    return Section("unreadable", "Unreadable", blocks) if blocks else None
