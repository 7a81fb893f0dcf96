"""HTML pages and model cards from prediction files, run folders and cohorts."""

from skinmm.report.cohort_pages import Cohort, write_audit_page, write_cohort_page
from skinmm.report.compare import compare_cohorts, write_comparison
from skinmm.report.write import (
    reader_options,
    report_predictions,
    write_anonymous_report,
    write_report,
)

__all__ = [
    "Cohort",
    "compare_cohorts",
    "reader_options",
    "report_predictions",
    "write_anonymous_report",
    "write_audit_page",
    "write_cohort_page",
    "write_comparison",
    "write_report",
]
