"""Convolutions with fewer products: the numbers and gradients of plain ones, and where they are taken."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.nets import Supernet, dense
from bayesarch.nets.dense import fused_dense, is_dense
from bayesarch.nets.kernels import arguments, filtered_conv, pays
from bayesarch.spaces import SPACES
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc


def both(x, weight, dilation, slope=None):
    """Return what our convolution and torch's give, and all gradients."""
    padding, found = dilation * (weight.shape[2] // 2), []
    for way in (lambda: filtered_conv(x, weight, dilation), lambda: F.conv2d(x, weight, None, 1, padding, dilation)):
        out = way()
        slope = images(*out.shape, seed=2, dtype=out.dtype) if slope is None else slope
        found.append([out, *torch.autograd.grad(out, (x, weight), slope)])
    return found


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("side", "dilation"), [(3, 1), (3, 2), (3, 3), (5, 1), (5, 2)])
@pytest.mark.parametrize(
    ("shape", "outs"),
    [((2, 16, 8, 8), 16), ((3, 5, 7, 9), 3), ((1, 1, 1, 2), 1), ((2, 36, 6, 5), 33), ((90, 8, 12, 12), 24)],
)
def test_outputs_and_gradients_are_those_of_torch(shape, outs, side, dilation, threads):
    """Blocks of channels that are whole and not, tiles that reach over all edges, more tiles than are taken at once."""
    x = images(*shape).requires_grad_()
    weight = images(outs, shape[1], side, side, seed=1).requires_grad_()
    with on_threads(threads):
        for mine, theirs in zip(*both(x, weight, dilation), strict=True):
            assert mine.shape == theirs.shape
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("groups", "ins", "outs"), [(2, 16, 16), (3, 20, 5), (1, 8, 8)])
@pytest.mark.parametrize(("side", "dilation"), [(3, 2), (5, 1)])
def test_groups_are_convolutions_side_by_side(groups, ins, outs, side, dilation, threads):
    """Several groups for a thread, and several threads for a group."""
    x = images(30, groups * ins, 9, 8).requires_grad_()
    weight = images(groups * outs, ins, side, side, seed=1).requires_grad_()
    each = zip(x.chunk(groups, 1), weight.chunk(groups), strict=True)
    slope = images(30, groups * outs, 9, 8, seed=2)
    with on_threads(threads):
        out = filtered_conv(x, weight, dilation, groups)
        alone = torch.cat([filtered_conv(mine, kernels, dilation) for mine, kernels in each], 1)
        assert out.is_contiguous(memory_format=torch.channels_last)
        for whole, parts in zip(
            (out, *torch.autograd.grad(out, (x, weight), slope)),
            (alone, *torch.autograd.grad(alone, (x, weight), slope)),
            strict=True,
        ):
            torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", [3, 5])
@pytest.mark.parametrize(("shape", "outs"), [((16, 64, 8, 8), 48), ((16, 16, 32, 32), 16)])
def test_in_single_precision_a_digit_is_lost(shape, outs, side):
    """Against float64; few tiles and many, whose sum over one another would lose another digit."""
    x = images(*shape, dtype=torch.float32).requires_grad_()
    weight = images(outs, shape[1], side, side, dtype=torch.float32, seed=1).requires_grad_()
    mine = both(x, weight, 1)[0]
    exact = both(x.detach().double().requires_grad_(), weight.detach().double().requires_grad_(), 1)[1]
    for of in zip(mine, exact, strict=True):
        a, right = (tensor.detach().double() for tensor in of)
        assert float((a - right).norm() / right.norm()) < 4e-6
        assert float((a - right).abs().max() / right.abs().max()) < 2e-5


def test_features_and_gradients_may_lie_otherwise():
    x, weight = images(2, 24, 6, 6)[:, 8:16].requires_grad_(), images(8, 8, 3, 3, seed=1).contiguous().requires_grad_()
    for slope in (images(2, 8, 6, 6, seed=2).contiguous(), torch.full((1, 1, 1, 1), 0.5).double().expand(2, 8, 6, 6)):
        for mine, theirs in zip(*both(x, weight, 1, slope), strict=True):
            torch.testing.assert_close(mine, theirs)
    assert filtered_conv(x, weight).is_contiguous(memory_format=torch.channels_last)


def test_equal_runs_are_equal():
    x, weight = images(9, 16, 8, 8, dtype=torch.float32).requires_grad_(), images(16, 16, 3, 3, dtype=torch.float32)
    weight.requires_grad_()
    with on_threads(2):
        first, second = (both(x, weight, 1)[0] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("of_x", [True, False])
def test_what_was_worked_in_leaves_no_trace(of_x):
    """Between a convolution and its way back, another one of another size."""
    x, weight = images(2, 8, 6, 6).requires_grad_(of_x), images(8, 8, 3, 3, seed=1).requires_grad_()
    out, expected = filtered_conv(x, weight), F.conv2d(x, weight, padding=1)
    filtered_conv(images(4, 48, 9, 9), images(24, 48, 5, 5, seed=1))
    wanted = (x, weight) if of_x else weight
    for mine, theirs in zip(*(torch.autograd.grad(y.sum(), wanted) for y in (out, expected)), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_each_thread_of_python_works_in_memory_of_its_own():
    given = [(images(8, 32, 16, 16, seed=i), images(48, 32, 3, 3, seed=i + 2)) for i in (0, 1)]
    both_there = Barrier(2, timeout=60)

    def work(pair):
        out = filtered_conv(*pair)
        both_there.wait()  # neither has ended, so that neither's memory can be the other's
        return out, arguments._KEPT.rooms[torch.float64].data_ptr()

    with ThreadPoolExecutor(2) as pool:
        (one, here), (other, there) = pool.map(work, given)
    assert here != there
    for out, (x, weight) in zip((one, other), given, strict=True):
        torch.testing.assert_close(out, F.conv2d(x, weight, padding=1))


def test_a_second_derivative_is_refused():
    x, weight = images(1, 2, 4, 4).requires_grad_(), images(2, 2, 3, 3)
    (slope,) = torch.autograd.grad(filtered_conv(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize(
    ("size", "side", "dilation", "expected"),
    [
        ((32, 32), 3, 1, True),  # 64 tiles of 36 products for 1024 pixels of 9
        ((4, 4), 3, 1, True),
        ((5, 5), 3, 1, False),  # 4 tiles for 25 pixels: 144 for 225
        ((6, 6), 3, 1, False),
        ((7, 7), 3, 1, True),
        ((3, 3), 3, 1, False),
        ((8, 8), 3, 2, True),  # four images of 4 x 4
        ((6, 6), 3, 2, False),  # four of 3 x 3
        ((8, 8), 5, 2, True),
        ((1, 1), 5, 1, False),
        ((8, 8), 1, 1, False),
        ((8, 8), 7, 1, False),
    ],
)
def test_it_pays_where_products_are_fewer(size, side, dilation, expected):
    assert pays(torch.zeros(2, 16, *size), torch.zeros(16, 16, side, side), dilation) == expected
    assert not pays(torch.zeros(2, 15, *size), torch.zeros(16, 15, side, side), dilation)
    assert not pays(torch.zeros(2, 16, *size), torch.zeros(15, 16, side, side), dilation)
    assert pays(torch.zeros(2, 96, *size), torch.zeros(96, 32, side, side), dilation, 3) == expected
    assert not pays(torch.zeros(2, 93, *size), torch.zeros(96, 31, side, side), dilation, 3)
    assert not pays(torch.zeros(2, 96, *size), torch.zeros(93, 32, side, side), dilation, 3)


def test_it_pays_on_cpus_in_types_that_there_are_kernels_for():
    weight = torch.zeros(16, 16, 3, 3)
    assert pays(torch.zeros(2, 16, 8, 8, dtype=torch.float64), weight, 1)
    assert not pays(torch.zeros(2, 16, 8, 8, device="meta"), weight, 1)
    assert not pays(torch.zeros(2, 16, 8, 8, dtype=torch.bfloat16), weight, 1)


def test_what_does_not_pay_is_the_librarys(monkeypatch):
    monkeypatch.setattr(dense, "filtered_conv", None)  # to call it would fail
    x = torch.rand(2, 16, 8, 8)
    for sides, dilation in (((1, 1), 1), ((3, 1), 1), ((1, 3), 2), ((7, 7), 1)):
        weight, padding = torch.rand(17, 16, *sides), [dilation * (side // 2) for side in sides]
        expected = F.conv2d(x, weight, None, 1, padding, dilation)
        assert torch.equal(fused_dense(x, weight, dilation), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused_dense(x, torch.rand(17, 16, 3, 3)).dtype == torch.bfloat16
    with pytest.raises(TypeError):
        fused_dense(x, torch.rand(17, 16, 3, 3))


def test_dense_convolutions_are_known():
    words = {"padding": 2, "dilation": 2, "bias": False}
    assert is_dense(nn.Conv2d(4, 6, 3, **words))
    assert is_dense(nn.Conv2d(4, 6, 3, 2, **words))
    assert is_dense(nn.Conv2d(4, 6, (1, 3), padding=(0, 1), bias=False))
    for other in (
        nn.Linear(4, 6),
        nn.Conv2d(4, 4, 3, groups=4, **words),
        nn.Conv2d(4, 6, 3, **{**words, "bias": True}),
        nn.Conv2d(4, 6, 3, **{**words, "padding": 1}),
        nn.Conv2d(4, 6, 2, bias=False),
        nn.Conv2d(4, 6, 3, padding=1, dilation=(1, 2), bias=False),
        nn.Conv2d(4, 6, 3, padding_mode="circular", **words),
    ):
        assert not is_dense(other)


@pytest.mark.parametrize(
    ("space", "sizes", "kinds"),
    [
        ("nb201", {"channels": 16, "cells": 1}, {(3, 1)}),  # in reductions: a cell is one function
        ("bayesnas-cell", {"channels": 16, "layers": 3}, {(3, 1), (3, 2), (5, 1), (5, 2)}),
        ("darts", {"channels": 16, "layers": 3}, set()),
    ],
)
def test_fused_supernets_take_it_for_dense_options(space, sizes, kinds, monkeypatch, generator):
    """Dilated ones as they are, and those that halve images as undilated ones of the pixels that they see."""
    seen = set()

    def watched(x, weight, dilation):
        seen.add((weight.shape[2], dilation))
        return filtered_conv(x, weight, dilation)

    monkeypatch.setattr(dense, "filtered_conv", watched)
    net = Supernet(SPACES[space], input_shape=(3, 16, 16), classes=4, sizes=sizes, generator=generator)
    x, gates = torch.rand(4, 3, 16, 16), torch.rand(1, 1, net.space.n_options)
    net(x, gates)
    assert not seen
    net.fuse()
    net(x, gates)
    assert seen == kinds
    seen.clear()
    net(x, gates.expand(4, -1, -1))  # as curvature has them, whose gradients have gradients
    assert not seen
