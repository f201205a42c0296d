"""Kernels of our own against torch: naive sums, gradients in float64, extreme values, odd shapes, threads."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets import Supernet
from bayesarch.nets.kernels import Norm, box_mean, fits, moments_of, parts_of, sum_of
from bayesarch.nets.kernels import images as kernel_images
from bayesarch.nets.operations import OPERATIONS
from bayesarch.spaces import SPACES
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc

SIZES = {
    "nb201": {"channels": 17, "cells": 1},
    "darts": {"channels": 4, "layers": 3},
    "bayesnas-cell": {"channels": 4, "layers": 3},
    "tree-cell": {"channels": 4, "alpha": 6},
}


def naive(x, gates, users, running):
    """Return the sum over all users by torch's own norm; running moments are moved likewise."""
    total = 0
    for part, columns, moved in zip(x.chunk(len(users), 1), users, running or itertools.repeat(None), strict=False):
        z = part if moved is None else F.batch_norm(part, *moved, None, None, True, 0.1, 1e-5)
        total = total + sum(gates[0, column] * z for column in columns)
    return total


def fused(x, gates, users, running):
    norm = None
    if running:
        mean, var = (torch.cat(rows) for rows in zip(*running, strict=True))
        norm = Norm(mean, var, 0.1, 1e-5)
    parts = [part for mine in parts_of(x, gates, users, norm and moments_of(x, norm)) for part in mine]
    out = sum_of(parts)
    if running:
        c = x.shape[1] // len(users)
        for row, (mean, var) in enumerate(running):
            mean.copy_(norm.mean[row * c : (row + 1) * c])
            var.copy_(norm.var[row * c : (row + 1) * c])
    return out


def passed(way, x, gates, users, normed, weight=None):
    """Return output, gradients of features and gates, and running moments."""
    x, gates = x.clone(memory_format=torch.preserve_format).requires_grad_(), gates.clone().requires_grad_()
    c = x.shape[1] // len(users)
    wide = gates.dtype
    running = [(torch.full((c,), 0.5, dtype=wide), torch.full((c,), 2.0, dtype=wide)) for _ in users] if normed else []
    out = way(x, gates, users, running)
    slope = images(*out.shape, seed=9).to(out.dtype) if weight is None else weight
    grads = torch.autograd.grad(out, (x, gates), slope)
    return [out.detach(), *grads, *(t for pair in running for t in pair)]


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 4, 6), (2, 16, 3, 3), (3, 17, 5, 1), (1, 1, 1, 7), (4, 40, 2, 2)])
@pytest.mark.parametrize("users", [[[2]], [[0], [3], [1]], [[1, 4, 0]], [[0, 1], [2, 4]]], ids=str)
def test_sums_and_all_gradients_are_those_of_torch(shape, users, normed):
    b, c, h, w = shape
    x, gates = images(b, len(users) * c, h, w), torch.rand(1, 5, dtype=torch.float64)
    for a, b in zip(passed(fused, x, gates, users, normed), passed(naive, x, gates, users, normed), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_gradients_are_those_of_small_differences():
    x, gates = images(3, 4, 3, 2).requires_grad_(), torch.rand(1, 4, dtype=torch.float64).requires_grad_()

    def work(x, gates):
        norm = Norm(torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64), 0.1, 1e-5)
        parts = [part for mine in parts_of(x, gates, [[0, 1], [2]], moments_of(x, norm)) for part in mine]
        return sum_of([*parts, *parts_of(x[:, :2], gates, [[3, 0]])[0]]).sin()

    assert torch.autograd.gradcheck(work, (x, gates))
    assert torch.autograd.gradcheck(box_mean, images(2, 3, 4, 5).requires_grad_())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.02)], ids=["float", "bf16"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_narrower_types_come_as_close_as_they_can(dtype, tolerance, threads):
    """Against torch in float64 on the same values; large enough for several threads."""
    x, gates = images(16, 40, 16, 16).to(dtype), torch.rand(1, 5)
    slope = images(16, 20, 16, 16, seed=3).to(dtype)
    with on_threads(threads):
        mine = passed(fused, x, gates, [[0, 4], [2]], normed=True, weight=slope)
    theirs = passed(naive, x.double(), gates.double(), [[0, 4], [2]], normed=True, weight=slope.double())
    for a, b in zip(mine, theirs, strict=True):
        assert float((a.double() - b).norm() / b.norm()) < tolerance


def test_equal_runs_on_as_many_threads_are_equal():
    x, gates = images(16, 48, 16, 16, dtype=torch.float32), torch.rand(1, 3)
    with on_threads(2):
        runs = [passed(fused, x, gates, [[0], [1], [2]], normed=True) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


def test_bf16_is_rounded_to_the_nearest_even_and_keeps_what_is_no_number():
    values = torch.tensor([1.0, 1.00390625, 1.01171875, 3.3895e38, 1e-40, -0.0, torch.inf, -torch.inf, torch.nan, 2.7])
    narrow = values.view(1, 1, 2, 5).bfloat16()
    scale = torch.tensor([[1.00390625]])  # products lie between two of bf16, or beyond the last
    (parts,) = parts_of(narrow, scale, [[0]])
    mine, expected = sum_of(parts), (narrow.float() * scale).bfloat16()
    known = ~expected.isnan()
    assert torch.equal(mine[known], expected[known])
    assert torch.equal(mine.isnan(), expected.isnan())


@pytest.mark.parametrize(("centre", "spread"), [(1e4, 1e-1), (0.0, 1e-12), (0.0, 1e12), (-3e5, 1.0)])
def test_moments_far_from_zero(centre, spread):
    """Float values of a small spread around a large mean: sums of squares would have lost it."""
    x = (images(8, 16, 12, 12) * spread + centre).float().contiguous(memory_format=torch.channels_last)
    exact = x.double()
    norm = Norm(torch.zeros(16), torch.zeros(16), 1.0, 1e-30)
    (parts,) = parts_of(x, torch.ones(1, 1), [[0]], moments_of(x, norm))
    moments = parts[0].moments
    torch.testing.assert_close(moments.mean, exact.mean((0, 2, 3)), rtol=1e-6, atol=spread * 1e-6)
    deviation = exact.var((0, 2, 3), correction=0).add(1e-30).rsqrt()
    torch.testing.assert_close(moments.inv, deviation, rtol=1e-4, atol=0)
    unbiased = exact.var((0, 2, 3)).float()
    torch.testing.assert_close(norm.var, unbiased, rtol=2e-4, atol=0)


def test_a_constant_channel_has_no_spread():
    norm = Norm(torch.ones(3), torch.ones(3), 0.5, 1e-5)
    x = torch.full((4, 3, 2, 2), 7.0)
    (parts,) = parts_of(x, torch.ones(1, 1), [[0]], moments_of(x, norm))
    assert float(sum_of(parts).abs().max()) <= 7 / 1e-5**0.5 * 2**-22  # a product and a shift cancel, as in torch
    assert norm.mean.tolist() == [4.0] * 3
    assert norm.var.tolist() == [0.5] * 3


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 16, 1, 1), (3, 17, 1, 6), (2, 33, 7, 1), (1, 2, 2, 2)])
def test_windows_are_those_of_torchs_pooling(shape):
    x, theirs = images(*shape).requires_grad_(), OPERATIONS["avg_pool_3x3"].free
    slope = images(*shape, seed=1)
    for a, b in zip(
        (box_mean(x), *torch.autograd.grad(box_mean(x), x, slope)),
        (theirs(x), *torch.autograd.grad(theirs(x), x, slope)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_second_derivative_is_refused_where_it_would_be_wrong():
    x = images(2, 3, 5, 5).requires_grad_()
    (parts,) = parts_of(x, torch.ones(1, 1, dtype=torch.float64), [[0]])
    for out in (sum_of(parts), box_mean(x)):
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()


def test_a_sum_of_two_types_is_of_the_wider():
    """Under autocast a node may take what a convolution gives, in bf16, beside features that stayed as they were."""
    narrow = images(2, 3, 4, 5, dtype=torch.bfloat16).requires_grad_()
    wide, gates = images(2, 3, 4, 5, dtype=torch.float32, seed=1).requires_grad_(), torch.rand(1, 2)
    parts = [parts_of(narrow, gates, [[0]])[0][0], parts_of(wide, gates, [[1]])[0][0]]
    for order in (parts, parts[::-1]):
        out = sum_of(order)
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, gates[0, 0] * narrow.float() + gates[0, 1] * wide)
        grads = torch.autograd.grad(out.sum(), (narrow, wide), retain_graph=True)
        assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32]
        assert torch.equal(grads[0], gates[0, 0].bfloat16().expand_as(narrow))


def test_running_moments_that_a_kernel_cannot_write_to_are_refused():
    x = images(2, 3, 4, 5, dtype=torch.float32)
    for mean in (
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(4),
        torch.zeros(3, 2)[:, 0],
        torch.zeros(3).bfloat16(),
    ):
        with pytest.raises(ValueError, match=r"3 values of torch\.float32 in a row"):
            moments_of(x, Norm(torch.zeros(3), mean, 0.1, 1e-5))


def test_gradients_that_do_not_lie_in_rows_are_taken_too():
    """An expanded gradient, one that is channels-first, and slices of wider rows."""
    x, gates = images(2, 3, 4, 5).requires_grad_(), torch.rand(1, 1, dtype=torch.float64)
    wide = images(2, 9, 4, 5)
    one = torch.ones((), dtype=torch.float64)
    slopes = [one.expand(2, 3, 4, 5), images(2, 3, 4, 5).contiguous(), wide[:, 3:6], images(2, 3, 4, 10)[:, :, :, ::2]]
    for slope in [*slopes, images(2, 3, 1, 1).expand(2, 3, 4, 5)]:
        (parts,) = parts_of(x, gates, [[0]])
        (mine,) = torch.autograd.grad(sum_of(parts), x, slope)
        torch.testing.assert_close(mine, gates[0, 0] * slope)
    one_image = images(1, 3, 4, 5).requires_grad_()
    flat = images(1, 3, 1, 1).expand(1, 3, 4, 5)  # channels lie together, pixels on one another
    (parts,) = parts_of(one_image, gates, [[0]])
    torch.testing.assert_close(torch.autograd.grad(sum_of(parts), one_image, flat)[0], gates[0, 0] * flat)
    (parts,) = parts_of(wide[:, 3:6], gates, [[0]])
    torch.testing.assert_close(sum_of(parts), gates[0, 0] * wide[:, 3:6])


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("moving", [False, True])
def test_features_are_kept_where_a_gradient_reads_them(normed, moving):
    """A pass for weights alone holds nothing of an option that ends without a norm."""
    x, gates = images(2, 3, 4, 5).requires_grad_(), torch.rand(1, 1, dtype=torch.float64, requires_grad=moving)
    norm = Norm(*torch.ones(2, 3, dtype=torch.float64), 0.1, 1e-5) if normed else None
    ((part,),) = parts_of(x, gates, [[0]], norm and moments_of(x, norm))
    kept = part.stands.grad_fn.saved_tensors[0]
    assert (kept is not None) == (normed or moving)
    expected = passed(naive, x.detach(), gates.detach(), [[0]], normed)[1]
    slope = images(2, 3, 4, 5, seed=9)
    torch.testing.assert_close(torch.autograd.grad(sum_of([part]), x, slope)[0], expected)


def test_what_there_are_kernels_for():
    gates = torch.rand(1, 3)
    assert fits(torch.rand(2, 3, 4, 4), gates)
    assert fits(torch.rand(2, 3, 4, 4).bfloat16(), gates)
    assert fits(torch.rand(2, 3, 4, 4).double(), gates.double())
    assert not fits(torch.rand(2, 3, 4, 4).double(), gates)
    assert not fits(torch.rand(2, 3, 4, 4).half(), gates)
    assert not fits(torch.rand(2, 3), gates)
    assert not fits(torch.rand(2, 3, 4, 4), torch.rand(2, 3))
    assert not fits(torch.rand(2, 3, 4, 4, device="meta"), gates)


@pytest.mark.parametrize(
    ("space", "ways", "active"),
    [
        *((space, 1, active) for space in SIZES for active in (None, frozenset({0, 2, 3, 9, 13, 18, 27}))),
        *((space, 2, None) for space in SIZES if space != "tree-cell"),
    ],
)
def test_a_supernet_computes_the_same(space, ways, active):
    found = []
    for fuse in (False, True):
        generator = torch.Generator().manual_seed(0)
        net = Supernet(
            SPACES[space], input_shape=(3, 9, 8), classes=4, sizes=SIZES[space], generator=generator
        ).to(dtype=torch.float64, memory_format=torch.channels_last)  # fmt: skip
        net.resize(ways, generator=generator)
        if fuse:
            net.fuse()
        for _ in range(2):
            x = torch.randn(6, 3, 9, 8, generator=generator, dtype=torch.float64)
            gates = torch.rand(1, 1, net.space.n_options, generator=generator, dtype=torch.float64).requires_grad_()
            loss = F.cross_entropy(net(x, gates, active), torch.arange(6) % 4)
        asked = [gates, *net.parameters()]
        found.append([loss, *torch.autograd.grad(loss, asked, allow_unused=True), *net.buffers()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_means_over_windows_are_taken_by_the_kernel(monkeypatch, generator):
    calls, whole = [], kernel_images._Box.forward
    monkeypatch.setattr(kernel_images._Box, "forward", staticmethod(lambda *words: calls.append(1) or whole(*words)))
    net = Supernet(SPACES["darts"], input_shape=(3, 9, 8), classes=4, sizes=SIZES["darts"], generator=generator)
    x, gates = torch.rand(4, 3, 9, 8), torch.rand(1, 1, net.space.n_options)
    net(x, gates)
    assert not calls
    net.fuse()
    net(x, gates)
    assert calls


def test_a_pass_that_is_not_trained_is_as_it_was(monkeypatch, generator):
    """Scores, gates of each example and curvature do without kernels, whose gradients have none of their own."""
    net = Supernet(SPACES["nb201"], input_shape=(3, 8, 8), classes=4, sizes=SIZES["nb201"], generator=generator)
    x, gates = torch.rand(4, 3, 8, 8), torch.rand(1, 1, 30)
    expected = net.eval()(x, gates)
    net.fuse()
    monkeypatch.setattr("bayesarch.nets.cells.cell_features", None)  # to call it would fail
    assert torch.equal(net(x, gates), expected)
    net.train()(x, gates.expand(4, 1, 30))
    with pytest.raises(TypeError):
        net(x, gates)
