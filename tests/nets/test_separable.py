"""Chains of depthwise and 1 x 1 convolutions, their sum through gates, and all gradients, against torch's layers."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.config import Config
from bayesarch.nets import Supernet
from bayesarch.nets.by_kernels import adapted, chain_of, chained
from bayesarch.nets.kernels import Chain, Norm, Pair, Rise, moments_of, separable_parts, sum_of
from bayesarch.nets.operations import Halving
from bayesarch.nets.options import Options
from bayesarch.nets.pieces import mixed
from bayesarch.spaces import SPACES, Choice, Space
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


def adapters():
    """Return layers that bring an input of six channels to a cell's size, DARTS's and BayesNAS's."""
    points = [nn.Conv2d(6, 4, 1, bias=False) for _ in range(3)]
    norms = [nn.BatchNorm2d(c, affine=False) for c in (4, 6, 6)]
    return {
        "ReLU first": [nn.ReLU(), points[0], norms[0]],
        "norm first": [norms[1], nn.ReLU(), points[1]],
        "halves": [Halving(6, 6), norms[2], nn.ReLU(), points[2]],
    }


@pytest.mark.parametrize("kind", adapters())
def test_inputs_are_adapted_as_by_torch(kind):
    layers = nn.Sequential(*adapters()[kind]).double()
    twin, gates = copy.deepcopy(layers), torch.rand(1, 5, dtype=torch.float64)
    found = []
    for work in (lambda x: adapted(list(layers), x, gates), twin):
        x = images(3, 6, 8, 5, mean=0.4).requires_grad_()
        out = work(x)
        parameters = layers.parameters() if not found else twin.parameters()
        found.append([out, *torch.autograd.grad(out, [x, *parameters], images(*out.shape, seed=3))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
    for mine, theirs in zip(layers.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_what_is_no_adapter_is_left_to_torch():
    x, gates, relu = images(2, 6, 4, 4), torch.ones(1, 1).double(), nn.ReLU()
    point, norm = nn.Conv2d(6, 6, 1, bias=False).double(), nn.BatchNorm2d(6, affine=False).double()
    others = [
        [relu, point], [point, norm], [norm, relu], [relu, norm, point], [norm, point, relu], [point, relu, norm],
        [relu, nn.Conv2d(6, 6, 1), norm], [relu, nn.Conv2d(6, 6, 3, padding=1, bias=False), norm],
        [relu, nn.Conv2d(6, 6, 1, groups=2, bias=False), norm], [relu, nn.Conv2d(6, 6, 1, 2, bias=False), norm],
        [relu, point, nn.BatchNorm2d(6)], [nn.BatchNorm2d(6), relu, point], [norm, relu, point, norm],
        [nn.BatchNorm2d(6, affine=False).eval(), relu, point], [relu, point, nn.BatchNorm2d(6, affine=False).eval()],
    ]  # fmt: skip
    assert all(adapted(layers, x, gates) is None for layers in others)
    assert adapted([relu, point, norm], x, gates) is not None
    assert int(norm.num_batches_tracked) == 1


@pytest.mark.parametrize("space", ["darts", "bayesnas-cell"])
def test_a_fused_supernet_adapts_inputs_so_while_it_is_trained(space, monkeypatch):
    calls = []
    monkeypatch.setattr("bayesarch.nets.options.adapted", lambda *given: calls.append(1) or adapted(*given))
    net = Supernet(
        SPACES[space], input_shape=(3, 8, 8), classes=3, sizes={"channels": 4, "layers": 3},
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    gates = torch.ones(1, 1, net.space.n_options)
    net(images(2, 3, 8, 8, dtype=torch.float32), gates)
    assert not calls
    net.fuse()
    net.eval()(images(2, 3, 8, 8, dtype=torch.float32), gates)
    assert not calls
    net.train()(images(2, 3, 8, 8, dtype=torch.float32), gates)
    assert len(calls) == 6


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


def depthwise(side=3, stride=1, padding=1, dilation=1, **words):
    return nn.Conv2d(4, 4, side, stride, padding, dilation, **{"groups": 4, "bias": False} | words)


def test_what_is_a_chain():
    norm, point, relu = nn.BatchNorm2d(6, affine=False), nn.Conv2d(4, 6, 1, bias=False), nn.ReLU()
    second = [nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.Conv2d(6, 4, 1, bias=False)]
    for layers, norms in (
        ([depthwise(5, 2, 4, 2), point], [None]),
        ([depthwise(), point, norm], [norm]),
        ([depthwise(), point, norm, relu, *second], [norm, None]),
    ):
        before = int(norm.num_batches_tracked)
        chain = chain_of(layers, 3)
        assert chain.column == 3
        assert [pair.norm and pair.norm.mean.data_ptr() for pair in chain.pairs] == [
            n and n.running_mean.data_ptr() for n in norms
        ]
        assert chain.pairs[0][:4] == (layers[0].weight, point.weight, layers[0].dilation[0], layers[0].stride[0])
        assert int(norm.num_batches_tracked) == before + (norm in norms)


def test_what_is_none_is_not_told_of_a_batch():
    norm, point, relu = nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()
    good = [depthwise(), point]
    for layers in (
        [], [depthwise()], [point, depthwise()], [depthwise(9, padding=4), point], [*good, relu], [*good, norm, relu],
        [depthwise((3, 5), padding=(1, 2)), point], [depthwise(), nn.Conv2d(4, 6, 1)], [depthwise(stride=3), point],
        [depthwise(), nn.Conv2d(4, 6, 1, 2, bias=False)], [depthwise(), nn.Conv2d(4, 4, 1, groups=4, bias=False)],
        [depthwise(), nn.Conv2d(4, 6, 3, padding=1, bias=False)], [*good, norm, relu, depthwise(stride=2), point],
        [*good, norm, relu, point], [*good, nn.BatchNorm2d(4)], [*good, norm, depthwise(), point], [norm, relu, *good],
    ):  # fmt: skip
        assert chain_of(layers, 0) is None
    assert chain_of([*good, nn.BatchNorm2d(4, affine=False).eval()], 0) is None
    assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("space", "kind"), [("darts", "normal"), ("bayesnas-cell", "normal")])
def test_all_that_leave_a_node_go_together(space, kind, stride, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "bayesarch.nets.by_kernels.separable_parts",
        lambda x, gates, chains, rise: calls.append(len(chains)) or separable_parts(x, gates, chains, rise),
    )
    found = SPACES[space]
    columns = range(found.n_options)
    options = Options(found, kind, 4, columns, stride_of=lambda node: stride, affine=False, norm_free=True).double()
    gates, source = torch.linspace(1, 2, found.n_options).double().view(1, -1), min(found.inputs)
    h, sums = images(3, 4, 6, 6), []
    for way in (options.parting, options.leaving):
        brought = {}
        for target, piece in way(source, h, gates, None):
            brought.setdefault(target, []).append(piece)
        sums.append({target: mixed(pieces, h) for target, pieces in brought.items()})
    per_edge = sum(name.startswith(("sep", "dil_conv")) for name in found.choices[0].options)
    assert calls == [per_edge * len(sums[0])]
    for target, total in sums[0].items():
        torch.testing.assert_close(total, sums[1][target], rtol=1e-8, atol=1e-9)


def test_options_that_begin_differently_take_what_is_theirs():
    """Positive parts, normalised ones and features as they are, of one node."""
    names = ("sep_conv_3x3", "sep3", "dil_conv_5x5", "dw_sep_5x5", "skip_connect")
    edge = Choice(name="edge", options=names, source="a", target="b")
    space = Space(
        name="mixed", choices=(edge,), inputs=frozenset("a"), outputs=frozenset("b"), skeleton="none", sizes=Config
    )
    options = Options(space, "cell", 4, range(5), stride_of=lambda node: 1, affine=False, norm_free=True).double()
    h, gates = images(3, 4, 6, 5).requires_grad_(), torch.linspace(1, 2, 5).double().view(1, -1)
    found = []
    for way in (options.parting, options.leaving):
        out = mixed([piece for _, piece in way("a", h, gates, None)], h)
        found.append([out, *torch.autograd.grad(out, [h, *options.parameters()], images(*out.shape, seed=1))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)
