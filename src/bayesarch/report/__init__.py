"""Reads runs, draws pages. No torch."""

from bayesarch.report.page import write_report as write_report

__all__ = ["write_report"]
