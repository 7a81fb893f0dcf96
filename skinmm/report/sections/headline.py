"""What is left to a person: prediction sets, images unlike those of validation, and their price."""

from typing import Final

import numpy as np
import pandas as pd

from skinmm.evaluation.predictions import DECISIONS
from skinmm.evaluation.referral import coverage_range
from skinmm.report.blocks import Block, Note, Plot, Row, Section, Table, Tile, Tiles
from skinmm.report.figures import grids
from skinmm.report.format import (
    format_count,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_rows,
)
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import counted, unit_of

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


def referral(evidence: ReportInputs) -> Section | None:
    """Decisions with referral, and whether prediction sets hold what they promise."""
    rows = evidence.predictions
    if rows.decision is None or (rows.sets is None and "refer" not in rows.decision):
        return None
    names = [name for name in DECISIONS if name in rows.decision]
    counts = pd.crosstab(np.where(rows.malignant, "malignant", "benign"), rows.decision)
    drawing = grids.confusion(counts[names].to_numpy(), list(counts.index), names)
    parts: list[Plot | Table] = [
        Plot("Decision", drawing, "True class (down) against what was decided (across)."),
        Table(
            "With referral",
            ("Measure", "Value (interval)"),
            metric_rows(evidence.measured, MEASURES),
        ),
    ]
    blocks: list[Block] = [Row(parts)]
    if rows.sets is not None:
        sizes = np.bincount(rows.sets.sum(axis=1))
        lines = [(str(size), format_percent(count / len(rows))) for size, count in enumerate(sizes)]
        sized = Table("Classes in a set", ("Classes", "Images"), lines)
        blocks.append(Row([_coverage(evidence), sized]))
    return Section("referral", "Referral", blocks, LEAD)


def referred(evidence: ReportInputs) -> str:
    """`31.2 % of rows (28.0 % to 34.1 %)`; nothing where no row is referred."""
    found = evidence.estimate("referred") or {}
    bounds = format_interval(found, share=True)
    text = f"{format_percent(found.get('value'))} of rows{f' ({bounds})' if bounds else ''}"
    return text if found.get("value") else ""


def unpromised(evidence: ReportInputs) -> list[str]:
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
            ends = " to ".join(format_percent(end, 0) for end in bounds)
            loose.append(f"{count} validation images of {name} ({ends})")
    if loose:
        text = f"The prediction sets rest on {', '.join(loose)}: coverage may lie anywhere there."
        found.append(text)
    return found


def _coverage(evidence: ReportInputs) -> Table:
    """By class: what was stated, what validation of that size can promise, what came out."""
    state = evidence.conformal
    header = ["Class", "Sets that hold it (interval)"]
    lines = []
    for name in evidence.predictions.classes:
        line = [name, format_estimate(evidence.estimate(f"coverage_{name}"))]
        if state:
            bounds = coverage_range(state["rows"][name], state["coverage"])
            promise = "none" if bounds is None else " to ".join(f"{end:.2f}" for end in bounds)
            line += [f"{state['rows'][name]:,}", promise]
        lines.append(line)
    if state:
        header += ["Validation images", f"Expected, for {format_percent(state['coverage'], 0)}"]
    return Table("Coverage of the prediction sets", header, lines, stack=True)


CHANCE: Final = 0.5
FEW: Final = (
    59  # positives below which no threshold can promise 95 % sensitivity with 95 % confidence
)


def headline(evidence: ReportInputs) -> Section:
    """The numbers with their intervals, in words too, and every warning about them."""
    blocks: list[Block] = [Note(text, loud=True) for text in warnings_of(evidence)]
    blocks += [Tiles(_tiles(evidence)), Note(_in_words(evidence))]
    return Section("headline", "At a glance", blocks)


def warnings_of(evidence: ReportInputs) -> list[str]:
    """Whatever would mislead a reader who saw the numbers alone."""
    found = []
    initialisation = evidence.initialisation
    if initialisation and initialisation.lower().startswith("from scratch"):
        found.append(f"The image network had no pretrained weights: {initialisation}.")
    if evidence.audit.get("leaks"):
        found.append(
            "The split leaks: the same patient, lesion or picture is, or may be, in training and "
            "test. These numbers are too good."
        )
    ranked = evidence.estimate("auroc") or {}
    if (lowest := ranked.get("low")) is not None and lowest <= CHANCE:
        found.append(
            f"That it ranks better than chance is not shown: AUROC {format_estimate(ranked)}."
        )
    positives = evidence.measured["positives"]
    if positives < FEW:
        found.append(
            f"Only {format_count(positives, 'malignant image')} in the test set: read the "
            "intervals, not the numbers."
        )
    if not evidence.rule:
        found.append(
            f"No decision threshold is known: {format_number(evidence.threshold)} is assumed."
        )
    if evidence.rule.get("guaranteed") is False:
        found.append(
            "The sensitivity at the threshold is an estimate, not a guaranteed lower bound."
        )
    found += unpromised(evidence)
    unpredicted = evidence.measured.get("unpredicted", 0)
    if unpredicted:
        found.append(
            f"{format_count(unpredicted, 'row')} could not be predicted and are not counted here."
        )
    return found


def _tiles(evidence: ReportInputs) -> list[Tile]:
    slope, error = evidence.estimate("calibration_slope"), evidence.estimate("ece")
    measured = evidence.measured
    bounds = format_interval(slope)
    return [
        _tile(
            evidence, "auroc", "AUROC", "chance that a malignant lesion ranks above a benign one"
        ),
        _tile(evidence, "sensitivity", "Sensitivity", "of the malignant lesions are flagged"),
        _tile(evidence, "specificity", "Specificity", "of the benign lesions are left alone"),
        Tile(
            "Calibration slope",
            format_number(_value(slope), 2),
            bounds or "no interval",
            f"1 is right; expected calibration error {format_number(_value(error))}",
        ),
        Tile(
            "Malignant images",
            f"{measured['positives']:,}",
            f"of {', '.join(counted(measured['n'], measured['patients'], unit_of(evidence)))}",
            f"{format_percent(measured['positives'] / measured['n'])}; mean predicted probability "
            f"{format_percent(_value(evidence.estimate('mean_probability')))}",
        ),
    ]


def _tile(evidence: ReportInputs, name: str, label: str, meaning: str) -> Tile:
    share = name != "auroc"
    found = evidence.estimate(name)
    value = _value(found)
    return Tile(
        label,
        format_percent(value) if share else format_number(value),
        format_interval(found, share=share) or "no interval",
        meaning,
    )


def _in_words(evidence: ReportInputs) -> str:
    found, spared = (_value(evidence.estimate(name)) for name in ("sensitivity", "specificity"))
    share, unit = f"{100 * evidence.confidence:.0f} %", unit_of(evidence)
    intervals = f"Ranges are {share} intervals from resampling {unit}s."
    if found is None or spared is None:
        return f"Sensitivity and specificity need malignant and benign lesions. {intervals}"
    flagged = _value(evidence.estimate("number_needed_to_treat"))
    yielded = f" One in {flagged:.1f} flagged lesions is malignant." if flagged else ""
    if left := referred(evidence):
        left = f" Referred to a person: {left}; they count here as the threshold calls them."
    return (
        f"With the threshold at a probability of {format_number(evidence.threshold)}: of 100 "
        f"malignant lesions {100 * found:.0f} are flagged and {100 - 100 * found:.0f} missed; of "
        f"100 benign ones {100 - 100 * spared:.0f} are flagged "
        f"needlessly.{yielded}{left} {intervals}"
    )


def _value(found: object) -> float | None:
    return found["value"] if isinstance(found, dict) else None
