"""Further tables of several systems: calibration before and after, and with columns withheld."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from skinmm.evaluation.metrics import evaluate
from skinmm.report.blocks import Table
from skinmm.report.evidence import Evidence, read_bare, read_run
from skinmm.report.sections.missing import DRAWN, parts_of
from skinmm.report.wording import estimate, metric, number, percent

CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece")
MEAN: Final = "Mean probability over prevalence"
WITHHELD: Final = (*DRAWN, CALIBRATION[0])


def calibration(systems: Mapping[str, Evidence]) -> Table | None:
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
    header = ["System", "Correction", MEAN, *map(metric, CALIBRATION)]
    return Table("Calibration", header, rows, stack=True) if rows else None


def missing(systems: Mapping[str, Evidence]) -> Table | None:
    """Ranking and calibration against the share of the record's columns that was withheld."""
    found = {name: parts_of(evidence) for name, evidence in systems.items()}
    shares = sorted({share for parts in found.values() for share in parts})
    rows = [
        [name, metric(key), *(estimate(_metrics(parts.get(share)).get(key)) for share in shares)]
        for name, parts in found.items()
        if len(parts) > 1
        for key in WITHHELD
    ]
    header = ["System", "Columns missing", *map(percent, shares)]
    return Table("Missing data", header, rows, stack=True) if rows else None


def across(judged: Sequence[tuple[str, str, Path]], homes: Mapping[str, Path]) -> Table:
    """Models on their own cohorts and on others, beside what says that those are others.

    Args:
        judged: what a model was trained on, what it was judged on, and the run or prediction file.
        homes: cohort -> a run on it, whose audit knows what the size of its images gives away.
    """
    rows = []
    for trained, cohort, source in judged:
        read = read_run if source.is_dir() else partial(read_bare, labels=None, positive=None)
        found = read(source, pictures=False)
        home = read_run(homes[cohort], pictures=False)
        measured = found.measured
        rows.append(
            [
                trained,
                cohort,
                f"{measured['positives']:,} of {measured['n']:,}",
                estimate(found.estimate("auroc")),
                *_calibrated(measured)[:2],
                estimate(found.estimate("unfamiliar")),
                number(home.audit.get("size_auroc")),
            ]
        )
    shown = (metric("auroc"), MEAN, metric(CALIBRATION[0]), metric("unfamiliar"))
    header = ["Trained on", "Judged on", "Malignant images", *shown, "AUROC of image size alone"]
    return Table("Other cohorts", header, rows, stack=True)


def _calibrated(part: Mapping[str, Any]) -> list[str]:
    metrics = part["metrics"]
    share = metrics["mean_probability"]["value"] / (part["positives"] / part["n"])
    return [number(share), *(estimate(metrics[name]) for name in CALIBRATION)]


def _metrics(part: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return part["metrics"] if part else {}
