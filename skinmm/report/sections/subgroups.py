"""How much the model loses when columns of the record are missing."""

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
from skinmm.images.measure import TONES, measure_skin_tone, name_skin_tone
from skinmm.report.blocks import Block, Note, Plot, Row, Section, Table
from skinmm.report.figures import curves, grids
from skinmm.report.figures.curves import Line
from skinmm.report.figures.grids import Estimate
from skinmm.report.format import format_estimate, format_percent, is_number, metric_label
from skinmm.report.inputs import ReportInputs

MISSING_DRAWN: Final = ("auroc", "ece")
MISSING_LISTED: Final = (*MISSING_DRAWN, "calibration_slope", "calibration_intercept", "brier")


def missing(evidence: ReportInputs) -> Section | None:
    """Ranking and calibration against the share of columns withheld, where training measured it."""
    parts = metrics_by_missing_share(evidence)
    if len(parts) == 1:
        return None
    plots = [
        Plot(metric_label(name), curves.missing(metric_label(name), line))
        for name in MISSING_DRAWN
        if len((line := _missing_line(name, parts)).x) > 1
    ]
    rows = [
        [
            format_percent(share),
            *(format_estimate(part["metrics"].get(name)) for name in MISSING_LISTED),
        ]
        for share, part in parts.items()
    ]
    header = ["Missing", *map(metric_label, MISSING_LISTED)]
    note = (
        "The same test rows without some of their columns, chosen by chance for each row; the "
        "calibration is that of whole records. Trained with model.drop_columns, a model minds less."
    )
    table = Table("Columns missing", header, rows, stack=True)
    return Section("missing", "Missing data", [Note(note), Row(plots), table])


def metrics_by_missing_share(evidence: ReportInputs) -> dict[float, Mapping[str, Any]]:
    """What was measured, by the share of columns that was withheld; 0 is the whole record."""
    found = {0.0: evidence.measured}
    for name, part in evidence.metrics.items():
        kind, *numbers = name.split("_")
        if kind == "missing":
            found[int(numbers[0]) / int(numbers[-1])] = part
    return found


def _missing_line(name: str, parts: Mapping[float, Mapping[str, Any]]) -> Line:
    known = [
        (share, *(entry[key] for key in ("value", "low", "high")))
        for share, part in parts.items()
        if (entry := part["metrics"][name])["value"] is not None
    ]
    x, y, low, high = np.array(known, dtype=float).reshape(len(known), 4).T
    return Line(name, x, y, low, high)


MEASURED: Final = 500
"""Pictures at most, half of them malignant where there are so many: nobody is kept waiting."""
_SIDE: Final = 64  # pixels


def with_tones(records: pd.DataFrame, malignant: Bool[np.ndarray, " n"]) -> pd.DataFrame:
    """The records with a column `skin_tone`, missing where it was not or cannot be measured.

    Args:
        records: canonical rows; without a column `path` nothing is measured.
        malignant: of the same rows.
    """
    if "path" not in records:
        return records
    there = records["path"].notna().to_numpy()
    chance = np.random.default_rng(0)
    chosen = chance.permutation(np.flatnonzero(there & malignant))[: MEASURED // 2]
    others = chance.permutation(np.flatnonzero(there & ~malignant))[: MEASURED - len(chosen)]
    rows = np.r_[chosen, others]
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(_tone, records["path"].to_numpy(dtype=object)[rows]))
    tones = np.full(len(records), None, dtype=object)
    tones[rows] = found
    return records.assign(skin_tone=pd.Categorical(tones, categories=[*TONES]))


def _tone(path: Any) -> str | None:
    from skinmm.images.decode import decode
    from skinmm.images.source import read_source

    try:
        source = read_source(str(path))
        return name_skin_tone(
            measure_skin_tone(decode(source.data, size=_SIDE, frame=source.frame))
        )
    except (OSError, InputError):
        return None


RESAMPLES: Final = 300  # enough for a drawing; some twenty groups are resampled
MEASURES: Final[dict[str, str]] = {
    "auroc": "AUROC",
    "sensitivity": "Sensitivity at the threshold",
    "specificity": "Specificity at the threshold",
}
CLASSES: Final = 9  # as many columns as a page holds
DRAWN: Final = ("auroc", "sensitivity")


def subgroups(evidence: ReportInputs) -> Section | None:
    """Forest plots, gaps and a table over sex, age, site, source and image size."""
    if evidence.records is None:
        return None
    rows = evidence.predictions
    groups = build_groups(with_tones(evidence.records, rows.malignant))
    if not groups:
        return None
    settings: dict[str, Any] = {
        "threshold": evidence.threshold,
        "resamples": RESAMPLES,
        "confidence": evidence.confidence,
    }
    measured = evaluate_subgroups(rows, groups, **settings)
    gaps = sensitivity_gaps(rows, groups, **settings)
    drawn = (_forest(evidence, measured, name) for name in DRAWN)
    parts: list[Plot | Table] = [plot for plot in drawn if plot is not None]
    blocks: list[Block] = [Row(parts)] if parts else []
    blocks += [_gaps(gaps)] if gaps else []
    blocks.append(_table(measured))
    if rows.sets is not None:
        blocks += _coverage(evidence, measured)
    blocks.append(
        Note(
            "Groups differ by chance too: a gap counts where intervals lie apart, and even then "
            "only as a reason to look closer. An image size names a camera or an archive, not a "
            "patient; a gap there means that the model may have learnt where a picture comes from. "
            f"Skin tone is an estimate from the border of at most {MEASURED} pictures (individual "
            "typology angle): light and camera move it, and nobody's skin was looked at."
        )
    )
    return Section("subgroups", "Subgroups", blocks)


def _forest(
    evidence: ReportInputs, measured: Sequence[Mapping[str, Any]], name: str
) -> Plot | None:
    overall = evidence.estimate(name)
    if not overall or not is_number(overall["value"]):
        return None
    rows = [
        _estimate(f"{found['group']} ({found['positives']:,})", found["metrics"][name])
        for found in measured
        if is_number(found["metrics"][name]["value"]) and found["positives"] >= MIN_MALIGNANT
    ]
    if not rows:
        return None
    everyone = f"everyone ({evidence.measured['positives']:,})"
    return Plot(
        MEASURES[name],
        grids.forest(rows, _estimate(everyone, overall), label=MEASURES[name]),
        f"In brackets: malignant images. Dotted: everyone. Groups with fewer than {MIN_MALIGNANT} "
        "malignant images are in the table only.",
    )


def _gaps(gaps: Sequence[Mapping[str, Any]]) -> Table:
    rows = [(gap["column"], gap["lowest"], gap["highest"], format_estimate(gap)) for gap in gaps]
    header = ("Column", "Lowest", "Highest", "Gap (interval)")
    return Table("Gaps in sensitivity at the threshold", header, rows)


def _table(measured: Sequence[Mapping[str, Any]]) -> Table:
    rows = [
        (
            f"{found['column']}: {found['group']}",
            f"{found['n']:,}",
            f"{found['positives']:,}",
            *(format_estimate(found["metrics"][name]) for name in MEASURES),
        )
        for found in measured
    ]
    header = ("Group", "Images", "Malignant", "AUROC", "Sensitivity", "Specificity")
    return Table("By group", header, rows, stack=True)


def _coverage(evidence: ReportInputs, measured: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Refer rate and coverage by group; a group whose interval lies below what was stated is named.

    Coverage is promised for each class over everyone, and for no group.
    """
    classes = evidence.predictions.classes[:CLASSES]
    names = ["referred", *(f"coverage_{name}" for name in classes)]
    stated = evidence.coverage
    lines, low = [], []
    for found in measured:
        group = f"{found['column']}: {found['group']}"
        lines.append((group, *(format_estimate(found["metrics"][name]) for name in names)))
        low += [
            f"{group} ({label})"
            for label, name in zip(classes, names[1:], strict=True)
            if stated and is_number(high := found["metrics"][name]["high"]) and high < stated
        ]
    table = Table(
        "Referral and coverage by group", ("Group", *map(metric_label, names)), lines, stack=True
    )
    if not low:
        return [table]
    text = f"Prediction sets hold the true class less often than stated in: {', '.join(low)}."
    return [table, Note(text, loud=True)]


def _estimate(name: str, found: Mapping[str, Any]) -> Estimate:
    return Estimate(name, found["value"], found["low"], found["high"])
