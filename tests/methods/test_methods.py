from dataclasses import replace

import pytest
import torch

from bayesarch.engine import Clock, Observer, found_by, pack
from bayesarch.errors import ConfigError
from bayesarch.functional import Streams, concentration
from bayesarch.methods import BPNAS, METHODS, BPNASConfig
from bayesarch.methods.single import found, live_table, simplices
from bayesarch.posteriors import MeanField
from bayesarch.spaces import NB201, NO_LIMITS, TOY, Limits
from bayesarch.testing import check_method
from bayesarch.workflows.config import settle
from bayesarch.workflows.summary import belief_warnings
from helpers import make_engine, posterior_of

SMALL = {"space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 400}
CLOCK = Clock(epoch=3, step=30, epochs=80, steps_per_epoch=10, weight_lr=0.02)
PLANTED = "|product~0|+|skip~0|product~1|"


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if not entry.channels])
def test_contract(name):
    check_method(lambda space: METHODS[name].make(space, None))


@pytest.mark.parametrize("method", ["bpnas", "drnas"])
def test_the_planted_cell_is_found(method, tmp_path):
    """With each of three seeds; the planted cell is the only one of its class, .21 in accuracy above the next."""
    settings = {"bpnas": {"reopen_steps": 0}}.get(method)
    for seed in range(3):
        epochs = 80 if method == "bpnas" else 12
        engine = make_engine(tmp_path / str(seed), method=method, seed=seed, epochs=epochs, settings=settings).run()
        assert str(posterior_of(engine).mode()) == PLANTED


def test_training_weights_alone_does_not_find_it(tmp_path):
    """The control: beliefs never move, so the argmax is that of the random start."""
    right = 0
    for seed in range(5):
        engine = make_engine(
            tmp_path / str(seed), method="drnas", seed=seed, epochs=3, settings={"alpha_lr": 1e-12}
        ).run()
        right += str(posterior_of(engine).mode()) == PLANTED
    assert right <= 2  # chance is 1 in 27; 3 or more of 5 by chance: below 1e-3


# --- BPNAS, rule by rule ---------------------------------------------------------------------------------------------


def bpnas(tmp_path, **settings):
    """Return an engine and its method, with beliefs that a test may set."""
    return make_engine(tmp_path, **SMALL, settings={"cost_batches": 0, **settings})


def after_boundary(engine, a, **changes):
    """Return the state after a boundary with free parameters `a`."""
    state = replace(engine.state, a=a, **changes)
    return engine.method.boundary(state, engine.net, engine.data, streams=engine.streams, clock=CLOCK)


def parameters(values):
    """Return free parameters that are 0 but for {label: value}."""
    a = torch.zeros(30)
    for label, value in values.items():
        a[NB201.labels.index(label)] = value
    return a


def removed(state):
    return [(r["choice"], r["option"], r["fired_by"]) for r in state.prunings]


def test_nothing_is_pruned_below_delta(tmp_path):
    engine = bpnas(tmp_path)
    # one parameter at .28 moves the mean of five options by .0484 < .05, at .30 by .051
    state, info = after_boundary(engine, parameters({"1<-0/none": 0.28}))
    assert removed(state) == []
    assert info["distance"] == pytest.approx(0.0472, abs=2e-3)
    state, _ = after_boundary(engine, parameters({"1<-0/none": 0.30}))
    assert len(removed(state)) == 1


def test_the_argmin_is_global_and_everything_is_reset(tmp_path):
    engine = bpnas(tmp_path)
    a = parameters({"1<-0/nor_conv_3x3": 1.0, "3<-2/skip_connect": -0.1})
    state, _ = after_boundary(engine, a, m=torch.ones(30), v=torch.ones(30), t=torch.tensor(7.0))
    assert removed(state) == [("3<-2", "skip_connect", "threshold")]  # edge 1<-0 fired, edge 3<-2 was pruned
    assert int(state.live.sum()) == 29
    assert float(state.a.abs().max()) < 0.01
    assert float(state.m.abs().max()) == float(state.v.abs().max()) == float(state.t) == 0.0


def test_reset_of_the_edge_or_of_nothing(tmp_path):
    a = parameters({"1<-0/nor_conv_3x3": 1.0, "3<-2/skip_connect": -0.1, "3<-2/none": 0.2})
    state, _ = after_boundary(bpnas(tmp_path, reset="edge"), a)
    assert float(state.a[3]) == 1.0
    assert float(state.a[25:].abs().max()) < 0.01
    state, _ = after_boundary(bpnas(tmp_path, reset="none"), a)
    assert torch.equal(state.a, a)


def test_ranking_by_mean_or_scaled_mean(tmp_path):
    live = torch.ones(30, dtype=torch.bool)
    live[[0, 1, 2]] = False  # edge 1<-0 has two options left
    a = parameters({"1<-0/avg_pool_3x3": -0.15, "3<-2/skip_connect": -0.1, "2<-0/nor_conv_3x3": 1.0})
    for rank_by, expected in (("parameter", "1<-0"), ("mean", "2<-0"), ("scaled_mean", "2<-0")):
        state, _ = after_boundary(bpnas(tmp_path, rank_by=rank_by), a, live=live)
        assert removed(state)[0][0] == expected, rank_by


def test_delta_relative_to_the_largest_distance(tmp_path):
    a = parameters({"1<-0/none": 0.28})
    assert removed(after_boundary(bpnas(tmp_path, delta_scale="relative"), a)[0])
    assert not removed(after_boundary(bpnas(tmp_path, delta_scale="fixed"), a)[0])


def test_the_ablation_on_a_sample_fires_from_noise(tmp_path):
    """At the flat start a draw is beyond .05 almost surely; the mean is at 0."""
    assert removed(after_boundary(bpnas(tmp_path, test_on="sample"), torch.zeros(30))[0])
    assert not removed(after_boundary(bpnas(tmp_path, test_on="mean"), torch.zeros(30))[0])


def test_inactive_edges_are_settled_at_once_on_nothing(tmp_path):
    live = torch.ones(30, dtype=torch.bool)
    live[[1, 2, 3, 4]] = False  # nothing reaches node 1
    state, _ = after_boundary(bpnas(tmp_path), torch.zeros(30), live=live)
    assert {(c, by) for c, _, by in removed(state)} == {("2<-1", "inactive"), ("3<-1", "inactive")}
    assert live_table(NB201, state.live)[2] == live_table(NB201, state.live)[4] == [0]


def test_inactive_edges_without_their_zero_settle_on_the_cheapest(tmp_path):
    live = torch.ones(30, dtype=torch.bool)
    live[[1, 2, 3, 4]] = False
    live[[10, 11, 14]] = False  # edge 2<-1 has only its two convolutions left
    state, _ = after_boundary(bpnas(tmp_path), torch.zeros(30), live=live)
    assert live_table(NB201, state.live)[2] == [2]  # 1 x 1 is cheaper than 3 x 3


def test_prior_cost_refuses_what_costs_more(tmp_path):
    """With c just above and just below what the first candidate costs, it goes or the next one is tried."""
    a = parameters({"1<-0/nor_conv_3x3": 1.0, "3<-0/skip_connect": -0.2, "2<-0/none": -0.1})
    free = make_engine(tmp_path / "a", **SMALL)
    state, _ = after_boundary(free, a)
    first = state.prunings[0]
    assert (first["choice"], first["option"]) == ("3<-0", "skip_connect")
    cost = first["cost_nats"]
    assert cost > 0
    tight = make_engine(tmp_path / "b", **SMALL, settings={"prior_cost": cost * 1.01})
    assert removed(after_boundary(tight, a)[0])[0][:2] == ("3<-0", "skip_connect")
    tighter = make_engine(tmp_path / "c", **SMALL, settings={"prior_cost": cost * 0.5})
    state, info = after_boundary(tighter, a)
    assert ("3<-0", "skip_connect") not in [r[:2] for r in removed(state)]
    assert all(r["cost_nats"] < cost * 0.5 for r in state.prunings)
    assert info["log_joint"] == pytest.approx(info["log_likelihood"] - 0.5 * cost * int(state.live.sum()))


def test_a_finite_prior_cost_needs_a_measurement():
    with pytest.raises(ConfigError, match="cost_batches"):
        settle({"method": {"name": "bpnas", "prior_cost": 1.0, "cost_batches": 0}})


def test_macs_prior_lowers_the_weight_of_expensive_options(tmp_path):
    """Without any data signal in the gates, only the charge moves beliefs: the dearest option of an edge falls."""
    plain = make_engine(tmp_path / "a", **SMALL, epochs=1, settings={"alpha_lr": 0.05})
    charged = make_engine(tmp_path / "b", **SMALL, epochs=1, settings={"alpha_lr": 0.05, "macs_prior": 1e5})
    weights = []
    for engine in (plain, charged):
        state = engine.state
        for _ in range(10):
            batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
            state, _ = engine.method.step(state, engine.net, batches, streams=engine.streams, clock=CLOCK)
        means = engine.method.gates(state)[0, 0]
        weights.append(float(means[[p * 5 + 3 for p in range(6)]].mean()))
    assert weights[1] < weights[0] - 0.02
    assert weights[1] < 0.2
    macs = charged.net.option_macs.view(6, 5)
    assert bool((macs.argmax(1) == 3).all())


def test_a_path_can_be_kept(tmp_path):
    live = torch.zeros(30, dtype=torch.bool)
    live[[0, 5, 10, 15, 16, 20, 25]] = True  # only 3<-0 is open: none or skip
    a = parameters({"3<-0/skip_connect": -1.0})
    state, _ = after_boundary(bpnas(tmp_path, keep_path=True), a, live=live)
    assert removed(state) == [("3<-0", "none", "threshold")]
    state, _ = after_boundary(bpnas(tmp_path, keep_path=False), a, live=live)
    assert removed(state) == [("3<-0", "skip_connect", "threshold")]


def test_the_cap_takes_the_argmax_and_says_so(tmp_path):
    engine = make_engine(
        tmp_path, **SMALL, epochs=2, closing_epochs=0, settings={"alpha_lr": 1e-6, "reopen_steps": 0}
    ).run()
    assert {by for _, _, by in removed(engine.state)} == {"cap"}
    assert len(removed(engine.state)) == 24
    summary = engine.method.summary(engine.state)
    assert summary["fired_by"] == {"threshold": 0, "inactive": 0, "limits": 0, "cap": 24}
    assert "made 24 of 24 decisions" in summary["warnings"][0]
    fired = [{**record, "fired_by": "threshold"} for record in engine.state.prunings[:22]]
    mostly = replace(engine.state, prunings=(*fired, *engine.state.prunings[22:]))
    assert engine.method.summary(mostly)["warnings"] == []
    assert int(engine.state.live.sum()) == 6


def test_cadence_in_steps(tmp_path):
    records = []
    engine = make_engine(
        tmp_path,
        **{**SMALL, "limit": None, "sizes": {"channels": 2, "cells": 1}},
        epochs=2,
        closing_epochs=0,
        settings={"test_every": 4, "alpha_lr": 0.2, "reopen_steps": 0},
        observer=Observer(on_round=records.append),
    ).run()
    assert engine.steps_per_epoch == 11
    assert [r["steps"] for r in records] == [4, 8, 12, 16, 20, 24]
    assert len([r for r in engine.state.prunings if r["fired_by"] == "threshold"]) >= 4


def test_an_implied_cost_is_logged_for_every_pruning(tmp_path):
    records = []
    engine = make_engine(
        tmp_path, **SMALL, epochs=12, closing_epochs=0, settings={"alpha_lr": 0.2, "reopen_steps": 0},
        observer=Observer(on_round=records.append),
    ).run()  # fmt: skip
    fired = [r for r in engine.state.prunings if r["fired_by"] == "threshold"]
    assert fired
    assert all(r["cost_nats"] is not None and r["distance"] >= 0.05 for r in fired)
    known = [r for r in records if "log_joint" in r]
    assert known
    for record in known:
        n_live = record["live_options"] + len([p for p in record["prunings"]])
        assert record["log_joint"] <= record["log_likelihood"] + 1e-6
        assert record["log_likelihood"] - record["log_joint"] <= record["implied_c"] * n_live + 1e-6
    implied = [r["implied_c"] for r in known]
    assert implied == sorted(implied)


def test_conditionals_follow_their_formula(tmp_path):
    losses = [0.30, 0.31, 0.50, 0.32, 0.30] * 6
    engine = make_engine(tmp_path, **SMALL, settings={"temperature": 2.0})
    live = torch.zeros(30, dtype=torch.bool)
    live[::5] = True
    state = replace(engine.state, live=live, losses=tuple(losses))
    posterior = engine.method.posterior(state)
    n = state.n_architecture
    row = posterior.weights()["1<-0"]
    assert row["skip_connect"] / row["none"] == pytest.approx(float(torch.tensor(-n * 0.01 / 2.0).exp()), rel=1e-6)
    assert posterior.kind == "conditionals-at-mode"
    assert posterior.mode() == found(NB201, live)
    assert posterior.gaps[0][1] == pytest.approx(n * 0.01)


@pytest.mark.parametrize("method", ["bpnas", "darts", "drnas", "drnas-progressive", "pcdarts", "snas"])
@pytest.mark.parametrize("limited", [False, True])
def test_what_is_found_lets_an_image_through(tmp_path, method, limited):
    """Beliefs that prefer nothing on every edge, and an average pooling from input to output after that."""
    limits = Limits(("cost",), (3.5,), (0.0,), (tuple(float(i % 5 > 1) for i in range(30)),)) if limited else NO_LIMITS
    engine = make_engine(tmp_path, **SMALL, method=method, limits=limits)
    likely = {f"{choice.name}/none": 2.0 for choice in NB201.choices} | {"3<-0/avg_pool_3x3": 1.0}
    a = parameters(likely)
    state = replace(engine.state, a=torch.cat([a, engine.state.a[len(a) :]]))
    ended = engine.method.conclude(state)
    arch = found_by(engine.method, ended)
    assert str(arch) == "|none~0|+|none~0|none~1|+|avg_pool_3x3~0|none~1|none~2|"
    assert [int(g) for g in ended.live.nonzero()] == list(arch.columns)
    said = "the most probable cell lets no image through; what was found is the most probable one that does"
    expected = [] if method == "bpnas" else [said]  # BPNAS's weights are those of options that are left
    assert belief_warnings(engine.method.posterior(ended)) == expected


def test_before_the_end_the_posterior_is_the_dirichlet_means(tmp_path):
    engine = make_engine(tmp_path, **SMALL)
    posterior = engine.method.posterior(replace(engine.state, a=parameters({"1<-0/none": 1.0})))
    assert isinstance(posterior, MeanField)
    assert posterior.weights()["1<-0"]["none"] == pytest.approx(2 / 6)


@pytest.mark.parametrize("name", ["drnas", "bpnas"])
def test_kl_anchor_replaces_weight_decay(name):
    make, config = METHODS[name][:2]
    assert make(TOY, config(anchor="kl")).config.alpha_decay == 0.0
    assert make(TOY, config(anchor="l2")).config.alpha_decay == 1e-3
    live = torch.ones(9, dtype=torch.bool)
    live[4] = False
    a = torch.linspace(-1, 1, 9)
    expected = 0.0
    for group in ([0, 1, 2], [3, 5], [6, 7, 8]):
        beta = concentration(a[group])
        flat = torch.distributions.Dirichlet(torch.ones_like(beta))
        expected += 2.0 * float(torch.distributions.kl_divergence(torch.distributions.Dirichlet(beta), flat))
    choices = simplices(TOY, live, "cpu")
    assert float(config(anchor="kl", kl_weight=2.0).penalty(choices, a)) == pytest.approx(expected, rel=1e-5)
    assert float(config(anchor="l2", kl_weight=2.0).penalty(choices, a)) == 0.0


def test_the_kl_anchor_pulls_beliefs_back(tmp_path):
    """With a heavy anchor the weights end closer to flat than with none."""
    distances = []
    for weight in (0.0, 10.0):
        engine = make_engine(
            tmp_path / str(weight), method="drnas", epochs=4, settings={"anchor": "kl", "kl_weight": weight}
        )
        engine.method.finished = lambda state: False
        for _ in range(4):
            engine._round()
        means = engine.method.gates(engine.state)[0, 0]
        distances.append(float((means - 1 / 3).norm()))
    assert distances[1] < 0.5 * distances[0]


def test_a_settled_choice_draws_nothing(tmp_path):
    engine = make_engine(tmp_path, **SMALL)
    live = torch.zeros(30, dtype=torch.bool)
    live[1::5] = True
    engine.net.prune(live)
    state = replace(engine.state, live=live)
    before = engine.streams["gates"].get_state()
    batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
    after, info = engine.method.step(state, engine.net, batches, streams=engine.streams, clock=CLOCK)
    assert "architecture_loss" not in info
    assert torch.equal(pack(after)[0]["a"], state.a)
    assert torch.equal(engine.streams["gates"].get_state(), before)


def test_streams_of_methods_do_not_touch_the_data(tmp_path):
    """Two methods with one seed see the same batches."""
    one, two = make_engine(tmp_path / "a", **SMALL), make_engine(tmp_path / "b", method="darts", **SMALL)
    first = [one.feeders["weights"].next() for _ in range(3)]
    second = [two.feeders["weights"].next() for _ in range(3)]
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    assert isinstance(BPNAS(TOY, BPNASConfig()).space, type(TOY))
    assert Streams(0).seed == 0
