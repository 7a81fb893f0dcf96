"""Sections on subgroups of patients and on missing record columns."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.evaluation.subgroups import (
    MIN_MALIGNANT,
    build_groups,
    evaluate_subgroups,
    sensitivity_gaps,
)
from skinmm.images.decode import decode
from skinmm.images.measure import TONES, measure_skin_tone, name_skin_tone
from skinmm.images.source import read_source
from skinmm.report.blocks import (
    ABSENT,
    TEXTS,
    Block,
    Fold,
    Note,
    Plot,
    Row,
    Section,
    Table,
    format_estimate,
    format_estimates,
    format_number,
    format_p,
    format_percent,
    is_number,
    metric_label,
)
from skinmm.report.figures import curves
from skinmm.report.figures.grids import draw_forest
from skinmm.report.inputs import ReportInputs

MEASURES: Final[dict[str, str]] = TEXTS["measures"]
MISSING_DRAWN: Final = ("auroc", "ece")
MISSING_LISTED: Final = (*MISSING_DRAWN, "calibration_slope", "calibration_intercept", "brier")
MAX_TONES: Final = 500
"""Maximum number of images whose skin tone is measured, half of them malignant if available."""


def build_subgroups(inputs: ReportInputs) -> Section | None:
    """Build forest plots, gaps and tables over sex, age, site, source, size and skin tone."""
    if inputs.records is None:
        return None
    rows = inputs.predictions
    groups = build_groups(add_skin_tones(inputs.records, rows.malignant))
    if not groups:
        return None
    # Enough resamples for a figure; about twenty groups are resampled.
    settings = dict[str, Any](confidence=inputs.confidence, resamples=300)
    measured = evaluate_subgroups(rows, groups, threshold=inputs.threshold, **settings)
    gaps = sensitivity_gaps(rows, groups, threshold=inputs.threshold, confidence=inputs.confidence)
    plots = [
        plot for name in ("auroc", "sensitivity") if (plot := _forest_plot(inputs, measured, name))
    ]
    blocks: list[Block] = [Row(plots)] if plots else []
    tables: list[Block] = []
    for g in gaps:
        if g["p_holm"] < 1 - inputs.confidence:
            facts = {**g, "gap": format_estimate(g), "p": format_p(g["p_holm"])}
            blocks.append(Note(TEXTS["shown_gap"].format(**facts), warning=True))
    if gaps:
        lines = [
            (
                *(g["column"], str(g["groups"])),
                *((g["lowest"], g["highest"]) if g["value"] else (ABSENT, ABSENT)),
                *(format_estimate(g), format_p(g["p_holm"])),
            )
            for g in gaps
        ]
        header = ("Column", "Groups", "Lowest", "Highest", "Gap (interval)", "p (adjusted)")
        tables.append(Table("Gaps in sensitivity at the threshold", header, lines, stack=True))
        tables.append(Note(TEXTS["gaps"].format(MIN_MALIGNANT)))
    tables.append(_group_table(measured))
    tables += _source_blocks(inputs, measured)
    if rows.sets is not None:
        coverage, *warnings = _coverage_blocks(inputs, measured)
        tables.append(coverage)
        blocks += warnings
    names = {group.column for group in groups}
    notes = (text for name, text in TEXTS["subgroup_notes"].items() if name in names)
    note = Note(" ".join([TEXTS["subgroups"], *notes]).format(MAX_TONES))
    return Section("subgroups", "Subgroups", [*blocks, note, Fold("Tables by group", tables)])


def add_skin_tones(records: pd.DataFrame, malignant: Bool[np.ndarray, " n"]) -> pd.DataFrame:
    """Add a column `skin_tone` if paths are given; missing without a measured image."""
    if "path" not in records:
        return records
    has_path = records["path"].notna().to_numpy()
    rng = np.random.default_rng(0)
    positives = rng.permutation(np.flatnonzero(has_path & malignant))[: MAX_TONES // 2]
    negatives = rng.permutation(np.flatnonzero(has_path & ~malignant))[: MAX_TONES - len(positives)]
    rows = np.r_[positives, negatives]
    tones = np.full(len(records), None, dtype=object)
    with ThreadPoolExecutor() as pool:
        tones[rows] = list(pool.map(_measure_tone, records["path"].to_numpy(dtype=object)[rows]))
    return records.assign(skin_tone=pd.Categorical(tones, categories=[*TONES]))


def _measure_tone(path: Any) -> str | None:
    try:
        source = read_source(str(path))
        pixels = decode(source.data, size=64, frame=source.frame)
        return name_skin_tone(measure_skin_tone(pixels))
    except (OSError, InputError):
        return None


def _forest_plot(
    inputs: ReportInputs, measured: Sequence[Mapping[str, Any]], name: str
) -> Plot | None:
    rows = [
        (f"{group['group']} ({group['positives']:,})", group["metrics"][name])
        for group in measured
        if is_number(group["metrics"][name]["value"]) and group["positives"] >= MIN_MALIGNANT
    ]
    if not rows or not is_number(inputs.value(name)):
        return None
    rows.insert(0, (f"all ({inputs.measured['positives']:,})", inputs.estimate(name)))
    label, caption = MEASURES[name], TEXTS["forest"].format(MIN_MALIGNANT)
    return Plot(label, draw_forest(rows, label), caption)


def _group_table(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for group in measured:
        name = f"{group['column']}: {group['group']}"
        counts = (f"{group['n']:,}", f"{group['positives']:,}")
        rows.append((name, *counts, *format_estimates(group["metrics"], MEASURES)))
    header = ("Group", "Images", "Malignant", "AUROC", "Sensitivity", "Specificity")
    return Table("By group", header, rows, stack=True)


def _source_blocks(inputs: ReportInputs, measured: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return calibration by source, and the random-effects mean of the sources' AUROCs."""
    blocks: list[Block] = []
    names = ("mean_probability", "calibration_intercept", "calibration_slope")
    rows = [
        (g["group"], format_percent(g["prevalence"]), *format_estimates(g["metrics"], names))
        for g in measured
        if g["column"] == "source"
    ]
    if rows:
        header = ("Source", "Malignant", *map(metric_label, names))
        blocks.append(Table("Calibration by source", header, rows, stack=True))
    if mean := (inputs.measured.get("sources") or {}).get("random_effects"):
        left_out = ", ".join(mean["left_out"])
        text = TEXTS["random_effects"].format(
            count=len(inputs.measured["sources"]["aurocs"]) - len(mean["left_out"]),
            mean=format_estimate(mean),
            low=format_number(mean["prediction_low"]),
            high=format_number(mean["prediction_high"]),
            i2=format_percent(mean["i2"], 0),
            left_out=f" Left out, without a standard error: {left_out}." if left_out else "",
        )
        blocks.append(Note(text))
    return blocks


def _coverage_blocks(inputs: ReportInputs, measured: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return referral and coverage by group, and a warning about groups with too low coverage.

    Coverage is guaranteed for each class over all rows, but not for any group.
    """
    classes = inputs.predictions.classes[:9]  # as many columns as fit on a page
    names = ["referred", *(f"coverage_{name}" for name in classes)]
    stated = inputs.fitted("conformal").get("coverage", inputs.evaluation.get("coverage")) or 0.0
    lines, low_groups = [], []
    for group in measured:
        label, metrics = f"{group['column']} {group['group']}", group["metrics"]
        lines.append((label, *format_estimates(metrics, names)))
        highs = {name: metrics[f"coverage_{name}"]["high"] for name in classes}
        low = (name for name, high in highs.items() if is_number(high) and high < stated)
        low_groups += [f"{name} lesions ({label})" for name in low]
    header = ("Group", *map(metric_label, names))
    blocks: list[Block] = [Table("Referral and coverage by group", header, lines, stack=True)]
    if low_groups:
        text = TEXTS["low_coverage"].format(format_percent(stated, 0), ", ".join(low_groups))
        blocks.append(Note(text, warning=True))
    return blocks


def build_missing(inputs: ReportInputs) -> Section | None:
    """Build the section on missing columns: metrics by missing share; None if not measured."""
    parts = metrics_by_missing_share(inputs)
    if len(parts) == 1:
        return None
    plots = []
    for name in MISSING_DRAWN:
        entries = {share: part["metrics"][name] for share, part in parts.items()}
        points = [
            (share, entry["value"], entry["low"], entry["high"])
            for share, entry in entries.items()
            if entry["value"] is not None
        ]
        if len(points) > 1:
            line = curves.Line(metric_label(name), *np.array(points, dtype=float).T)
            plots.append(Plot(line.name, curves.draw_missing(line)))
    rows = [
        [format_percent(share), *format_estimates(part["metrics"], MISSING_LISTED)]
        for share, part in parts.items()
    ]
    header = ["Missing", *map(metric_label, MISSING_LISTED)]
    table = Table("Columns missing", header, rows, stack=True)
    advice = "" if inputs.has_fitted_head else f" {TEXTS['missing_advice']}"
    note = Note(f"{TEXTS['missing']}{advice}")
    return Section("missing", "Missing data", [note, Row(plots), table], is_folded=True)


def metrics_by_missing_share(inputs: ReportInputs) -> dict[float, Mapping[str, Any]]:
    """Return the test metrics by share of withheld columns; share 0 is the complete record."""
    parts = {0.0: inputs.measured}
    for name, part in inputs.metrics.items():
        kind, *numbers = name.split("_")
        if kind == "missing":
            parts[int(numbers[0]) / int(numbers[-1])] = part
    return parts
