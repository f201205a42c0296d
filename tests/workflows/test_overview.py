"""What `status` says of a folder of runs."""

import os

import pytest
from rich.console import Console

from bayesarch.errors import RunError
from bayesarch.runs import RunFolder, run_folders_in
from bayesarch.terminal import print_overview
from bayesarch.workflows.overview import is_run, overview
from bayesarch.workflows.run import open_run

CONFIG = {"method": {"name": "bpnas"}, "space": {"name": "nb201"}, "data": {"source": "digits"}, "repeats": 1}


def made(path, age, *, state="finished", config=CONFIG, **summary):
    """Write a run folder that changed `age` seconds ago."""
    folder = RunFolder.create(path)
    if config:
        folder.write_config(config)
    if summary:
        folder.write_json("summary.json", summary)
    folder.write_status(state=state)
    then = (path / "status.json").stat().st_mtime - age
    os.utime(path / "status.json", (then, then))
    return path


def test_runs_are_found_below_and_not_inside_other_runs(tmp_path):
    old, new = made(tmp_path / "road" / "search", 60), made(tmp_path / "a", 10)
    made(old / "repeats" / "000", 5)
    made(tmp_path / ".hidden" / "b", 5)
    made(tmp_path / "1" / "2" / "3" / "too deep", 5)
    assert run_folders_in(tmp_path) == [old, new]
    assert run_folders_in(tmp_path, depth=5) == [old, new, tmp_path / "1" / "2" / "3" / "too deep"]
    assert is_run(old)
    assert not is_run(tmp_path / "road")


def test_a_record_per_run_and_damage_hides_nobody(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    made(tmp_path / "whole", 7300, selection_accuracy=0.98765)
    RunFolder(made(tmp_path / "broken off", 130, state="interrupted")).append_metrics({"stage": "search", "epoch": 12})
    made(tmp_path / "fresh", 20, state="new", config=None)
    made(tmp_path / "damaged", 10)
    (tmp_path / "damaged" / "config.yaml").write_text("{\n")
    rows = {row["path"].rsplit("/", 1)[1]: row for row in overview(tmp_path)}
    assert list(rows) == ["whole", "broken off", "fresh", "damaged"]
    found = {"kind": "search", "of": "bpnas in nb201", "data": "digits"}
    assert found.items() <= rows["whole"].items()
    assert (rows["whole"]["accuracy"], rows["whole"]["split"]) == (0.98765, "selection")
    assert found.items() <= rows["broken off"].items()
    assert [rows["broken off"][key] for key in ("state", "stage", "epoch")] == ["interrupted", "search", 12]
    assert set(rows["fresh"]) == {"path", "state", "changed"}
    assert rows["damaged"]["state"] == "unreadable"
    assert "config.yaml cannot be read" in rows["damaged"]["error"]
    print_overview(list(rows.values()), str(tmp_path))
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0].split() == ["run", "what", "data", "state", "accuracy", "changed"]
    assert lines[1].split("  ")[0] == "whole"
    assert "0.9877" in lines[1]
    assert lines[1].rstrip().endswith("2.0 h ago")
    assert "interrupted, epoch 12" in lines[2]
    assert lines[2].rstrip().endswith("2 min ago")
    assert "error     " in lines[-1]


def test_repeats_say_how_many_runs_are_done(tmp_path, capsys):
    folder = made(tmp_path / "sure", 20, state="running", config=CONFIG | {"repeats": 3})  # its process is gone
    for number, state in enumerate(("finished", "finished", "running")):
        made(folder / "repeats" / f"{number:03d}", 10, state=state)
    (row,) = overview(tmp_path)
    assert (row["kind"], row["done"], row["runs"]) == ("repeats", 2, 3)
    print_overview([row], str(tmp_path))
    assert "interrupted, 2 of 3 runs" in capsys.readouterr().out


def test_names_are_those_in_the_folder_and_stay_in_one_piece(tmp_path, capsys, monkeypatch):
    """A name is copied from there, cut into pieces of a column it could not be; a file has lines of any length."""
    monkeypatch.setenv("COLUMNS", "80")
    path = made(tmp_path / "mnist of november" / "second", 20, state="interrupted", selection_accuracy=0.5)
    RunFolder(path).append_metrics({"stage": "search", "epoch": 12345})
    rows = overview(tmp_path)
    for terminal in (False, True):
        monkeypatch.setattr(Console, "is_terminal", terminal)
        print_overview(rows, str(tmp_path))
        printed = capsys.readouterr().out.splitlines()
        assert printed[0] == f"1 run in {tmp_path}"
        assert printed[2].split("  ")[0] == "mnist of november/second"
        assert (len(printed) > 4) == terminal


def test_where_there_is_nothing_that_is_said(tmp_path):
    with pytest.raises(RunError, match=r"no runs in .*bayesarch search --out"):
        overview(tmp_path)
    with pytest.raises(RunError, match="no folder at"):
        overview(tmp_path / "nowhere")


def test_a_folder_of_runs_is_named_as_one(tmp_path):
    inside = [made(tmp_path / "road" / name, age) for name, age in (("search", 20), ("ensemble", 10))]
    with pytest.raises(RunError, match=f"is no run folder: status.json is missing; it holds {inside[0]}, {inside[1]}$"):
        open_run(tmp_path / "road")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"status\.json is missing$"):
        open_run(tmp_path / "empty")
