"""Convolutions of groups of channels: the numbers and gradients of the library's, and which pixels see which taps."""

import ctypes

import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets.kernels import grouped, grouped_conv, library
from bayesarch.nets.kernels.grouped import Sizes, alike
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc

STEPS = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}


def both(x, weight, groups, slope=None, **steps):
    """Return what our convolution and torch's give, and all gradients."""
    steps, found = {**STEPS, **steps}, []
    for way in (
        lambda: grouped_conv(x, weight, groups, **steps),
        lambda: F.conv2d(x, weight, None, **steps, groups=groups),
    ):
        out = way()
        slope = images(*out.shape, seed=2, dtype=out.dtype) if slope is None else slope
        found.append([out, *torch.autograd.grad(out, (x, weight), slope)])
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("of", "sides", "steps"),
    [
        ((5, 3, 8, 8, 8, 8), (3, 3), {}),
        ((7, 2, 16, 32, 4, 4), (3, 3), {"stride": (2, 2)}),
        ((3, 1, 36, 20, 9, 6), (5, 5), {"padding": (4, 4), "dilation": (2, 2)}),
        ((6, 4, 8, 16, 8, 7), (1, 1), {"padding": (0, 0)}),
        ((2, 3, 5, 3, 2, 2), (3, 3), {}),
        ((40, 2, 32, 32, 2, 2), (3, 3), {}),
        ((3, 2, 9, 17, 6, 7), (3, 3), {"stride": (3, 2), "padding": (2, 0)}),
        ((4, 2, 4, 24, 5, 9), (1, 7), {"padding": (0, 3)}),
        ((2, 2, 3, 4, 7, 7), (1, 1), {"stride": (2, 3), "padding": (0, 0)}),
        ((3, 2, 6, 8, 9, 8), (3, 5), {"padding": (1, 2)}),
        ((45, 4, 16, 8, 8, 8), (3, 3), {}),
        ((1, 2, 40, 9, 12, 12), (3, 3), {"padding": (5, 5)}),
    ],
)
def test_outputs_and_gradients_are_those_of_torch(of, sides, steps, threads):
    """Blocks of channels that are whole and not, images of which many are near and of which not one is, all edges.

    The last is large enough for two threads.
    """
    count, groups, ins, outs, *size = of
    x = images(count, groups * ins, *size).requires_grad_()
    weight = images(groups * outs, ins, *sides, seed=1).requires_grad_()
    with on_threads(threads):
        for mine, theirs in zip(*both(x, weight, groups, **steps), strict=True):
            assert mine.shape == theirs.shape
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("of", [(64, 8, 8, 8, 8), (64, 4, 16, 16, 16), (600, 2, 24, 24, 4)])
def test_in_single_precision_as_much_is_lost_as_in_the_library(of):
    count, groups, ins, outs, side = of
    x = images(count, groups * ins, side, side, dtype=torch.float32).requires_grad_()
    weight = images(groups * outs, ins, 3, 3, dtype=torch.float32, seed=1).requires_grad_()
    exact = both(x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), groups)[1]
    for mine, theirs, right in zip(*both(x, weight, groups), exact, strict=True):
        ours, library = (
            float((tensor.detach().double() - right.detach()).norm() / right.detach().norm())
            for tensor in (mine, theirs)
        )
        assert ours < 3 * library < 1e-5


def test_features_and_gradients_may_lie_otherwise():
    x, weight = images(2, 40, 6, 6)[:, 8:24].requires_grad_(), images(16, 8, 3, 3, seed=1).contiguous().requires_grad_()
    for slope in (images(2, 16, 6, 6, seed=2).contiguous(), torch.full((1, 1, 1, 1), 0.5).double().expand(2, 16, 6, 6)):
        for mine, theirs in zip(*both(x, weight, 2, slope), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert grouped_conv(x, weight, 2, **STEPS).is_contiguous(memory_format=torch.channels_last)


def test_every_thread_has_a_room_of_its_own():
    """For kernels and their sums, the images that are near and the gradients of what they give."""
    x, weight = torch.zeros(50, 24, 6, 6), torch.zeros(15, 8, 3, 3)
    layers = [grouped._layer(x, torch.zeros(50, 15, 6, 6), 9, 3, 8, 5, weight, parts) for parts in (1, 4)]
    one, four = (library(torch.float32).grouped_room(ctypes.byref(layer)) for layer in layers)
    near = 4096 // (36 * 8)
    assert four == 4 * one
    assert one >= 3 * (9 * 8 * 5 + near * 36 * (8 + 5))


def test_equal_runs_are_equal():
    x = images(33, 24, 8, 8, dtype=torch.float32).requires_grad_()
    weight = images(24, 8, 3, 3, dtype=torch.float32, seed=1).requires_grad_()
    with on_threads(2):
        first, second = (both(x, weight, 3)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_second_derivative_is_refused():
    x, weight = images(2, 8, 4, 4).requires_grad_(), images(8, 4, 3, 3).requires_grad_()
    (slope,) = torch.autograd.grad(grouped_conv(x, weight, 2, **STEPS).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    "sizes",
    [Sizes(8, 3, 1, 1, 1), Sizes(9, 3, 2, 1, 1), Sizes(5, 5, 1, 4, 2), Sizes(2, 3, 1, 1, 1), Sizes(7, 1, 3, 0, 1),
     Sizes(6, 3, 1, 5, 1)],
)  # fmt: skip
@pytest.mark.parametrize("back", [False, True])
def test_places_are_sorted_by_the_taps_that_they_see(sizes, back):
    """Every place once; what it sees is what a convolution, one product at a time, multiplies there."""
    found, classes = set(), alike(sizes, back=back)
    for mine in classes:
        for place, first in zip(mine.at, mine.of, strict=True):
            for tap, far in zip(mine.taps, mine.far, strict=True):
                found.add((first + far, tap, place) if back else (place, tap, first + far))
    products = {
        (out, tap, out * sizes.stride - sizes.padding + tap * sizes.dilation)
        for out in range(sizes.out)
        for tap in range(sizes.side)
    }
    assert found == {(out, tap, at) for out, tap, at in products if 0 <= at < sizes.length}
    places = [place for mine in classes for place in mine.at]
    assert sorted(places) == list(range(sizes.length if back else sizes.out))
    assert len({tuple(mine.taps) for mine in classes}) == len(classes)
