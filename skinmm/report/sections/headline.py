"""Sections on the headline numbers with their warnings, and on referral to a person."""

from typing import Final

import numpy as np
import pandas as pd

from skinmm.evaluation.predictions import DECISIONS
from skinmm.evaluation.referral import coverage_range
from skinmm.evaluation.statistics import net_benefit
from skinmm.report.blocks import (
    TEXTS,
    Block,
    Note,
    Plot,
    Row,
    Section,
    Table,
    Tile,
    Tiles,
    format_count,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_label,
    metric_table,
)
from skinmm.report.figures.grids import draw_confusion
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import format_counts, resampling_unit

FEW: Final = 59  # with fewer positives, 95 % sensitivity cannot be guaranteed at 95 % confidence
REFERRAL: Final = (
    *("unfamiliar", "set_size"),
    *("decided_sensitivity", "decided_specificity", "found_or_referred"),
)


def build_headline(inputs: ReportInputs) -> Section:
    """Build the section with the main numbers, in tiles and in words, and all warnings."""
    blocks: list[Block] = [Note(describe_use(inputs))]
    blocks += [Note(text, warning=True) for text in collect_warnings(inputs)]
    blocks += [Tiles(_build_tiles(inputs)), Note(_summarise(inputs))]
    return Section("headline", "At a glance", blocks)


def describe_use(inputs: ReportInputs) -> str:
    """Describe in plain language what the model can do in this test, what it cannot, and where."""
    texts, rows, threshold = TEXTS["use"], inputs.predictions, inputs.threshold
    malignant, flagged = rows.malignant, rows.malignancy >= threshold
    if malignant.all() or not malignant.any():
        return str(texts["one_kind"])
    counts = {
        "missed": int((malignant & ~flagged).sum()),
        "malignant": format_count(int(malignant.sum()), "malignant image"),
        "flagged": int((~malignant & flagged).sum()),
        "benign": format_count(int((~malignant).sum()), "benign image"),
        "below": int((~flagged).sum()),
        "prevalence": format_percent(float(malignant.mean())),
    }
    low, benefit = inputs.estimate("auroc").get("low"), inputs.value("net_benefit")
    hits, alarms = malignant.mean(keepdims=True), (~malignant).mean(keepdims=True)
    best = max(0.0, float(net_benefit(hits, alarms, threshold)[0]))  # of flagging none and all
    verdict = "useful"
    if low is not None and low <= 0.5:  # noqa: PLR2004 - chance
        verdict = "chance"
    elif benefit is None or benefit <= best:
        verdict = "useless" if best else "useless_none"
    return " ".join(texts[name].format(**counts) for name in (verdict, "can", "cannot"))


def collect_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about everything that makes the numbers misleading on their own."""
    warnings = []
    weights = inputs.metrics.get("initialisation") or ""
    if weights.lower().startswith("from scratch"):
        warnings.append(f"The image network had no pretrained weights: {weights}.")
    if inputs.audit.get("leaks"):
        warnings.append(TEXTS["leak"])
    auroc = inputs.estimate("auroc")
    if (low := auroc.get("low")) is not None and low <= 0.5:  # noqa: PLR2004 - chance
        warnings.append(TEXTS["chance"].format(format_estimate(auroc)))
    if (positives := inputs.measured["positives"]) < FEW:
        warnings.append(TEXTS["few"].format(format_count(positives, "malignant image")))
    if not (rule := inputs.fitted("threshold")):
        warnings.append(TEXTS["assumed"].format(format_number(inputs.threshold)))
    if rule.get("guaranteed") is False:
        warnings.append(TEXTS["estimate"])
    warnings += _coverage_warnings(inputs)
    if unpredicted := inputs.measured.get("unpredicted", 0):
        warnings.append(TEXTS["unpredicted"].format(format_count(unpredicted, "row")))
    return warnings


def _coverage_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about classes with too few validation images for the stated coverage."""
    state, warnings, loose = inputs.fitted("conformal"), [], []
    for name, count in state.get("rows", {}).items():
        bounds = coverage_range(count, state["coverage"])
        if bounds is None:
            warnings.append(TEXTS["no_coverage"].format(name=name, count=count))
        elif bounds[0] < state["coverage"] - 0.05:  # lower than stated by 5 points
            ends = " to ".join(format_percent(end, 0) for end in bounds)
            loose.append(f"{count} validation images of {name} ({ends})")
    if loose:
        warnings.append(TEXTS["loose_coverage"].format(", ".join(loose)))
    return warnings


def _build_tiles(inputs: ReportInputs) -> list[Tile]:
    measured = inputs.measured
    positives, rows = measured["positives"], measured["n"]
    counts = format_counts(inputs.units, pd.Series(inputs.predictions.patient_id))
    predicted = format_percent(inputs.value("mean_probability"))
    tiles, meanings = [], TEXTS["meanings"]
    if not inputs.predictions.is_binary:
        meanings = TEXTS["class_meanings"] | meanings
    for name, meaning in meanings.items():
        is_share = "auroc" not in name
        value = (format_percent if is_share else format_number)(inputs.value(name))
        interval = format_interval(inputs.estimate(name), percent=is_share) or "no interval"
        tiles.append(Tile(metric_label(name), value, interval, meaning))
    return [
        *tiles,
        Tile(
            "Calibration slope",
            format_number(inputs.value("calibration_slope"), 2),
            format_interval(inputs.estimate("calibration_slope")) or "no interval",
            f"ideal: 1; {_describe_calibration_error(inputs)}",
        ),
        Tile(
            "Malignant images",
            f"{positives:,}",
            f"of {counts}",
            f"{format_percent(positives / rows)}; mean predicted probability {predicted}",
        ),
    ]


def _describe_calibration_error(inputs: ReportInputs) -> str:
    text = f"expected calibration error {format_number(inputs.value('ece'))}"
    noise = inputs.measured.get("calibration_noise", {}).get("ece")
    return text if noise is None else f"{text}, by chance alone {format_number(noise)}"


def _summarise(inputs: ReportInputs) -> str:
    sensitivity, specificity = inputs.value("sensitivity"), inputs.value("specificity")
    intervals = TEXTS["intervals"].format(100 * inputs.confidence, resampling_unit(inputs))
    if sensitivity is None or specificity is None:
        return f"Sensitivity and specificity need malignant and benign lesions. {intervals}"
    hits, rejected = 100 * sensitivity, 100 * specificity
    threshold = format_number(inputs.threshold)
    sentences = [TEXTS["of_100"].format(threshold, hits, 100 - hits, 100 - rejected)]
    if flagged := inputs.value("number_needed_to_treat"):
        sentences.append(f"One in {flagged:.1f} flagged lesions is malignant.")
    if share := describe_referred(inputs):
        sentences.append(TEXTS["referred"].format(share))
    return " ".join([*sentences, intervals])


def describe_referred(inputs: ReportInputs) -> str:
    """Return `31.2 % of rows (28.0 % to 34.1 %)`; empty if no row is referred."""
    entry = inputs.estimate("referred")
    if not entry.get("value"):
        return ""
    interval = format_interval(entry, percent=True)
    return f"{format_percent(entry['value'])} of rows{f' ({interval})' if interval else ''}"


def build_referral(inputs: ReportInputs) -> Section | None:
    """Build the section with decisions including referral, and coverage of prediction sets."""
    rows = inputs.predictions
    if rows.decision is None or (rows.sets is None and "refer" not in rows.decision):
        return None
    names = [name for name in DECISIONS if name in rows.decision]
    counts = pd.crosstab(np.where(rows.malignant, "malignant", "benign"), rows.decision)
    figure = draw_confusion(counts[names].to_numpy(), list(counts.index), names)
    parts: list[Plot | Table] = [
        Plot("Decision", figure, "Rows: true class. Columns: decision."),
        metric_table("With referral", inputs.measured, REFERRAL),
    ]
    blocks: list[Block] = [Row(parts)]
    if rows.sets is not None:
        sizes = np.bincount(rows.sets.sum(axis=1))
        lines = [(str(size), format_percent(count / len(rows))) for size, count in enumerate(sizes)]
        size_table = Table("Classes in a prediction set", ("Classes", "Images"), lines)
        blocks.append(Row([_coverage_table(inputs), size_table]))
    return Section("referral", "Referral", blocks, TEXTS["referral"])


def _coverage_table(inputs: ReportInputs) -> Table:
    """Return the observed coverage by class, and the range expected from the validation rows."""
    state = inputs.fitted("conformal")
    header = ["Class", "Sets that contain it (interval)"]
    if state:
        header += ["Validation images", f"Expected, for {format_percent(state['coverage'], 0)}"]
    lines = []
    for name in inputs.predictions.classes:
        line = [name, format_estimate(inputs.estimate(f"coverage_{name}"))]
        if state:
            bounds = coverage_range(state["rows"][name], state["coverage"])
            expected = "none" if bounds is None else " to ".join(f"{end:.2f}" for end in bounds)
            line += [f"{state['rows'][name]:,}", expected]
        lines.append(line)
    return Table("Coverage of the prediction sets", header, lines, stack=True)
