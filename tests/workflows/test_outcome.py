"""What a folder says of the work in it, however that ends."""

import contextlib

import pytest

from bayesarch.engine import Interrupted
from bayesarch.errors import RunError
from bayesarch.runs import RunFolder
from bayesarch.workflows.outcome import outcome


def test_a_folder_tells_how_its_work_ended(tmp_path):
    def status_after(name, raised):
        folder = RunFolder.create(tmp_path / name)
        passed = pytest.raises(type(raised)) if raised is not None else contextlib.nullcontext()
        with passed, outcome(folder, "compress", "compress: evidence"):
            assert folder.read_json("status.json")["state"] == "running"
            if raised is not None:
                raise raised
        return folder.read_json("status.json"), (folder.path / "log.txt").read_text()

    status, log = status_after("good", None)
    assert (status["state"], status["stage"]) == ("finished", "done")
    assert log.splitlines()[-1].endswith("finished")
    status, log = status_after("stopped", Interrupted())
    assert (status["state"], status["stage"]) == ("interrupted", "compress")
    assert f"bayesarch resume {tmp_path / 'stopped'}" in log
    status, log = status_after("bad", RunError("no network of the path is small enough"))
    assert (status["state"], status["error"]) == ("failed", "no network of the path is small enough")
    assert "failed: no network of the path is small enough" in log


def test_a_mistake_of_ours_is_not_taken_for_an_outcome(tmp_path):
    folder = RunFolder.create(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), outcome(folder, "compress", "compress: evidence"):
        raise ZeroDivisionError
    assert folder.read_json("status.json")["state"] not in ("finished", "failed")
