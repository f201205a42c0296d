"""Which layers of a cell are chains or adapters that the separable kernels take, and that they go together."""

import copy

import pytest
import torch
from torch import nn

from bayesarch.config import Config
from bayesarch.nets import Supernet
from bayesarch.nets.by_kernels import adapted, chain_of
from bayesarch.nets.kernels import separable_parts
from bayesarch.nets.operations import Halving
from bayesarch.nets.options import Options
from bayesarch.nets.pieces import mixed
from bayesarch.spaces import SPACES, Choice, Space
from helpers import images, needs_cc

pytestmark = needs_cc


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
