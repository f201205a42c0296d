import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.engine import Interrupted, Observer, batch_statistics, conditional_losses, pack, recalibrate, score
from bayesarch.engine.device import autocast, resolve_device
from bayesarch.engine.weights import Weights
from bayesarch.errors import CheckpointError, DeviceError, NumericalError
from bayesarch.functional import Streams
from bayesarch.methods import METHODS
from bayesarch.nets import Supernet
from bayesarch.nets.conv_stack import ConvStack
from bayesarch.spaces import NB201, TOY, Architecture
from helpers import make_engine, posterior_of

SMALL = {
    "space": "nb201", "source": "digits", "sizes": {"channels": 4, "cells": 1}, "limit": 200, "batch_size": 32,
}  # fmt: skip


def same(a, b):
    """Assert that two engines are in the same place, bit for bit."""
    assert vars(a.place).keys() == vars(b.place).keys()
    names = ("stage", "rounds", "step", "steps", "images", "macs")
    assert [getattr(a.place, name) for name in names] == [getattr(b.place, name) for name in names]
    for mine, theirs in ((a.net.state_dict(), b.net.state_dict()), (a.weights.state(), b.weights.state())):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    (tensors, values), (others, other_values) = pack(a.state), pack(b.state)
    assert values == other_values
    assert all(torch.equal(tensors[k], others[k]) for k in tensors)


def resumable(method):
    """Return settings of a search that prunes, closes and ends within 20 steps or so."""
    settings = {"method": method, "epochs": 8, "closing_epochs": 2, **SMALL}
    return settings | ({"settings": {"alpha_lr": 0.1, "reopen_steps": 2}} if method == "bpnas" else {})


def _as_many(steps, n):
    return len(steps) == n


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if not entry.channels])
def test_resume_is_bit_for_bit(tmp_path, method):
    """Stopped after the first step, once pruned, and in its closing epochs: the same search as one that was not."""
    settings = resumable(method)
    whole = make_engine(tmp_path / "whole", **settings).run()
    steps, resumed = [], None
    for stop_at in (1, 13, 18):
        stopping = Observer(on_step=steps.append, should_stop=partial(_as_many, steps, stop_at))
        engine = make_engine(tmp_path / "broken", **settings, observer=stopping)
        with pytest.raises(Interrupted):
            (engine if resumed is None else engine.restore()).run()
        resumed = make_engine(tmp_path / "broken", **settings).restore()
        assert engine.place.steps == resumed.place.steps == stop_at
    same(whole, resumed.run())
    assert posterior_of(whole).to_json() == posterior_of(resumed).to_json()


def test_resume_restores_the_number_of_threads(tmp_path):
    engine = make_engine(tmp_path, epochs=1)
    engine.save()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        make_engine(tmp_path, epochs=1).restore()
        assert torch.get_num_threads() == before
    finally:
        torch.set_num_threads(before)


def test_checkpoints_of_another_kind_are_refused(tmp_path):
    engine = make_engine(tmp_path, **SMALL)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        engine.restore()
    engine.save()
    with pytest.raises(CheckpointError, match="belongs to method 'bpnas'"):
        make_engine(tmp_path, method="drnas", **SMALL).restore()
    with pytest.raises(CheckpointError, match="does not fit"):
        make_engine(tmp_path, **{**SMALL, "sizes": {"channels": 5, "cells": 1}}).restore()
    content = engine.checkpoint.read_bytes()
    for damaged in (
        content[: len(content) // 2],
        content[:100],
        b"",
        b"\x00" * 64,
        content.replace(b'"format', b'"farmot'),
    ):
        engine.checkpoint.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"last\.safetensors"):
            make_engine(tmp_path, **SMALL).restore()
    engine.checkpoint.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    with pytest.raises(CheckpointError, match="format 9"):
        make_engine(tmp_path, **SMALL).restore()


def test_a_loss_that_is_not_finite_stops_with_the_last_good_checkpoint(tmp_path):
    engine = make_engine(tmp_path, **SMALL, epochs=6, lr=0.025)
    engine._round()
    saved = engine.checkpoint.read_bytes()
    with torch.no_grad():
        engine.net.head[-1].weight.fill_(math.inf)
    with pytest.raises(NumericalError, match=r"loss is not finite.*round 2.*last\.safetensors.*engine\.lr"):
        engine._round()
    assert engine.checkpoint.read_bytes() == saved


def test_momentum_survives_pruning_by_identity(generator):
    net = Supernet(NB201, input_shape=(1, 8, 8), classes=3, sizes={"channels": 4, "cells": 1}, generator=generator)
    reference = copy.deepcopy(net)
    weights = Weights(net, momentum=0.9, weight_decay=1e-3, nesterov=False, clip=0.0)
    theirs = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    images = torch.randn(16, 1, 8, 8, generator=generator)
    gates = torch.rand(1, 1, 30, generator=generator)
    live = torch.rand(30, generator=generator) < 0.5

    def step(mask):
        for model, zero, act in (
            (net, weights.zero, lambda: weights.step(0.05)),
            (reference, theirs.zero_grad, theirs.step),
        ):
            zero()
            model(images, gates * mask).square().mean().backward()
            act()

    step(torch.ones(30))
    net.prune(live)
    weights.reconcile()
    alive = dict(net.named_parameters())
    assert set(weights.state()) == set(alive)
    for _ in range(3):
        step(live.float())
    others = dict(reference.named_parameters())
    for name, parameter in alive.items():
        assert torch.allclose(parameter, others[name], atol=1e-6), name


def test_weights_that_came_later_move_and_forget_their_gradients(generator):
    net = Supernet(NB201, input_shape=(1, 8, 8), classes=3, sizes={"channels": 4, "cells": 1}, generator=generator)
    weights, old = Weights(net, momentum=0.9, weight_decay=0.0, nesterov=False, clip=0.0), set(net.parameters())
    weights.grow(weights.state(), net.resize(2, generator=generator))
    fresh = [p for p in net.parameters() if p not in old]
    assert len(fresh) > 30
    before = [p.detach().clone() for p in fresh]
    net(torch.randn(16, 1, 8, 8, generator=generator), torch.ones(1, 1, 30)).square().mean().backward()
    weights.step(0.1)
    assert all(not torch.equal(p, was) for p, was in zip(fresh, before, strict=True))
    weights.zero()
    assert all(p.grad is None for p in net.parameters())


def test_the_optimiser_holds_what_the_network_holds(tmp_path):
    engine = make_engine(tmp_path, **SMALL, epochs=2, closing_epochs=1, settings={"reopen_steps": 0}).run()
    held = {id(p) for p in engine.weights._momenta}
    assert held
    assert held <= {id(p) for p in engine.net.parameters()}


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_steps_are_those_of_torchs_optimiser(momentum, nesterov, generator):
    nets = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    words = {"momentum": momentum, "weight_decay": 0.01, "nesterov": nesterov}
    mine, theirs = Weights(nets[0], **words, clip=0.0), torch.optim.SGD(nets[1].parameters(), lr=1.0, **words)
    for step in range(4):
        x = torch.randn(5, 3, generator=generator)
        for net in nets:
            net.zero_grad()
            net(x).square().mean().backward()
        theirs.param_groups[0]["lr"] = 0.1 / (1 + step)
        mine.step(0.1 / (1 + step))
        theirs.step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_clipping(generator):
    net = nn.Linear(3, 2)
    weights = Weights(net, momentum=0.0, weight_decay=0.0, nesterov=False, clip=0.5)
    before = net.weight.detach().clone()
    weights.zero()
    (100 * net(torch.ones(1, 3)).sum()).backward()
    norm = weights.step(1.0)
    moved = torch.cat([(net.weight - before).flatten().detach(), torch.zeros(0)])
    assert float(norm) == pytest.approx(100 * math.sqrt(8))
    assert float(moved.norm()) == pytest.approx(0.5 * math.sqrt(6 / 8), rel=1e-4)
    weights.zero()
    assert weights.step(1.0) is None


def test_recalibration_averages_batches(tmp_path):
    engine = make_engine(tmp_path, **SMALL)
    net, split = engine.net, engine.data["weights"]
    gates = engine.method.gates(engine.state)
    recalibrate(net, gates, split, batch_size=50)
    stem, stack = net.stem[1], net.cells()[0].stacks["0_3"]
    assert isinstance(stack, ConvStack)
    means, stack_means = [], []
    with torch.no_grad():
        for batch in split.in_order(50):
            y = net.stem[0](batch.images)
            means.append(y.mean((0, 2, 3)))
            h = torch.relu(
                (y - means[-1].view(1, -1, 1, 1)) / (y.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            )
            z = F.conv2d(h, stack.weights[str(stack.columns[0])], padding=1)
            stack_means.append(z.mean((0, 2, 3)))
    assert len(means) > 1
    assert torch.allclose(stem.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(stack.running_mean[0], torch.stack(stack_means).mean(0), atol=1e-5)
    assert stem.momentum == stack.momentum == 0.1


def test_batch_statistics_leave_no_trace(tmp_path):
    engine = make_engine(tmp_path, **SMALL)
    net, gates = engine.net.eval(), engine.method.gates(engine.state)
    images = next(iter(engine.data["weights"].in_order(32))).images
    before = {name: value.clone() for name, value in net.state_dict().items() if "num_batches" not in name}
    with batch_statistics(net), torch.no_grad():
        inside = net(images, gates)
    assert not net.training
    after = net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.allclose(inside, net.train()(images, gates), atol=1e-6)


def test_score_by_hand(tmp_path):
    engine = make_engine(tmp_path)
    split = engine.data["selection"]
    logits = torch.tensor([0.3, -0.2])
    result = score(lambda x: logits.expand(len(x), 2), split, batch_size=37)
    expected = F.cross_entropy(logits.expand(len(split), 2), split.labels)
    assert result.n == len(split)
    assert result.loss == pytest.approx(float(expected), abs=1e-5)
    assert result.accuracy == pytest.approx(float((split.labels == 0).float().mean()))


def test_conditionals_find_the_planted_cell(tmp_path):
    """At the planted cell, each edge's own option has the lowest loss; options of inactive edges are all alike."""
    engine = make_engine(tmp_path, epochs=10, settings={"reopen_steps": 0}).run()
    mode = posterior_of(engine).mode()
    assert str(mode) == "|product~0|+|skip~0|product~1|"
    losses = conditional_losses(engine.net, mode, engine.data, streams=Streams(0), steps_per_option=3, batch_size=64)
    for position in range(3):
        columns = list(TOY.columns(position))
        assert columns[int(losses[columns].argmin())] in mode.columns
    blind = Architecture(TOY, ((0,), (1,), (2,)))  # nothing reaches node 1, so 2<-1 is inactive
    wide = engine.net.reopened(torch.ones(9, dtype=torch.bool), generator=torch.Generator())
    losses = conditional_losses(wide, blind, engine.data, streams=Streams(0), steps_per_option=0, batch_size=64)
    assert len(set(losses[list(TOY.columns(2))].tolist())) == 1


def test_conditionals_leave_the_found_network_as_it_is(tmp_path):
    engine = make_engine(tmp_path, **SMALL, epochs=2, closing_epochs=0, settings={"reopen_steps": 0}).run()
    before = {name: value.clone() for name, value in engine.net.state_dict().items()}
    mode = posterior_of(engine).mode()
    options = {"streams": Streams(0), "steps_per_option": 2, "batch_size": 32}
    first = conditional_losses(engine.net, mode, engine.data, **options)
    after = engine.net.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = conditional_losses(engine.net, mode, engine.data, **{**options, "streams": Streams(0)})
    assert torch.equal(first, again)
    assert bool(first.isfinite().all())


def test_training_reopened_options_lowers_their_loss(tmp_path):
    engine = make_engine(tmp_path, **SMALL, epochs=4, closing_epochs=2, settings={"reopen_steps": 0}).run()
    mode = posterior_of(engine).mode()
    fresh = [
        g
        for p in range(6)
        if p not in mode.inactive
        for g in NB201.columns(p)
        if g not in mode.columns and "conv" in NB201.labels[g]
    ]
    means = []
    for steps in (0, 20):
        losses = conditional_losses(
            engine.net, mode, engine.data, streams=Streams(0), steps_per_option=steps, batch_size=64
        )
        means.append(float(losses[fresh].mean()))
    assert means[1] < means[0]


def test_learning_rate_is_one_cosine_that_pruning_does_not_restart(tmp_path):
    rates, stages = [], []

    def note(record):
        rates.append(record["lr"])
        stages.append(record["stage"])

    make_engine(tmp_path, epochs=30, closing_epochs=2, observer=Observer(on_round=note)).run()
    assert rates == sorted(rates, reverse=True)
    assert stages[-2:] == ["closing", "closing"]
    assert rates[-1] == pytest.approx(0.001, rel=0.05)


def test_bf16_keeps_beliefs_in_fp32(tmp_path):
    engine = make_engine(tmp_path, **SMALL, epochs=2, closing_epochs=1, precision="bf16").run()
    assert engine.state.a.dtype == torch.float32
    assert engine.place.stage == "done"
    assert all(p.dtype == torch.float32 for p in engine.net.parameters())


def test_devices():
    assert resolve_device("cpu").type == "cpu"
    with pytest.raises(DeviceError, match="unknown device 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(DeviceError, match="only cpu and cuda"):
        resolve_device("meta")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="sees no CUDA device; use --device cpu"):
            resolve_device("cuda")
    with autocast(torch.device("cpu"), "bf16"):
        assert F.linear(torch.ones(1, 2), torch.ones(2, 2)).dtype == torch.bfloat16


@pytest.mark.gpu
def test_search_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from bayesarch.workflows.search import search

    run = search("digits", device="cuda", out=tmp_path / "run", set=["engine.epochs=3"])
    assert run.status["state"] == "finished"
