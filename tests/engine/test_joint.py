"""Two processes (gloo) do what one does: passes in float64, searches up to rounding, and one word on when to stop."""

import itertools
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import bayesarch as ba
from bayesarch.engine import Interrupted, World
from bayesarch.workflows.search import Listener
from joint_worker import COMMON, all_passes, searches

WORKER = Path(__file__).parents[1] / "joint_worker.py"
SIZE = 2


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What each of two processes found: tensors and words."""
    folder = tmp_path_factory.mktemp("joint")

    def stop(place):
        if place.steps == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        searched(folder / "broken", listener=Listener(on_step=stop))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(WORKER), str(folder)],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(SIZE), "MASTER_ADDR": "127.0.0.1",
                 "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(SIZE)
    ]  # fmt: skip
    for process in started:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0, said
    files = [folder / f"rank{rank}.safetensors" for rank in range(SIZE)]
    words = []
    for file in files:
        with safe_open(file, framework="pt") as opened:
            words.append(opened.metadata())
    return [load_file(file) for file in files], words, folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = {**all_passes(World()), **searches(tmp_path_factory.mktemp("alone"), World())}
    torch.set_num_threads(threads)
    return found


def test_every_process_holds_the_same(both):
    first, second = both[0]
    assert first.keys() == second.keys()
    for key in first:
        assert torch.equal(first[key], second[key]), key


def searched(out, **more):
    """Search as `joint_worker.COMMON` does, on one process."""
    settings = [value for flag, value in itertools.pairwise(COMMON) if flag == "--set"]
    return ba.search("digits", method="drnas", limit=240, set=settings, out=out, **more)


def numbers(record, path=""):
    """Yield (path, number) of everything in a record."""
    if isinstance(record, dict | list):
        for key, value in record.items() if isinstance(record, dict) else enumerate(record):
            yield from numbers(value, f"{path}/{key}")
    elif isinstance(record, int | float):
        yield path, record


def test_torchrun_writes_one_folder_and_goes_on_with_one(both, tmp_path):
    whole = searched(tmp_path / "whole")
    expected = dict(numbers(whole.folder.read_json("posterior.json")))
    assert len(expected) >= 30
    assert len({round(value, 3) for value in expected.values()}) > 20
    for name in ("run", "broken"):
        joint = ba.open_run(both[2] / name)
        assert joint.status["state"] == "finished"
        found = dict(numbers(joint.folder.read_json("posterior.json")))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert math.isclose(found[key], value, rel_tol=1e-2, abs_tol=1e-3), key
        assert joint.summary["images"] == whole.summary["images"]
        assert len(joint.metrics) == len(whole.metrics) == 3
        assert joint.folder.has("report.html")
    assert len((both[2] / "broken" / "log.txt").read_text().splitlines()) == 4


def test_the_first_process_alone_prints(both):
    first, second = both[1]
    assert "accuracy" in first["search"]
    assert "accuracy" in first["resume"]
    assert second["search"] == second["resume"] == ""
    refusal = "error: torchrun started 2 processes, and only `search` and `resume` of a search are shared by several"
    assert first["refused"].startswith(f"left with 2: {refusal}")
    assert second["refused"].startswith(f"left with 2: process 1: {refusal}")


CASES = ("shared", "each", "active", "partial", "still", "few", "copies", "own")


@pytest.mark.parametrize("case", CASES)
def test_a_pass_over_parts_is_the_pass_over_the_batch(both, alone, case):
    joint = {key: value for key, value in both[0][0].items() if key.startswith(f"{case}/")}
    whole = {key: value for key, value in alone.items() if key.startswith(f"{case}/")}
    assert joint.keys() == whole.keys()
    assert len([key for key in joint if "/weight/" in key]) > 3
    for key, expected in whole.items():
        torch.testing.assert_close(
            joint[key], expected, rtol=1e-9, atol=1e-11, msg=lambda text, key=key: f"{key} {text}"
        )
    assert float(whole[f"{case}/alone"].abs().max()) > 1e-3
    assert float(whole[f"{case}/logits"].std()) > 1e-3


@pytest.mark.parametrize("method", ["bpnas", "darts-2nd", "bayesnas"])
def test_a_search_by_two_is_the_search_by_one_up_to_rounding(both, alone, method):
    joint = {key: value for key, value in both[0][0].items() if key.startswith(f"{method}/")}
    assert torch.equal(joint[f"{method}/live"], alone[f"{method}/live"])
    assert torch.equal(joint[f"{method}/work"], alone[f"{method}/work"])
    assert len(joint) > 5
    for key, value in joint.items():
        torch.testing.assert_close(value, alone[key], rtol=2e-3, atol=2e-4, msg=lambda text, key=key: f"{key} {text}")


def test_the_first_process_says_when_to_stop(both):
    assert [words["stopped"] for words in both[1]] == ["2", "2"]
    assert [words["told"] for words in both[1]] == ["0", "0"]
    assert [words["saved"] for words in both[1]] == ["True", "False"], "the first one alone writes"


def test_cells_are_not_computed_twice_where_the_batch_is_shared(both):
    """A second pass would run outside of the shared one, and its gradients would be those of a part."""
    for words in both[1]:
        assert words["ways"].count("are for one process") == 2


def test_processes_that_part_are_told_so(both):
    for words in both[1]:
        assert words["diverged"].startswith("NumericalError: search round 1: processes no longer agree on a")


def test_parts_cover_the_batch_and_differ_by_one_at_most():
    for n in range(3, 12):
        bounds = [World(rank, 3).bounds(n) for rank in range(3)]
        assert [i for start, end in bounds for i in range(start, end)] == list(range(n))
        sizes = [end - start for start, end in bounds]
        assert sizes == World(0, 3).sizes(n)
        assert max(sizes) - min(sizes) <= 1
