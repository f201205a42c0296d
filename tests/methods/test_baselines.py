"""What distinguishes each baseline; the contract and the planted problem are in test_methods.py."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from bayesarch.data import Batch
from bayesarch.engine import Clock, Observer, Weights
from bayesarch.methods import METHODS
from bayesarch.methods.darts_second import unrolled_gradient
from bayesarch.methods.pcdarts import edge_weights
from bayesarch.methods.single import settle_inactive, simplices
from bayesarch.nets import Supernet
from bayesarch.posteriors import WithinLimits
from bayesarch.spaces import NB201, TOY, Limits
from helpers import make_engine, posterior_of

SMALL = {
    "space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 200, "batch_size": 32,
}  # fmt: skip
PLANTED = "|product~0|+|skip~0|product~1|"

CELL_METHODS = [name for name, entry in METHODS.items() if not entry.channels]


@pytest.mark.parametrize(
    ("method", "epochs"),
    [("darts", 12), pytest.param("darts-2nd", 12, marks=pytest.mark.long), ("snas", 12), ("random", 12)],
)
def test_the_planted_cell_is_found(method, epochs, tmp_path):
    """With each of three seeds; by chance an argmax is right once in 27."""
    for seed in range(3):
        engine = make_engine(tmp_path / str(seed), method=method, seed=seed, epochs=epochs).run()
        assert str(posterior_of(engine).mode()) == PLANTED


def test_gdas_finds_the_planted_cell_more_often_than_chance(tmp_path):
    """One-hot draws learn slowly, so less is asked than of the others."""
    right = 0
    for seed in range(4):
        engine = make_engine(tmp_path / str(seed), method="gdas", seed=seed, epochs=24).run()
        right += str(posterior_of(engine).mode()) == PLANTED
    assert right >= 2  # chance: 2 or more of 4 at 1/27 each, below 1e-2


# --- DARTS, second order ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_unrolled_gradient_equals_double_backward(momentum, nesterov, generator):
    """In float64, through torch's own optimiser step written out and differentiated twice."""
    net = Supernet(TOY, input_shape=(1, 1, 6), classes=2, generator=generator).double()
    batches = {
        name: Batch(torch.randn(16, 1, 1, 6, generator=generator).double(), torch.arange(16) % 2)
        for name in ("weights", "architecture")
    }
    lr, decay = 0.3, 0.01
    weights = Weights(net, momentum=momentum, weight_decay=decay, nesterov=nesterov, clip=0)
    choices = simplices(TOY, torch.ones(9, dtype=torch.bool), "cpu")
    for _ in range(2):  # so that there is momentum
        weights.zero()
        F.cross_entropy(
            net(batches["weights"].images, torch.full((1, 1, 9), 0.4).double()), batches["weights"].labels
        ).backward()
        weights.step(lr)
    a = torch.randn(9, generator=generator).double()
    clock = Clock(1, 10, 10, 5, lr, preview=lambda grads: weights.preview(grads, lr))
    before = [p.detach().clone() for p in net.parameters()]
    ours, _ = unrolled_gradient(a, choices, net, batches, clock, length=1e-4)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True)), "the network is left alone"

    leaf = a.clone().requires_grad_()
    names = [name for name, _ in net.named_parameters()]
    gates = choices.softmax(leaf).view(1, 1, -1)
    loss = F.cross_entropy(net(batches["weights"].images, gates), batches["weights"].labels)
    grads = torch.autograd.grad(loss, list(net.parameters()), create_graph=True)
    moved = {}
    for name, p, grad in zip(names, net.parameters(), grads, strict=True):
        slope = grad + decay * p.detach()
        velocity = momentum * weights.state().get(name, torch.zeros_like(p)) + slope
        moved[name] = p.detach() - lr * (slope + momentum * velocity if nesterov else velocity)
    output = torch.func.functional_call(net, moved, (batches["architecture"].images, gates))
    (exact,) = torch.autograd.grad(F.cross_entropy(output, batches["architecture"].labels), leaf)
    assert torch.allclose(ours, exact, atol=1e-7)
    gates = choices.softmax(leaf).view(1, 1, -1)
    output = torch.func.functional_call(
        net, {k: v.detach() for k, v in moved.items()}, (batches["architecture"].images, gates)
    )
    (first_order,) = torch.autograd.grad(F.cross_entropy(output, batches["architecture"].labels), leaf)
    assert float((exact - first_order).abs().max()) > 1e-3, "the second-order term is there to be checked"


def test_a_preview_is_what_the_step_does(generator):
    for nesterov in (False, True):
        net = Supernet(TOY, input_shape=(1, 1, 6), classes=2, generator=generator).double()
        weights = Weights(net, momentum=0.9, weight_decay=0.1, nesterov=nesterov, clip=0)
        for _ in range(3):
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            moves = weights.preview([p.grad for p in net.parameters()], 0.05)
            before = [p.detach().clone() for p in net.parameters()]
            weights.step(0.05)
            for p, old, move in zip(net.parameters(), before, moves, strict=True):
                assert torch.allclose(p, old + move, atol=1e-12)


def test_second_order_leaves_running_statistics_alone(tmp_path):
    engine = make_engine(tmp_path, method="darts-2nd", **SMALL)
    batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
    before = {name: buffer.clone() for name, buffer in engine.net.named_buffers()}
    choices = simplices(NB201, engine.state.live, "cpu")
    engine.net.train()
    unrolled_gradient(engine.state.a, choices, engine.net, batches, engine._clock())
    after = dict(engine.net.named_buffers())
    # num_batches_tracked counts passes and is not used, because momentum is a number
    assert all(torch.equal(after[k], v) for k, v in before.items() if not k.endswith("num_batches_tracked"))


# --- GDAS and random search: only what is used is computed -----------------------------------------------------------


@pytest.mark.parametrize("method", ["gdas", "random"])
def test_only_options_that_are_used_are_computed(method, tmp_path, monkeypatch):
    """Counted twice: by the network, and by the convolutions that really ran."""
    engine = make_engine(tmp_path, method=method, **SMALL)
    convolutions = []
    original = F.conv2d

    def spy(x, weight, *args, **kwargs):
        out = original(x, weight, *args, **kwargs)
        convolutions.append(out.numel() * weight[0].numel())
        return out

    monkeypatch.setattr("bayesarch.nets.conv_stack.F.conv2d", spy)
    batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
    passes = 2 if method == "gdas" else 1
    engine.method.step(engine.state, engine.net, batches, streams=engine.streams, clock=engine._clock())
    linear = engine.net.head[-1]
    assert engine.net.images_seen == 32 * passes
    assert engine.net.macs_spent == sum(convolutions) + 32 * passes * linear.in_features * linear.out_features
    before = engine.net.macs_spent
    engine.net(batches["weights"].images, engine.method.gates(engine.state))  # everything
    assert before < 0.6 * passes * (engine.net.macs_spent - before)


def test_partial_channels_are_counted_as_they_are_computed(tmp_path, monkeypatch):
    engine = make_engine(tmp_path, method="pcdarts", **SMALL)
    convolutions, original = [], F.conv2d

    def spy(x, weight, *args, **kwargs):
        out = original(x, weight, *args, **kwargs)
        convolutions.append(out.numel() * weight[0].numel())
        return out

    monkeypatch.setattr("bayesarch.nets.conv_stack.F.conv2d", spy)
    engine.net(torch.zeros(3, 1, 8, 8), engine.method.gates(engine.state))
    linear = engine.net.head[-1]
    assert engine.net.macs_spent == sum(convolutions) + 3 * linear.in_features * linear.out_features


def test_gdas_moves_only_what_was_drawn_and_its_rivals(tmp_path):
    """The weights of options that were not drawn get no gradient at all."""
    engine = make_engine(tmp_path, method="gdas", **SMALL)
    batches = {name: feeder.next() for name, feeder in engine.feeders.items()}
    state, _ = engine.method.step(engine.state, engine.net, batches, streams=engine.streams, clock=engine._clock())
    touched = {name for name, p in engine.net.named_parameters() if ".weights." in name and p.grad is not None}
    per_cell = len([name for name in touched if name.startswith("layers.0.")])
    assert per_cell <= 6
    assert not torch.equal(state.a, engine.state.a)


# --- PC-DARTS and progressive DrNAS ----------------------------------------------------------------------------------


def test_edge_weights_are_a_softmax_over_edges_into_one_node(generator):
    b = torch.randn(6, generator=generator, dtype=torch.float64)
    weights = edge_weights(NB201, b).view(6, 5)
    assert bool((weights == weights[:, :1]).all()), "one number per edge"
    targets = [choice.target for choice in NB201.choices]
    for node in ("1", "2", "3"):
        group = [i for i, target in enumerate(targets) if target == node]
        assert torch.allclose(weights[group, 0], torch.softmax(b[group], 0))


def test_pcdarts_rests_then_moves_options_and_edges(tmp_path):
    engine = make_engine(
        tmp_path, method="pcdarts", **SMALL, epochs=10, settings={"resting_share": 0.3, "alpha_decay": 0.0}
    )
    first = engine.state.a.clone()
    assert engine.net.partial == 4
    for _ in range(3):
        engine._round()
    assert torch.equal(engine.state.a, first)
    engine._round()
    moved = (engine.state.a - first).abs()
    assert float(moved[:30].min()) > 0
    assert float(moved[31:].min()) > 0
    assert float(moved[30]) == 0.0  # edge 0 is alone at its node: its softmax is 1 whatever it is
    gates = engine.method.gates(engine.state).view(6, 5)
    targets = [choice.target for choice in NB201.choices]
    for node in ("1", "2", "3"):
        assert float(sum(gates[i].sum() for i in range(6) if targets[i] == node)) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["pcdarts", "drnas-progressive"])
def test_partial_channels_end_at_full_width(method, tmp_path):
    engine = make_engine(tmp_path, method=method, **SMALL, epochs=4, closing_epochs=1).run()
    assert engine.net.partial == 1
    net = engine.net.inherit(posterior_of(engine).mode()).eval()
    batch = next(engine.data["selection"].in_order(32))
    engine.net.eval()
    assert torch.allclose(net(batch.images), engine.net(batch.images, engine.method.gates(engine.state)), atol=1e-5)


def test_progressive_stages(tmp_path):
    engine = make_engine(tmp_path, method="drnas-progressive", **SMALL, epochs=10, closing_epochs=0)
    seen, boundary, entered = [], engine.method.boundary, []

    def spy(state, *args, **kwargs):
        entered.append(state)
        return boundary(state, *args, **kwargs)

    engine.method.boundary = spy
    while not engine._capped():
        engine._round()
        before = entered[-1]
        if engine.state.stage != before.stage:
            survivors = [int(g) for g in engine.state.live.nonzero()]
            assert torch.equal(engine.state.a[survivors], before.a[survivors]), "what survives keeps its parameter"
            assert float(engine.state.a[~engine.state.live].abs().max()) == 0.0
            for position in range(6):
                row = before.a[list(NB201.columns(position))]
                kept = {g - 5 * position for g in survivors if g in NB201.columns(position)}
                assert kept == set(row.topk(3).indices.tolist()), "the largest three of each edge survive"
        seen.append((engine.state.stage, engine.net.partial, int(engine.net.live.sum())))
    assert seen == [(0, 4, 30)] * 4 + [(1, 2, 18)] * 6
    assert engine.weights.state(), "momentum survives the widening"


def test_momentum_follows_the_channels(tmp_path):
    engine = make_engine(tmp_path, method="drnas-progressive", **SMALL, epochs=2, settings={"keep": (5, 5)})
    before = None
    original = engine.weights.grow

    def spy(momentum, grown):
        nonlocal before
        before = momentum, grown
        original(momentum, grown)

    engine.weights.grow = spy
    engine._round()
    momentum, grown = before
    after = engine.weights.state()
    assert after.keys() == momentum.keys()
    for name, buffer in after.items():
        if name in grown:
            outs, ins = grown[name]
            assert torch.equal(buffer, momentum[name][outs][:, ins])
        else:
            assert torch.equal(buffer, momentum[name])


@pytest.mark.parametrize("settings", [{"partials": (2, 4)}, {"keep": (5,)}, {"keep": (5, 0)}])
def test_stages_that_do_not_agree_are_refused(settings):
    with pytest.raises(ValueError, match=r"one number >= 1 per stage"):
        METHODS["drnas-progressive"].config(**settings)


# --- limits, kept by every method ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CELL_METHODS)
def test_every_method_keeps_the_limits(method, tmp_path):
    """Convolutions cost 1 (3 x 3: 9), at most 10 in all: no method would end there by itself."""
    limits = Limits(("cost",), (10.0,), (0.0,), ((0.0, 0.0, 1.0, 9.0, 0.0) * 6,))
    engine = make_engine(tmp_path, method=method, **SMALL, epochs=3, closing_epochs=1, limits=limits).run()
    posterior = posterior_of(engine)
    assert limits.allow(NB201, posterior.mode().picks)
    assert all(limits.allow(NB201, arch.picks) for arch in posterior.sample(50, seed=0))
    assert all(engine.state.live[g] for g in posterior.mode().columns)
    if isinstance(posterior, WithinLimits):
        assert posterior.limits == limits


@pytest.mark.parametrize("method", CELL_METHODS)
def test_limits_that_leave_one_architecture(method, tmp_path):
    picks = ((1,), (0,), (3,), (2,), (4,), (1,))
    columns = [5 * position + i for position, (i,) in enumerate(picks)]
    limits = Limits(("cost",), (0.0,), (0.0,), (tuple(0.0 if g in columns else 1.0 for g in range(30)),))
    engine = make_engine(tmp_path, method=method, **SMALL, epochs=3, closing_epochs=1, limits=limits)
    assert int(engine.net.live.sum()) == 6, "what cannot be found is not even trained"
    assert posterior_of(engine.run()).mode().picks == picks


def test_inactive_choices_are_settled_on_what_the_limits_allow():
    """Node 1 is unreachable: edge 2<-1 goes to zero, or to the one option that the limits leave possible."""
    live = torch.tensor([True, False, False, True, True, True, True, True, True])
    macs = [0, 5, 3] * 3
    settled = settle_inactive(TOY, live, macs, None)
    assert settled.tolist() == [True, False, False, True, True, True, True, False, False]
    limits = Limits(("cost",), (1.0,), (0.0,), ((0.0,) * 6 + (2.0, 2.0, 1.0),)).to_json()
    assert settle_inactive(TOY, live, macs, limits).tolist()[6:] == [False, False, True]
    everything = torch.ones(9, dtype=torch.bool)
    assert torch.equal(settle_inactive(TOY, everything, macs, None), everything), "all edges are on a path"


def test_bpnas_prunes_within_the_limits_step_by_step(tmp_path):
    """Whatever is pruned, some architecture within the limits stays possible; options beyond reach go with it."""
    limits = Limits(("cost",), (20.0,), (0.0,), ((0.0, 0.0, 1.0, 9.0, 0.0) * 6,))
    engine = make_engine(
        tmp_path, method="bpnas", **SMALL, limits=limits, settings={"cost_batches": 0, "reopen_steps": 0}
    )
    state = engine.state
    for round_ in range(60):
        a = torch.randn(30, generator=torch.Generator().manual_seed(round_))
        a[3::5] += 3.0  # everything wants 3 x 3
        state, _ = engine.method.boundary(
            replace(state, a=a),
            engine.net,
            engine.data,
            streams=engine.streams,
            clock=replace(engine._clock(), epoch=3),
        )
        assert limits.possible(NB201, state.live.tolist())
        if engine.method.finished(state):
            break
    assert engine.method.finished(state)
    mode = engine.method.posterior(state).mode()
    assert limits.cost(NB201, mode.picks)["cost"] in (18.0, 19.0, 20.0), "as much as was wanted, within the limit"
    assert engine.method.summary(state)["fired_by"]["limits"] > 0


# --- other spaces ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(name, marks=pytest.mark.long if name == "bpnas" else ())  # it measures every option at the end
        for name in CELL_METHODS
        if name != "bayesnas"
    ],
)
def test_ends_in_a_genotype_in_the_space_of_darts(method, tmp_path):
    """Two operations into each node, what was found still there, and nothing else."""
    settings = {"bpnas": {"reopen_steps": 1, "cost_batches": 0}, "random": {"candidates": 3}}.get(method)
    engine = make_engine(
        tmp_path, method=method, space="darts", source="digits", sizes={"channels": 4, "layers": 3}, limit=100,
        batch_size=32, epochs=1, closing_epochs=0, settings=settings,
    ).run()  # fmt: skip
    arch = posterior_of(engine).mode()
    assert str(arch).startswith("Genotype(")
    assert sum(map(len, arch.picks)) == 16
    assert all(engine.state.live[g] for g in arch.columns)
    zeros = torch.tensor([i == c.zero for c in arch.space.choices for i in range(len(c.options))])
    assert int((engine.state.live & ~zeros).sum()) == 16


@pytest.mark.parametrize("method", [pytest.param("bpnas", marks=pytest.mark.long), "gdas"])
def test_keeps_one_operation_or_none_where_any_number_may_stay(method, tmp_path):
    settings = {"bpnas": {"reopen_steps": 1, "cost_batches": 0}}.get(method)
    engine = make_engine(
        tmp_path, method=method, space="tree-cell", source="digits", sizes={"channels": 4, "alpha": 6}, limit=100,
        batch_size=32, epochs=1, closing_epochs=0, settings=settings,
    ).run()  # fmt: skip
    arch = posterior_of(engine).mode()
    assert max(map(len, arch.picks)) == 1
    assert arch.space.connected(arch.picks)


@pytest.mark.parametrize(("given", "epochs", "of_weights"), [(None, 4, 2), (1, 4, 3), (50, 3, 1)])
def test_nesbs_trains_weights_before_it_fits_a_posterior(given, epochs, of_weights, tmp_path):
    """Half of the epochs unless told, and one at least: a posterior of weights that were never trained says nothing."""
    records = []
    make_engine(
        tmp_path, method="nesbs", settings={"alpha_epochs": given}, epochs=epochs, closing_epochs=0,
        observer=Observer(on_round=records.append),
    ).run()  # fmt: skip
    assert ["weights_loss" in record for record in records] == [n < of_weights for n in range(epochs)]
