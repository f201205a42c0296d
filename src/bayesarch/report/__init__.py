"""What a run looks like: pages and plots made from a run folder. No torch."""

from bayesarch.report.page import write_answers as write_answers
from bayesarch.report.page import write_comparison as write_comparison
from bayesarch.report.page import write_compression_report as write_compression_report
from bayesarch.report.page import write_ensemble_report as write_ensemble_report
from bayesarch.report.page import write_repeats_report as write_repeats_report
from bayesarch.report.page import write_report as write_report

__all__ = [
    "write_answers",
    "write_comparison",
    "write_compression_report",
    "write_ensemble_report",
    "write_repeats_report",
    "write_report",
]
