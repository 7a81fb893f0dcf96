"""How much the model loses when columns of the record are missing."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from skinmm.report.blocks import Note, Plot, Row, Section, Table
from skinmm.report.figures import curves
from skinmm.report.figures.curves import Line
from skinmm.report.format import estimate, metric, percent
from skinmm.report.inputs import Evidence

DRAWN: Final = ("auroc", "ece")
LISTED: Final = (*DRAWN, "calibration_slope", "calibration_intercept", "brier")


def missing(evidence: Evidence) -> Section | None:
    """Ranking and calibration against the share of columns withheld, where training measured it."""
    parts = parts_of(evidence)
    if len(parts) == 1:
        return None
    plots = [
        Plot(metric(name), curves.missing(metric(name), line))
        for name in DRAWN
        if len((line := _line(name, parts)).x) > 1
    ]
    rows = [
        [percent(share), *(estimate(part["metrics"].get(name)) for name in LISTED)]
        for share, part in parts.items()
    ]
    header = ["Missing", *map(metric, LISTED)]
    note = (
        "The same test rows without some of their columns, chosen by chance for each row; the "
        "calibration is that of whole records. Trained with model.drop_columns, a model minds less."
    )
    table = Table("Columns missing", header, rows, stack=True)
    return Section("missing", "Missing data", [Note(note), Row(plots), table])


def parts_of(evidence: Evidence) -> dict[float, Mapping[str, Any]]:
    """What was measured, by the share of columns that was withheld; 0 is the whole record."""
    found = {0.0: evidence.measured}
    for name, part in evidence.metrics.items():
        kind, *numbers = name.split("_")
        if kind == "missing":
            found[int(numbers[0]) / int(numbers[-1])] = part
    return found


def _line(name: str, parts: Mapping[float, Mapping[str, Any]]) -> Line:
    known = [
        (share, *(entry[key] for key in ("value", "low", "high")))
        for share, part in parts.items()
        if (entry := part["metrics"][name])["value"] is not None
    ]
    x, y, low, high = np.array(known, dtype=float).reshape(len(known), 4).T
    return Line(name, x, y, low, high)
