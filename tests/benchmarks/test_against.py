"""A step now against the same step at another commit: each process runs the code of its own folder."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import against

SLOW = """
import time

class Case:
    def __init__(self, given):
        self.seconds = given["seconds"] * {factor}
        self.net = self

    def fuse(self):
        self.seconds *= 3

    def ours(self):
        return lambda: time.sleep(self.seconds)
"""


def folder(path, text):
    (path / "benchmarks").mkdir(parents=True)
    (path / "benchmarks" / "steps.py").write_text(text)
    return path


def test_each_process_runs_its_own_code_and_the_two_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(against, "ROOT", folder(tmp_path / "now", SLOW.format(factor=1)))
    found = against.row({"seconds": 0.05}, folder(tmp_path / "before", SLOW.format(factor=4)), "a commit", 3)
    assert 2.5 < found["lowest"] <= found["ratio"] <= found["highest"] < 5.0
    assert found["seconds"]["before"] > 0.19
    assert found["before"] == "a commit"


def test_both_are_fused_or_neither(tmp_path):
    place = folder(tmp_path / "now", SLOW.format(factor=1))
    steppers = [against.Stepper(place, {"seconds": 0.05, "fused": fused}) for fused in (False, True)]
    seconds = [step() for step in steppers]
    for step in steppers:
        step.close()
    assert 2.0 < seconds[1] / seconds[0] < 4.0


@pytest.mark.parametrize("words", [[], ["--fused"]])
def test_the_record_names_the_command_and_all_rows_are_told(words, tmp_path, monkeypatch):
    told, out = [], tmp_path / "against.json"
    monkeypatch.setattr(against.subprocess, "run", lambda *given, **how: None)
    monkeypatch.setattr(against, "row", lambda given, *others: told.append(given) or {"ratio": 1.0})
    monkeypatch.setattr("sys.argv", ["benchmarks/against.py", "HEAD", "--short", *words, "--out", str(out)])
    monkeypatch.setattr("bayesarch.workflows.environment.environment", lambda device: {"commit": "this"})
    against.main()
    assert [given["fused"] for given in told] == [bool(words)] * len(against.SHORT)
    assert [given["space"] for given in told] == [given["space"] for given in against.SHORT.values()]
    record = json.loads(out.read_text())
    assert record["command"] == " ".join(["python benchmarks/against.py HEAD --short", *words, "--out", str(out)])


def test_whole_searches_take_turns_too(tmp_path, monkeypatch):
    for name, seconds in (("before", 0.4), ("now", 0.1)):
        package = tmp_path / name / "src" / "bayesarch"
        package.mkdir(parents=True)
        code = f"import sys, time; time.sleep({seconds}); assert sys.argv[1:3] == ['search', '--out'], sys.argv"
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(code)
    monkeypatch.setattr(against, "ROOT", tmp_path / "now")
    found = against.job_row(tmp_path / "before", "a commit", 2)
    assert found["seconds"]["before"] - found["seconds"]["now"] == pytest.approx(0.3, abs=0.15)
    assert (found["before"], found["rounds"]) == ("a commit", 2)
    assert 1.0 < found["lowest"] <= found["ratio"] <= found["highest"]


def test_a_process_that_fails_is_not_waited_for(tmp_path, monkeypatch):
    broken = folder(tmp_path / "broken", "raise SystemExit(3)")
    with pytest.raises(RuntimeError, match="the process ended"):
        against.Stepper(broken, {})


def test_a_stepper_has_the_heap_and_the_threads_of_our_commands(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(against.subprocess, "Popen", lambda words, **how: told.append(how["env"]) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        against.Stepper(tmp_path, {})
    assert told[0]["GLIBC_TUNABLES"] == against.TUNABLES
    assert told[0]["GOMP_SPINCOUNT"] == "3000"
