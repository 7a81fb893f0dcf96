"""The chapters of the page, in reading order: each makes a `Section` of the evidence, or None."""

from collections.abc import Callable
from typing import Final

from skinmm.report.blocks import Section
from skinmm.report.inputs import Evidence
from skinmm.report.sections.appendix import configuration, metrics
from skinmm.report.sections.checklists import model_card, tripod
from skinmm.report.sections.cohort import cohort
from skinmm.report.sections.headline import headline
from skinmm.report.sections.missing import missing
from skinmm.report.sections.mistakes import mistakes
from skinmm.report.sections.performance import (
    benefit,
    calibration,
    discrimination,
    operating_point,
)
from skinmm.report.sections.referral import referral
from skinmm.report.sections.subgroups import subgroups
from skinmm.report.sections.training import training

SECTIONS: Final[dict[str, Callable[[Evidence], Section | None]]] = {
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
