"""Figures, tables and differing settings of several systems."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from skinmm.config import Config, flatten, keys_with
from skinmm.evaluation.metrics import evaluate
from skinmm.report.blocks import (
    Plot,
    Row,
    Section,
    Table,
    format_estimate,
    format_estimates,
    format_number,
    format_percent,
    is_number,
    metric_label,
)
from skinmm.report.figures import PALETTE
from skinmm.report.figures.curves import draw_ranking, roc_line
from skinmm.report.figures.grids import Axis, draw_parallel
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.subgroups import MISSING_DRAWN, metrics_by_missing_share

SHOWN: Final = ("auroc", "average_precision", "sensitivity", "specificity", "ece", "brier")
CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece")
MEAN: Final = "Mean probability / prevalence"
CLINIC: Final = ("ppv", "npv", "number_needed_to_treat", "net_benefit", "net_benefit_gain")

Systems = Mapping[str, ReportInputs]
"""Name -> inputs of a row of the comparison."""


def draw_systems(systems: Systems) -> Section:
    """Build the section of parallel coordinates, with ROC curves if colours suffice."""
    has_colours = len(systems) <= len(PALETTE)
    caption = "Colours as in the curves." if has_colours else "Brighter lines: higher AUROC."
    plots = [Plot("Parallel coordinates", _draw_parallel(systems), caption)]
    predictions = {name: inputs.predictions for name, inputs in systems.items()}
    if has_colours and all(0 < rows.malignant.mean() < 1 for rows in predictions.values()):
        lines = [roc_line(name, r.malignancy, r.malignant) for name, r in predictions.items()]
        roc = Plot("ROC curves", draw_ranking(lines), "In brackets: area under the curve.")
        plots.insert(0, roc)
    return Section("drawings", "Figures", [Row(plots)])


def _draw_parallel(systems: Systems) -> Markup:
    axes = []
    settings = different_settings(systems)
    keys = dict.fromkeys(key for values in settings.values() for key in values)
    for key in [*keys][:6]:
        values = [settings[name].get(key) for name in systems]
        if all(map(is_number, values)):
            axes.append(Axis(key, np.array(values, dtype=np.float64)))
        else:
            words = [format_setting(value) for value in values]
            labels = sorted(set(words))
            axes.append(Axis(key, np.array(list(map(labels.index, words)), np.float64), labels))
    for name in SHOWN[:1] if axes else SHOWN:
        metrics = [inputs.value(name) for inputs in systems.values()]
        numbers = [value if is_number(value) else np.nan for value in metrics]
        axes.append(Axis(metric_label(name), np.array(numbers, np.float64)))
    aurocs = next(axis.values for axis in axes if axis.name == metric_label("auroc"))
    return draw_parallel(axes, aurocs)


def format_setting(value: Any) -> str:
    """Format a value of the configuration as YAML writes it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def different_settings(systems: Systems) -> dict[str, dict[str, Any]]:
    """Return the settings that differ between runs, by system; prediction files have none."""
    settings = {name: flatten(inputs.config) for name, inputs in systems.items()}
    runs = [values for values in settings.values() if values]
    different = [
        key
        for key in dict.fromkeys(key for values in runs for key in values)
        if not key.startswith((*keys_with(Config, "incidental"), *keys_with(Config, "per_start")))
        and len({str(values.get(key)) for values in runs}) > 1
    ]
    return {
        name: {key: values[key] for key in different if key in values}
        for name, values in settings.items()
    }


def clinic_table(systems: Systems) -> Table | None:
    """Return predictive values and net benefit at the prevalence of a clinic."""
    clinics = {name: inputs.measured.get("clinic") for name, inputs in systems.items()}
    rows = [
        [name, format_percent(c["prevalence"], 2), *format_estimates(c["metrics"], CLINIC)]
        for name, c in clinics.items()
        if c
    ]
    header = ["System", "Prevalence", *map(metric_label, CLINIC)]
    return Table("In a clinic", header, rows, stack=True) if rows else None


def calibration_table(systems: Systems) -> Table | None:
    """Return calibration before and after correction, or `as given` without raw probabilities."""
    rows = []
    for name, inputs in systems.items():
        after = inputs.predictions
        if not 0 < after.malignant.mean() < 1:
            continue
        measured = {"as given": inputs.measured}
        if after.raw is not None:
            before = replace(after, probabilities=after.raw, decision=None)
            measured = {"before": evaluate(before, resamples=0), "after": inputs.measured}
        rows += [[name, kind, *calibration_cells(values)] for kind, values in measured.items()]
    header = ["System", "Correction", MEAN, *map(metric_label, CALIBRATION)]
    return Table("Calibration", header, rows, stack=True) if rows else None


def calibration_cells(measured: Mapping[str, Any]) -> list[str]:
    """Format mean probability / prevalence and the calibration metrics of an evaluation."""
    metrics = measured["metrics"]
    ratio = metrics["mean_probability"]["value"] / (measured["positives"] / measured["n"])
    return [format_number(ratio), *format_estimates(metrics, CALIBRATION)]


def source_table(systems: Systems) -> Table | None:
    """Return the AUROC by source of each system that was tested on several sources."""
    results = {name: inputs.measured.get("sources") for name, inputs in systems.items()}
    aurocs = {
        name: {entry["source"]: format_estimate(entry) for entry in result["aurocs"]}
        for name, result in results.items()
        if result
    }
    sources = sorted({source for by_source in aurocs.values() for source in by_source})
    within = "within_source_auroc"
    rows = [
        [name, format_estimate(systems[name].estimate(within)), *(e.get(s, "") for s in sources)]
        for name, e in aurocs.items()
    ]
    header = ["System", metric_label(within), *sources]
    return Table("AUROC by source", header, rows, stack=True) if rows else None


def missing_table(systems: Systems) -> Table | None:
    """Return the table of ranking and calibration metrics by share of missing columns."""
    parts = {name: metrics_by_missing_share(inputs) for name, inputs in systems.items()}
    shares = sorted({share for by_share in parts.values() for share in by_share})
    rows = []
    for name, by_share in parts.items():
        metrics = [by_share.get(share, {}).get("metrics", {}) for share in shares]
        rows += [
            [name, metric_label(key), *(format_estimate(m.get(key)) for m in metrics)]
            for key in ((*MISSING_DRAWN, CALIBRATION[0]) if len(by_share) > 1 else ())
        ]
    header = ["System", "Columns missing", *map(format_percent, shares)]
    return Table("Missing data", header, rows, stack=True) if rows else None
