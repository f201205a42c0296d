"""Cells as one function against the same cells option by option in float64, whatever their wiring and what is asked."""

import itertools

import pytest
import torch

from bayesarch.config import Config
from bayesarch.functional import seeded
from bayesarch.nets import Supernet, cells
from bayesarch.nets.cells import MixedCell
from bayesarch.nets.kernels import cell_features
from bayesarch.nets.regions import as_they_are, fused
from bayesarch.spaces import SPACES, Choice, Space
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc

OPTIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")


def wired(edges, inputs, outputs):
    """A space of such edges, (source, target) or (source, target, options)."""
    choices = [
        Choice(name=f"{target}<-{source}", options=(options or [OPTIONS])[0], source=source, target=target)
        for source, target, *options in edges
    ]
    ends = {"inputs": frozenset(inputs), "outputs": frozenset(outputs)}
    return Space(name="wired", choices=tuple(choices), **ends, skeleton="none", sizes=Config)


WIRINGS = {
    "one edge": wired(["ab"], "a", "b"),
    "nb201's": SPACES["nb201"],
    "two inputs": wired(["ac", "bc", "bd", "cd"], "ab", "d"),
    "outputs that things leave": wired(["ab", "bc", "ac", "cd"], "a", "bcd"),
    "an input among outputs": wired(["ab"], "a", "ab"),
    "nothing leaves b or is asked of it": wired(["ab", "ac"], "a", "c"),
    "nothing is computed to b": wired([("a", "b", ("none",)), "ac", ("b", "c", ("skip_connect",))], "a", "bc"),
    "no convolution": wired([("a", "b", ("avg_pool_3x3",)), ("b", "c", ("skip_connect", "avg_pool_3x3"))], "a", "c"),
}


class Case:
    """A cell, its input and gates."""

    def __init__(self, space, shape=(3, 4, 6, 7), dtype=torch.float64):
        with seeded(torch.Generator().manual_seed(0)):
            self.cell = MixedCell(space, shape[1]).to(dtype)
        self.x = images(*shape, dtype=dtype, mean=0.3).requires_grad_()
        self.gates = torch.rand(1, space.n_options, generator=torch.Generator().manual_seed(1)).to(dtype)
        self.gates.requires_grad_()
        self.slope = images(*shape, dtype=dtype, seed=2)

    def passed(self, region, active=None):
        """The output, gradients of all that want some, running moments."""
        self.cell.region = region
        out = self.cell(self.x, self.gates, active)
        wanted = [t for t in (self.x, self.gates, *self.cell.parameters()) if t.requires_grad]
        grads = [None] * len(wanted)
        if out.requires_grad:  # not zeros that nothing went to
            grads = torch.autograd.grad(out, wanted, self.slope, allow_unused=True)
        # an option that is not computed has no gradient, or zeros
        grads = [torch.zeros_like(t) if grad is None else grad for t, grad in zip(wanted, grads, strict=True)]
        moments = [t for name, t in self.cell.named_buffers() if "running" in name]
        return [out.detach(), *grads, *moments]


@pytest.fixture
def called(monkeypatch):
    """How often a cell was one function."""
    found = []
    monkeypatch.setattr(cells, "cell_features", lambda *words: found.append(1) or cell_features(*words))
    return found


def agree(found, expected, rtol=1e-9):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(
            a.double(), b.double(), rtol=rtol, atol=rtol * max([1.0, *b.abs().flatten().tolist()])
        )


@pytest.mark.parametrize("name", WIRINGS)
def test_outputs_gradients_and_moments_are_those_of_the_options(name, called):
    ours, theirs = Case(WIRINGS[name]), Case(WIRINGS[name])
    agree(ours.passed(fused), theirs.passed(as_they_are))
    assert called == [1]


@pytest.mark.parametrize("active", [None, frozenset(range(0, 30, 2))])
def test_it_is_to_the_bit_what_functions_of_the_nodes_give(active, called, monkeypatch):
    found = Case(SPACES["nb201"], dtype=torch.float32).passed(fused, active)
    monkeypatch.setattr(MixedCell, "_is_one", lambda *words: False)
    for a, b in zip(found, Case(SPACES["nb201"], dtype=torch.float32).passed(fused, active), strict=True):
        assert torch.equal(a, b)
    assert called == [1]


@pytest.mark.parametrize(
    "active", [range(0, 30, 2), range(0, 30, 5), [3, 28], [1, 11, 26], range(5, 30), range(15), [1, 2]]
)
def test_of_some_options_too(active):
    """Nodes that nothing leaves, that nothing goes to, and a cell that no path leads through."""
    ours, theirs = Case(SPACES["nb201"]), Case(SPACES["nb201"])
    agree(ours.passed(fused, frozenset(active)), theirs.passed(as_they_are, frozenset(active)))


@pytest.mark.parametrize("name", ["nb201's", "two inputs", "outputs that things leave"])
@pytest.mark.parametrize("wanted", [w for w in itertools.product([True, False], repeat=3) if any(w)])
def test_whatever_gradients_are_wanted(name, wanted):
    found = []
    for region in (fused, as_they_are):
        case = Case(WIRINGS[name])
        case.x.requires_grad_(wanted[0])
        case.gates.requires_grad_(wanted[1])
        case.cell.requires_grad_(wanted[2])
        found.append(case.passed(region))
    agree(*found)


def test_after_a_pruning_and_with_a_third_of_the_options_gone():
    found = []
    for region in (fused, as_they_are):
        case = Case(SPACES["nb201"])
        case.cell.prune(torch.arange(30) % 3 != 0)
        found.append(case.passed(region))
    agree(*found)


def test_inputs_gates_and_slopes_that_lie_otherwise_are_taken():
    found = []
    for region in (fused, as_they_are):
        case = Case(WIRINGS["outputs that things leave"], (2, 8, 6, 6))
        wide = torch.cat([case.x.detach(), images(2, 5, 6, 6, seed=5)], 1).contiguous(memory_format=torch.channels_last)
        case.x, case.slope = wide[:, 3:11].requires_grad_(), case.slope.contiguous()
        case.gates = torch.stack([case.gates.detach(), torch.ones_like(case.gates)], 2)[:, :, 0].requires_grad_()
        found.append(case.passed(region))
    agree(*found)
    assert case.slope.is_contiguous()
    assert not case.gates.is_contiguous()


def test_slices_of_wider_inputs_are_not_copied():
    case = Case(SPACES["nb201"], (2, 8, 6, 6))
    wide = torch.cat([case.x.detach(), case.x.detach()], 1).contiguous(memory_format=torch.channels_last)
    x = wide[:, 8:].requires_grad_()
    case.cell.region = fused
    _, kept, *_ = case.cell(x, case.gates).grad_fn.saved_tensors
    assert kept.data_ptr() == x.data_ptr()


def test_threads_share_it_and_equal_runs_are_equal_to_the_bit():
    with on_threads(2):
        one, two, naive = (Case(SPACES["nb201"], (19, 8, 16, 16), torch.float32) for _ in range(3))
        found, again = one.passed(fused), two.passed(fused)
        for a, b in zip(found, again, strict=True):
            assert torch.equal(a, b)
        agree(found, naive.passed(as_they_are), rtol=1e-4)


def test_kept_are_features_outputs_of_convolutions_and_what_gates_read():
    """As much as functions of the nodes keep: means over windows only where a gate's gradient reads them."""
    for moving in (True, False):
        case = Case(SPACES["nb201"])
        case.gates.requires_grad_(moving)
        case.cell.region = fused
        out = case.cell(case.x, case.gates)
        kept = [t for t in out.grad_fn.saved_tensors if t is not None and t.numel() >= case.x.numel()]
        # features of 3 nodes that things leave; two convolutions an edge; means for each of those nodes
        assert sum(t.numel() for t in kept) == case.x.numel() * (3 + 12 + 3 * moving)


def test_a_second_derivative_is_refused():
    case = Case(SPACES["nb201"])
    case.cell.region = fused
    (slope,) = torch.autograd.grad(case.cell(case.x, case.gates).square().sum(), case.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    "other",
    [
        "another region",
        "in evaluation",
        "gates of each example",
        "channels that go past",
        "other operations",
        "16 bits",
    ],
)
def test_other_cells_go_node_by_node(other, called):
    space = wired([("a", "b", ("nor_conv_3x3", "max_pool_3x3"))], "a", "b") if other == "other operations" else None
    case = Case(space or SPACES["nb201"], dtype=torch.float32)
    case.cell.region = as_they_are if other == "another region" else fused
    case.cell.train(other != "in evaluation")
    gates = case.gates.expand(3, -1) if other == "gates of each example" else case.gates
    if other == "channels that go past":
        case.cell.resize(2, torch.Generator())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=other == "16 bits"):
        out = case.cell(case.x, gates)
    assert out.shape == case.x.shape
    assert called == []


def test_a_cell_that_an_edge_leads_back_into_goes_node_by_node(called):
    """What goes to an input is not counted there."""
    ours, theirs = (Case(wired(["ba", "ac"], "ab", "c")) for _ in range(2))
    agree(ours.passed(fused), theirs.passed(as_they_are))
    assert called == []


def test_a_fused_supernet_takes_it(called, generator):
    net = Supernet(
        SPACES["nb201"], input_shape=(3, 8, 8), classes=4, sizes={"channels": 4, "cells": 1}, generator=generator
    )
    x, gates = torch.rand(4, 3, 8, 8), torch.rand(1, 1, 30)
    net(x, gates)
    assert not called
    net.fuse()
    net(x, gates)
    assert len(called) == len(net.cells())
