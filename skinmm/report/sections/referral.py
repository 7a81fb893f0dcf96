"""Section on referral to a person, with numbers and warnings for the headline section."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from skinmm.errors import format_count
from skinmm.evaluation.conformal import ConformalPredictor
from skinmm.evaluation.predictions import DECISIONS
from skinmm.evaluation.thresholds import ReferralBand, RiskLimit
from skinmm.report.blocks import (
    ABSENT,
    TEXTS,
    Block,
    Plot,
    Row,
    Section,
    Table,
    Tile,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    metric_label,
    metric_table,
)
from skinmm.report.figures.curves import draw_referral, referral_lines
from skinmm.report.figures.grids import draw_confusion
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.cohort import resampling_unit

REFERRAL: Final = (
    *("referred", "unfamiliar", "set_size", "decided_ppv", "decided_npv"),
    *("decided_sensitivity", "decided_specificity", "found_or_referred", "cleared_or_referred"),
)


def format_error_share(entry: Mapping[str, Any]) -> str:
    """Format 1 minus a predictive value as a percentage with its interval; a dash if undefined."""
    wrong = _complement(entry)
    share, interval = format_percent(wrong["value"]), format_interval(wrong, percent=True)
    return f"{share} ({interval})" if interval else share


def _complement(entry: Mapping[str, Any]) -> dict[str, Any]:
    pairs = {"value": entry.get("value"), "low": entry.get("high"), "high": entry.get("low")}
    return {name: None if value is None else 1 - value for name, value in pairs.items()}


def build_decided_tiles(inputs: ReportInputs) -> list[Tile]:
    """Return the shares of referred rows and of wrong decisions; empty without referral."""
    referred = inputs.estimate("referred")
    if not referred.get("value"):
        return []
    interval = format_interval(referred, percent=True) or "no interval"
    share = format_percent(referred["value"])
    tiles = [Tile(metric_label("referred"), share, interval, TEXTS["referred_meaning"])]
    for name, decision, truth in (
        ("decided_npv", "benign", "malignant"),
        ("decided_ppv", "malignant", "benign"),
    ):
        wrong, decided = _complement(inputs.estimate(name)), inputs.predictions.decision == decision
        share, interval = format_percent(wrong["value"]), format_interval(wrong, percent=True)
        if share != ABSENT:
            interval = interval or "no interval"
        meaning = TEXTS["decided"].format(format_count(int(np.sum(decided)), "lesion"), decision)
        tiles.append(Tile(f"Decided {decision}, but {truth}", share, interval, meaning))
    return tiles


def collect_referral_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about targets and classes with too few validation rows."""
    warnings = []
    if state := inputs.fitted("band"):
        band = ReferralBand.from_state(dict(state))
        warnings += _limit_warnings(inputs, band.low, "miss_rate", "malignant", "benign")
        warnings += _limit_warnings(inputs, band.high, "false_alarm_rate", "benign", "malignant")
    return warnings + _coverage_warnings(inputs)


def _limit_warnings(
    inputs: ReportInputs, limit: RiskLimit, name: str, kind: str, decision: str
) -> list[str]:
    """Return warnings about targets that validation cannot certify or that permit no decision."""
    needed, unit = math.ceil(1 / limit.target - 1 - 1e-9), resampling_unit(inputs)
    facts = {
        "name": name,
        "target": f"{limit.target:g}",
        "kind": kind,
        "decision": decision,
        "count": f"{limit.patients:,}",
        "needed": format_count(needed, "patient") if unit == "patient" else f"{needed:,}",
        "cases": f"with {kind} lesions" if unit == "patient" else f"{kind} {unit}s",
        "certified": format_percent(limit.certified),
        "side": "lower" if decision == "benign" else "higher",
        "rows": TEXTS["limit_rows"][inputs.fitting_rows],
        "checkpoint": f" by {inputs.checkpoint}" if inputs.fitting_rows == "folds" else "",
    }
    warnings = []
    if limit.certified > limit.target:
        warnings.append(TEXTS["not_certified"].format(**facts))
    if (rows := inputs.predictions).decision is not None and decision not in rows.decision:
        is_by_band = _is_limited_by_band(inputs, decision)
        warnings.append(
            TEXTS["none_decided_by_band" if is_by_band else "none_decided"].format(**facts)
        )
    return warnings


def _is_limited_by_band(inputs: ReportInputs, decision: str) -> bool:
    """Return whether only the band prevents a decision; False if each fold had its own band."""
    rows = inputs.predictions
    is_on_side = (rows.malignancy >= inputs.threshold) == (decision == "malignant")
    is_familiar = np.ones(len(rows), dtype=bool) if rows.ood is None else ~(rows.ood > 1)
    return rows.fold is None and bool((is_on_side & is_familiar).any())


def _coverage_warnings(inputs: ReportInputs) -> list[str]:
    """Return warnings about classes with too few validation images for the stated coverage."""
    state, warnings, loose = inputs.fitted("conformal"), [], []
    no_coverage = TEXTS["no_coverage" if inputs.fitted("band") else "no_coverage_no_decision"]
    for name, count in state.get("rows", {}).items():
        bounds = ConformalPredictor(**state).coverage_range(name)
        if bounds is None:
            needed = math.ceil(1 / (1 - state["coverage"]) - 1 - 1e-9)
            warnings.append(no_coverage.format(name=name, count=count, needed=needed))
        elif bounds[0] < state["coverage"] - 0.05:  # lower than stated by 5 points
            ends = " to ".join(format_percent(end, 0) for end in bounds)
            loose.append(f"{count} {name} validation images ({ends})")
    if loose:
        warnings.append(TEXTS["loose_coverage"].format(", ".join(loose)))
    return warnings


def describe_referred(inputs: ReportInputs) -> str:
    """Return `31.2 % of images (28.0 % to 34.1 %)`; empty if no row is referred."""
    entry = inputs.estimate("referred")
    if not entry.get("value"):
        return ""
    interval = format_interval(entry, percent=True)
    return f"{format_percent(entry['value'])} of images{f' ({interval})' if interval else ''}"


def describe_shares(metrics: Mapping[str, Any]) -> str:
    """Describe the shares of wrong decisions among the decided lesions."""
    parts = []
    for name, side, other in (("npv", "benign", "malignant"), ("ppv", "malignant", "benign")):
        share = format_error_share(metrics[f"decided_{name}"])
        text = TEXTS["nothing_decided" if share == ABSENT else "decided_wrongly"]
        parts.append(text.format(decided=side, share=share, other=other))
    return ", and ".join(parts)


def describe_decided(inputs: ReportInputs) -> list[str]:
    """Describe the decided lesions in a sentence; "" without referral."""
    if not inputs.estimate("referred").get("value"):
        return []
    return [f"In this test, {describe_shares(inputs.measured['metrics'])}."]


def build_referral(inputs: ReportInputs) -> Section | None:
    """Build the section with decisions including referral, and coverage of prediction sets."""
    rows = inputs.predictions
    if rows.decision is None or not _has_referral(inputs):
        return None
    names = [name for name in DECISIONS if name in rows.decision]
    counts = pd.crosstab(np.where(rows.malignant, "malignant", "benign"), rows.decision)
    figure = draw_confusion(counts[names].to_numpy(), list(counts.index), names)
    parts: list[Plot | Table] = [
        Plot("Decision", figure, "Rows: true class. Columns: decision."),
        metric_table("With referral", inputs.measured, REFERRAL),
    ]
    if 0 < rows.malignant.sum() < len(rows):
        lines = referral_lines(rows.malignancy, rows.malignant, inputs.threshold)
        points = [
            (inputs.value("referred"), inputs.value(f"{name}_or_referred"))
            for name in ("found", "cleared")
        ]
        parts.append(Plot("Referral", draw_referral(lines, points), TEXTS["referral_curve"]))
    blocks: list[Block] = [Row(parts)]
    if rows.sets is not None:
        sizes = np.bincount(rows.sets.sum(axis=1))
        cells = [(str(size), format_percent(count / len(rows))) for size, count in enumerate(sizes)]
        size_table = Table("Classes in a prediction set", ("Classes", "Images"), cells)
        blocks.append(Row([_coverage_table(inputs), size_table]))
    return Section("referral", "Referral", blocks, describe_rule(inputs), is_folded=True)


def _has_referral(inputs: ReportInputs) -> bool:
    rows = inputs.predictions
    return rows.decision is not None and (rows.sets is not None or "refer" in rows.decision)


def describe_rule(inputs: ReportInputs) -> str:
    """Describe the decision rule of this run; "" without referral."""
    if not _has_referral(inputs):
        return ""
    state = inputs.fitted("band")
    if not state:
        return TEXTS["referral_by_sets" if inputs.fitted("conformal") else "referral_unknown"]
    band = ReferralBand.from_state(dict(state))
    threshold = inputs.fitted("threshold").get("value", inputs.threshold)
    rows, window = inputs.fitting_rows, inputs.metrics.get("selection", {}).get("window", 1)
    is_apart = rows == "calibration" or (rows == "val" and inputs.has_fitted_head)
    return TEXTS["referral"]["apart" if is_apart else rows].format(
        rows=TEXTS["limit_rows"][rows],
        selected=TEXTS["selected_by_one"] if window == 1 else f" by the mean of {window} epochs",
        checkpoint=inputs.checkpoint,
        low=_name_limit(min(band.low.value, threshold), threshold),
        high=_name_limit(max(band.high.value, threshold), threshold),
        misses=format_percent(band.low.certified),
        most_misses=format_percent(band.low.upper_bound(inputs.confidence)),
        alarms=format_percent(band.high.certified),
        most_alarms=format_percent(band.high.upper_bound(inputs.confidence)),
        confidence=format_percent(inputs.confidence, 0),
        unit=resampling_unit(inputs),
    )


def _name_limit(limit: float, threshold: float) -> str:
    """Name the limit of a decision, which may be the threshold."""
    return f"{'the threshold' if limit == threshold else 'a probability'} of {format_number(limit)}"


def _coverage_table(inputs: ReportInputs) -> Table:
    """Return observed coverage by class, with the range expected from the validation rows."""
    state = inputs.fitted("conformal")
    header = ["Class", "Sets that contain it (interval)"]
    if state:
        header += ["Validation images", f"Expected, for {format_percent(state['coverage'], 0)}"]
    lines = []
    for name in inputs.predictions.classes:
        line = [name, format_estimate(inputs.estimate(f"coverage_{name}"))]
        if state:
            bounds = ConformalPredictor(**state).coverage_range(name)
            expected = "none" if bounds is None else " to ".join(f"{end:.2f}" for end in bounds)
            line += [f"{state['rows'][name]:,}", expected]
        lines.append(line)
    return Table("Coverage of the prediction sets", header, lines, stack=True)
