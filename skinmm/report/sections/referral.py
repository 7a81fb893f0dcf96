"""What is left to a person: prediction sets, images unlike those of validation, and their price."""

from typing import Final

import numpy as np
import pandas as pd

from skinmm.evaluation.predictions import DECISIONS
from skinmm.evaluation.referral import coverage_range
from skinmm.report.blocks import Block, Plot, Row, Section, Table
from skinmm.report.figures import grids
from skinmm.report.format import estimate, interval, named, percent
from skinmm.report.inputs import Evidence

MEASURES: Final = (
    "unfamiliar",
    "set_size",
    "decided_sensitivity",
    "decided_specificity",
    "found_or_referred",
)
LOOSE: Final = 0.05  # coverage that may be so much lower than stated is said loudly
LEAD: Final = (
    "A lesion is decided where threshold and prediction set agree and it is not unlike those of "
    "validation; all others are referred to a person. So nothing that reaches the threshold is "
    "decided to be benign."
)


def referral(evidence: Evidence) -> Section | None:
    """Decisions with referral, and whether prediction sets hold what they promise."""
    rows = evidence.predictions
    if rows.decision is None or (rows.sets is None and "refer" not in rows.decision):
        return None
    names = [name for name in DECISIONS if name in rows.decision]
    counts = pd.crosstab(np.where(rows.malignant, "malignant", "benign"), rows.decision)
    drawing = grids.confusion(counts[names].to_numpy(), list(counts.index), names)
    parts: list[Plot | Table] = [
        Plot("Decision", drawing, "True class (down) against what was decided (across)."),
        Table("With referral", ("Measure", "Value (interval)"), named(evidence.measured, MEASURES)),
    ]
    blocks: list[Block] = [Row(parts)]
    if rows.sets is not None:
        sizes = np.bincount(rows.sets.sum(axis=1))
        lines = [(str(size), percent(count / len(rows))) for size, count in enumerate(sizes)]
        sized = Table("Classes in a set", ("Classes", "Images"), lines)
        blocks.append(Row([_coverage(evidence), sized]))
    return Section("referral", "Referral", blocks, LEAD)


def referred(evidence: Evidence) -> str:
    """`31.2 % of rows (28.0 % to 34.1 %)`; nothing where no row is referred."""
    found = evidence.estimate("referred") or {}
    bounds = interval(found, share=True)
    text = f"{percent(found.get('value'))} of rows{f' ({bounds})' if bounds else ''}"
    return text if found.get("value") else ""


def unpromised(evidence: Evidence) -> list[str]:
    """Where validation was too small for the stated coverage to mean much."""
    found, loose = [], []
    for name, count in evidence.conformal.get("rows", {}).items():
        bounds = coverage_range(count, evidence.conformal["coverage"])
        if bounds is None:
            found.append(
                f"Coverage of {name} cannot be set: {count} validation images are too few, so that "
                f"{name} is in every prediction set and nothing else can be decided."
            )
        elif bounds[0] < evidence.conformal["coverage"] - LOOSE:
            ends = " to ".join(percent(end, 0) for end in bounds)
            loose.append(f"{count} validation images of {name} ({ends})")
    if loose:
        text = f"The prediction sets rest on {', '.join(loose)}: coverage may lie anywhere there."
        found.append(text)
    return found


def _coverage(evidence: Evidence) -> Table:
    """By class: what was stated, what validation of that size can promise, what came out."""
    state = evidence.conformal
    header = ["Class", "Sets that hold it (interval)"]
    lines = []
    for name in evidence.predictions.classes:
        line = [name, estimate(evidence.estimate(f"coverage_{name}"))]
        if state:
            bounds = coverage_range(state["rows"][name], state["coverage"])
            promise = "none" if bounds is None else " to ".join(f"{end:.2f}" for end in bounds)
            line += [f"{state['rows'][name]:,}", promise]
        lines.append(line)
    if state:
        header += ["Validation images", f"Expected, for {percent(state['coverage'], 0)}"]
    return Table("Coverage of the prediction sets", header, lines, stack=True)
