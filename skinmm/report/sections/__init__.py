"""The chapters of the page, in reading order: each makes a `Section` of the evidence, or None."""

from collections.abc import Callable
from typing import Final

from skinmm.report.blocks import Section
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections.appendix import configuration, metrics, model_card, training, tripod
from skinmm.report.sections.cohort import cohort
from skinmm.report.sections.headline import headline, referral
from skinmm.report.sections.performance import (
    benefit,
    calibration,
    discrimination,
    mistakes,
    operating_point,
)
from skinmm.report.sections.subgroups import missing, subgroups

SECTIONS: Final[dict[str, Callable[[ReportInputs], Section | None]]] = {
    "headline": headline,
    "discrimination": discrimination,
    "decision": operating_point,
    "calibration": calibration,
    "benefit": benefit,
    "referral": referral,
    "missing": missing,
    "subgroups": subgroups,
    "mistakes": mistakes,
    "data": cohort,
    "training": training,
    "metrics": metrics,
    "card": model_card,
    "tripod": tripod,
    "configuration": configuration,
}
