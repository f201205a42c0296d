"""Steps captured and replayed, on a card and graphs that are pretended (`captured.py`)."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

import bayesarch as ba
from bayesarch.engine import (
    Clock,
    EngineConfig,
    Interrupted,
    Observer,
    TrainConfig,
    Weights,
    check_training,
    check_ways,
    steps_of,
)
from bayesarch.engine.replay import Replays
from bayesarch.errors import ConfigError, DeviceError
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from captured import pretended_graphs
from helpers import make_engine
from pretended import pretended_card

LOOK = {"gdas", "nesbs", "random"}
"""Methods that ask the card what was drawn before they say what to run."""


@pytest.fixture
def graphs(monkeypatch):
    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as made:
        yield made


@pytest.fixture
def streams(graphs):
    streams = Streams(3, "cuda")
    streams["gates"], streams["noise"]
    return streams


class Walk:
    """A weight that a step moves by a draw and by its input."""

    def __init__(self, streams):
        self.streams, self.weight, self.slope, self.calls = streams, torch.zeros(3, device="cuda"), 1.0, 0

    def __call__(self, given):
        self.calls += 1
        drawn = torch.rand(3, generator=self.streams["gates"], device="cuda")
        self.weight.add_(self.slope * given[0] * drawn)
        return [self.weight.sum(), drawn]


def walked(seed, slopes, *, keys=None):
    """Return the weight and what was made after steps, each with an input of its own, run by Python or replayed."""
    streams = Streams(seed, "cuda")
    walk, replays, made = Walk(streams), Replays(streams), []
    for i, slope in enumerate(slopes):
        walk.slope = slope
        inputs = [torch.full((3,), float(i + 1), device="cuda")]
        outs = walk(inputs) if keys is None else replays.run(keys[i], inputs, walk)[0]
        made.append([out.clone() for out in outs])
    return walk, made


def test_replays_are_what_python_would_have_done(graphs):
    """Inputs, draws and what was moved in place go on from step to step; a key's second step is the first replay."""
    slopes, keys = [2.0] * 5 + [0.5] * 4, ["a"] * 5 + ["b"] * 4
    walk, made = walked(1, slopes, keys=keys)
    expected, own = walked(1, slopes)
    assert torch.equal(walk.weight, expected.weight)
    assert all(torch.equal(x, y) for a, b in zip(made, own, strict=True) for x, y in zip(a, b, strict=True))
    assert walk.calls == 2 + 2  # the first by itself, the second to capture
    assert [graph.replays for graph in graphs.made] == [4, 3]  # all but the first of each key


def test_what_was_returned_is_not_written_to_again(graphs):
    streams = Streams(1, "cuda")
    walk, replays, kept = Walk(streams), Replays(streams), []
    for i in range(4):
        kept.append(replays.run("a", [torch.full((3,), float(i), device="cuda")], walk)[0][1])
    assert len({tuple(drawn.tolist()) for drawn in kept}) == 4


def test_a_number_of_the_host_is_frozen_unless_the_key_has_it(graphs):
    """Why there is a key: with one that says nothing of the slope, the first slope stays."""
    right, _ = walked(1, [2.0, 2.0, 0.5, 0.5])
    wrong, _ = walked(1, [2.0, 2.0, 0.5, 0.5], keys=["a"] * 4)
    with_it, _ = walked(1, [2.0, 2.0, 0.5, 0.5], keys=[2.0, 2.0, 0.5, 0.5])
    assert torch.equal(with_it.weight, right.weight)
    assert not torch.equal(wrong.weight, right.weight)


def test_without_a_key_nothing_is_captured_and_forgetting_begins_anew(streams, graphs):
    walk, replays = Walk(streams), Replays(streams)
    inputs = [torch.ones(3, device="cuda")]
    for _ in range(3):
        assert not replays.run(None, inputs, walk)[1]
    assert graphs.made == []
    told = [replays.run("a", inputs, walk)[1] for _ in range(3)]
    replays.forget()
    told += [replays.run("a", inputs, walk)[1] for _ in range(3)]
    assert told == [False, False, True] * 2
    assert len(graphs.made) == 2


def test_what_draws_from_a_stream_of_the_host_is_never_captured(streams, graphs):
    walk, replays = Walk(streams), Replays(streams)

    def step(given):
        walk.slope = float(torch.rand((), generator=streams["noise"]))
        return walk(given)

    for _ in range(4):
        assert not replays.run("a", [torch.ones(3, device="cuda")], step)[1]
    assert (walk.calls, graphs.made) == (4, [])


@pytest.mark.parametrize(
    "wait",
    [
        lambda t: float(t.sum()),
        lambda t: t[t > 0],
        lambda t: t + torch.ones(3).to("cuda"),
        lambda t: t + torch.ones(3).to("cuda", non_blocking=True),
        lambda t: t[[0, 1]],
    ],
)
def test_what_waits_cannot_be_captured_and_the_error_says_what_to_do(streams, graphs, wait):
    replays, inputs = Replays(streams), [torch.ones(3, device="cuda")]

    def step(given):
        wait(given[0])
        return [given[0] * 2]

    replays.run("a", inputs, step)
    with pytest.raises(DeviceError, match=r"cannot be captured .*engine\.graphs and train\.graphs to false"):
        replays.run("a", inputs, step)


def test_a_stream_that_was_made_since_would_break_a_capture(streams, graphs):
    """What `captured.py` adds to the pretended card: such a draw is refused, as a card does."""
    strange = torch.Generator("cuda").manual_seed(0)
    replays, inputs = Replays(streams), [torch.ones(3, device="cuda")]

    def step(given):
        return [given[0] * torch.rand(3, generator=strange, device="cuda")]

    replays.run("a", inputs, step)
    with pytest.raises(DeviceError, match="generator"):
        replays.run("a", inputs, step)


def found(folder, monkeypatch, *, graphs, **words):
    """Return an engine that has run on a pretended card, its weights, and its captures with their replays."""
    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as made:
        engine = make_engine(folder / str(graphs), device="cuda:0", graphs=graphs, **words).run()
        weights = torch.cat([p.detach().flatten() for p in (*engine.net.parameters(), *engine.net.buffers())])
        return engine, weights.clone(), [graph.replays for graph in made.made]


CASES = {
    **{method: {"method": method} for method, entry in METHODS.items() if not entry.channels and method not in LOOK},
    "prunings": {"method": "bpnas", "epochs": 5, "settings": {"delta": 1e-4, "reopen_steps": 1, "test_every": 5}},
    "bf16": {"method": "drnas", "precision": "bf16", "recompute": True},
    "nb201": {
        "method": "pcdarts",
        "space": "nb201",
        "source": "digits",
        "sizes": {"channels": 4, "cells": 1},
        "epochs": 1,
        "closing_epochs": 0,
        "batch_size": 12,
    },
}


@pytest.mark.parametrize("case", CASES)
def test_a_search_by_replays_is_the_search_step_by_step(case, tmp_path, monkeypatch):
    """Weights, statistics and beliefs to the bit, while the learning rate falls at every step; and the work counted."""
    words = {"limit": 120, "epochs": 2, "closing_epochs": 1, "batch_size": 8, **CASES[case]}
    one, expected, none = found(tmp_path, monkeypatch, graphs=False, **words)
    two, weights, replays = found(tmp_path, monkeypatch, graphs=True, **words)
    assert none == []
    assert torch.equal(weights, expected)
    for name, value in vars(one.state).items():
        assert torch.equal(value, vars(two.state)[name]) if torch.is_tensor(value) else value == vars(two.state)[name]
    places = [{k: v for k, v in vars(engine.place).items() if k not in {"seconds", "sums"}} for engine in (one, two)]
    assert places[0] == places[1]
    assert sum(replays) > two.place.steps / 3
    if case == "prunings":
        assert len(one.state.prunings) > len(replays) - 3 > 1  # an epoch's end and a pruning each cost a capture


def test_a_replayed_search_goes_back_to_its_checkpoint(tmp_path, monkeypatch):
    """The same object, after steps that were replayed: momentum lies in another place then."""
    words = {"method": "drnas", "limit": 120, "epochs": 2, "closing_epochs": 0, "batch_size": 8, "graphs": True}
    steps = []
    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as made:
        whole = make_engine(tmp_path / "a", device="cuda:0", **words).run()
        stopping = Observer(on_step=steps.append, should_stop=lambda: len(steps) == 5)
        broken = make_engine(tmp_path / "b", device="cuda:0", observer=stopping, **words)
        with pytest.raises(Interrupted):
            broken.run()
        assert made.made[-1].replays == 3
        broken.restore().run()
        for mine, own in zip(broken.net.state_dict().values(), whole.net.state_dict().values(), strict=True):
            assert torch.equal(mine, own)
        assert torch.equal(broken.state.a, whole.state.a)


@dataclass(frozen=True)
class Counting:
    """Beliefs of which a part lies on the host."""

    a: torch.Tensor
    live: torch.Tensor
    count: int = 0


class Counts:
    """A method that decides on the host, every so many steps, how far it goes."""

    def __init__(self, every):
        self.every, self.calls = every, 0

    def step(self, state, net, batches, *, streams, clock):
        self.calls += 1
        count = state.count + (self.calls % self.every == 0)
        net.images_seen += 3
        return replace(state, a=state.a + count, count=count), {"a": state.a.sum(), "host": 1.0}


@pytest.mark.parametrize(("every", "by_python"), [(1, 6), (100, 3)])
def test_what_the_host_changes_is_never_replayed(streams, every, by_python):
    net = nn.Linear(2, 2).to("cuda")
    net.images_seen = net.macs_spent = 0
    weights = Weights(net, momentum=0.9, weight_decay=0.0, nesterov=False, clip=0.0)
    method = Counts(every)
    steps = steps_of(method, net, weights, EngineConfig(graphs=True), streams)
    state = Counting(torch.zeros(2, device="cuda"), torch.ones(2, dtype=torch.bool))
    clock, infos = Clock(0, 0, 1, 1, steps.rate(0.1)), []
    for _ in range(6):
        state, info = steps.take(state, {}, clock)
        infos.append({name: float(value) for name, value in info.items()})
    assert method.calls == by_python
    assert state.count == (6 if every == 1 else 0)
    assert state.a.tolist() == ([21.0, 21.0] if every == 1 else [0.0, 0.0])
    assert infos[-1] == {"a": 30.0 if every == 1 else 0.0, "host": 1.0}
    assert net.images_seen == 18


@pytest.mark.parametrize("method", sorted(LOOK))
def test_methods_that_look_at_their_draws_are_refused(method, tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match="cannot be captured"):
        found(tmp_path, monkeypatch, graphs=True, method=method, limit=120, epochs=2, batch_size=8)


def test_a_temperature_that_falls_with_the_epoch_is_captured_anew(tmp_path, monkeypatch):
    """SNAS asks the clock where it is; what depends on it may not be frozen."""
    _, _, replays = found(tmp_path, monkeypatch, graphs=True, method="snas", limit=120, epochs=3, batch_size=8)
    assert len(replays) >= 3


def test_a_search_on_a_clock_is_never_replayed(tmp_path, monkeypatch):
    """With a limit on its time a method asks how much has gone, and no two steps of the first epoch are told alike."""
    words = {"method": "snas", "limit": 120, "epochs": 1, "batch_size": 8, "closing_epochs": 0, "max_minutes": 5.0}
    _, _, replays = found(tmp_path, monkeypatch, graphs=True, **words)
    assert replays == []


def test_trainings_are_replayed_too(tmp_path, monkeypatch):
    """Dropped paths, a second head and a moving average; examples, draws and learning rate go on."""
    settings = {"space.channels": 4, "engine.epochs": 1, "engine.closing_epochs": 0, "engine.batch_size": 32}
    words = {
        "train.epochs": 2,
        "train.batch_size": 16,
        "train.drop_path": 0.3,
        "train.auxiliary": 0.4,
        "train.ema": 0.9,
    }
    ends = []
    with pretended_card(monkeypatch) as marks, pretended_graphs(monkeypatch, marks) as graphs:
        run = ba.search("digits", method="drnas", limit=150, device="cuda", out=tmp_path / "run", set=settings)
        for replay in (False, True):
            out = tmp_path / f"train{replay}"
            trained = ba.train(run, device="cuda", out=out, set={**words, "train.graphs": replay})
            ends.append({name: value.clone() for name, value in trained.network().state_dict().items()})
        with pytest.raises(DeviceError, match=r"train\.graphs is for cards"):
            ba.train(run, device="cpu", out=tmp_path / "here", set={"train.graphs": True})
        assert not (tmp_path / "here").exists()
        assert len(graphs.made) == 2  # the share that is dropped rises with the epoch
        assert min(graph.replays for graph in graphs.made) > 4
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_where_it_cannot_be_is_said_before_anything_is_written(tmp_path, monkeypatch):
    with pytest.raises(DeviceError, match=r"engine\.graphs is for cards, and the device is cpu"):
        ba.search("digits", method="drnas", limit=100, device="cpu", out=tmp_path / "a", set={"engine.graphs": True})
    with pytest.raises(ConfigError, match="2 share the batch"):
        check_ways(EngineConfig(graphs=True), torch.device("cuda"), 2)
    with pytest.raises(DeviceError, match=r"train\.graphs is for cards"):
        check_training(TrainConfig(graphs=True), torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"train\.graphs: what cuts a network"):
        ba.compress(nn.Linear(2, 2), "digits", out=tmp_path / "b", set={"train.graphs": True})
    assert list(tmp_path.iterdir()) == []
