import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import bayesarch as ba
from bayesarch.engine import SHARED_THREADS
from bayesarch.errors import ConfigError, RunError
from bayesarch.posteriors import jeffreys
from bayesarch.spaces import TOY
from bayesarch.workflows.cluster import RayLauncher
from bayesarch.workflows.heap import TUNABLES
from bayesarch.workflows.overview import overview
from bayesarch.workflows.processes import _Crew, _local
from bayesarch.workflows.waiting import SPINS, WAITING
from helpers import jobs_here

TINY = {"engine.epochs": 2, "engine.closing_epochs": 0}


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    out = tmp_path_factory.mktemp("repeats") / "run"
    with jobs_here():  # processes of their own are in the test that stops them
        return ba.search(
            "planted", space="toy", method="darts", seed=5, repeats=3, parallel=2, limit=300, out=out, set=TINY
        )


def children(run):
    return [ba.open_run(path) for path in sorted(Path(run.path, "repeats").iterdir())]


def test_each_run_has_its_own_seed_and_bootstrap(repeated):
    runs = children(repeated)
    assert [run.config["seed"] for run in runs] == [5, 6, 7]
    assert [run.config["data"]["bootstrap"] for run in runs] == [5, 6, 7]
    assert all(run.status["state"] == "finished" for run in runs)
    prints = [run.data["fingerprint"] for run in runs]
    assert len({p["weights"] for p in prints}) == len({p["architecture"] for p in prints}) == 3
    assert len({p["selection"] for p in prints}) == len({p["test"] for p in prints}) == 1


def test_the_union_counts_the_runs(repeated):
    runs = children(repeated)
    posterior = repeated.posterior
    assert posterior.kind == "recurrence"
    assert posterior.votes == 3
    for position, choice in enumerate(posterior.space.choices):
        names = [run.architecture.option_names(position)[0] for run in runs]
        for option in choice.options:
            k = names.count(option)
            assert posterior.weights()[choice.name][option] == pytest.approx(k / 3)
            assert posterior.intervals()[choice.name][option] == jeffreys(k, 3)
    assert {arch for arch, _ in posterior.members} == {run.architecture for run in runs}
    summary = repeated.summary
    assert [row["cell"] for row in summary["runs"]] == [run.summary["cell"] for run in runs]
    assert summary["votes"] == sum(run.architecture == posterior.mode() for run in runs)
    assert summary["word"] == "share of runs"
    assert ba.open_run(repeated.path).posterior.to_json() == posterior.to_json()


def test_a_repeat_equals_a_search_with_its_settings(repeated, tmp_path):
    """Processes side by side change nothing."""
    run = children(repeated)[1]
    alone = ba.search(config={**run.config}, out=tmp_path / "alone")
    for of in (run, alone):
        assert of.folder.read_json("environment.json")["threads"] == 1  # of the tests' environment
    assert alone.posterior.to_json() == run.posterior.to_json()


def test_processes_side_by_side_share_the_cores_unless_somebody_says_otherwise(monkeypatch):
    def given():
        found = _Crew([], 3, None, _local).environment
        return found["OMP_NUM_THREADS"], found.get(SHARED_THREADS)

    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert given() == ("5", None)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert given() == ("2", "1")
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert given() == ("1", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")  # the share of a process that starts others
    monkeypatch.setenv(SHARED_THREADS, "1")
    assert given() == ("2", "1")


def test_processes_side_by_side_have_a_tight_heap_unless_somebody_says_otherwise(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert _Crew([], 2, None, _local).environment["GLIBC_TUNABLES"] == TUNABLES
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    assert _Crew([], 2, None, _local).environment["GLIBC_TUNABLES"] == ""


def test_processes_side_by_side_wait_as_commands_do_unless_somebody_says_otherwise(monkeypatch):
    for name in WAITING:
        monkeypatch.delenv(name, raising=False)
    environment = _Crew([], 2, None, _local).environment
    assert [environment[name] for name in WAITING] == ["PASSIVE", str(SPINS)]
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment = _Crew([], 2, None, _local).environment
    assert [environment.get(name) for name in WAITING] == ["ACTIVE", None]


def test_a_cluster_is_told_of_threads_and_heaps_and_of_nothing_else(monkeypatch, tmp_path):
    sent = []
    task = SimpleNamespace(remote=lambda *given: sent.append(given))
    ray = SimpleNamespace(is_initialized=lambda: True, remote=lambda **options: lambda work: task)
    monkeypatch.setitem(sys.modules, "ray", ray)
    told = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "9", "GLIBC_TUNABLES": "a=0"}
    told |= {SHARED_THREADS: "1"}
    RayLauncher("local")(tmp_path, ["python"], {**told, "HOME": "/root"})
    assert sent == [(str(tmp_path), ["python"], told)]


def test_the_runs_are_one_line_of_their_folder(repeated):
    (row,) = overview(Path(repeated.path).parent)
    assert (row["kind"], row["of"], row["data"]) == ("repeats", "3 of darts in toy", "planted")
    each = [run.summary["selection_accuracy"] for run in children(repeated)]
    assert row["accuracy"] == pytest.approx(sum(each) / 3)
    assert row["split"] == "selection"


def test_the_page_and_the_table(repeated, typed):
    page = Path(repeated.path, "report.html").read_text()
    assert page.count("<svg") == 3
    assert "3 independent runs" in page.replace("\n", " ")
    shown = typed("show", repeated.path).out
    assert "share of runs" in shown
    assert "of 3 runs" in shown


def test_arrays_are_kept_for_the_processes(tmp_path, here):
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(120, 1, 8, 8)).astype(np.float32), np.arange(120) % 3
    run = ba.search((images, labels), space="toy", method="random", repeats=2, out=tmp_path / "run", set=TINY)
    assert run.posterior.votes == 2
    assert (tmp_path / "run" / "examples.npz").is_file()
    assert run.data["classes"] == ["0", "1", "2"]


def test_a_stopped_repeat_goes_on(tmp_path):
    """SIGTERM to the parent stops the children at a step; resume brings all to the end that they would have had."""
    out = tmp_path / "run"
    flags = ["--data", "planted", "--space", "toy", "--method", "darts", "--repeats", "2", "--parallel", "2"]
    sets = [part for k, v in {**TINY, "engine.epochs": 20, "data.limit": 300}.items() for part in ("--set", f"{k}={v}")]
    process = subprocess.Popen(
        [sys.executable, "-m", "bayesarch", "search", "--out", str(out), *flags, *sets],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (out / "repeats" / "000" / "metrics.jsonl").exists():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "bayesarch resume" in said
    assert ba.open_run(out).status["state"] == "interrupted"
    with pytest.raises(RunError, match="resume"):
        _ = ba.open_run(out).summary
    done = ba.resume(out, parallel=2)
    assert done.posterior.votes == 2


def test_a_failing_repeat_is_named(repeated, tmp_path):
    import shutil

    out = tmp_path / "run"
    shutil.copytree(repeated.path, out)
    for name in ("status.json", "summary.json", "posterior.json"):
        (out / name).unlink()
    (out / "status.json").write_text('{"format": 1, "state": "interrupted"}')
    broken = out / "repeats" / "001"
    (broken / "status.json").write_text('{"format": 1, "state": "interrupted"}')
    (broken / "checkpoints" / "last.safetensors").write_bytes(b"nonsense")
    with pytest.raises(RunError, match=r"repeats/001 failed: error: .*damaged"):
        ba.resume(out)
    assert ba.open_run(out).status["state"] == "failed"


def test_what_cannot_be_repeated(tmp_path):
    with pytest.raises(ConfigError, match="by name"):
        ba.search("planted", space=TOY, repeats=2, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="repeats: must be a whole number"):
        ba.search("digits", repeats=0, out=tmp_path / "run2")
