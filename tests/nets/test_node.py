"""All that leaves a node of a cell as one function, against torch in float64: whatever leaves it, whatever is asked."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from bayesarch.config import Config
from bayesarch.nets import Supernet, cells
from bayesarch.nets.cells import MixedCell
from bayesarch.nets.kernels import Bunch, Norm, Outgoing, build, outgoing_fits, outgoing_parts, sum_of
from bayesarch.nets.kernels import node as kernel_node
from bayesarch.spaces import SPACES, Choice, Space
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc

ALL = (3, 2, 2, 3)
"""How many 3 x 3 and 1 x 1 convolutions, means over windows, and features as they are."""


class Case:
    """A node with so many options of each kind, each to a sum of its own."""

    def __init__(self, shape, counts, dtype=torch.float64):
        self.counts, (width, total) = counts, (shape[1], sum(counts))
        self.h = images(*shape, dtype=dtype, mean=0.3).requires_grad_()
        self.gates = (0.1 + torch.rand(1, total + 1, generator=torch.Generator().manual_seed(1))).to(dtype)
        self.gates.requires_grad_()
        self.weights = [
            (images(width, width, side, side, seed=7 * k + side, spread=0.2).to(dtype)).requires_grad_()
            for side, count in zip((3, 1), counts, strict=False)
            for k in range(count)
        ]
        self.running = [[torch.full((width * n,), value, dtype=dtype) for value in (0.5, 2.0)] for n in counts[:2]]
        self.slopes = [images(*shape, dtype=dtype, seed=20 + k) for k in range(total)]

    @property
    def columns(self):
        """Gates in another order than options, the first of them nobody's."""
        return [*range(sum(self.counts), 0, -1)]

    def outgoing(self):
        columns, bunches, at = self.columns, [], 0
        for count, running in zip(self.counts[:2], self.running, strict=True):
            norm = Norm(*running, 0.1, 1e-5) if count else None
            bunches.append(Bunch(self.weights[at : at + count], columns[at : at + count], norm))
            at += count
        pooled = self.counts[2]
        return Outgoing(*bunches, columns[at : at + pooled], columns[at + pooled :])

    def ours(self):
        return [sum_of([part]) for part in outgoing_parts(self.h, self.gates, self.outgoing())]

    def naive(self):
        """The same by torch, one option after another."""
        outs, (dense, point, pooled, itself) = [], self.counts
        for k, weight in enumerate(self.weights):
            y = F.conv2d(self.h.relu(), weight, padding=weight.shape[2] // 2)
            running, row = (self.running[0], k) if k < dense else (self.running[1], k - dense)
            mine = [moved[row * len(weight) : (row + 1) * len(weight)] for moved in running]
            outs.append(F.batch_norm(y, *mine, training=True))
        assert len(self.weights) == dense + point
        outs += [F.avg_pool2d(self.h, 3, 1, 1, count_include_pad=False)] * pooled + [self.h] * itself
        return [self.gates[0, column] * out for column, out in zip(self.columns, outs, strict=True)]

    def loss(self, outs):
        return sum((out * slope).sum() for out, slope in zip(outs, self.slopes, strict=True))

    def passed(self, way):
        """Outputs, gradients of features, gates and kernels, running moments."""
        outs = way()
        grads = torch.autograd.grad(self.loss(outs), [self.h, self.gates, *self.weights])
        return [*(out.detach() for out in outs), *grads, *(t for pair in self.running for t in pair)]


def agree(shape, counts, rtol=1e-9, dtype=torch.float64):
    ours, naive = Case(shape, counts, dtype), Case(shape, counts)
    found, expected = ours.passed(ours.ours), naive.passed(naive.naive)
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert a.dtype == dtype
        torch.testing.assert_close(a.double(), b, rtol=rtol, atol=rtol * max([1.0, *b.abs().flatten().tolist()]))


@pytest.mark.parametrize(
    "counts", [ALL, (1, 0, 0, 0), (0, 3, 0, 0), (0, 0, 1, 0), (0, 0, 0, 2), (2, 0, 1, 0), (0, 1, 0, 1)]
)
@pytest.mark.parametrize("shape", [(5, 8, 6, 7), (2, 16, 8, 8)])
def test_outputs_and_gradients_are_those_of_torch(shape, counts):
    agree(shape, counts)


@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (3, 2, 4, 5), (2, 3, 9, 2), (30, 5, 3, 3), (2, 17, 5, 4), (2, 20, 12, 4), (1, 33, 6, 6)]
)
def test_so_they_are_at_odd_sizes(shape):
    if shape[2:] == (1, 1):
        agree(shape, (0, 0, 2, 1))  # torch refuses to normalise one value
    else:
        agree(shape, ALL)


@pytest.mark.parametrize("shape", [(19, 8, 16, 16), (17, 16, 12, 12), (1, 4, 92, 92)])
def test_threads_share_the_images(shape):
    for threads in (2, 3):
        with on_threads(threads):
            agree(shape, ALL)
            one, two = Case(shape, ALL, torch.float32), Case(shape, ALL, torch.float32)
            for a, b in zip(one.passed(one.ours), two.passed(two.ours), strict=True):
                assert torch.equal(a, b), "equal runs on as many threads are equal to the bit"


def test_single_precision_is_right_to_its_last_digits():
    agree((4, 16, 16, 16), ALL, rtol=3e-5, dtype=torch.float32)


def test_moments_of_values_far_from_zero_keep_their_digits():
    """The variance of outputs around 300 is not the small difference of two large squares."""
    case = Case((4, 8, 8, 8), (1, 1, 0, 0), torch.float32)
    with torch.no_grad():
        case.h.add_(1000)
        for weight in case.weights:
            weight.copy_(weight[:1, :1, :1, :1].abs() + 0.01)  # every output channel is much the same
    wide = Case((4, 8, 8, 8), (1, 1, 0, 0))
    wide.h, wide.weights = case.h.detach().double(), [weight.detach().double() for weight in case.weights]
    case.ours()
    wide.naive()
    # away from the border, where zeros count, all values of the 1 x 1 convolution lie within a thousandth of their mean
    assert float(wide.running[1][1].mean()) < 3
    torch.testing.assert_close(case.running[1][1].double(), wide.running[1][1], rtol=1e-3, atol=0)


def test_what_is_no_number_is_seen():
    for value in (float("nan"), float("inf")):
        found = []
        for way in ("ours", "naive"):
            case = Case((2, 8, 6, 6), (0, 1, 1, 1))
            with torch.no_grad():
                case.h[1, 3, 2, 2] = value
            outs = getattr(case, way)()
            found.append([out.isfinite() for out in outs])
        for a, b in zip(*found, strict=True):
            assert torch.equal(a, b)
            assert not bool(a.all())


@pytest.mark.parametrize(
    ("of_h", "of_gates", "of_weights"), [wanted for wanted in itertools.product([True, False], repeat=3) if any(wanted)]
)
def test_gradients_that_nobody_wants_are_not_computed(of_h, of_gates, of_weights, monkeypatch):
    asked = []

    def watched(name, dtype):
        def run(*given):
            *_, dense, point, _, _, _, _, _, _, _, _, uses, _, dx = given if name == "node_back" else [None] * 17
            if dx is not None:
                asked.append((dx.value, {use.of_gate for use in uses}, dense._obj.dkernels, point._obj.dkernels))
            build.kernel(name, dtype)(*given)

        return run

    monkeypatch.setattr(kernel_node, "kernel", watched)
    found = []
    for way in ("ours", "naive"):
        case = Case((3, 8, 6, 6), ALL)
        case.h.requires_grad_(of_h)
        case.gates.requires_grad_(of_gates)
        for weight in case.weights:
            weight.requires_grad_(of_weights)
        wanted = [t for t in (case.h, case.gates, *case.weights) if t.requires_grad]
        found.append(torch.autograd.grad(case.loss(getattr(case, way)()), wanted))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    ((dx, gates, dense, point),) = asked
    assert (dx is not None, dense is not None, point is not None) == (of_h, of_weights, of_weights)
    assert (gates != {None}) == of_gates


def test_kept_are_features_and_what_convolutions_give():
    """Means over windows only where the gradient of their gates reads them; the positive part never."""
    for moving in (True, False):
        case = Case((3, 8, 6, 6), ALL)
        case.gates.requires_grad_(moving)
        (part, *_) = outgoing_parts(case.h, case.gates, case.outgoing())
        h, _, outputs, moments, pooled, kernels = part.stands.grad_fn.saved_tensors
        assert h.data_ptr() == case.h.data_ptr()
        assert outputs.numel() == 5 * h.numel()
        assert moments.shape == (2, 5, 8)
        assert (pooled is not None) == moving
        assert kernels.numel() == (3 * 9 + 2) * 8 * 8


def test_slices_of_wider_features_and_gradients_that_lie_otherwise_are_taken():
    case = Case((2, 8, 6, 6), ALL)
    expected = case.passed(case.naive)
    again = Case((2, 8, 6, 6), ALL)
    wide = torch.cat([images(2, 8, 6, 6, seed=5), again.h.detach(), images(2, 3, 6, 6, seed=6)], 1)
    wide = wide.contiguous(memory_format=torch.channels_last).requires_grad_()
    again.h = wide[:, 8:16]
    again.slopes = [slope.contiguous() if k % 2 else slope for k, slope in enumerate(again.slopes)]
    outs = again.ours()
    (dx,) = torch.autograd.grad(outs, wide, again.slopes)
    count = sum(ALL)
    for a, b in zip(outs, expected, strict=False):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(dx[:, 8:16], expected[count], rtol=1e-9, atol=1e-9)
    assert not dx[:, :8].any()
    assert not dx[:, 16:].any()


def test_a_second_derivative_is_refused():
    case = Case((2, 4, 5, 5), ALL)
    loss = sum(out.square().sum() for out in case.ours())
    (slope,) = torch.autograd.grad(loss, case.h, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_running_moments_that_a_kernel_cannot_write_to_are_refused():
    case = Case((2, 4, 5, 5), (0, 2, 0, 0))
    case.running[1][0] = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"8 values of torch\.float64 in a row; got \(4,\)"):
        case.ours()


def test_what_it_fits():
    assert outgoing_fits(torch.rand(1, 2, 3, 3))
    assert outgoing_fits(torch.rand(1, 2, 3, 3).double())
    assert not outgoing_fits(torch.rand(1, 2, 3, 3).bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not outgoing_fits(torch.rand(1, 2, 3, 3))


def cell_of(options):
    """A cell of one edge."""
    edge = Choice(name="edge", options=options, source="a", target="b")
    ends = {"inputs": frozenset("a"), "outputs": frozenset("b")}
    return MixedCell(Space(name="one", choices=(edge,), **ends, skeleton="none", sizes=Config), 4)


@pytest.mark.parametrize(
    ("options", "at_once"),
    [
        (("nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none"), True),
        (("nor_conv_3x3", "max_pool_3x3"), False),
        (("nor_conv_1x1", "avg_3x3"), False),
    ],
)
def test_a_cell_of_other_operations_goes_its_own_way(options, at_once, monkeypatch):
    cell, called = cell_of(options).double(), []
    monkeypatch.setattr(cells, "outgoing_parts", lambda *words: called.append(1) or outgoing_parts(*words))
    h, gates = images(3, 4, 6, 6), torch.rand(1, len(options), dtype=torch.float64)
    made = cell.parting("a", h, gates, None)
    assert bool(called) == at_once
    plain = [piece for _, piece in cell.leaving("a", h, gates, None)]
    expected = sum(piece if isinstance(piece, torch.Tensor) else piece[0] * piece[1] for piece in plain)
    torch.testing.assert_close(sum_of([part for _, part in made]), expected, rtol=1e-9, atol=1e-9)


def test_a_node_that_nothing_leaves_brings_nothing():
    cell = MixedCell(SPACES["nb201"], 4)
    h, gates = images(2, 4, 5, 5, dtype=torch.float32), torch.rand(1, 30)
    assert cell.parting(cell.order[0], h, gates, frozenset({29})) == []


def test_options_that_are_not_computed_keep_their_moments():
    """One of two 1 x 1 convolutions: its own running moments move, and nobody else's."""
    cell = MixedCell(SPACES["nb201"], 4).double()
    node = cell.order[0]
    stack = cell.stacks[f"{node}_1"]
    column = stack.columns[1]
    before = stack.running_mean.clone()
    h, gates = images(2, 4, 5, 5), torch.rand(1, 30, dtype=torch.float64)
    cell.parting(node, h, gates, frozenset({column}))
    assert torch.equal(stack.running_mean[[0, 2]], before[[0, 2]])
    y = F.conv2d(h.relu(), stack.weights[str(column)])
    torch.testing.assert_close(stack.running_mean[1], 0.1 * y.mean((0, 2, 3)))


def test_a_fused_supernet_takes_it_where_channels_go_past(monkeypatch, generator):
    called = []
    monkeypatch.setattr(cells, "outgoing_parts", lambda *words: called.append(1) or outgoing_parts(*words))
    net = Supernet(
        SPACES["nb201"], input_shape=(3, 8, 8), classes=4, sizes={"channels": 4, "cells": 1}, generator=generator
    )
    net.resize(2, generator=generator)
    x, gates = torch.rand(4, 3, 8, 8), torch.rand(1, 1, 30)
    net(x, gates)
    assert not called
    net.fuse()
    net(x, gates)
    assert len(called) == 3 * len(net.cells())
    called.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(x, gates)
    assert not called
