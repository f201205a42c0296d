"""Our supernets are the published ones, computed faster: outputs and all gradients, float64; and rows are measured."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets import Supernet, pieces
from bayesarch.spaces import SPACES
from bayesarch.workflows.waiting import WAITING

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import machine
import speed
import steps
import waiting
from published import PublishedImages, PublishedNet, published_step
from results_speed import elsewhere_part, speed_part
from roofline import roofline
from searches import SEARCHES, search_row
from steps import Case

NETS = {
    "nb201": {"channels": 4, "cells": 1},
    "darts": {"channels": 3, "layers": 3},
    "bayesnas-cell": {"channels": 3, "layers": 3},
}


def both(space, generator, side=8):
    ours = Supernet(SPACES[space], input_shape=(2, side, side), classes=3, sizes=NETS[space], generator=generator)
    ours = ours.double().to(memory_format=torch.channels_last)
    return ours, PublishedNet(ours)


@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("space", NETS)
def test_outputs_and_all_gradients_equal_the_published_way(space, side, generator, monkeypatch):
    monkeypatch.setattr(pieces, "LARGE", 0)  # as where images are large
    ours, theirs = both(space, generator, side)
    images = torch.randn(5, 2, side, side, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1])
    gates = torch.randn(ours.space.n_options, generator=generator, dtype=torch.float64).requires_grad_()
    mine, plain = ours(images, gates.view(1, 1, -1)), theirs(images, gates)
    torch.testing.assert_close(mine, plain, rtol=1e-9, atol=1e-10)
    of_gates = []
    for net, logits in ((ours, mine), (theirs, plain)):
        gates.grad = None
        F.cross_entropy(logits, labels).backward()
        of_gates.append(gates.grad)
        assert all(p.grad is not None for p in net.head.parameters())
    assert float(of_gates[1].abs().max()) > 1e-3
    torch.testing.assert_close(*of_gates, rtol=1e-7, atol=1e-9)
    compared = 0
    for own, other in zip(ours.layers, theirs.layers, strict=True):
        for g in range(ours.space.n_options) if hasattr(other, "ops") else []:
            published = list(other.ops[str(g)].parameters()) if str(g) in other.ops else []
            for a, b in zip(own.option_parameters(g), published, strict=True):
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9)
                compared += 1
    assert compared >= 12
    torch.testing.assert_close(ours.stem[0].weight.grad, theirs.stem[0].weight.grad, rtol=1e-7, atol=1e-9)


def test_a_published_step_moves_logits_and_weights(generator):
    _, theirs = both("nb201", generator)
    rows = [[0, 1, 2, 3, 4] for _ in range(1)] + [list(range(5 * i, 5 * i + 5)) for i in range(1, 6)]
    before = [p.detach().clone() for p in theirs.parameters()]
    batch = (torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 2, 0]))
    published_step(theirs, rows, (batch, batch))()
    moved = [not torch.equal(a, b) for a, b in zip(before, theirs.parameters(), strict=True)]
    assert all(moved)


def test_ratios_are_medians_round_by_round():
    clock = iter([0.0, 2.0, 2.0, 3.0, 3.0, 7.0, 7.0, 9.0, 9.0, 15.0, 15.0, 16.0])
    works = {"base": lambda: None, "other": lambda: None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speed.time, "perf_counter", lambda: next(clock))
        found = steps.in_turn(works, 3, "base")
    assert found["base"] == {"seconds": 4.0, "least": 2.0, "ratio": 1.0, "lowest": 1.0, "highest": 1.0}
    assert found["other"] == {"seconds": 1.0, "least": 1.0, "ratio": 2.0, "lowest": 2.0, "highest": 6.0}


def test_the_roofline_counts_flops_and_bytes(generator):
    x = torch.randn(2, 3, 5, 5, generator=generator)
    dense, deep = torch.randn(4, 3, 3, 3, generator=generator), torch.randn(4, 1, 3, 3, generator=generator)

    def step():
        y = F.conv2d(F.conv2d(x, dense, padding=1), deep, padding=1, groups=4)
        y.view(-1).add_(1.0)

    found = roofline(step, {"flops": 1e3, "bytes": 1e12})
    assert {kind: row["calls"] for kind, row in found.items()} == {
        "convolution": 1, "depthwise convolution": 1, "element by element": 1,
    }  # fmt: skip
    assert found["convolution"]["flops"] == 2 * 2 * 25 * 4 * 27
    assert found["convolution"]["bytes"] == 4 * (2 * 75 + 108 + 200)
    assert found["convolution"]["least"] == 2 * 2 * 25 * 4 * 27 / 1e3
    assert found["depthwise convolution"]["flops"] == 2 * 2 * 25 * 4 * 9
    assert found["element by element"]["least"] == 4 * (200 + 200) / 1e12


def str_table(head, body):
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, *body])


@pytest.mark.parametrize(
    ("flags", "expected"), [("avx2 avx512_bf16 fma", True), ("amx_bf16", True), ("avx512f bf16", False)]
)
def test_a_processor_says_whether_it_multiplies_bf16(flags, expected, tmp_path):
    known = tmp_path / "cpuinfo"
    assert not speed.multiplies_bf16(known)
    known.write_text(f"processor : 0\nflags : {flags}\n")
    assert speed.multiplies_bf16(known) == expected


@pytest.mark.parametrize("bf16", [True, False])
def test_the_short_form_measures_rows(bf16, tmp_path, monkeypatch):
    out = tmp_path / "speed.json"
    peaks = {"ours": 1.0, "published": 2.0, "fused": 0.5, "fused, bf16": 0.25}
    monkeypatch.setattr(speed, "peak_of", lambda which, name, given: peaks[which])
    monkeypatch.setattr(speed, "multiplies_bf16", lambda: bf16)
    monkeypatch.setattr(speed, "SHORT", {"nb201": speed.SHORT["nb201"]})  # `make speed` measures all of them
    rows = [word for row in ("nb201", "augmentation", "fused") for word in ("--row", row)]
    monkeypatch.setattr("sys.argv", ["speed.py", "--short", *rows, "--out", str(out)])
    speed.main()
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == {"nb201", "augmentation", "fused"}
    for name in speed.SHORT:
        steps = rows["fused"]["of"][name]["steps"]
        assert set(steps) == {"published", "ours", "fused"} | ({"ours, bf16", "fused, bf16"} if bf16 else set())
    page = "\n".join(speed_part({"rows": rows} | json.loads(out.read_text()), str_table, lambda record: "here"))
    assert ("| 0.50 | 0.25 | 0.12 |" if bf16 else "| 0.50 | 0.25 |\n") in page + "\n"
    assert set(rows["nb201"]["steps"]) == {"published", "ours"}
    assert all(row["seconds"] > 0 for row in rows["nb201"]["steps"].values())
    assert rows["nb201"]["peak_mib"] == {"ours": 1.0, "published": 2.0}
    assert rows["augmentation"]["steps"]["ours"]["images_per_second"] > 0


def test_steps_on_another_machine_have_the_rows_that_are_there():
    steps = {way: {"ratio": 2.0, "lowest": 1.5, "highest": 2.5} for way in ("ours", "fused")}
    cell = {"steps": steps, "peak_mib": {"published": 4.0, "ours": 2.0, "fused": 1.0}}
    record = {"rows": {"fused": {"of": {"nb201": cell}}}}
    page = "\n".join(elsewhere_part("small", record, str_table, lambda record: "here"))
    assert "on another machine: small" in page
    assert "| space | ours | fused | peak memory: ours | fused |" in page
    assert "| nb201 | 2.00 (1.50 to 2.50) | 2.00 (1.50 to 2.50) | 0.50 | 0.25 |" in page
    assert "A first-order step" not in page
    assert "limits" not in page


def test_published_images_are_ours_where_nothing_is_drawn():
    """Without crop and hole an image is as the split gives it, or its mirror image; with them it is a part of it."""
    from bayesarch.data import DataConfig
    from bayesarch.data.pipeline import MemorySplit

    rng = np.random.default_rng(0)
    images, labels = rng.integers(1, 256, (6, 8, 8, 3), dtype=np.uint8), np.arange(6)
    mean, std = np.array([120.5, 110.5, 100.5]), np.array([60.0, 50.0, 40.0])
    split = MemorySplit(images, labels, config=DataConfig(), mean=mean, std=std, device=torch.device("cpu"))
    plain, seen = split.plain(torch.arange(6)).images, set()
    given = {"mean": mean / 255, "std": std / 255}
    still = PublishedImages(images, labels, **given, pad=0, hole=0)
    for _ in range(8):
        for index in range(6):
            x, label = still[index]
            assert label == index
            mirrored = not torch.allclose(x, plain[index], atol=1e-5)
            seen.add(mirrored)
            assert torch.allclose(x.flip(2) if mirrored else x, plain[index], atol=1e-5)
    assert seen == {False, True}
    cut = PublishedImages(images, labels, **given, pad=2, hole=4)
    holes = [int((cut[0][0] == 0).sum()) for _ in range(20)]
    assert max(holes) == 3 * 16
    assert min(holes) >= 3 * 4, "half of a hole lies outside at a corner"


def test_the_roofline_counts_backward_passes_by_what_they_give(generator):
    x = torch.randn(2, 4, 5, 5, generator=generator, requires_grad=True)
    first = torch.randn(2, 4, 5, 5, generator=generator)
    dense, deep = (torch.randn(4, c, 3, 3, generator=generator, requires_grad=True) for c in (4, 1))

    def step():
        F.conv2d(x, dense, padding=1).sum().backward()
        F.conv2d(first, deep, padding=1, groups=4).sum().backward()

    found = roofline(step, {"flops": 1e3, "bytes": 1e12})
    assert found["convolution, backward"]["flops"] == 2 * 2 * (2 * 25 * 4 * 36)  # of the input and of the kernel
    assert found["depthwise convolution, backward"]["flops"] == 2 * 25 * 4 * 9 * 2  # of the kernel alone


@pytest.mark.slow
def test_peaks_are_of_processes_of_their_own():
    given = {"space": "nb201", "sizes": {"channels": 8, "cells": 1}, "batch": 64, "rounds": 1}
    assert 20 < speed.peak_of("ours", "nb201", given) < 2000


def test_rows_on_the_machine_are_measured():
    found = machine.memory_of(4, paged=False)  # the smallest
    assert 5 < found["told"] < 50
    assert found["grown"] >= 0
    assert found["resident"] > found["told"]
    threads = torch.get_num_threads()
    try:
        (row,) = machine.passes_by_threads([[8, 8, 1]])
    finally:
        torch.set_num_threads(threads)
    assert row["macs"] > 1e7
    assert row["steps"]["one"]["ratio"] == 1.0
    assert row["steps"]["two"]["lowest"] <= row["steps"]["two"]["ratio"] <= row["steps"]["two"]["highest"]
    (row,) = machine.depthwise_row(short=True)["of"]
    assert set(row["steps"]) == {"forward", "library, input", "ours, input", "library, kernel", "ours, kernel"}
    (row,) = machine.cuts_row(short=True)["of"]
    assert row["macs"] == [784 * 300 + 300 * 100 + 1000, 784 * 150 + 150 * 50 + 500]
    assert {"1", "64"} == set(row["steps"])
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("taken", ["in turn", "afterwards"])
def test_a_whole_search_stands_beside_a_hundred_epochs(taken):
    others = {"ours, drnas": 600.0, "published": 1500.0}
    found = {"epochs": 41, "seconds": 300.0, "selection_accuracy": 0.625}
    rows = {"search": {"searches": {"BPNAS": {**found, "others": others}}}}
    rows["search-fused"] = {"searches": {"BPNAS, fused": {**found, "seconds": 150.0, "others": others}}}
    if taken == "afterwards":
        both = {"BPNAS": found, "BPNAS, fused": {**found, "seconds": 150.0}}
        rows = {"search": {"searches": both, "seconds": others}}
    page = "\n".join(speed_part({"rows": rows}, lambda head, body: f"{head}{body}", lambda record: "here"))
    assert "['BPNAS, 41 epochs to one operation per edge', '300', '1500', '600', '0.20', '0.50', '62.5']" in page
    assert "['BPNAS, fused, 41 epochs to one operation per edge', '150', '1500', '600', '0.10', '0.25', '62.5']" in page


@pytest.mark.parametrize(
    ("bf16", "expected"), [(True, ["BPNAS, fused", "BPNAS, fused, bf16"]), (False, ["BPNAS, fused"])]
)
def test_whole_searches_are_those_that_the_processor_can_do(bf16, expected, monkeypatch):
    monkeypatch.setattr(speed, "multiplies_bf16", lambda: bf16)
    assert speed.fused_searches() == expected
    assert set(expected) < set(SEARCHES)


def test_other_steps_are_taken_in_turn_with_the_epochs_of_a_search(monkeypatch):
    """Each twice after each epoch, the second timed; what they take is not the search's."""
    slept = []

    def slow(case, *words):
        return lambda: slept.append(time.sleep(0.3))

    monkeypatch.setattr(Case, "published", slow)
    monkeypatch.setattr(Case, "ours", slow)
    found = search_row(["BPNAS"], short=True)["searches"]["BPNAS"]
    steps = 150 // 8
    assert found["epochs"] == 1
    assert len(slept) == 6  # once before, twice after the epoch
    assert found["steps"]["published"]["least"] >= 0.3
    assert found["others"]["published"] == pytest.approx(100 * steps * found["steps"]["published"]["seconds"], rel=0.2)


def test_each_way_to_wait_is_measured_alone_and_in_company(monkeypatch):
    told, started, popen = [], [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *words: started.append(popen(*words)) or started[-1])
    monkeypatch.setenv("OMP_WAIT_POLICY", "neither of these")

    def alive():
        return sum(other.poll() is None for other in started)

    def seconds(given, way, step):
        told.append((way, step, alive()))
        return float(len(told))

    monkeypatch.setattr(waiting, "_step", seconds)
    row = waiting.waiting_row(short=True)["of"]["nb201"]
    kinds = [("ours", 0), ("ours", 1), ("published", 0)]
    assert told == [(way, step, busy) for step, busy in kinds for way in ("passive", "shortly", "active")]
    assert alive() == 0
    assert {other.args[-1] for other in started} == {"while True: pass"}
    assert row["company"]["shortly"] == {"seconds": 5.0, "all": [5.0]}
    assert row["published"]["passive"] == {"seconds": 7.0, "all": [7.0]}
    said = {way: [waiting.environment(way).get(name) for name in WAITING] for way in waiting.WAYS}
    assert said == {"passive": ["PASSIVE", None], "shortly": ["PASSIVE", "3000"], "active": ["ACTIVE", None]}
