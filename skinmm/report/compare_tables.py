"""Further tables of several systems: calibration before and after, and with columns withheld."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from skinmm.evaluation.metrics import evaluate
from skinmm.report.blocks import Table
from skinmm.report.evidence import Evidence
from skinmm.report.sections.missing import DRAWN, parts_of
from skinmm.report.wording import estimate, metric, number, percent

CALIBRATION: Final = ("calibration_slope", "calibration_intercept", "ece")
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
    header = ["System", "Correction", "Mean probability over prevalence", *map(metric, CALIBRATION)]
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


def _calibrated(part: Mapping[str, Any]) -> list[str]:
    metrics = part["metrics"]
    share = metrics["mean_probability"]["value"] / (part["positives"] / part["n"])
    return [number(share), *(estimate(metrics[name]) for name in CALIBRATION)]


def _metrics(part: Mapping[str, Any] | None) -> Mapping[str, Any]:
    return part["metrics"] if part else {}
