"""Sections of the report in reading order; each builder returns a `Section` or None."""

from collections.abc import Callable
from typing import Final

from skinmm.report.blocks import Section
from skinmm.report.inputs import ReportInputs
from skinmm.report.sections import appendix, cohort, headline, performance, referral, subgroups

SECTIONS: Final[dict[str, Callable[[ReportInputs], Section | None]]] = {
    "headline": headline.build_headline,
    "mistakes": performance.build_mistakes,
    "data": cohort.build_cohort,
    "curves": performance.build_curves,
    "subgroups": subgroups.build_subgroups,
    "decision": performance.build_decision,
    "referral": referral.build_referral,
    "missing": subgroups.build_missing,
    "training": appendix.build_training,
    "metrics": appendix.build_metrics,
    "card": appendix.build_model_card,
    "tripod": appendix.build_tripod,
    "stard": appendix.build_stard,
    "claim": appendix.build_claim,
    "configuration": appendix.build_configuration,
}
