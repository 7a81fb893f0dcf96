"""Pages for other sites: adaptation of a checkpoint, and planned sample sizes."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from skinmm.config.commands import PlanConfig
from skinmm.errors import InputError, format_count, print_line, require_new_output
from skinmm.evaluation import planning
from skinmm.evaluation.metrics import CLINIC_PREVALENCE, evaluate
from skinmm.evaluation.predictions import Predictions, read_predictions
from skinmm.evaluation.smooth_calibration import fit_calibration_band
from skinmm.evaluation.thresholds import Threshold
from skinmm.report.blocks import (
    ABSENT,
    TEXTS,
    Block,
    Note,
    Plot,
    Row,
    Section,
    Table,
    format_estimates,
    format_number,
    format_percent,
    metric_label,
)
from skinmm.report.figures.curves import (
    Line,
    draw_decision,
    draw_reliability,
    draw_sizes,
    net_benefit_lines,
    reliability_line,
)
from skinmm.report.terminal import format_columns
from skinmm.report.write import reader_options, write_page

COMPARED: Final = ("log_loss", "calibration_slope", "calibration_intercept", "ece", "net_benefit")
CHECKSUM: Final = 10  # digits
AUROC: Final = 0.85  # expected without predictions
LOWEST, HIGHEST = 0.51, 0.999
DIFFERENCE: Final = 0.05  # of two AUROCs


def write_adaptation_page(
    output: Path,
    facts: Mapping[str, Any],
    pair: tuple[Predictions, Predictions] | None,
    thresholds: tuple[Threshold, Threshold],
    target: tuple[float, float],
) -> list[str]:
    """Write the page of an adaptation, and return its main sentences.

    Args:
        output: page to write.
        facts: record in the new checkpoint.
        pair: rows of the site before and after, the latter adapted without their patients; None
            without labels.
        thresholds: of the old and of the new checkpoint.
        target: sensitivity of the threshold, and confidence of its bound.
    """
    notes = [_describe_method(facts), _describe_threshold(*thresholds, *target, facts["unit"])]
    blocks: list[Block] = [Note(text) for text in notes]
    if "losses" in facts:
        cells = [[name, format_number(loss)] for name, loss in facts["losses"].items()]
        blocks.append(Table(TEXTS["site"]["losses"], ("Adaptation", "Log loss"), cells))
    sections = [Section("adaptation", "What was done", blocks)]
    if pair is not None and 0 < pair[0].malignant.mean() < 1:
        sections.append(_compare(*pair))
    counts = [format_count(facts["rows"], "row"), format_count(facts["patients"], facts["unit"])]
    labels = TEXTS["site"]["record"]
    record = [[labels[name], _format_fact(facts[name])] for name in labels if name in facts]
    sections.append(Section("record", "Record", [Table("", ("Entry", "Value"), record)]))
    write_page(output, title="Adaptation to a site", facts=counts, sections=sections)
    return notes


def _format_fact(value: Any) -> str:
    """Format an entry of the record; checksums are shortened."""
    if isinstance(value, float):
        return format_number(value)
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text[:CHECKSUM] if re.fullmatch("[0-9a-f]{64}", text) else text


def _describe_method(facts: Mapping[str, Any]) -> str:
    texts = TEXTS["site"]
    if "shares" in facts:
        shares = [
            f"{name} {format_percent(value)} ({format_percent(low)} to {format_percent(high)})"
            for name, (value, low, high) in facts["shares"].items()
        ]
        name = "same_prevalence" if facts["method"] == "none" else "prevalence"
        return str(texts[name].format(", ".join(shares), facts["unit"], format_number(facts["p"])))
    losses = [format_number(facts[name], 4) for name in ("before", "after")]
    return str(texts[facts["method"]].format(*losses, facts["rows"], facts["malignant"]))


def _describe_threshold(
    old: Threshold, new: Threshold, target: float, confidence: float, unit: str
) -> str:
    """Describe the thresholds, and the number of further malignant lesions for a guarantee."""
    texts = TEXTS["site"]
    sentences = [texts["threshold"].format(format_number(old.value), format_number(new.value))]
    if new.bound is not None and new.patients is not None:
        bound = format_percent(math.floor(1000 * new.bound) / 1000)  # not above it
        levels = (format_percent(confidence, 0), bound)
        sentences.append(texts["bound"].format(new.found, new.patients, unit, *levels))
        if not new.guaranteed:
            more = planning.malignant_for_guarantee(target, confidence) - new.patients
            sentences.append(texts["more"].format(more, format_percent(target)))
    return " ".join(sentences)


def _compare(before: Predictions, after: Predictions) -> Section:
    """Build the section with calibration and net benefit of the same rows, before and after."""
    share = float(before.malignant.mean())
    plots, lines, measured = [], [], []
    for name, rows in (("before", before), ("after", after)):
        scores = (rows.malignancy, rows.malignant)
        smooth = fit_calibration_band(*scores, rows.patient_id)
        band = Line(name, smooth.x, smooth.y, smooth.low, smooth.high)
        bins = reliability_line(name, *scores)
        plots.append(Plot(f"Calibration {name}", draw_reliability(bins, band)))
        lines.append(replace(net_benefit_lines(*scores)[0], name=name))
        undecided = replace(rows, decision=None, sets=None)  # of the old checkpoint
        measured.append(evaluate(undecided, threshold=share)["metrics"])
    references = net_benefit_lines(before.malignancy, before.malignant)[1:]
    plots.append(Plot("Decision curve", draw_decision([*lines, *references])))
    table = Table(
        TEXTS["site"]["compared"].format(format_percent(share)),
        ("Measure", "Before", "After"),
        [
            [metric_label(name), *(format_estimates(m, [name])[0] for m in measured)]
            for name in COMPARED
        ],
    )
    return Section("site", "Before and after", [table, Row(plots)], TEXTS["site"]["cross_fitted"])


def run_plan(config: PlanConfig) -> int:
    """Write the page with sample sizes, and print its table."""
    require_new_output("output", Path(config.output), overwrite=config.overwrite, suffix=".html")
    prevalence, auroc, rows = CLINIC_PREVALENCE, AUROC, None
    if config.against is not None and config.input is None:
        raise InputError("against=FILE is compared with a first prediction file; give both")
    if config.input is not None:
        rows = read_predictions(config.input, **reader_options(config, config.system))
        measured = evaluate(rows, resamples=0)
        prevalence, auroc = measured["prevalence"], measured["metrics"]["auroc"]["value"]
    prevalence, auroc = config.prevalence or prevalence, config.auroc or auroc
    if not LOWEST <= auroc <= HIGHEST:
        advice = f"sizes are planned for {LOWEST} to {HIGHEST}: give auroc="
        if auroc < 1 - LOWEST:
            advice = "it ranks benign lesions above malignant ones: check its labels and positive="
        raise InputError(f"{config.input}: its AUROC is {auroc:.3g}; {advice}")
    config = replace(config, difference=config.difference or min(DIFFERENCE, (1 - auroc) / 2))
    table, slope = _plan_table(config, rows, prevalence, auroc)
    lead = TEXTS["plan"]["lead"].format(format_number(auroc), format_percent(prevalence, 2))
    figure = _plan_figure(prevalence, auroc, config.confidence, slope)
    notes = [Note(TEXTS["plan"]["resampled"])] if rows is not None else []
    section = Section("plan", "Malignant lesions needed", [table, *notes, figure], lead)
    facts = [] if config.input is None else [Path(config.input).name]
    write_page(Path(config.output), title="Sample sizes", facts=facts, sections=[section])
    assumed = f"AUROC {format_number(auroc)}, {format_percent(prevalence, 2)} malignant lesions"
    text = format_columns(table.header, table.rows)
    print_line(f"{text}\nassumed: {assumed}\npage: {config.output}")
    return 0


def _plan_table(
    config: PlanConfig, rows: Predictions | None, prevalence: float, auroc: float
) -> tuple[Table, float]:
    """Return the sample sizes by formula and, given predictions, by resampling patients.

    Also the width of the interval of a slope, times the root of the malignant lesions.
    """
    level, power, target = config.confidence, config.power, config.sensitivity
    goals = {
        "guarantee": planning.malignant_for_guarantee(target, level),
        "sensitivity": planning.malignant_for_sensitivity(target, config.expected, level, power),
        "auroc": planning.malignant_for_auroc(auroc, config.width, prevalence, level),
        "difference": planning.malignant_for_difference(
            auroc,
            config.difference or DIFFERENCE,
            prevalence,
            correlation=config.correlation,
            confidence=level,
            power=power,
        ),
        "slope": planning.malignant_for_slope(auroc, config.slope_width, prevalence, level),
    }
    numbers, cells = _resample(config, rows), []
    for goal, malignant in goals.items():
        text = TEXTS["plan"][goal].format_map(vars(config))
        cells.append([text, f"{malignant:,}", f"{round(malignant / prevalence):,}"])
        if rows is not None:
            cells[-1].append(f"{numbers[goal]:,}" if goal in numbers else ABSENT)
    header = ["Goal", "Malignant lesions", "All lesions"]
    table = Table(
        "",
        header if rows is None else [*header, "Patients with malignant lesions, by resampling"],
        cells,
    )
    return table, config.slope_width * math.sqrt(goals["slope"])


def _resample(config: PlanConfig, rows: Predictions | None) -> dict[str, int]:
    """Return the sample size for each goal, from resampling the patients of predictions."""
    if rows is None:
        return {}
    level = config.confidence
    widths = {"auroc": config.width, "calibration_slope": config.slope_width}
    auroc, slope = (
        planning.malignant_by_simulation(rows, metric, width, level)
        for metric, width in widths.items()
    )
    numbers = {"auroc": auroc, "slope": slope}
    if config.against is not None:
        other = read_predictions(config.against, **reader_options(config))
        gain = config.difference or DIFFERENCE
        numbers["difference"] = planning.malignant_by_pairs(rows, other, gain, level, config.power)
    return numbers


def _plan_figure(prevalence: float, auroc: float, level: float, slope: float) -> Plot:
    """Draw the widths of intervals against the number of malignant lesions."""
    sizes = np.geomspace(20, 1000, 25)
    widths = [
        planning.auroc_width(auroc, n, n * (1 - prevalence) / prevalence, level) for n in sizes
    ]
    slopes = Line("calibration slope", sizes, slope / np.sqrt(sizes))
    lines = [Line("AUROC", sizes, np.array(widths)), slopes]
    return Plot("Width of the interval", draw_sizes(lines))
