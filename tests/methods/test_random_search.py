"""Random search: how candidates are ranked, what is found, and that there is an answer after every epoch."""

from dataclasses import replace

import pytest
import torch

from bayesarch.engine import found_by
from bayesarch.posteriors import Listed
from helpers import make_engine, posterior_of

SMALL = {
    "space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 200, "batch_size": 32,
}  # fmt: skip


def test_random_ends_with_the_best_candidate_that_lets_an_image_through(tmp_path):
    engine = make_engine(tmp_path, method="random", **SMALL)
    blind, seeing = [0] * 6, [0, 0, 0, 1, 0, 0]
    state = replace(engine.state, ranked=((blind, 0.10), (seeing, 0.11), ([1] * 6, 5.0)))
    ended = engine.method.conclude(state)
    arch = found_by(engine.method, ended)
    assert [i for (i,) in engine.method.posterior(ended).mode().picks] == blind
    assert arch.connected
    assert [i for (i,) in arch.picks] == seeing
    assert [int(g) for g in ended.live.nonzero()] == list(arch.columns)


def test_random_ranks_by_loss(tmp_path):
    settings = {"candidates": 12, "tried_per_epoch": 3, "temperature": 50.0}
    engine = make_engine(tmp_path, method="random", **SMALL, epochs=3, settings=settings).run()
    posterior, ranked = posterior_of(engine), engine.state.ranked
    assert isinstance(posterior, Listed)
    assert len(posterior.members) <= 12
    best = min(ranked, key=lambda row: row[1])
    assert [i for (i,) in posterior.mode().picks] == best[0]
    losses = {tuple(picks): loss for picks, loss in ranked}
    n = engine.state.n_architecture
    (a, p), (b, q), *_ = posterior.members
    gap = losses[tuple(i for (i,) in b.picks)] - losses[tuple(i for (i,) in a.picks)]
    assert torch.tensor(p / q).log() == pytest.approx(n * gap / 50.0, rel=1e-4)


def test_random_has_an_answer_after_every_epoch(tmp_path):
    engine = make_engine(tmp_path, method="random", **SMALL, epochs=5)
    assert len(list(posterior_of(engine).credible_set(0.5, limit=3))) == 3  # nothing tried: all alike
    engine._round()
    assert len(engine.state.ranked) == 2
    incumbent = posterior_of(engine).mode()
    engine._round()
    tried = [row[0] for row in engine.state.ranked]
    assert [i for (i,) in incumbent.picks] in tried, "the best so far is tried again with the new weights"
