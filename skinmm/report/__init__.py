"""Prediction files and run folders become a page that a clinic can read; never a model."""

from skinmm.report.audit_page import audit_page
from skinmm.report.cohorts import Cohort
from skinmm.report.compare import across, compare_page
from skinmm.report.explore import explore_page
from skinmm.report.page import refuse_existing
from skinmm.report.write import report_predictions, shared_report, write_report

__all__ = [
    "Cohort",
    "across",
    "audit_page",
    "compare_page",
    "explore_page",
    "refuse_existing",
    "report_predictions",
    "shared_report",
    "write_report",
]
