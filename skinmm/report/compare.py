"""Comparison of several systems: tables and figures on one page, and results on other cohorts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from skinmm.config import Config, flatten, keys_with
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.metrics import evaluate
from skinmm.report.blocks import Block, Note, Plot, Row, Section, Table
from skinmm.report.figures.curves import draw_ranking, roc_line
from skinmm.report.figures.grids import Axis, draw_parallel
from skinmm.report.format import (
    ABSENT,
    TEXTS,
    format_count,
    format_estimate,
    format_estimates,
    format_number,
    format_percent,
    is_number,
    metric_label,
)
from skinmm.report.inputs import ReportInputs, read_prediction_file, read_run
from skinmm.report.sections.subgroups import MISSING_DRAWN, metrics_by_missing_share
from skinmm.report.write import write_page

SHOWN: Final = ("auroc", "average_precision", "sensitivity", "specificity", "ece", "brier")
MACRO: Final = "macro_auroc"  # of multi-class runs only
DIFFERENT: Final = ("auroc", "average_precision", "brier")
CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece")
MEAN: Final = "Mean probability / prevalence"
MAX_PAIRED: Final = 6  # systems, which give fifteen pairs
MAX_CURVES: Final = 7  # distinguishable colours


@dataclass(frozen=True)
class System:
    """Row of the comparison; `settings` is the flattened configuration, empty for a file."""

    name: str
    inputs: ReportInputs
    settings: Mapping[str, Any]


def write_comparison(
    sources: Sequence[Path],
    output: Path,
    labels: Path | None = None,
    *,
    positive: Sequence[str] | None = None,
    against: Sequence[str] = (),
    overwrite: bool = False,
) -> tuple[list[Table], list[Note]]:
    """Write a page with tables, curves and parallel coordinates of several systems.

    Args:
        sources: prediction files, run folders, or folders whose subfolders are runs.
        output: page to write.
        labels: table with the target, for prediction files without it.
        positive: classes of the files that count as malignant; None: the default ones.
        against: systems to compare all others with, also in the table; empty: all pairs of the
            systems of highest AUROC.
        overwrite: replace an existing page.

    Returns:
        The tables of the systems and, if available, of calibration and missing data; and notes if
        the systems were not evaluated on the same images.

    Raises:
        InputError: fewer than two systems, a file that cannot be used, or the page exists.
    """
    require_new_output("output", Path(output), overwrite=overwrite)
    systems = [
        system for source in sources for system in _read_systems(Path(source), labels, positive)
    ]
    if len(systems) < 2:  # noqa: PLR2004 - a comparison needs two
        raise InputError(f"found {format_count(len(systems), 'system')}; name at least two")
    names = [system.name for system in systems]
    systems = [
        replace(system, name=f"{n}. {system.name}") if names.count(system.name) > 1 else system
        for n, system in enumerate(systems, start=1)
    ]
    result = _compare_systems(systems, against)
    table = _system_table(systems, result, against)
    differences = _differences(result, systems, against)
    further = [table for table in (_calibration_table(systems), _missing_table(systems)) if table]
    sections = [Section("systems", "Systems", [table]), differences, _draw_systems(systems)]
    if further:
        sections.append(Section("further", "Calibration and missing data", further))
    facts = [format_count(len(systems), "system")]
    write_page(Path(output), title="Comparison", facts=facts, sections=sections)
    return [table, *further], [block for block in differences.blocks if isinstance(block, Note)]


def compare_cohorts(results: Sequence[tuple[str, str, Path]], runs: Mapping[str, Path]) -> Table:
    """Return results of models on their own and on other cohorts, with a check for shortcuts.

    Args:
        results: training cohort, evaluated cohort, and the run folder or prediction file.
        runs: cohort -> run on it; its audit has the AUROC of the image size alone.
    """
    rows = []
    for trained, cohort, source in results:
        inputs = _read(source, None, None)
        audit = read_run(runs[cohort], pictures=False).audit
        auroc, ood = (format_estimate(inputs.estimate(name)) for name in ("auroc", "unfamiliar"))
        slope = _calibration_cells(inputs.measured)[:2]
        size = format_number(audit.get("size_auroc"))
        rows.append([trained, cohort, _count_malignant(inputs), auroc, *slope, ood, size])
    names = (metric_label("auroc"), MEAN, *map(metric_label, (CALIBRATION[0], "unfamiliar")))
    header = ["Trained on", "Evaluated on", "Malignant images", *names]
    return Table("Other cohorts", [*header, "AUROC of image size alone"], rows, stack=True)


def _count_malignant(inputs: ReportInputs) -> str:
    return f"{inputs.measured['positives']:,} of {inputs.measured['n']:,}"


def _read(source: Path, labels: Path | None, positive: Sequence[str] | None) -> ReportInputs:
    if source.is_dir():
        return read_run(source, pictures=False)
    return read_prediction_file(source, labels, positive, pictures=False)


def _read_systems(
    source: Path, labels: Path | None, positive: Sequence[str] | None
) -> list[System]:
    runs = {source: source.resolve().name if source.is_dir() else source.stem}
    if source.is_dir() and not (source / "predictions" / "test.csv").is_file():
        folders = (file.parents[1] for file in source.rglob("predictions/test.csv"))
        runs = {run: str(run.relative_to(source)) for run in folders if run.name[:5] != "fold_"}
    if not runs:
        raise InputError(f"{source}: no run found (no folder with predictions/test.csv)")
    # Runs with numbers as names are sorted by number.
    order = sorted(runs, key=lambda r: (r.parent, len(r.name) * r.name.isdecimal(), r.name))
    inputs = [_read(run, labels, positive) for run in order]
    return [System(runs[r], i, flatten(i.config)) for r, i in zip(order, inputs, strict=True)]


def _compare_systems(systems: Sequence[System], against: Sequence[str]) -> dict[str, Any] | None:
    """Return differences on the common images; None if runs have none in common."""
    ranked = sorted(systems, key=lambda system: system.inputs.value("auroc") or 0.0)
    best = {system.name for system in ranked[-MAX_PAIRED:]}
    chosen = [system for system in systems if against or system.name in best]
    image_ids = [set(system.inputs.predictions.image_id) for system in chosen]
    if not set.intersection(*image_ids) and any(system.settings for system in chosen):
        return None
    return compare(
        {system.name: system.inputs.predictions for system in chosen},
        thresholds={system.name: system.inputs.threshold for system in chosen},
        confidence=chosen[0].inputs.confidence,
        against=against,
    )


def _system_table(
    systems: Sequence[System], result: Mapping[str, Any] | None, against: Sequence[str]
) -> Table:
    has_macro = any(system.inputs.estimate(MACRO) for system in systems)
    metrics = [*SHOWN, MACRO] if has_macro else SHOWN
    settings = [] if against else _different_settings(systems)
    gains = {name: _gains(name, result["pairs"]) for name in against} if result else {}
    header = ["System", *map(metric_label, metrics)]
    header += [f"{metric_label(DIFFERENT[0])} minus {name}'s" for name in gains]
    header += ["Malignant images", *(["Settings that differ"] if settings else [])]
    rows = []
    for system in systems:
        row = [system.name, *format_estimates(system.inputs.measured["metrics"], metrics)]
        row += [gain.get(system.name, "") for gain in gains.values()]
        row.append(_count_malignant(system.inputs))
        if settings:
            values = system.settings
            words = (f"{key}={_format_setting(values[key])}" for key in settings if key in values)
            row.append("; ".join(words))
        rows.append(row)
    return Table("", header, rows, stack=True)


def _gains(reference: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the differences in AUROC of the other systems minus the reference."""
    gains = {}
    for pair in pairs:
        entry = pair["metrics"][DIFFERENT[0]]
        if pair["b"] == reference:
            gains[pair["a"]] = _format_difference(entry)
        elif pair["a"] == reference and entry["difference"] is not None:
            low, high = -entry["high"], -entry["low"]
            swapped = {**entry, "difference": -entry["difference"], "low": low, "high": high}
            gains[pair["b"]] = _format_difference(swapped)
    return gains


def _differences(
    result: Mapping[str, Any] | None, systems: Sequence[System], against: Sequence[str]
) -> Section:
    """Build the section of differences on common images, the only fair comparison."""
    if result is None:
        return Section("paired", "Differences", [Note(TEXTS["disjoint"], warning=True)])
    rows = []
    for pair in result["pairs"]:
        cells = (_format_difference(pair["metrics"][name]) for name in DIFFERENT)
        rows.append([f"{pair['a']} minus {pair['b']}", *cells])
    blocks: list[Block] = [Table("", ("Systems", *map(metric_label, DIFFERENT)), rows, stack=True)]
    if any(result["left_out"].values()):
        text = TEXTS["different_images"].format(format_count(result["n"], "image"))
        if few := [name for name, count in result["left_out"].items() if count > result["n"]]:
            text += f" Less than half of the rows are in common: {', '.join(few)}."
        blocks.insert(0, Note(text, warning=True))
    lead = TEXTS["paired"]
    if not against and len(systems) > MAX_PAIRED:
        lead += f" Only the {MAX_PAIRED} systems of highest AUROC."
    return Section("paired", "Differences", blocks, lead)


def _format_difference(entry: Mapping[str, Any]) -> str:
    if entry["difference"] is None:
        return ABSENT
    estimate = format_estimate({**entry, "value": entry["difference"]})
    return f"{estimate}, p {format_number(entry['p_holm'])}"


def _calibration_table(systems: Sequence[System]) -> Table | None:
    """Return calibration before and after correction, for systems with raw probabilities."""
    rows = []
    for system in systems:
        after = system.inputs.predictions
        if after.raw is None or not 0 < after.malignant.mean() < 1:
            continue
        before = evaluate(replace(after, probabilities=after.raw, decision=None), resamples=0)
        for correction, measured in (("before", before), ("after", system.inputs.measured)):
            rows.append([system.name, correction, *_calibration_cells(measured)])
    header = ["System", "Correction", MEAN, *map(metric_label, CALIBRATION)]
    return Table("Calibration", header, rows, stack=True) if rows else None


def _calibration_cells(measured: Mapping[str, Any]) -> list[str]:
    metrics = measured["metrics"]
    ratio = metrics["mean_probability"]["value"] / (measured["positives"] / measured["n"])
    return [format_number(ratio), *format_estimates(metrics, CALIBRATION)]


def _missing_table(systems: Sequence[System]) -> Table | None:
    """Return ranking and calibration by the share of withheld columns."""
    parts = {system.name: metrics_by_missing_share(system.inputs) for system in systems}
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


def _draw_systems(systems: Sequence[System]) -> Section:
    has_colours = len(systems) <= MAX_CURVES
    caption = "Colours as in the curves." if has_colours else "Brighter lines: higher AUROC."
    plots = [Plot("Parallel coordinates", _draw_parallel(systems), caption)]
    predictions = {system.name: system.inputs.predictions for system in systems}
    if has_colours and all(0 < rows.malignant.mean() < 1 for rows in predictions.values()):
        lines = [roc_line(name, r.malignancy, r.malignant) for name, r in predictions.items()]
        roc = Plot("ROC curves", draw_ranking(lines), "In brackets: area under the curve.")
        plots.insert(0, roc)
    return Section("drawings", "Figures", [Row(plots)])


def _draw_parallel(systems: Sequence[System]) -> Markup:
    axes = []
    for key in _different_settings(systems)[:6]:
        values = [system.settings.get(key) for system in systems]
        if all(map(is_number, values)):
            axes.append(Axis(key, np.array(values, dtype=np.float64)))
        else:
            words = [_format_setting(value) for value in values]
            labels = sorted(set(words))
            axes.append(Axis(key, np.array(list(map(labels.index, words)), np.float64), labels))
    for name in SHOWN[:1] if axes else SHOWN:
        metrics = [system.inputs.value(name) for system in systems]
        numbers = [value if is_number(value) else np.nan for value in metrics]
        axes.append(Axis(metric_label(name), np.array(numbers, np.float64)))
    aurocs = next(axis.values for axis in axes if axis.name == metric_label("auroc"))
    return draw_parallel(axes, aurocs)


def _format_setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _different_settings(systems: Sequence[System]) -> list[str]:
    """Return the settings that differ between runs; a prediction file has no settings."""
    runs = [system.settings for system in systems if system.settings]
    return [
        key
        for key in dict.fromkeys(key for settings in runs for key in settings)
        if not key.startswith((*keys_with(Config, "incidental"), *keys_with(Config, "per_start")))
        and len({str(settings.get(key)) for settings in runs}) > 1
    ]
