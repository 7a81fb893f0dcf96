"""HTML pages and model cards from prediction files, run folders and cohorts."""

from skinmm.evaluation.other_formats import TableFormat
from skinmm.report.cohort_pages import Cohort, write_audit_page, write_cohort_page
from skinmm.report.compare import compare_cohorts, write_comparison
from skinmm.report.write import report_predictions, write_anonymous_report, write_report

__all__ = [
    "Cohort",
    "TableFormat",
    "compare_cohorts",
    "report_predictions",
    "write_anonymous_report",
    "write_audit_page",
    "write_cohort_page",
    "write_comparison",
    "write_report",
]
