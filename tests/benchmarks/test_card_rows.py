"""The rows for a card can be measured: on the CPU, and with graphs on a card that is pretended."""

import json
import sys
from pathlib import Path

import pytest
import torch

from captured import pretended_graphs
from pretended import pretended_card

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import card


def measured(monkeypatch, out, device, *rows):
    monkeypatch.setattr(card, "STEPS", 1)
    words = [word for row in rows for word in ("--row", row)]
    monkeypatch.setattr("sys.argv", ["card.py", "--short", "--device", device, *words, "--out", str(out)])
    card.main()
    return json.loads(out.read_text())


def test_rows_on_the_cpu_have_the_ways_that_are_there(tmp_path, monkeypatch):
    record = measured(monkeypatch, tmp_path / "card.json", "cpu", "nb201", "limits", "search")
    steps, limits, search = (record["rows"][name] for name in ("nb201", "limits", "search"))
    assert set(steps["steps"]) == {"published", "ours", "ours, bf16"}
    assert set(steps["peak_mib"].values()) == {None}
    assert all(0 < row["least"] < row["seconds"] for row in limits["of"].values())
    assert 0 < search["seconds"] < search["whole"]
    assert (search["epochs"], search["settings"]["engine.graphs"]) == (1, False)


def test_rows_on_a_card_replay_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2**20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as graphs:
        record = measured(monkeypatch, tmp_path / "card.json", "cuda", "nb201")
        assert [graph.replays for graph in graphs.made] == [
            1,
            1,
        ]  # the third step of each way, the first two are the host's
    row = record["rows"]["nb201"]
    assert set(row["steps"]) == {"published", *card.WAYS}
    assert set(row["peak_mib"].values()) == {2.0}
    assert row["steps"]["published"]["ratio"] == 1.0
    assert record["environment"]["device_name"] == "pretended"


def test_seconds_are_of_one_step(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(card.Case, "ours", lambda self, **how: lambda: None)
    monkeypatch.setattr(card.Case, "published", lambda self: lambda: None)
    found = card.step_row(card.SHORT["nb201"], card.Card("cpu"))
    assert {row["seconds"] for row in found["steps"].values()} == {1.0 / card.STEPS}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_compiled_ways_stand_beside_the_others(device):
    ways = card.Card(device).ways(compiled=True)
    assert ways["compiled ours, bf16"] == {"precision": "bf16", "compile": True}
    assert ("compiled graphs" in ways) == (device == "cuda")
