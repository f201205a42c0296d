"""Processes that train are started with a tight heap, once, and not against the user's word."""

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import bayesarch.cli as cli
from bayesarch.workflows import heap

glibc = pytest.mark.skipif(not heap._is_glibc(), reason="the C library is not glibc")


@pytest.fixture
def started(monkeypatch):
    """What `tighten` would start."""
    calls = []
    monkeypatch.setattr(os, "execv", lambda *given: calls.append(given))
    monkeypatch.setattr(sys, "orig_argv", ["python", "-W", "error", "-m", "bayesarch", "search"])
    monkeypatch.setenv("GLIBC_TUNABLES", "")  # so that what is set below is taken back
    monkeypatch.delenv("GLIBC_TUNABLES")
    return calls


@glibc
def test_a_process_is_started_anew_as_it_was_called_and_once(started):
    assert not heap.heap_is_tight()
    heap.tighten()
    assert started == [(sys.executable, [sys.executable, "-W", "error", "-m", "bayesarch", "search"])]
    assert os.environ["GLIBC_TUNABLES"] == heap.TUNABLES
    assert heap.heap_is_tight()
    heap.tighten()
    assert len(started) == 1


@pytest.mark.parametrize("given", ["", "glibc.malloc.tcache_count=0"])
def test_what_the_user_says_stays(started, given, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", given)
    heap.tighten()
    assert started == []
    assert not heap.heap_is_tight(), "the other cache is there"


def test_elsewhere_nothing_happens(started, monkeypatch):
    monkeypatch.setattr(os, "confstr", lambda name: None)
    heap.tighten()
    assert started == []
    monkeypatch.setenv("GLIBC_TUNABLES", heap.TUNABLES)
    assert not heap.heap_is_tight()


@pytest.mark.parametrize(
    ("words", "times"), [(["search", "--dry-run"], 1), (["resume", "x"], 1), (["show", "x"], 0), ([], 0)]
)
def test_commands_that_train_and_no_others(words, times, monkeypatch):
    done = []
    monkeypatch.setattr(heap, "tighten", lambda: done.append("tight"))
    monkeypatch.setattr(cli, "main", lambda: done.append("main"))
    monkeypatch.setattr(sys, "argv", ["bayesarch", *words])
    cli.start()
    assert done == ["tight"] * times + ["main"]


@glibc
def test_a_search_from_the_command_line_has_it(tmp_path):
    surroundings = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    words = ["search", "--data", "planted", "--space", "toy", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "bayesarch", *words]
    process = subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        found, deadline = b"", time.monotonic() + 60
        while heap.TUNABLES.encode() not in found and process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # while one process takes the other's place
                # glibc cuts its own copy of the line to pieces
                found = Path(f"/proc/{process.pid}/environ").read_bytes().replace(b"\0", b":")
            time.sleep(0.01)
        assert f":GLIBC_TUNABLES={heap.TUNABLES}:".encode() in found
    finally:
        process.kill()
        process.wait()


HOLES = """
import random, torch
def kib(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))
rng, kept, small, before = random.Random(0), [], [], kib("VmRSS")
for _ in range(6000):
    if len(kept) >= 64:
        kept.pop(rng.randrange(64))
    kept.append(torch.ones(rng.choice([1, 2, 3, 4]) * 2**17))
    small.append([torch.empty(n) for n in (1, 5, 9, 17)])  # they sit in the pieces cut off the large ones
    if len(small) > 400:
        small.pop(rng.randrange(400))
print((kib("VmHWM") - before) * 1024 / sum(t.nbytes for t in kept))
"""


@glibc
def test_what_tensors_leave_is_used_again():
    """64 tensors of four sizes, one after another anew: 1.6 times their bytes, and 2.6 to 3.1 in a plain heap here."""
    surroundings = {**os.environ, "GLIBC_TUNABLES": heap.TUNABLES}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HOLES], env=surroundings, capture_output=True, text=True, check=True
    )
    assert 1.0 < float(done.stdout) < 2.0
