"""Shared by tests of ensembles: less to evaluate, and members that train in the test's own process."""

import pytest

from bayesarch.workflows import ensemble as workflow
from helpers import jobs_here


@pytest.fixture
def fog_alone(monkeypatch):
    """One corruption instead of 45: all of them are in the evaluation that is looked at."""
    whole = workflow.evaluate
    monkeypatch.setattr(workflow, "evaluate", lambda path: whole(path, corruptions=["fog"], severities=[2]))


@pytest.fixture
def here():
    with jobs_here():
        yield
