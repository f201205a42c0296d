"""The time a search may take, by a clock that counts the images that go through the network."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch

from bayesarch.engine import Observer, conditional_losses, loop
from bayesarch.engine.allowance import Allowance
from bayesarch.engine.place import Place
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from bayesarch.methods.random_search import RandomSearchConfig, ranked_images
from bayesarch.nets import Supernet
from bayesarch.spaces import Architecture
from bayesarch.workflows.summary import belief_warnings
from helpers import make_engine, posterior_of

IMAGE = 0.002
"""Seconds of an image forward; with gradients three times as long."""
AFTERWARDS = 2.5
"""Seconds of what follows the last step: a boundary, statistics of norms, a batch of curvature, a score."""
DIGITS = {"space": "nb201", "source": "digits", "sizes": {"channels": 2, "cells": 1}, "limit": 800, "batch_size": 32}
SINGLE = [name for name, entry in METHODS.items() if not entry.channels]


@pytest.fixture
def clock(monkeypatch):
    """A clock that only a network's forward passes move."""
    now, forward = SimpleNamespace(seconds=0.0), Supernet.forward

    def counted(net, x, gates, *args, **more):
        each = len(x) == len(gates) > 1  # gates of each example's own: a pass back for every class
        now.seconds += IMAGE * len(x) * (11 if each else 3 if torch.is_grad_enabled() else 1)
        return forward(net, x, gates, *args, **more)

    monkeypatch.setattr(Supernet, "forward", counted)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now.seconds))
    return now


@pytest.mark.parametrize("method", SINGLE)
def test_every_method_is_done_in_time(tmp_path, clock, method):
    made = make_engine(tmp_path, method=method, epochs=10_000, closing_epochs=2, max_minutes=0.2, **DIGITS).run()
    assert 0.7 * 12 < clock.seconds < 12 + AFTERWARDS
    assert made.place.steps - made.place.searched > 1.8 * made.steps_per_epoch, "the closing epochs had their time"
    assert made.place.seconds == pytest.approx(clock.seconds, abs=1e-9), "everything it did is counted"
    assert not any("chance" in said for said in belief_warnings(posterior_of(made)))


@pytest.mark.parametrize("method", SINGLE)
def test_time_that_is_over_within_an_epoch_ends_it(tmp_path, clock, method):
    records = []
    made = make_engine(
        tmp_path, method=method, epochs=10_000, closing_epochs=2, max_minutes=0.8 / 60,
        observer=Observer(on_round=records.append), **DIGITS,
    ).run()  # fmt: skip
    assert clock.seconds < 0.8 + AFTERWARDS
    assert 0 < made.place.searched < made.steps_per_epoch
    assert records[0]["epoch"] == pytest.approx(made.place.searched / made.steps_per_epoch, abs=1e-3)
    assert records[0]["weights_loss"] == pytest.approx(math.log(10), rel=0.5), "a mean over the steps there were"
    assert int(made.state.live.sum()) == len(posterior_of(made).mode().columns)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *((name, {"warmup_epochs": 500}) for name in ("bpnas", "darts", "drnas", "drnas-progressive")),
        ("pcdarts", {}),
        ("nesbs", {"alpha_epochs": 3000}),
    ],
)
@pytest.mark.parametrize("limit", [{"epochs": 10_000, "max_minutes": 0.1}, {"epochs": 2}])
def test_a_warm_up_leaves_time_to_decide(tmp_path, clock, method, settings, limit):
    made = make_engine(tmp_path, method=method, closing_epochs=0, settings=settings, **limit, **DIGITS)
    moved, step = [], made.method.step

    def watched(state, *args, **more):
        after, info = step(state, *args, **more)
        moved.append(not torch.equal(after.a, state.a))
        return after, info

    made.method.step = watched
    made.run()
    first = moved.index(True)
    assert all(moved[first:]) or method == "drnas-progressive", "its second stage has a warm-up of its own"
    assert 0.2 * len(moved) <= first <= 0.75 * len(moved), "a warm-up's steps take half of the time of others"


def test_stages_and_temperatures_go_with_the_time(tmp_path, clock, monkeypatch):
    limit = {"epochs": 10_000, "closing_epochs": 0, "max_minutes": 0.1}
    made = make_engine(tmp_path, method="drnas-progressive", **limit, **DIGITS).run()
    assert made.state.stage == 1
    for method in ("gdas", "snas"):
        shares = []
        monkeypatch.setattr(
            sys.modules[f"bayesarch.methods.{method}"],
            "linear",
            lambda step, total, *ends, to=shares: to.append(step / total) or ends[1],
        )
        make_engine(tmp_path, method=method, **limit, **DIGITS).run()
        assert shares == sorted(shares)
        assert shares[0] < 0.05
        assert 0.9 < shares[-1] < 1.1


@pytest.mark.parametrize(
    "limit",
    [
        {"epochs": 10_000, "max_minutes": 0.02},
        {"epochs": 3},
        pytest.param({"epochs": 10_000, "max_minutes": 0.5}, marks=pytest.mark.long),
    ],
)
def test_bayesnas_has_asked_for_evidence_before_it_decides(tmp_path, clock, limit):
    records = []
    made = make_engine(
        tmp_path, method="bayesnas", closing_epochs=0, observer=Observer(on_round=records.append), **limit, **DIGITS
    ).run()  # fmt: skip
    assert made.state.updates == {0.5: 3, 0.02: 1, None: 1}[limit.get("max_minutes")]
    assert made.state.log_factor.unique().numel() > 20
    assert not torch.equal(made.state.w, torch.ones_like(made.state.w)), "there was time for switches to move"
    assert float(made.state.lam) > 0


def test_random_search_ranks_what_it_has_time_for(tmp_path, clock):
    records = []
    made = make_engine(
        tmp_path, method="random", epochs=10_000, closing_epochs=2, max_minutes=0.4, settings={"candidates": 500},
        observer=Observer(on_round=records.append), **DIGITS,
    ).run()  # fmt: skip
    assert made.method.last_passes(made.state) == 500
    said = made.method.summary(made.state)
    assert 5 < said["candidates"] < 100
    assert said["warnings"] == [f"there was time to rank {said['candidates']} candidates of 500"]
    before, after = [record for record in records if record["stage"] == "search"][-2:]
    first = Architecture(made.net.space, tuple((pick,) for pick in made.state.ranked[0][0]))
    assert str(first) == before["best"], "the best so far is among them"
    assert after["tried"] == said["candidates"]


def test_a_ranking_is_as_long_as_what_it_looks_at():
    config = RandomSearchConfig(candidates=10, rank_batches=2)
    assert ranked_images(config, 1000, 64) == 10 * 512
    assert ranked_images(config, 300, 64) == 10 * 300
    assert ranked_images(config.model_copy(update={"rank_batches": None}), 1000, 64) == 10_000


def test_what_is_measured_at_the_end_is_broken_off_with_the_time(tmp_path, clock):
    """A search that is over long before its time, with more to measure than it has left."""
    settings = {"settings": {"reopen_steps": 10_000}, "epochs": 2, "closing_epochs": 1}
    made = make_engine(tmp_path, max_minutes=0.5, **settings, **DIGITS).run()
    assert not made.place.cut, "its epochs were over, not its time"
    assert 30 <= made.place.seconds == clock.seconds < 30 + AFTERWARDS
    assert made.state.losses == ()
    assert posterior_of(made).kind == "mean-field"


def test_what_is_measured_at_the_end_is_counted_in_the_seconds(tmp_path, clock):
    made = make_engine(tmp_path, epochs=1, closing_epochs=0, settings={"reopen_steps": 1}, **DIGITS).run()
    assert made.state.losses
    assert made.place.seconds == pytest.approx(clock.seconds, abs=1e-9)


@pytest.mark.parametrize("steps", [0, 2])
def test_there_are_no_losses_of_half_the_options(tmp_path, steps):
    made = make_engine(tmp_path, epochs=1, closing_epochs=0, settings={"reopen_steps": 0}, **DIGITS).run()
    mode, asked = posterior_of(made).mode(), []

    def losses(limit):
        asked.clear()
        return conditional_losses(
            made.net, mode, made.data, streams=Streams(0), steps_per_option=steps, batch_size=32,
            late=lambda: asked.append(1) or len(asked) > limit,
        )  # fmt: skip

    assert losses(1000) is not None
    count = len(asked)
    assert count > steps, "asked before every step and every score"
    assert losses(count) is not None
    assert [losses(limit) for limit in (0, count // 2, count - 1)] == [None, None, None]


def test_time_is_divided_at_the_pace_so_far():
    allowance, place = Allowance(1.0), Place(seconds=10.0)
    allowance.divide(place, steps=10, closing=15, ending=5)
    assert (allowance.closing, allowance.ending) == (15, 5)
    assert allowance.gone(place) == 10 / 45
    assert allowance.trained(place) == 10 / 40
    assert not allowance.late(Place(seconds=39.9))
    assert allowance.late(Place(seconds=40.0))
    allowance.divide(place, steps=10, closing=1000, ending=1000)
    assert (allowance.closing, allowance.ending) == (30, 15), "each at most half of what there is"
    allowance.divide(Place(stage="closing", seconds=10.0), steps=10, closing=15, ending=5)
    assert (allowance.closing, allowance.ending) == (0, 0)
    assert allowance.late(Place(stage="examine", seconds=54.0))
    assert not allowance.late(Place(stage="examine", seconds=53.9))
    endless = Allowance(None)
    endless.divide(place, steps=10, closing=15, ending=5)
    assert endless.gone(place) == 0.0
    assert not endless.late(Place(seconds=1e12))
