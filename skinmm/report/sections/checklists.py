"""Model card and TRIPOD+AI 2024: questions in a table, answered from the run's facts.

A row's `known` names the facts it needs in braces; where one is missing, the row is the author's.
"""

import csv
from collections.abc import Mapping
from importlib.resources import files
from string import Formatter

from skinmm.report.blocks import Checklist, Item, Section
from skinmm.report.inputs import Evidence
from skinmm.report.sections.facts import facts_of


def model_card(evidence: Evidence) -> Section:
    """What the model is, for whom, how it was judged (Mitchell et al. 2019)."""
    return Section("card", "Model card", [Checklist(_items("model_card.csv", evidence))])


def tripod(evidence: Evidence) -> Section:
    """TRIPOD+AI item by item (Collins et al. 2024, doi:10.1136/bmj-2023-078378)."""
    items = _items("tripod_ai_2024.csv", evidence)
    lead = (
        f"{sum(bool(item.known) for item in items)} of {len(items)} items are answered from the "
        "files, wholly or in part; the others are the author's to write. Wording shortened from "
        "the published checklist."
    )
    return Section("tripod", "TRIPOD+AI 2024", [Checklist(items)], lead)


def _items(name: str, evidence: Evidence) -> list[Item]:
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
