"""Shared by tests of ensembles: less to evaluate, and members that train in the test's own process."""

import pytest
from typer.testing import CliRunner

from bayesarch.cli import app
from bayesarch.workflows import ensemble as workflow
from bayesarch.workflows import processes


@pytest.fixture
def fog_alone(monkeypatch):
    """One corruption instead of 45: all of them are in the evaluation that is looked at."""
    whole = workflow.evaluate
    monkeypatch.setattr(workflow, "evaluate", lambda path: whole(path, corruptions=["fog"], severities=[2]))


class Here:
    """A job that is done when it is asked for, in this process; jobs in their own have tests of their own."""

    def __init__(self, path, command, environment):
        done = CliRunner().invoke(app, command[3:])
        with (path / "process.txt").open("a") as log:
            log.write(str(done.exception or ""))
        self.returncode = 0 if done.exception is None else 2

    def poll(self):
        return self.returncode


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(processes, "_local", Here)
