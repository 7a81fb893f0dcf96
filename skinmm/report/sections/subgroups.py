"""Sections on subgroups of patients and on missing columns of the record."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from skinmm.errors import InputError
from skinmm.evaluation.comparison import (
    MIN_MALIGNANT,
    build_groups,
    evaluate_subgroups,
    sensitivity_gaps,
)
from skinmm.images.decode import decode
from skinmm.images.measure import TONES, measure_skin_tone, name_skin_tone
from skinmm.images.source import read_source
from skinmm.report.blocks import Block, Note, Plot, Row, Section, Table
from skinmm.report.figures import curves
from skinmm.report.figures.grids import Estimate, draw_forest
from skinmm.report.format import format_estimate, format_percent, is_number, metric_label
from skinmm.report.inputs import ReportInputs

RESAMPLES: Final = 300  # enough for a figure; about twenty groups are resampled
MEASURES: Final[dict[str, str]] = {
    "auroc": "AUROC",
    "sensitivity": "Sensitivity at the threshold",
    "specificity": "Specificity at the threshold",
}
CLASSES: Final = 9  # columns that fit on a page
FOREST: Final = ("auroc", "sensitivity")
MISSING_DRAWN: Final = ("auroc", "ece")
MISSING_LISTED: Final = (*MISSING_DRAWN, "calibration_slope", "calibration_intercept", "brier")
MAX_TONES: Final = 500
"""Maximum number of images whose skin tone is measured, half of them malignant if available."""
_TONE_SIDE: Final = 64  # pixels
_GROUPS_NOTE: Final = (
    "Groups differ by chance too: take a gap seriously only if the intervals do not overlap, and "
    "then as a reason to investigate. An image size identifies a camera or an archive, not a "
    "patient; a gap between sizes means that the model may have learnt the origin of an image. "
    f"Skin tone is estimated from the border of at most {MAX_TONES} images (individual typology "
    "angle): light and camera change it, and no person assessed the skin."
)
_MISSING_NOTE: Final = (
    "The same test rows without some of their columns, chosen at random for each row; the "
    "calibration is that of complete records. A model trained with model.drop_columns loses less."
)


def build_subgroups(inputs: ReportInputs) -> Section | None:
    """Build forest plots, gaps and tables over sex, age, site, source, size and skin tone."""
    if inputs.records is None:
        return None
    rows = inputs.predictions
    groups = build_groups(add_skin_tones(inputs.records, rows.malignant))
    if not groups:
        return None
    settings: dict[str, Any] = {
        "threshold": inputs.threshold,
        "resamples": RESAMPLES,
        "confidence": inputs.confidence,
    }
    measured = evaluate_subgroups(rows, groups, **settings)
    gaps = sensitivity_gaps(rows, groups, **settings)
    plots = [plot for name in FOREST if (plot := _forest_plot(inputs, measured, name))]
    blocks: list[Block] = [Row(plots)] if plots else []
    if gaps:
        lines = [
            (gap["column"], gap["lowest"], gap["highest"], format_estimate(gap)) for gap in gaps
        ]
        header = ("Column", "Lowest", "Highest", "Gap (interval)")
        blocks.append(Table("Gaps in sensitivity at the threshold", header, lines))
    blocks.append(_group_table(measured))
    if rows.sets is not None:
        blocks += _coverage_blocks(inputs, measured)
    return Section("subgroups", "Subgroups", [*blocks, Note(_GROUPS_NOTE)])


def add_skin_tones(records: pd.DataFrame, malignant: Bool[np.ndarray, " n"]) -> pd.DataFrame:
    """Add a column `skin_tone`; it is missing for images that were not or cannot be measured.

    Args:
        records: canonical rows; unchanged without a column `path`.
        malignant: target of each row.
    """
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
        pixels = decode(source.data, size=_TONE_SIDE, frame=source.frame)
        return name_skin_tone(measure_skin_tone(pixels))
    except (OSError, InputError):
        return None


def _forest_plot(
    inputs: ReportInputs, measured: Sequence[Mapping[str, Any]], name: str
) -> Plot | None:
    rows = [
        Estimate.from_entry(f"{group['group']} ({group['positives']:,})", group["metrics"][name])
        for group in measured
        if is_number(group["metrics"][name]["value"]) and group["positives"] >= MIN_MALIGNANT
    ]
    if not rows or not is_number(inputs.value(name)):
        return None
    overall = Estimate.from_entry(f"all ({inputs.measured['positives']:,})", inputs.estimate(name))
    return Plot(
        MEASURES[name],
        draw_forest(rows, overall, label=MEASURES[name]),
        "In brackets: malignant images. Dotted: all images. Groups with fewer than "
        f"{MIN_MALIGNANT} malignant images are in the table only.",
    )


def _group_table(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{group['column']}: {group['group']}",
            f"{group['n']:,}",
            f"{group['positives']:,}",
            *(format_estimate(group["metrics"][name]) for name in MEASURES),
        )
        for group in measured
    ]
    header = ("Group", "Images", "Malignant", "AUROC", "Sensitivity", "Specificity")
    return Table("By group", header, rows, stack=True)


def _coverage_blocks(inputs: ReportInputs, measured: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Return referral and coverage by group, and a warning about groups below the stated coverage.

    Coverage is guaranteed for each class over all rows, but not for any group.
    """
    classes = inputs.predictions.classes[:CLASSES]
    names = ["referred", *(f"coverage_{name}" for name in classes)]
    lines, low_groups = [], []
    for group in measured:
        label, metrics = f"{group['column']}: {group['group']}", group["metrics"]
        lines.append((label, *(format_estimate(metrics[name]) for name in names)))
        low_groups += [
            f"{label} ({class_name})"
            for class_name in classes
            if inputs.coverage
            and is_number(high := metrics[f"coverage_{class_name}"]["high"])
            and high < inputs.coverage
        ]
    header = ("Group", *map(metric_label, names))
    blocks: list[Block] = [Table("Referral and coverage by group", header, lines, stack=True)]
    if low_groups:
        text = "Prediction sets contain the true class less often than stated in: "
        blocks.append(Note(f"{text}{', '.join(low_groups)}.", warning=True))
    return blocks


def build_missing(inputs: ReportInputs) -> Section | None:
    """Build ranking and calibration by share of withheld columns; None if not measured."""
    parts = metrics_by_missing_share(inputs)
    if len(parts) == 1:
        return None
    plots = [
        Plot(metric_label(name), curves.draw_missing(metric_label(name), line))
        for name in MISSING_DRAWN
        if len((line := _missing_line(name, parts)).x) > 1
    ]
    rows = []
    for share, part in parts.items():
        cells = (format_estimate(part["metrics"].get(name)) for name in MISSING_LISTED)
        rows.append([format_percent(share), *cells])
    header = ["Missing", *map(metric_label, MISSING_LISTED)]
    table = Table("Columns missing", header, rows, stack=True)
    return Section("missing", "Missing data", [Note(_MISSING_NOTE), Row(plots), table])


def metrics_by_missing_share(inputs: ReportInputs) -> dict[float, Mapping[str, Any]]:
    """Return the test metrics by share of withheld columns; 0 is the complete record."""
    parts = {0.0: inputs.measured}
    for name, part in inputs.metrics.items():
        kind, *numbers = name.split("_")
        if kind == "missing":
            parts[int(numbers[0]) / int(numbers[-1])] = part
    return parts


def _missing_line(name: str, parts: Mapping[float, Mapping[str, Any]]) -> curves.Line:
    points = [
        (share, *(entry[key] for key in ("value", "low", "high")))
        for share, part in parts.items()
        if (entry := part["metrics"][name])["value"] is not None
    ]
    return curves.Line(name, *np.array(points, dtype=float).reshape(len(points), 4).T)
