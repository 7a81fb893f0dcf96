"""Comparison of several systems on one page, and of models on other cohorts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from skinmm.config import name_cohort
from skinmm.errors import InputError, format_count, require_new_output
from skinmm.evaluation.comparison import compare, find_not_inferior
from skinmm.evaluation.other_formats import TableFormat
from skinmm.evaluation.prediction_tables import list_systems, match_names
from skinmm.report.blocks import (
    ABSENT,
    TEXTS,
    Block,
    Note,
    Section,
    Table,
    format_estimate,
    format_estimates,
    format_number,
    format_p,
    metric_label,
)
from skinmm.report.inputs import ReportInputs, read_prediction_file, read_run
from skinmm.report.sections.systems import (
    CALIBRATION,
    MEAN,
    SHOWN,
    Systems,
    calibration_cells,
    calibration_table,
    clinic_table,
    different_settings,
    draw_systems,
    format_setting,
    missing_table,
    source_table,
)
from skinmm.report.write import write_page

MACRO: Final = "macro_auroc"  # of multi-class runs only
WITHIN: Final = "within_source_auroc"  # of files with sources only
DIFFERENT: Final = ("auroc", WITHIN, f"within_source_{MACRO}", "average_precision", "brier")
MAX_PAIRED: Final = 6  # systems, which give fifteen pairs
LEAST_COMMON: Final = 10
"""Images in common below which no differences are shown."""


def write_comparison(  # noqa: PLR0913 - all but two are optional
    sources: Sequence[Path],
    output: Path,
    labels: Path | None = None,
    *,
    positive: Sequence[str] | None = None,
    form: TableFormat | None = None,
    against: Sequence[str] = (),
    margin: float | None = None,
    prevalence: float | None = None,
    overwrite: bool = False,
) -> tuple[list[Table], list[Note]]:
    """Write a page with tables and figures of several systems.

    Args:
        sources: prediction files, also of several systems, run folders, or folders whose
            subfolders are runs.
        output: page to write.
        labels: table with the target, for prediction files without it.
        positive: classes of the files that count as malignant; None: the default ones.
        form: meaning of the columns of other systems' files.
        against: systems to compare all others with, also in the table; empty: all pairs of the
            systems of highest AUROC, on validation if all systems have the same validation rows.
        margin: largest loss of AUROC that is not inferior; None: not tested.
        prevalence: of a clinic, for predictive values and net benefit; None: that of each run.
        overwrite: replace an existing page.

    Returns:
        The tables of the systems and, if available, of differences (not with `against`, which adds
        them to the first), non-inferiority, calibration and missing data; and notes if the
        systems were not evaluated on the same images.
    """
    require_new_output("output", Path(output), overwrite=overwrite, suffix=".html")
    if repeated := [n for n, count in Counter(map(Path.resolve, sources)).items() if count > 1]:
        raise InputError(f"{repeated[0]} is given twice; compare different runs or files")
    read = partial(read_prediction_file, labels=labels, positive=positive, pictures=False)
    parts = [part for path in sources for part in _read_source(path, read, form or TableFormat())]
    names = [name for name, _ in parts]
    systems = {  # a number distinguishes equal names
        f"{number}. {name}" if names.count(name) > 1 else name: inputs.restate(prevalence)
        for number, (name, inputs) in enumerate(parts, start=1)
    }
    sections, tables, notes = build_comparison(systems, against, margin)
    settings = {i.title: i.config.get("data", {}) for i in systems.values()}
    cohorts = {(name_cohort(data) or title, data.get("root")) for title, data in settings.items()}
    title = f"Comparison on {cohorts.pop()[0]}" if len(cohorts) == 1 else "Comparison"
    facts = [format_count(len(systems), "system")]
    write_page(Path(output), title=title, facts=facts, sections=sections)
    return tables, notes


def build_comparison(
    systems: Systems, against: Sequence[str] = (), margin: float | None = None
) -> tuple[list[Section], list[Table], list[Note]]:
    """Return sections, tables and notes of a comparison; see `write_comparison`."""
    if len(systems) < 2:  # noqa: PLR2004 - a comparison needs two
        raise InputError(
            f"found {format_count(len(systems), 'system')}; a comparison needs at least two"
        )
    result = _compare_systems(systems, against)
    table = _system_table(systems, result, against)
    differences = _build_differences(result, systems, against, margin)
    choice = [] if against else [_describe_choice(systems)]
    build = (clinic_table, source_table, calibration_table, missing_table)
    further = [part for function in build if (part := function(systems))]
    columns = [Note(f"{n}: {note}.") for n, inputs in systems.items() for note in inputs.notes]
    assumed = [
        Note(f"{name}: {TEXTS['assumed'].format(format_number(inputs.threshold))}", warning=True)
        for name, inputs in systems.items()
        if not inputs.fitted("threshold")
    ]
    first = Section("systems", "Systems", [table, *choice, *assumed, *columns])
    sections = [first, differences, draw_systems(systems)]
    if further:
        sections.append(Section("further", "Clinic, calibration and missing data", further))
    notes = [block for block in differences.blocks if isinstance(block, Note)]
    paired = [b for b in differences.blocks if isinstance(b, Table) and b.is_printed]
    return sections, [table, *paired[bool(against) :], *further], [*choice, *assumed, *notes]


def compare_cohorts(results: Sequence[tuple[str, str, Path]], runs: Mapping[str, Path]) -> Table:
    """Compare models on their own and on other cohorts, with a check for shortcuts.

    Args:
        results: training cohort, evaluated cohort, and the run folder or prediction file.
        runs: cohort -> run on it; its audit has the AUROC of the image size alone.
    """
    rows = []
    for trained, cohort, source in results:
        read = read_run if source.is_dir() else read_prediction_file
        inputs = read(source, pictures=False)
        audit = read_run(runs[cohort], pictures=False).audit
        auroc, ood = (format_estimate(inputs.estimate(name)) for name in ("auroc", "unfamiliar"))
        slope = calibration_cells(inputs.measured)[:2]
        size = format_number(audit.get("size_auroc"))
        malignant = "{positives:,} of {n:,}".format_map(inputs.measured)
        rows.append([trained, cohort, malignant, auroc, *slope, ood, size])
    names = (metric_label("auroc"), MEAN, *map(metric_label, (CALIBRATION[0], "unfamiliar")))
    header = ["Trained on", "Evaluated on", "Malignant images", *names]
    return Table("Other cohorts", [*header, "AUROC of image size alone"], rows, stack=True)


def _read_source(
    source: Path, read: Callable[..., ReportInputs], form: TableFormat
) -> list[tuple[str, ReportInputs]]:
    """Return the systems of a file or a folder; `read` reads a prediction file."""
    if source.is_file() and (systems := list_systems(source)):
        return [(name, read(source, form=replace(form, system=name))) for name in systems]
    if not source.is_dir():
        return [(source.stem, read(source, form=form))]
    runs = {source: source.resolve().name}
    if not (source / "predictions" / "test.csv").is_file():
        folders = (file.parents[1] for file in source.rglob("predictions/test.csv"))
        runs = {run: str(run.relative_to(source)) for run in folders if run.name[:5] != "fold_"}
    if not runs:
        raise InputError(f"{source}: no run found (no folder with predictions/test.csv)")
    # Runs with numbers as names are sorted by number.
    order = sorted(runs, key=lambda r: (r.parent, len(r.name) * r.name.isdecimal(), r.name))
    return [(runs[run], read_run(run, pictures=False)) for run in order]


def _compare_systems(systems: Systems, against: Sequence[str]) -> dict[str, Any] | None:
    """Return differences on the common images; None if they are too few, or runs have none."""
    tested = {name: inputs.value("auroc") or 0.0 for name, inputs in systems.items()}
    ranking = _validation_aurocs(systems) or tested
    best = sorted(systems, key=lambda name: ranking[name])[-MAX_PAIRED:]
    chosen = {name: inputs for name, inputs in systems.items() if against or name in best}
    names = match_names(inputs.predictions.image_id for inputs in chosen.values())
    common = set.intersection(*map(set, names))
    is_part = any(len(inputs.predictions) > len(common) for inputs in chosen.values())
    has_runs = any(inputs.config for inputs in chosen.values())
    if is_part and len(common) < LEAST_COMMON and (common or has_runs):
        return None
    return compare(
        {name: inputs.predictions for name, inputs in chosen.items()},
        thresholds={name: inputs.threshold for name, inputs in chosen.items()},
        confidence=next(iter(chosen.values())).confidence,
        against=against,
    )


def _validation_aurocs(systems: Systems) -> dict[str, float]:
    """Return the validation AUROC of each system on common rows; empty if there are none.

    Pooled folds have none.
    """
    aurocs, parts = {}, []
    for name, inputs in systems.items():
        entry = (inputs.metrics.get("val") or {}).get("metrics", {}).get("auroc") or {}
        is_pooled = inputs.config.get("data", {}).get("fold") == "all"
        if is_pooled or entry.get("value") is None:
            return {}
        aurocs[name] = float(entry["value"])
        if (cohort := inputs.cohort) is not None and {"part", "image_id"} <= {*cohort}:
            parts.append(frozenset(cohort["image_id"][cohort["part"] == "val"]))
    is_common = len({*parts}) == 1 and len(parts) == len(aurocs)
    return aurocs if is_common or not parts else {}


def _describe_choice(systems: Systems) -> Note:
    """Name the best system on validation, or warn against a choice by test figures."""
    if not (ranking := _validation_aurocs(systems)):
        return Note(TEXTS["chosen_on_test"].format(len(systems)))
    best = max(ranking, key=lambda name: ranking[name])
    test = format_estimate(systems[best].estimate("auroc"))
    return Note(TEXTS["chosen"].format(best, format_number(ranking[best]), len(systems), test))


def _system_table(
    systems: Systems, result: Mapping[str, Any] | None, against: Sequence[str]
) -> Table:
    has_macro = any(inputs.estimate(MACRO) for inputs in systems.values())
    metrics = [*SHOWN, *([MACRO] if has_macro else [])]
    if any(inputs.estimate(WITHIN) for inputs in systems.values()):
        metrics.insert(1, WITHIN)
    ranking = {} if against else _validation_aurocs(systems)
    settings = {} if against else different_settings(systems)
    has_settings = any(settings.values())
    gains = {name: _list_gains(name, result["pairs"]) for name in against} if result else {}
    header = ["System", *(["Validation AUROC"] if ranking else []), *map(metric_label, metrics)]
    header += [f"{metric_label(DIFFERENT[0])} minus {name}'s" for name in gains]
    header += ["Malignant images", *(["Settings that differ"] if has_settings else [])]
    rows = []
    for name, inputs in systems.items():
        row = [name, *([format_number(ranking[name])] if ranking else [])]
        row += format_estimates(inputs.measured["metrics"], metrics)
        row += [gain.get(name, "") for gain in gains.values()]
        row.append("{positives:,} of {n:,}".format_map(inputs.measured))
        if has_settings:
            row.append("; ".join(f"{k}={format_setting(v)}" for k, v in settings[name].items()))
        rows.append(row)
    return Table("", header, rows, stack=True, is_printed=True)


def _list_gains(reference: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the AUROC differences of all other systems from the reference."""
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


def _build_differences(
    result: Mapping[str, Any] | None,
    systems: Systems,
    against: Sequence[str],
    margin: float | None,
) -> Section:
    """Build the section of differences on common images, the only fair comparison."""
    if result is None:
        return Section("paired", "Differences", [Note(TEXTS["disjoint"], warning=True)])
    rows, metrics = [], [pair["metrics"] for pair in result["pairs"]]
    names = [name for name in DIFFERENT if any(name in entries for entries in metrics)]
    for pair, entries in zip(result["pairs"], metrics, strict=True):
        cells = (_format_difference(entries[n]) if n in entries else ABSENT for n in names)
        rows.append([f"{pair['a']} minus {pair['b']}", *cells])
    header = ("Systems", *map(metric_label, names))
    blocks: list[Block] = [Table("", header, rows, stack=True, is_printed=True)]
    if any(result["left_out"].values()):
        text = TEXTS["different_images"].format(format_count(result["n"], "image"))
        if few := [name for name, count in result["left_out"].items() if count > result["n"]]:
            text += f" Less than half of the rows are in common: {', '.join(few)}."
        blocks.insert(0, Note(text, warning=True))
    lead = TEXTS["paired"]
    if not against and len(systems) > MAX_PAIRED:
        part = "validation" if _validation_aurocs(systems) else "test"
        lead += f" Only the {MAX_PAIRED} systems of highest {part} AUROC."
    if margin is not None:
        blocks.append(_margin_table(result, against, margin))
    return Section("paired", "Differences", blocks, lead)


def _format_difference(entry: Mapping[str, Any]) -> str:
    if entry["difference"] is None:
        return ABSENT
    estimate = format_estimate({**entry, "value": entry["difference"]})
    if entry["p"] is None:
        return estimate
    adjusted = f", adjusted {format_p(entry['p_holm'])}" if entry["p_holm"] > entry["p"] else ""
    return f"{estimate}, p {format_p(entry['p'])}{adjusted}"


def _margin_table(result: Mapping[str, Any], against: Sequence[str], margin: float) -> Table:
    """Return the table of non-inferiority tests."""
    rows = []
    for entry in find_not_inferior(result, margin, against=against):
        is_shown = entry["p_holm"] < (1 - result["confidence"]) / 2
        verdict = "not inferior" if is_shown else "not shown"
        numbers = (format_number(entry["difference"]), format_number(entry["low"]))
        p = format_p(entry["p_holm"])
        rows.append([f"{entry['system']} to {entry['reference']}", *numbers, p, verdict])
    caption = TEXTS["margin"].format(format_number(margin), (1 - result["confidence"]) / 2)
    header = ("System", "Difference in AUROC", "Low end", "p (one-sided, adjusted)", "Conclusion")
    return Table(caption, header, rows, stack=True, is_printed=True)
