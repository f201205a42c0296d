"""Searches on a card that is pretended: every tensor on the right device, and the host never waits inside a step."""

import numpy as np
import pytest
import torch
from torch import nn

import bayesarch as ba
from bayesarch.methods import METHODS
from helpers import make_engine, posterior_of
from pretended import pretended_card

SIZES = {"channels": 4, "cells": 1}
LOOK = {"gdas", "nesbs", "random"}
"""Methods that compute what was drawn and nothing else: the host must know the draw before it can say what to run."""


@pytest.fixture
def card(monkeypatch):
    with pretended_card(monkeypatch) as marks:
        yield marks


def test_what_lies_apart_does_not_go_together(card):
    """What the tests below rely on, operation by operation."""
    here, there = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
    assert (here.device.type, there.device.type, there.is_cuda) == ("cpu", "cuda", True)
    for mixed in (
        lambda: here @ there,
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: nn.Linear(2, 2)(there),
    ):
        with pytest.raises(RuntimeError, match="same device"):
            mixed()
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    assert (there * torch.tensor(2.0) @ here.to(there)).device == (there[torch.tensor([0])]).device == there.device
    assert here.numpy().sum() == there.cpu().numpy().sum() == 4


def test_draws_need_the_generator_of_their_device(card):
    there = torch.Generator("cuda").manual_seed(0)
    assert torch.rand(3, generator=there, device="cuda").is_cuda
    for draw in (
        lambda: torch.rand(3, generator=there),
        lambda: torch.rand(3, generator=torch.Generator(), device="cuda"),
    ):
        with pytest.raises(RuntimeError, match="generator"):
            draw()


def test_gradients_lie_where_the_weights_do(card):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).to("cuda")
    card.waits.clear()  # of putting weights there
    net(torch.rand(4, 1, 5, 5, device="cuda")).square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9).step()
    assert {t.device.type for p in net.parameters() for t in (p, p.grad)} == {"cuda"}
    with pytest.raises(RuntimeError, match="same device"):
        net[0].weight.grad.add_(torch.ones(2, 1, 3, 3))
    assert not card.waits


def test_waiting_is_written_down(card):
    there = torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    for wait in (
        lambda: float(there.sum()),
        lambda: there[there > 0.5],
        lambda: there.nonzero(),
        there.cpu,
        there.tolist,
        lambda: torch.empty(3).copy_(there),
        lambda: torch.ones(3).to("cuda"),
        lambda: there.clone().copy_(torch.ones(3)),
        lambda: torch.tensor([1.0], device="cuda"),
        lambda: torch.ones(2**15).to("cuda", non_blocking=True),
        lambda: there[[0, 1]],
        lambda: there[torch.tensor([0])],
        lambda: there.repeat_interleave(torch.ones_like(there).long()),
    ):
        before = len(card.waits)
        wait()
        assert len(card.waits) > before
    count = len(card.waits)
    float(torch.ones(3).sum())
    there.to("cuda").sum()
    there.clone().copy_(torch.ones(3).to("cuda", non_blocking=True))
    assert torch.ones(2**15).pin_memory().to("cuda", non_blocking=True).is_cuda
    assert there[0].add(there.new_full((), 2.0)).is_cuda
    assert there.repeat_interleave(torch.ones_like(there).long(), output_size=3).is_cuda
    assert len(card.waits) == count


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.channels])
def test_a_search_ends_as_on_the_cpu_and_its_steps_keep_the_host_going(method, tmp_path, monkeypatch):
    """Steps, boundaries, pruning, checkpoints, scores and what is measured at the end."""
    settings = {"reopen_steps": 1} if method == "bpnas" else {"candidates": 4} if method == "random" else {}
    words = {
        "method": method, "space": "nb201", "source": "digits", "sizes": SIZES, "limit": 150, "settings": settings,
        "epochs": 2, "closing_epochs": 1, "batch_size": 32,
    }  # fmt: skip
    expected = make_engine(tmp_path / "cpu", **words).run()
    with pretended_card(monkeypatch) as marks:
        found = make_engine(tmp_path / "card", device="cuda:0", **words).run()
        assert {t.device.type for t in (*found.net.parameters(), *found.net.buffers())} == {"cuda"}
        mine, theirs = (posterior_of(engine).weights() for engine in (found, expected))
        assert list(mine) == list(theirs)
        for edge, weights in mine.items():  # up to rounding: Adam's step counts are tensors there, and numbers here
            assert weights == pytest.approx(theirs[edge], abs=2e-3), edge
        assert any("Engine.save" in wait.asked_by for wait in marks.waits)
        assert any("Engine._step" in wait.asked_by for wait in marks.waits) == (method in LOOK)


@pytest.mark.parametrize(
    ("space", "method"),
    [
        ("bayesnas-cell", "bayesnas"),
        ("darts", "pcdarts"),
        pytest.param("darts", "bayesnas", marks=pytest.mark.long),
        pytest.param("tree-cell", "bayesnas", marks=pytest.mark.long),
    ],
)
def test_other_spaces_lie_on_the_card_too(space, method, tmp_path, monkeypatch, card):
    rng, data = np.random.default_rng(0), str(tmp_path / "few-classes.npz")  # each is a pass for the curvature
    np.savez(data, x=rng.integers(0, 256, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 4)
    sizes = None if space == "tree-cell" else {"channels": 4, "layers": 3}
    settings = {"curvature_batches": 1} if method == "bayesnas" else {"resting_share": 0.0}
    engine = make_engine(
        tmp_path, method=method, space=space, source=data, sizes=sizes, device="cuda", epochs=1,
        closing_epochs=0, batch_size=24, settings=settings,
    ).run()  # fmt: skip
    assert {t.device.type for t in (*engine.net.parameters(), *engine.net.buffers())} == {"cuda"}
    assert not [wait for wait in card.waits if "Engine._step" in wait.asked_by]


def test_what_was_found_there_is_trained_there_and_used_here(tmp_path, card, monkeypatch):
    """By the public face: a search in bf16, its training with inherited weights, evaluations there and here."""
    settings = {"space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 1, "engine.precision": "bf16"}
    run = ba.search("digits", method="drnas", limit=150, device="cuda", out=tmp_path / "run", set=settings)
    trained = ba.train(run, inherit=True, device="cuda", out=tmp_path / "t", set={"train.epochs": 1, "train.ema": 0.9})
    assert trained.folder.read_json("environment.json")["device_name"] == "pretended"
    assert any("Trainer" in name for wait in card.waits for name in wait.asked_by)
    assert not trained.network()(torch.zeros(2, 1, 8, 8)).is_cuda
    timed = []
    monkeypatch.setattr(
        "bayesarch.workflows.evaluate.image_latency",
        lambda net, shape: timed.append(next(net.parameters()).device.type) or 1.0,
    )
    count, words = len(card.waits), {"corruptions": ["gaussian_noise"], "severities": [3]}
    here = ba.evaluate(trained, device="cpu", **words)
    assert len(card.waits) == count
    there = ba.evaluate(trained, **words)
    assert len(card.waits) > count
    assert timed == [here["device"], there["device"]] == ["cpu", "cuda"]
    assert there["rows"][0]["nll"]["value"] == pytest.approx(here["rows"][0]["nll"]["value"], abs=1e-4)
    assert there["corruptions"][0]["nll"] == pytest.approx(here["corruptions"][0]["nll"], abs=1e-4)


@pytest.mark.parametrize("method", ["evidence", "switches"])
def test_a_network_is_made_smaller_there_as_here(method, tmp_path, monkeypatch):
    """Curvature by examples, cutting, momentum of what stays, checkpoints of rounds."""
    settings = {"compress.dense_epochs": 6, "compress.finetune_epochs": 1, "compress.rounds": 2, "train.epochs": 1}
    words = {"method": method, "limit": 300, "max_params": 40_000, "set": settings}
    here = ba.compress("lenet-300-100", "digits", device="cpu", out=tmp_path / "cpu", **words).summary
    with pretended_card(monkeypatch) as marks:
        there = ba.compress("lenet-300-100", "digits", device="cuda", out=tmp_path / "card", **words).summary
        assert marks.waits
    assert there["params"] == here["params"] < there["rows"][0]["params"]
    assert there["rows"][1]["nll"]["value"] == pytest.approx(here["rows"][1]["nll"]["value"], abs=1e-3)
