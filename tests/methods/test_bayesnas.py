"""BayesNAS: what its steps do, what removes options and what must not, and that the prior does the work."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bayesarch.engine import Clock, Curvature, gate_curvature
from bayesarch.functional import Streams, ard
from bayesarch.methods import BayesNAS, BayesNASConfig
from bayesarch.methods.several import prior_edges, series
from bayesarch.spaces import DARTS, NB201, TOY, tree_cell
from bayesarch.testing import check_method
from helpers import make_engine, several

SMALL = {
    "space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 200, "batch_size": 32,
}  # fmt: skip
QUICK = {"warmup_steps": 4, "round_steps": 4, "rounds": 2}
NOTHING = {"penalty_gates": 1e-12, "penalty_operations": 1e-12}
FIXED = {"penalty_gates": 0.007, "penalty_operations": 0.007}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"rule": "entropy", "threshold": 0.5, "update": "published", "curvature": "mc"},
        pytest.param({"rule": "entropy", "threshold": 0.5}, marks=pytest.mark.long),
        pytest.param({"update": "published"}, marks=pytest.mark.long),
        pytest.param({"curvature": "mc"}, marks=pytest.mark.long),
    ],
)
def test_contract_where_several_options_may_stay(settings):
    config = BayesNASConfig(warmup_steps=8, round_steps=8, rounds=2, **settings)
    check_method(lambda space: BayesNAS(space, config), spaces=(several(TOY), TOY))


# --- composition -----------------------------------------------------------------------------------------------------


def test_gates_are_products_and_gradients_follow(generator):
    parts, w = series(NB201, "cpu"), torch.randn(3, 30, generator=generator, dtype=torch.float64)
    told = parts.compose(w)
    assert torch.equal(told[:, 1], w[:, 0] * w[:, 1])
    assert bool((told[:, ::5] == 0).all())
    cotangent = torch.randn(3, 30, generator=generator, dtype=torch.float64)
    leaf = w.clone().requires_grad_()
    (parts.compose(leaf) * cotangent).sum().backward()
    assert torch.allclose(parts.pull(cotangent, w), leaf.grad)


def test_the_priors_graph_of_a_cell():
    edges = prior_edges(NB201)
    names = [NB201.choices[e.gate // 5].name for e in edges]
    assert names == ["1<-0", "2<-0", "3<-0", "2<-1", "3<-1", "3<-2"]
    assert [edge.rooted for edge in edges] == [True, True, True, False, False, False]
    assert [[names[f] for f in edge.feeds] for edge in edges[3:]] == [["1<-0"], ["1<-0"], ["2<-0", "2<-1"]]
    assert len(prior_edges(DARTS)) == 28
    assert {len(edge.feeds) for edge in prior_edges(DARTS) if not edge.rooted} == {2, 3, 4}
    leaves = [edge for edge in prior_edges(tree_cell(1)) if not edge.rooted]
    assert len(leaves) == 12
    assert all(len(edge.feeds) == 1 for edge in leaves), "a leaf's edge depends on its parent's"


# --- one step --------------------------------------------------------------------------------------------------------


def engine_of(tmp_path, **settings):
    return make_engine(tmp_path, method="bayesnas", epochs=8, settings={**QUICK, **settings}, **SMALL)


def moved_by(engine, clock):
    """The state after one step, and the batches it saw."""
    batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
    engine.net.train()
    engine.weights.zero()
    state, _ = engine.method.step(engine.state, engine.net, batches, streams=engine.streams, clock=clock)
    return state, batches


def test_a_step_is_the_optimisers_and_the_proximal_one(tmp_path):
    engine = engine_of(tmp_path, switch_lr=0.1, dependency="none", switch_momentum=0.0, **FIXED)
    clock = Clock(epoch=5, step=50, epochs=8, steps_per_epoch=4, weight_lr=0.02)
    state, batches = moved_by(engine, clock)
    leaf = engine.state.w.clone().requires_grad_()
    gates = series(NB201, "cpu").compose(leaf).unsqueeze(0)
    loss = F.cross_entropy(engine.net(batches["architecture"].images, gates), batches["architecture"].labels)
    (gradient,) = torch.autograd.grad(loss, leaf)
    stepped = engine.state.w - 0.1 * gradient
    norm = stepped.square().sum(0).sqrt()
    expected = stepped * (1 - 0.1 * 0.007 / norm).clamp(min=0)
    assert torch.allclose(state.w, expected, atol=1e-5)
    assert any(p.grad is not None for p in engine.net.parameters()), "weights have their gradient"


def test_warm_up_trains_weights_alone(tmp_path):
    engine = engine_of(tmp_path)
    state, _ = moved_by(engine, Clock(epoch=0, step=0, epochs=8, steps_per_epoch=4, weight_lr=0.02))
    assert torch.equal(state.w, engine.state.w)
    assert any(p.grad is not None for p in engine.net.parameters())


def test_the_penalty_shrinks_and_can_be_switched_off(tmp_path):
    clock = Clock(epoch=5, step=50, epochs=8, steps_per_epoch=4, weight_lr=0.02)
    sizes = {}
    for name, settings in {
        "off": {"penalised": False},
        "proximal": {"penalty_gates": 0.5, "penalty_operations": 0.5},
        "gradient": {"penalty_gates": 0.5, "penalty_operations": 0.5, "step": "gradient"},
    }.items():
        state, _ = moved_by(engine_of(tmp_path / name, **settings), clock)
        sizes[name] = float(state.w.square().sum())
    assert sizes["proximal"] < 0.99 * sizes["off"]
    assert sizes["gradient"] < 0.99 * sizes["off"]


def test_both_splits_can_train(tmp_path):
    clock = Clock(epoch=5, step=50, epochs=8, steps_per_epoch=4, weight_lr=0.02)
    one, _ = moved_by(engine_of(tmp_path / "a"), clock)
    two, _ = moved_by(engine_of(tmp_path / "b", train_on="both"), clock)
    assert not torch.equal(one.w, two.w)


# --- removal ---------------------------------------------------------------------------------------------------------


def seen_with(method, supported):
    """A curvature under which exactly the flat options in `supported` (and all gates) have evidence for them."""
    g = method.space.n_options
    h = torch.full((1, g), 0.001)
    h[0, list(supported)] = 1.0
    h[:, ::5] = 1.0
    zero = torch.zeros(1, g)
    return Curvature(zero, h, zero, h, 10)


def fresh(method, copies=1):
    from bayesarch.engine import Setting

    setting = Setting(copies, {"architecture": 100, "weights": 100}, 10, 10, torch.device("cpu"))
    return method.init(setting, streams=Streams(0))


def removed_with(method, supported, **state):
    start = replace(fresh(method), **state)
    present = torch.ones(1, method.space.n_options, dtype=torch.bool)
    return method.removed(replace(start, updates=1), seen_with(method, supported), present)


def kept_labels(method, state):
    return [label for label, live in zip(method.space.labels, state.live.tolist(), strict=True) if live]


def test_what_the_evidence_does_not_support_goes_with_what_depended_on_it():
    method = BayesNAS(several(NB201), BayesNASConfig(rounds=9, **FIXED))
    label = method.space.labels.index
    supported = [label("3<-0/nor_conv_3x3"), label("3<-0/skip_connect"), label("2<-1/nor_conv_1x1")]
    state = removed_with(method, supported)
    assert kept_labels(method, state) == ["3<-0/skip_connect", "3<-0/nor_conv_3x3"]
    why = {name: reason for _, name, reason in state.removed}
    assert why["2<-1/nor_conv_1x1"] == "dependency", "node 1 has no input left"
    assert why["1<-0/skip_connect"] == "evidence"
    assert len(why) == 22
    assert state.kept_by_guard == 0


def test_what_leads_nowhere_goes_as_inactive():
    method = BayesNAS(several(NB201), BayesNASConfig(rounds=9, **FIXED))
    label = method.space.labels.index
    state = removed_with(method, [label("3<-0/skip_connect"), label("2<-0/nor_conv_1x1")])
    why = {name: reason for _, name, reason in state.removed}
    assert why["2<-0/nor_conv_1x1"] == "inactive", "nothing leaves node 2"
    assert kept_labels(method, state) == ["3<-0/skip_connect"]


def test_a_dead_gate_takes_its_edge_along():
    method = BayesNAS(several(NB201), BayesNASConfig(rounds=9, **FIXED))
    everything = [g for g in range(30) if g % 5]
    seen = seen_with(method, everything)
    seen.h[0, method.space.columns(3)[0]] = 1e-3
    start = replace(fresh(method), updates=1)
    state = method.removed(start, seen, torch.ones(1, 30, dtype=torch.bool))
    assert [reason for _, _, reason in state.removed] == ["gate"] * 4
    assert {name.split("/")[0] for _, name, _ in state.removed} == {"3<-0"}


def test_the_last_path_is_kept_and_counted():
    method = BayesNAS(several(NB201), BayesNASConfig(rounds=9, **FIXED))
    state = removed_with(method, [])
    assert method.space.connected(
        [[o for o, g in enumerate(method.space.columns(p)) if state.live[g]] for p in range(6)]
    )
    assert state.kept_by_guard == int(state.live.sum()) == 1


def test_the_entropy_rule_asks_the_variance():
    method = BayesNAS(several(NB201), BayesNASConfig(rounds=9, rule="entropy", dependency="none", **FIXED))
    gamma = torch.ones(30)
    gamma[7] = ard.ENTROPY_THRESHOLD
    state = method.removed(
        replace(fresh(method), gamma=gamma), seen_with(method, []), torch.ones(1, 30, dtype=torch.bool)
    )
    assert [(name, why) for _, name, why in state.removed] == [(NB201.labels[7], "entropy")]


def test_one_option_is_left_where_one_is_allowed(tmp_path):
    method = BayesNAS(NB201, BayesNASConfig(rounds=1))
    label = NB201.labels.index
    factor = torch.zeros(30)
    factor[label("3<-0/nor_conv_3x3")] = 3.0
    state = method.conclude(replace(fresh(method), log_factor=factor))
    assert int(state.live.sum()) == 6
    assert bool(state.live[label("3<-0/nor_conv_3x3")])
    assert not bool(state.live[::5].any()), "an operation is left on every edge, so nothing picks none"
    assert {why for _, _, why in state.removed} == {"single"}
    assert method.posterior(state).mode().picks[3] == (3,)


def test_inclusion_is_the_bayes_factor_of_the_effective_switch(tmp_path):
    engine = engine_of(tmp_path, curvature_batches=1, **FIXED)
    method, lam = engine.method, engine.method.config.penalty_operations
    engine.net.train()
    w = 0.5 + torch.rand(engine.state.w.shape, generator=torch.Generator().manual_seed(0))
    state = replace(engine.state, w=w)
    seen = method.look(state, engine.net, engine.data, engine.streams)
    direct = gate_curvature(
        engine.net, method.gates(state), engine.data["architecture"], batch_size=state.batch_size, limit=1
    )
    assert torch.allclose(seen.gate_h, direct.gate_h)
    support, factor, even = method.evidence(state, seen, engine.net.occupancy)
    told = series(NB201, "cpu").compose(state.w)
    h = seen.gate_h / lam
    b = h * told - seen.gate_gradient / lam
    expected = (0.5 * b.square() / (1 + h) - 0.5 * torch.log1p(h)).sum(0)
    operations = ~series(NB201, "cpu").is_gate
    assert torch.allclose(factor[operations], expected[operations], atol=1e-5)
    assert torch.allclose(support[operations], (b.square() - h).sum(0)[operations], rtol=1e-4, atol=1e-4)
    for g in operations.nonzero().flatten()[::5].tolist():
        for factor, goes in ((0.999, False), (1.001, True)):
            lam = factor * float(even[g])
            other = BayesNAS(NB201, BayesNASConfig(penalty_gates=lam, penalty_operations=lam))
            assert (float(other.evidence(state, seen, engine.net.occupancy)[0][g]) <= 0) == goes


def test_who_hears_that_the_evidence_hardly_spoke_is_told_a_lambda_at_which_it_does(tmp_path):
    engine = engine_of(tmp_path, curvature_batches=1, rounds=1, **NOTHING)
    method, present = engine.method, engine.net.occupancy
    seen = method.look(engine.state, engine.net, engine.data, engine.streams)
    state = method.removed(replace(engine.state, updates=1), seen, present)
    summary = method.summary(state)
    (warning,) = summary["warnings"]
    told = float(re.search(r"penalty_operations=([\d.e-]+)", warning)[1])
    other = BayesNAS(NB201, BayesNASConfig(rounds=1, penalty_gates=told, penalty_operations=told))
    gone = {label for _, label, why in other.removed(replace(engine.state, updates=1), seen, present).removed
            if why == "evidence"}  # fmt: skip
    relative = BayesNAS(NB201, BayesNASConfig(rounds=1, penalty_share=1e-9))
    state = relative.weighed(replace(engine.state, updates=1), seen, present)
    (warning,) = relative.summary(relative.removed(state, seen, present))["warnings"]
    share = float(re.search(r"penalty_share=([\d.e-]+)", warning)[1])
    other = BayesNAS(NB201, BayesNASConfig(rounds=1, penalty_share=share))
    state = other.removed(other.weighed(state, seen, present), seen, present)
    assert {label for _, label, why in state.removed if why == "evidence"} == gone
    third = np.quantile([even for g, even in summary["break_even"].items() if "none" not in g], 1 / 3)
    assert told == pytest.approx(third, rel=0.05)  # told to two digits
    assert 7 <= len(gone) <= 9, "a third of 24 is 8"
    assert gone == {g for g, even in summary["break_even"].items() if "none" not in g and even <= told}
    assert "penalty_operations" not in str(BayesNAS(NB201, BayesNASConfig(rule="entropy")).summary(state)["warnings"])


def test_lambda_follows_the_scale_of_the_loss():
    """What goes by `penalty_share` is the same for a loss of a hundred times the size; by a fixed lambda it is not."""
    g = NB201.n_options
    curvature = torch.logspace(-4, -1, g)[torch.randperm(g, generator=torch.Generator().manual_seed(3))].view(1, g)
    present = torch.ones(1, g, dtype=torch.bool)

    def gone(config, scale):
        method = BayesNAS(several(NB201), config)
        h, flat = scale * curvature, torch.zeros(1, g)
        seen = Curvature(flat, h, flat, h, 10)
        state = method.weighed(replace(fresh(method), updates=1), seen, present)
        return float(state.lam), {name for _, name, _ in method.removed(state, seen, present).removed}

    relative = BayesNASConfig(rounds=9, penalty_share=0.1)
    small, large = gone(relative, 1.0), gone(relative, 100.0)
    operations = curvature[0, ~series(NB201, "cpu").is_gate]
    assert small[0] == pytest.approx(0.1 * float(operations.mean()), rel=1e-5)  # switches at 1, no slope: h is b^2 / h
    assert large[0] == pytest.approx(100 * small[0], rel=1e-5)
    assert small[1] == large[1]
    assert len(small[1]) >= int((operations <= small[0]).sum()) > 3
    fixed = BayesNASConfig(rounds=9, **FIXED)
    assert gone(fixed, 1.0)[1] > gone(fixed, 100.0)[1] == set()


@pytest.mark.parametrize(("given", "told"), [({}, True), ({"penalty_gates": 0.007}, True), (FIXED, False)])
def test_lambda_is_told_by_the_curvature_when_the_warm_up_ends_and_at_every_update(tmp_path, given, told):
    engine = engine_of(tmp_path, curvature_batches=1, **given)
    method, looks, is_gate = engine.method, [], series(NB201, "cpu").is_gate
    look = method.look
    method.look = lambda *args, **more: looks.append(look(*args, **more)) or looks[-1]

    def state_after(epochs, state):
        """The warm-up is one epoch of four steps, and so is a round."""
        clock = Clock(epoch=epochs, step=4 * epochs, epochs=8, steps_per_epoch=4, weight_lr=0.02)
        return method.boundary(state, engine.net, engine.data, streams=engine.streams, clock=clock)[0]

    def check(state, seen, switches):
        told = series(NB201, "cpu").compose(switches)
        b, h = seen.gate_h * told - seen.gate_gradient, seen.gate_h
        worth = float((b.square().sum(0) / h.sum(0))[~is_gate].mean())
        for columns, name in ((is_gate, "gates"), (~is_gate, "operations")):
            expected = given.get(f"penalty_{name}") or method.config.penalty_share * worth
            assert torch.allclose(method._lambda(state)[columns], torch.tensor(expected))
            assert method.summary(state)["penalty"][name] == pytest.approx(expected)

    assert state_after(0, engine.state) is engine.state
    assert looks == [], "not before the warm-up ends"
    warm = state_after(1, engine.state)
    assert (len(looks), warm.updates) == (told, 0)
    assert torch.equal(warm.live, engine.state.live), "nothing goes before switches were trained"
    assert state_after(1, warm) is warm, "it is not looked again before a round has gone by"
    if told:
        check(warm, looks[0], warm.w)
    moved = replace(warm, w=0.5 * warm.w)
    after = state_after(2, moved)
    assert (len(looks), after.updates) == (told + 1, 1)
    check(after, looks[-1], moved.w)


def test_limits_are_kept_where_several_options_may_stay(tmp_path):
    from bayesarch.spaces import Limits

    space = several(NB201)
    method = BayesNAS(space, BayesNASConfig(rounds=1))
    limits = Limits(("macs",), (3.5,), (0.0,), (tuple(float(g % 5 != 0) for g in range(30)),))
    state = replace(fresh(method), limits=limits.to_json(), log_factor=torch.linspace(0, 3, 30))
    state = method.conclude(state)
    arch = method.posterior(state).mode()
    assert limits.allow(space, arch.picks)
    assert space.connected(arch.picks)
    assert {why for _, _, why in state.removed} == {"limits"}
