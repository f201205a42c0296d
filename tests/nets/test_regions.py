"""Regions: compiled or not the same numbers, one program for all copies; a pruning leaves other nodes alone."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from bayesarch.errors import ConfigError
from bayesarch.nets import Supernet
from bayesarch.nets.cells import MixedCell
from bayesarch.nets.pieces import mixed
from bayesarch.nets.regions import as_they_are, compiled
from bayesarch.spaces import NB201, SPACES

# torch's compiler looks at what torch warns of
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor", "ignore::DeprecationWarning")

SIZES = {
    "nb201": {"channels": 4, "cells": 1},
    "bayesnas-cell": {"channels": 4, "layers": 3},
    "darts": {"channels": 4, "layers": 3},
    "tree-cell": {"channels": 4, "alpha": 6},
}


class Counter:
    """A backend that runs what it is given as it is, and counts it."""

    def __init__(self):
        self.programs = 0

    def __call__(self, graph, inputs):
        self.programs += 1
        return graph.forward


def supernet(space="nb201", **sizes):
    return Supernet(
        SPACES[space],
        input_shape=(3, 8, 8),
        classes=4,
        sizes=SIZES[space] | sizes,
        generator=torch.Generator().manual_seed(0),
    ).to(dtype=torch.float64, memory_format=torch.channels_last)


def step(net, *, seed=0, moving=True, active=None):
    """Return what a pass leaves: loss, gradients of gates and weights, statistics of norms."""
    streams = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 8, 8, generator=streams, dtype=torch.float64)
    gates = torch.rand(1, 1, net.space.n_options, generator=streams, dtype=torch.float64).requires_grad_(moving)
    net.zero_grad(set_to_none=True)
    loss = F.cross_entropy(net(images, gates, active), torch.arange(6) % 4)
    loss.backward()
    return [loss.detach(), gates.grad, *(p.grad for p in net.parameters()), *(b.clone() for b in net.buffers())]


def assert_same(one, other):
    assert len(one) == len(other) > 10
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("space", [s if s == "nb201" else pytest.param(s, marks=pytest.mark.long) for s in SIZES])
def test_compiled_regions_give_the_same_numbers(space):
    plain, fast = supernet(space), supernet(space)
    fast.compile_regions(backend=(counter := Counter()))
    for seed in range(2):
        assert_same(step(plain, seed=seed), step(fast, seed=seed))
    assert counter.programs > 0


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_programs_of_torchs_compiler_give_the_same_numbers(generator):
    cell = MixedCell(NB201, 4).double()
    begun = {name: value.clone() for name, value in cell.state_dict().items()}
    x = torch.randn(6, 4, 8, 8, generator=generator, dtype=torch.float64)
    gates = torch.rand(1, 30, generator=generator, dtype=torch.float64)
    found = []
    for region in (as_they_are, compiled()):
        cell.load_state_dict(begun)
        inputs = [x.clone().requires_grad_(), gates.clone().requires_grad_()]
        cell.zero_grad(set_to_none=True)
        out = mixed([piece for target, piece in region(cell, "2", *inputs, None) if target == "3"], x)
        out.square().mul(torch.arange(8.0)).sum().backward()
        weights = [p.grad for name, p in cell.named_parameters() if name.startswith("stacks.2")]
        found.append([out, *(t.grad for t in inputs), *weights, cell.stacks["2_3"].running_mean.clone()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_copies_share_programs_and_a_pruning_leaves_the_other_nodes_alone():
    net, counter = supernet(cells=2), Counter()
    net.compile_regions(backend=counter)
    step(net)
    assert counter.programs == 3 * 3, "three nodes that something leaves, three sizes, two copies each"
    step(net, seed=1)
    assert counter.programs == 9
    live = torch.ones(30, dtype=torch.bool)
    live[NB201.labels.index("2<-1/nor_conv_3x3")] = False
    net.prune(live)
    step(net)
    assert counter.programs == 9 + 3, "what leaves node 1, at three sizes"
    live[[NB201.labels.index("2<-1/avg_pool_3x3"), NB201.labels.index("3<-2/nor_conv_1x1")]] = False
    net.prune(live)
    step(net)
    assert counter.programs == 12 + 6


def test_only_training_of_all_live_options_is_compiled():
    net, counter = supernet(), Counter()
    net.compile_regions(backend=counter)
    step(net, active=frozenset(range(3)))
    with torch.no_grad():
        net(torch.zeros(2, 3, 8, 8, dtype=torch.float64), torch.ones(1, 1, 30, dtype=torch.float64))
    net.eval()
    step(net)
    assert counter.programs == 0
    net.train()
    step(net, active=frozenset(range(30)))
    assert counter.programs == 9


def test_weights_are_held_and_let_go():
    net = supernet()
    first = next(net.parameters()).requires_grad_(False)
    with net.weights_held():
        left = step(net)
        assert left[1].abs().sum() > 0
        assert all(p.grad is None for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [p is not first for p in net.parameters()]


def test_weights_that_came_later_are_held_too():
    net = supernet()
    with net.weights_held():
        pass
    before = set(net.parameters())
    net.resize(2, generator=torch.Generator().manual_seed(0))
    assert not before.issuperset(net.parameters())
    with net.weights_held():
        assert not any(p.requires_grad for p in net.parameters())
    kept = set(net.parameters())
    net.prune(torch.arange(net.space.n_options) % 5 == 0)
    gone = kept.difference(net.parameters())
    with net.weights_held():
        assert gone
        assert all(p.requires_grad for p in gone), "what is gone is nobody's to hold"


def test_a_space_without_regions_says_so():
    net = Supernet(
        SPACES["mlp"], input_shape=(4, 1, 1), classes=2, sizes=None, generator=torch.Generator().manual_seed(0)
    )
    with pytest.raises(ConfigError, match=r"engine\.compile off"):
        net.compile_regions()
