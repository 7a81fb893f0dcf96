"""Further tables of several systems: calibration before and after, and with columns withheld."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from skinmm.config import Config, flatten, keys_with
from skinmm.errors import InputError, require_new_output
from skinmm.evaluation.comparison import compare
from skinmm.evaluation.metrics import evaluate
from skinmm.report.blocks import Block, Note, Plot, Row, Section, Table
from skinmm.report.figures import curves, grids
from skinmm.report.figures.curves import roc_line
from skinmm.report.figures.grids import Axis
from skinmm.report.format import (
    ABSENT,
    format_count,
    format_estimate,
    format_number,
    format_percent,
    is_number,
    metric_label,
)
from skinmm.report.inputs import ReportInputs, read_prediction_file, read_run
from skinmm.report.sections.subgroups import MISSING_DRAWN, metrics_by_missing_share
from skinmm.report.write import write_page

CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece")
MEAN: Final = "Mean probability over prevalence"
WITHHELD: Final = (*MISSING_DRAWN, CALIBRATION[0])


def calibration(systems: Mapping[str, ReportInputs]) -> Table | None:
    """Probabilities as the networks gave them, and as they were corrected and calibrated.

    Args:
        systems: name -> what is known of it; those without raw probabilities are left out.
    """
    rows = []
    for name, evidence in systems.items():
        after = evidence.predictions
        if after.raw is None or not 0 < after.malignant.mean() < 1:
            continue
        before = evaluate(replace(after, probabilities=after.raw, decision=None), resamples=0)
        rows += [
            [name, when, *_calibrated(part)]
            for when, part in (("before", before), ("after", evidence.measured))
        ]
    header = ["System", "Correction", MEAN, *map(metric_label, CALIBRATION)]
    return Table("Calibration", header, rows, stack=True) if rows else None


def missing(systems: Mapping[str, ReportInputs]) -> Table | None:
    """Ranking and calibration against the share of the record's columns that was withheld."""
    found = {name: metrics_by_missing_share(evidence) for name, evidence in systems.items()}
    shares = sorted({share for parts in found.values() for share in parts})
    rows = [
        [
            name,
            metric_label(key),
            *(format_estimate(_metrics(parts.get(share)).get(key)) for share in shares),
        ]
        for name, parts in found.items()
        if len(parts) > 1
        for key in WITHHELD
    ]
    header = ["System", "Columns missing", *map(format_percent, shares)]
    return Table("Missing data", header, rows, stack=True) if rows else None


def compare_cohorts(judged: Sequence[tuple[str, str, Path]], homes: Mapping[str, Path]) -> Table:
    """Models on their own cohorts and on others, beside what says that those are others.

    Args:
        judged: what a model was trained on, what it was judged on, and the run or prediction file.
        homes: cohort -> a run on it, whose audit knows what the size of its images gives away.
    """
    rows = []
    for trained, cohort, source in judged:
        read = (
            read_run
            if source.is_dir()
            else partial(read_prediction_file, labels=None, positive=None)
        )
        found = read(source, pictures=False)
        home = read_run(homes[cohort], pictures=False)
        measured = found.measured
        rows.append(
            [
                trained,
                cohort,
                f"{measured['positives']:,} of {measured['n']:,}",
                format_estimate(found.estimate("auroc")),
                *_calibrated(measured)[:2],
                format_estimate(found.estimate("unfamiliar")),
                format_number(home.audit.get("size_auroc")),
            ]
        )
    shown = (metric_label("auroc"), MEAN, metric_label(CALIBRATION[0]), metric_label("unfamiliar"))
    header = ["Trained on", "Judged on", "Malignant images", *shown, "AUROC of image size alone"]
    return Table("Other cohorts", header, rows, stack=True)


def _calibrated(part: Mapping[str, Any]) -> list[str]:
    metrics = part["metrics"]
    share = metrics["mean_probability"]["value"] / (part["positives"] / part["n"])
    return [format_number(share), *(format_estimate(metrics[name]) for name in CALIBRATION)]


def _metrics(part: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return part["metrics"] if part else {}


MACRO: Final = "macro_auroc"  # of multi-class runs
SHOWN: Final = ("auroc", "average_precision", "sensitivity", "specificity", "ece", "brier")
DIFFERENT: Final = ("auroc", "average_precision", "brier")
PAIRED: Final = 6  # fifteen pairs
CURVES: Final = 7  # colours that can be told apart
AXES: Final = 6


@dataclass(frozen=True)
class System:
    """One row of the comparison; `settings` is its flattened configuration, if it has one."""

    name: str
    evidence: ReportInputs
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
    """Writes a page with a table, curves and parallel coordinates of several systems.

    Args:
        sources: prediction files, run folders, or folders whose subfolders are runs.
        output: the page to write.
        labels: truth for prediction files without it.
        positive: classes of the files that count as malignant; None: the usual ones.
        against: systems that all others are compared with, in the table too; empty: the best few,
            each with each.
        overwrite: replace a page that is there.

    Returns:
        The table of the systems, and those of calibration and missing data where there are any; and
        notes, where the systems did not judge the same images.

    Raises:
        InputError: fewer than two systems, a file that cannot be used, or the page exists.
    """
    require_new_output("output", Path(output), overwrite=overwrite)
    systems = _all_systems([Path(source) for source in sources], labels, positive)
    if len(systems) < 2:  # noqa: PLR2004 - a comparison needs two
        raise InputError(
            f"nothing to compare: found {format_count(len(systems), 'system')}, needs two"
        )
    found = _found(systems, against)
    table = _table(systems, found, against)
    paired = _paired(systems, found, against)
    known = {system.name: system.evidence for system in systems}
    further = [made for made in (calibration(known), missing(known)) if made]
    sections = [Section("systems", "Systems", [table]), paired, _drawings(systems)]
    if further:
        sections.append(Section("further", "Calibration and missing data", further))
    facts = [format_count(len(systems), "system")]
    write_page(Path(output), title="Comparison", facts=facts, sections=sections)
    return [table, *further], [block for block in paired.blocks if isinstance(block, Note)]


def _all_systems(
    sources: Sequence[Path], labels: Path | None, positive: Sequence[str] | None
) -> list[System]:
    systems = [system for source in sources for system in _systems(source, labels, positive)]
    names = [system.name for system in systems]
    return [
        system if names.count(system.name) == 1 else replace(system, name=f"{place}. {system.name}")
        for place, system in enumerate(systems, start=1)
    ]


def _systems(source: Path, labels: Path | None, positive: Sequence[str] | None) -> list[System]:
    if not source.is_dir():
        return [
            System(source.stem, read_prediction_file(source, labels, positive, pictures=False), {})
        ]
    if (source / "predictions" / "test.csv").is_file():
        return [_run(source, source.resolve().name)]
    found = sorted(
        (
            file.parents[1]
            for file in source.rglob("predictions/test.csv")
            if not file.parents[1].name.startswith("fold_")
        ),
        key=lambda run: (run.parent, len(run.name) if run.name.isdecimal() else 0, run.name),
    )
    if not found:
        raise InputError(f"{source}: no runs there (no folder with predictions/test.csv)")
    return [_run(run, str(run.relative_to(source))) for run in found]


def _run(run: Path, name: str) -> System:
    evidence = read_run(run, pictures=False)
    return System(name, evidence, flatten(evidence.config))


def _found(systems: Sequence[System], against: Sequence[str]) -> dict[str, Any] | None:
    """Differences on the images that all systems judged; None where runs have no such image.

    Raises:
        InputError: nor have files.
    """
    best = {system.name for system in sorted(systems, key=_rank)[-PAIRED:]}
    chosen = [system for system in systems if against or system.name in best]
    images = (set(system.evidence.predictions.image_id) for system in chosen)
    if not set.intersection(*images) and any(system.settings for system in chosen):
        return None
    return compare(
        {system.name: system.evidence.predictions for system in chosen},
        thresholds={system.name: system.evidence.threshold for system in chosen},
        confidence=chosen[0].evidence.confidence,
        against=against,
    )


def _table(
    systems: Sequence[System], found: Mapping[str, Any] | None, against: Sequence[str]
) -> Table:
    different = _different(systems)
    macro = [MACRO] if any(system.evidence.estimate(MACRO) for system in systems) else []
    shown = [*SHOWN, *macro]
    gains = [_gains(name, found) for name in against if found]
    rows = [
        (
            system.name,
            *(format_estimate(system.evidence.estimate(name)) for name in shown),
            *(gain.get(system.name, "") for gain in gains),
            f"{system.evidence.measured['positives']:,} of {system.evidence.measured['n']:,}",
            "; ".join(f"{key}={_word(held[key])}" for key in different if key in held),
        )
        for system in systems
        for held in [system.settings]
    ]
    minus = [f"{metric_label(DIFFERENT[0])} minus {name}'s" for name in against if found]
    header = [
        "System",
        *map(metric_label, shown),
        *minus,
        "Malignant images",
        "Settings that differ",
    ]
    if against or not different:  # whose names say it
        header, rows = header[:-1], [row[:-1] for row in rows]
    return Table("", header, rows, stack=True)


def _gains(reference: str, found: Mapping[str, Any]) -> dict[str, str]:
    """What every other system ranks better by than this one."""
    gains = {}
    for pair in found["pairs"]:
        entry = pair["metrics"][DIFFERENT[0]]
        if pair["b"] == reference:
            gains[pair["a"]] = _difference(entry)
        elif pair["a"] == reference and entry["difference"] is not None:
            turned = {"difference": "difference", "low": "high", "high": "low"}
            swapped = {name: -entry[other] for name, other in turned.items()}
            gains[pair["b"]] = _difference({**entry, **swapped})
    return gains


def _paired(
    systems: Sequence[System], found: Mapping[str, Any] | None, against: Sequence[str]
) -> Section:
    """Differences on the images that all systems judged, the only fair comparison."""
    if found is None:
        text = "No image was judged by all systems: their numbers do not compare."
        return Section("paired", "Differences", [Note(text, loud=True)])
    rows = [
        (
            f"{pair['a']} minus {pair['b']}",
            *(_difference(pair["metrics"][key]) for key in DIFFERENT),
        )
        for pair in found["pairs"]
    ]
    blocks: list[Block] = [
        Table("", ("Systems", *map(metric_label, DIFFERENT)), rows, stack=True),
    ]
    if any(found["left_out"].values()):
        text = (
            f"Not all systems judged the same images: these differences are on the "
            f"{format_count(found['n'], 'image')} in common, the table above is not."
        )
        if few := [name for name, rows in found["left_out"].items() if rows > found["n"]]:
            text += f" Less than half of the rows are in common: {', '.join(few)}."
        blocks.insert(0, Note(text, loud=True))
    lead = (
        "Differences on the same patients, resampled together, with intervals and p-values after "
        "Holm's adjustment over the pairs."
    )
    if not against and len(systems) > PAIRED:
        lead += f" Only the {PAIRED} systems of highest AUROC."
    return Section("paired", "Differences", blocks, lead)


def _difference(found: Mapping[str, Any]) -> str:
    if found["difference"] is None:
        return ABSENT
    value = {"value": found["difference"], "low": found["low"], "high": found["high"]}
    return f"{format_estimate(value)}, p {format_number(found['p_holm'])}"


def _rank(system: System) -> float:
    found = system.evidence.estimate("auroc")
    return float(found["value"]) if found and is_number(found["value"]) else 0.0


def _drawings(systems: Sequence[System]) -> Section:
    few = len(systems) <= CURVES
    caption = "Colours as in the curves." if few else "The brighter the line, the higher the AUROC."
    plots = [Plot("Parallel coordinates", _parallel(systems), caption)]
    rows = [system.evidence.predictions for system in systems]
    if few and all(0 < part.malignant.sum() < len(part) for part in rows):
        lines = [
            roc_line(system.name, part.malignancy, part.malignant)
            for system, part in zip(systems, rows, strict=True)
        ]
        text = "In brackets: the area under the curve."
        plots.insert(0, Plot("ROC curves", curves.roc(lines), text))
    return Section("drawings", "Side by side", [Row(plots)])


def _parallel(systems: Sequence[System]) -> Any:
    auroc = _values(systems, "auroc")
    axes = [
        _axis(key, [system.settings.get(key) for system in systems])
        for key in _different(systems)[:AXES]
    ]
    measured = SHOWN if not axes else SHOWN[:1]
    axes += [Axis(metric_label(name), _values(systems, name)) for name in measured]
    return grids.parallel(axes, auroc, label="Parallel coordinates of the systems")


def _values(systems: Sequence[System], name: str) -> "np.ndarray":
    found = ((system.evidence.estimate(name) or {}).get("value") for system in systems)
    return np.array([value if is_number(value) else np.nan for value in found], dtype=np.float64)


def _axis(key: str, values: Sequence[Any]) -> Axis:
    if all(is_number(value) for value in values):
        return Axis(key, np.array(values, dtype=np.float64))
    words = sorted(set(map(_word, values)))
    places = np.array([words.index(_word(value)) for value in values], dtype=np.float64)
    return Axis(key, places, words)


def _word(value: Any) -> str:
    """A setting as a person would say it."""
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _different(systems: Sequence[System]) -> list[str]:
    """Settings that are not the same in all runs, in the configuration's order."""
    keys = dict.fromkeys(key for system in systems for key in system.settings)
    return [
        key
        for key in keys
        if not key.startswith(keys_with(Config, "incidental"))
        and len({str(system.settings.get(key)) for system in systems}) > 1
    ]
