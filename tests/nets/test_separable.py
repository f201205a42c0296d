"""Chains of depthwise and 1 x 1 convolutions, their sum through gates, and all gradients, against torch's layers."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets.by_kernels import chained
from bayesarch.nets.kernels import Chain, Norm, Pair, Rise, moments_of, separable_parts, sum_of
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc

LONE = [[(3, 1, True)]]
DARTS = [[(3, 1, True), (3, 1, True)], [(5, 1, True), (5, 1, True)], [(3, 2, True)], [(5, 2, True)]]
NORM_FIRST = [[(5, 1, True), (5, 1, False)], [(3, 1, False)], [(7, 3, False)]]
POINTS = [[(1, 1, True)], [(1, 1, False)], [(1, 1, True), (3, 1, True)], [(5, 2, False)]]
BARE = [[(1, 1, True)], [(1, 1, False)], [(1, 1, True)]]
KINDS = {"one": LONE, "darts": DARTS, "norms first": NORM_FIRST, "1 x 1 alone": POINTS, "1 x 1 only": BARE}
"""Chains of (side, dilation, normed) of their pairs; side 1: without a depthwise convolution."""


def made(kind, channels, outs, dtype=torch.float64, stride=1):
    """Return chains of a kind with weights of their own, and these."""
    chains, weights = [], []
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for column, spec in enumerate(KINDS[kind]):
        pairs, ins = [], channels
        for k, (side, dilation, normed) in enumerate(spec):
            seed = 10 * column + 2 * k
            depth = None if side == 1 else (images(ins, 1, side, side, dtype=wide, seed=seed) / side).requires_grad_()
            point = (images(outs, ins, 1, 1, dtype=wide, seed=seed + 1) / ins**0.5).requires_grad_()
            norm = Norm(torch.full((outs,), 0.5, dtype=wide), torch.full((outs,), 2.0, dtype=wide), 0.3, 1e-5)
            pairs.append(Pair(depth, point, dilation, 1 if k else stride, norm if normed else None))
            weights += [point] if depth is None else [depth, point]
            ins = outs
        chains.append(Chain(tuple(pairs), column))
    return chains, weights


def naive(x, gates, chains):
    total = 0
    for chain in chains:
        y = x
        for k, (depth, point, dilation, stride, norm) in enumerate(chain.pairs):
            y = F.relu(y) if k else y
            if depth is None:
                y = F.conv2d(y, point.to(y), None, stride)
            else:
                pad = dilation * (depth.shape[2] - 1) // 2
                y = F.conv2d(F.conv2d(y, depth.to(y), None, stride, pad, dilation, len(depth)), point.to(y))
            if norm is not None:
                mean, var = norm.mean.to(y, copy=True), norm.var.to(y, copy=True)
                y = F.batch_norm(y, mean, var, None, None, True, norm.momentum, norm.eps)
                norm.mean.copy_(mean)
                norm.var.copy_(var)
        total = total + gates[0, chain.column].to(y) * y
    return total


def ours(x, gates, chains):
    return sum_of(separable_parts(x, gates, chains))


def passed(way, kind, x, outs, dtype=torch.float64, stride=1, lie=None):
    """Return output, gradients of the input, gates and weights, and running moments."""
    given = x.dtype if way is ours else torch.float64
    chains, weights = made(kind, x.shape[1], outs, dtype, stride)
    x = x.detach().to(given).requires_grad_()
    gates = torch.linspace(-1, 2, len(chains), dtype=weights[0].dtype).view(1, -1).requires_grad_()
    out = way(x, gates, chains)
    slope = images(*out.shape, seed=9).to(x.dtype if lie is None else lie)
    found = torch.autograd.grad(out, [x, gates, *weights], slope.to(given))
    norms = [pair.norm for chain in chains for pair in chain.pairs if pair.norm is not None]
    return [out.detach(), *found, *(t for norm in norms for t in (norm.mean, norm.var))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    ("shape", "outs"), [((2, 3, 9, 8), 3), ((3, 17, 5, 12), 20), ((2, 2, 1, 2), 5), ((3, 40, 4, 7), 24)]
)
def test_values_and_all_gradients_are_those_of_torch(shape, outs, stride, kind):
    mine, theirs = (passed(way, kind, images(*shape), outs, stride=stride) for way in (ours, naive))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_of_the_input_its_positive_part_is_taken(kind, stride, normed):
    """Normalised by its own moments, through which its gradient goes, or as it is."""
    norm = Norm(torch.zeros(17).double(), torch.ones(17).double(), 0.1, 1e-5)

    def risen(x, gates, chains):
        moments = moments_of(x, norm) if normed else None
        return sum_of(separable_parts(x, gates, chains, Rise(moments)))

    def whole(x, gates, chains):
        return naive(F.relu(F.batch_norm(x, None, None, training=True) if normed else x), gates, chains)

    mine, theirs = (passed(way, kind, images(3, 17, 5, 8, mean=0.3), 20, stride=stride) for way in (risen, whole))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_small_differences(stride):
    chains, weights = made("norms first", 2, 3, stride=stride)
    gates = images(1, 3, 1, 1).flatten(1)

    def work(x, gates, *weights):
        given = iter(weights)
        mine = [
            Chain(tuple(pair._replace(depth=next(given), point=next(given)) for pair in chain.pairs), chain.column)
            for chain in chains
        ]
        return ours(x, gates, mine)

    assert torch.autograd.gradcheck(work, (images(2, 2, 3, 2).requires_grad_(), gates.requires_grad_(), *weights))


@pytest.mark.parametrize("lie", ["slice", "channels first"])
def test_features_and_gradients_lie_as_they_like(lie):
    wide, slopes = images(4, 12, 5, 3), images(4, 12, 5, 3, seed=1)
    x, slope = (wide[:, 3:8], slopes[:, 1:7]) if lie == "slice" else (wide[:, :5].contiguous(), slopes[:, :6].clone())
    x, gates, found = x.detach().requires_grad_(), torch.rand(1, 4, dtype=torch.float64), []
    for way in (ours, naive):
        out = way(x, gates, made("darts", 5, 6)[0])
        found.append((out, *torch.autograd.grad(out, x, slope)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_under_autocast_they_are_computed_in_its_type():
    """As in a search in bf16: weights and gates stay what they are, and so do all gradients."""
    x, (chains, weights) = images(2, 5, 6, 4, dtype=torch.float32).requires_grad_(), made("darts", 5, 7, torch.float32)
    gates = torch.rand(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parts = chained(x, gates, chains)
    assert {part.stands.dtype for part in parts} == {torch.bfloat16}
    found = torch.autograd.grad(sum_of(parts).float().square().sum(), [x, *weights])
    assert {grad.dtype for grad in found} == {torch.float32}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.03)], ids=["float", "bf16"])
@pytest.mark.parametrize("channels", [27, 32])
def test_narrower_types_come_as_close_as_they_can(channels, dtype, tolerance, threads):
    """Against torch in float64 on the same values, with more images than threads deal out evenly."""
    x = images(10, channels, 16, 15, mean=0.7, spread=2).to(dtype)
    with on_threads(threads):
        mine = passed(ours, "norms first", x, channels, torch.float32)
    theirs = passed(naive, "norms first", x, channels, torch.float32, lie=dtype)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a.double() - b.double()).norm() / b.double().norm()) < tolerance
    assert [t.dtype for t in mine] == [dtype] * 2 + [torch.float32] * 11


def test_equal_runs_on_as_many_threads_are_equal():
    x = images(7, 20, 24, 16, dtype=torch.float32)
    with on_threads(2):
        runs = [passed(ours, "darts", x, 33, torch.float32) for _ in range(3)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize(("centre", "spread"), [(1e4, 1e-1), (0.0, 1e-12), (-3e5, 1.0)])
def test_moments_of_outputs_far_from_zero(centre, spread):
    """Of a small spread around a large mean, from three threads with a first value each."""
    x = (images(8, 16, 16, 20) * spread + centre).float().contiguous(memory_format=torch.channels_last)
    depth, norm = torch.zeros(16, 1, 3, 3), Norm(torch.zeros(16), torch.zeros(16), 1.0, 1e-30)
    depth[:, :, 1, 1] = 1.0
    pair = Pair(depth, torch.eye(16).view(16, 16, 1, 1), 1, 1, norm)
    with on_threads(3):
        (part,) = separable_parts(x, torch.ones(1, 1), [Chain((pair,), 0)])
    exact, moments = part.stands.double(), part.moments
    torch.testing.assert_close(moments.mean, exact.mean((0, 2, 3)), rtol=1e-6, atol=spread * 1e-6)
    deviation = exact.var((0, 2, 3), correction=0).add(1e-30).rsqrt()
    torch.testing.assert_close(moments.inv, deviation, rtol=1e-4, atol=0)
    torch.testing.assert_close(norm.var, exact.var((0, 2, 3)).float(), rtol=2e-4, atol=0)


def test_moments_are_those_that_a_pass_of_their_own_finds():
    chains, _ = made("darts", 5, 18)
    again = Norm(torch.full((18,), 0.5).double(), torch.full((18,), 2.0).double(), 0.3, 1e-5)
    for part, chain in zip(separable_parts(images(5, 5, 9, 7), torch.ones(1, 4).double(), chains), chains, strict=True):
        torch.testing.assert_close(part.moments, moments_of(part.stands, again))
        torch.testing.assert_close(chain.pairs[-1].norm.var, again.var)
        again.var.fill_(2.0)


def test_what_is_no_number_is_not_hidden():
    x = images(2, 3, 5, 5)
    x[1, 0, 2, 2] = torch.nan
    ((part,), _) = separable_parts(x, torch.ones(1, 1).double(), made("one", 3, 4)[0]), None
    assert bool(part.stands[1, :, 1:4, 1:4].isnan().all())
    assert not bool(part.stands[0].isnan().any())
    assert bool(part.moments.mean.isnan().all())
    assert bool(part.moments.inv.isnan().all())


def test_running_moments_that_a_kernel_cannot_write_to_are_refused():
    (chain,), _ = made("one", 3, 4, torch.float32)
    narrow = chain.pairs[0].norm._replace(var=torch.ones(4).bfloat16())
    wrong = Chain((chain.pairs[0]._replace(norm=narrow),), 0)
    with pytest.raises(ValueError, match=r"4 values of torch\.float32 in a row"):
        separable_parts(images(2, 3, 4, 5, dtype=torch.float32), torch.ones(1, 1), [wrong])


@pytest.mark.parametrize("wanted", [("x",), ("gates",), ("x", "gates"), ("weights",), ("depth",), ("point", "x")])
def test_gradients_that_are_not_wanted_change_no_others(wanted):
    found = []
    for everything in (True, False):
        chains, weights = made("norms first", 5, 7)
        x, gates = images(3, 5, 6, 4), torch.linspace(1, 2, 3, dtype=torch.float64).view(1, -1)
        named = {"x": [x], "gates": [gates], "weights": weights, "depth": weights[::2], "point": weights[1::2]}
        asked = [tensor for name in wanted for tensor in named[name]]
        for tensor in (x, gates, *weights):
            tensor.requires_grad_(everything or any(tensor is one for one in asked))
        out = ours(x, gates, chains)
        found.append(torch.autograd.grad(out, asked, images(*out.shape, seed=9)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_input_and_what_pairs_give_is_all_that_is_kept():
    """Not what lies between the convolutions of a pair, nor what is normalised."""
    x, gates = images(2, 3, 5, 5).requires_grad_(), torch.ones(1, 4).double()
    chains, weights = made("darts", 3, 4)
    parts = separable_parts(x, gates, chains)
    kept = parts[0].stands.grad_fn.saved_tensors
    assert [t.data_ptr() for t in kept[: 2 + len(weights)]] == [t.data_ptr() for t in (x, gates, *weights)]
    assert len(kept) == 2 + len(weights) + 6
    assert {part.stands.data_ptr() for part in parts} < {t.data_ptr() for t in kept}


@pytest.mark.parametrize(("kind", "outs"), [("norms first", 1), ("1 x 1 alone", 4)])
def test_what_a_chain_without_a_norm_at_its_end_gives_is_not_kept(kind, outs):
    """But for a 1 x 1 convolution alone, which may lie where its input does."""
    x, gates = images(2, 3, 5, 5).requires_grad_(), torch.rand(1, 4).double().requires_grad_()
    chains, _ = made(kind, 3, 4)
    parts = separable_parts(x, gates, chains)
    pairs = sum(len(chain.pairs) for chain in chains)
    kept = [t.data_ptr() for t in parts[0].stands.grad_fn.saved_tensors[-pairs:]]
    assert sum(address != 0 for address in kept) == outs
    for part, chain in zip(parts, chains, strict=True):
        last = chain.pairs[-1]
        assert (part.stands.data_ptr() in kept) == (last.norm is not None or last.depth is None)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_zero_have_gradients(kind):
    """Those of the weights behind them are zero, and of the input what other gates let through."""
    found = []
    for way in (ours, naive):
        chains, weights = made(kind, 5, 7)
        x, gates = images(3, 5, 6, 4).requires_grad_(), torch.zeros(1, len(chains)).double()
        gates[0, -1] = 0.5 * (len(chains) > 1)
        out = way(x, gates.requires_grad_(), chains)
        slopes = torch.autograd.grad(out, [x, gates, *weights], images(*out.shape, seed=9), allow_unused=True)
        found.append([torch.zeros(()) if slope is None else slope for slope in slopes])
        assert float(found[-1][1].abs().min()) > 0.01
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_a_second_derivative_is_refused():
    x, gates = images(2, 3, 5, 5).requires_grad_(), torch.ones(1, 1).double()
    (slope,) = torch.autograd.grad(ours(x, gates, made("one", 3, 4)[0]).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
