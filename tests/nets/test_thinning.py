"""Convolutions that look at every d-th pixel, and weighed sums: values and gradients are torch's own."""

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F

from bayesarch.nets import pieces, thinning
from bayesarch.nets.pieces import mixed
from bayesarch.nets.thinning import convolved, sees_every_other, thinned

KERNELS = [(3, 2, 2), (5, 2, 4), (3, 3, 3), (3, 2, 0), (1, 2, 0)]
SIZES = [(8, 8), (9, 7), (1, 2), (6, 5)]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    ("size", "kernel", "d", "padding"),
    [(size, k, d, p) for size in SIZES for k, d, p in KERNELS if min(size) + 2 * p > d * (k - 1)],
)
def test_it_is_the_convolution(kernel, d, padding, size, groups, generator):
    """Sides that d divides and others, padding that keeps the size and none, dense and depthwise."""
    conv = nn.Conv2d(4, 4, kernel, d, padding, d, groups=groups, bias=groups == 2).double()
    x = torch.randn(3, 4, *size, generator=generator, dtype=torch.float64).requires_grad_()
    assert sees_every_other(conv)
    found, expected = convolved(thinned(x, d), conv, conv.weight), conv(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    wanted = [x, *conv.parameters()]
    slope = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for mine, own in zip(
        torch.autograd.grad(found, wanted, slope), torch.autograd.grad(expected, wanted, slope), strict=True
    ):
        torch.testing.assert_close(mine, own, rtol=1e-12, atol=1e-12)


def test_the_way_back_leaves_nothing_where_nobody_looked(generator):
    x = torch.randn(2, 3, 5, 6, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    (slope,) = torch.autograd.grad(thinned(x, 2).sum(), x)
    expected = torch.zeros(5, 6)
    expected[::2, ::2] = 1.0
    assert torch.equal(slope, expected.expand(2, 3, 5, 6))
    assert slope.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(2, 2, 3, 1, 2, 2),
        nn.Conv2d(2, 2, 3, 2, 1, 1),
        nn.Conv2d(2, 2, 3, 2, 1, 2),
        nn.Conv2d(2, 2, 3, 2, (2, 1), 2),
        nn.Conv2d(2, 2, 3, (2, 1), 2, 2),
        nn.Conv2d(2, 2, 3, 2, 2, (2, 1)),
        nn.Conv2d(2, 2, 3, 2, 2, 2, padding_mode="reflect"),
        nn.Conv2d(2, 2, 3, 1, "same", 2),
        nn.MaxPool2d(2, 2, 0, 2),
    ],
)
def test_others_look_at_all_pixels(other):
    """A stride that is not the dilation, padding that shifts the grid, other borders."""
    assert not sees_every_other(other)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_both_are_right_to_the_second(layout, generator, monkeypatch):
    """Against finite differences, in float64, for any layout; and under functorch, where the plain way is taken."""
    monkeypatch.setattr(pieces, "LARGE", 0)
    x = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    y = torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    gates = torch.randn(2, generator=generator, dtype=torch.float64).requires_grad_()
    inputs = (x.requires_grad_(), y.requires_grad_(), gates)

    def total(x, y, gates):
        return mixed([(x, gates[0]), (y, gates[1]), x, (x, gates[1])], x).sin()

    for function, given in ((total, inputs), (lambda x: thinned(x, 3).sin(), (x,))):
        assert gradcheck(function, given)
        assert gradgradcheck(function, given)
    functional = torch.func.grad(lambda g: total(x, y, g).sum())(gates)
    torch.testing.assert_close(functional, torch.autograd.grad(total(x, y, gates).sum(), gates)[0])
    functional = torch.func.grad(lambda x: thinned(x, 3).sin().sum())(x.detach())
    torch.testing.assert_close(functional, torch.autograd.grad(thinned(x, 3).sin().sum(), x)[0])


@pytest.mark.parametrize("moving", [True, False])
def test_features_are_kept_only_for_the_gradient_of_gates(moving, generator, monkeypatch):
    """A pass that trains weights alone holds no option's output for its product."""
    monkeypatch.setattr(pieces, "LARGE", 0)
    x, y = (torch.randn(2, 3, 4, 4, generator=generator).requires_grad_() for _ in range(2))
    gates, kept = torch.rand(2, generator=generator).requires_grad_(moving), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        mixed([(x, gates[0]), (y, gates[1])], x)
    assert sorted(kept) == ([2, x.numel(), x.numel()] if moving else [2])


def test_sums_of_products_make_no_product(generator, monkeypatch):
    """With gates that examples share, one function; of another type, or an example's own, the plain way."""
    x = torch.randn(2, 3, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    calls, way = [], pieces._Weighed.apply
    monkeypatch.setattr(pieces, "LARGE", x.numel())
    monkeypatch.setattr(pieces._Weighed, "apply", lambda *given: calls.append(len(given) - 1) or way(*given))
    gate, each = torch.tensor(0.5), torch.randn(2, 1, 1, 1, generator=generator)
    for parts, expected in (
        ([(x, gate), x, (x, -gate), x], 2 * x),
        ([(x, gate), (x, each)], x * (gate + each)),
        ([(x, gate.double())], x * gate.double()),
    ):
        torch.testing.assert_close(mixed(parts, x), expected)
    assert calls == [2]
    monkeypatch.setattr(pieces, "LARGE", x.numel() + 1)
    torch.testing.assert_close(mixed([(x, gate), (x, -gate)], x), 0 * x)
    assert calls == [2]


def test_a_gate_is_the_scale_of_the_norm_behind(generator, monkeypatch):
    """A scale that lies as a vector: with one of stride 0 torch takes a slow way."""
    from bayesarch.nets import options as room
    from bayesarch.nets.options import _scaled

    lies, way = [], F.batch_norm
    monkeypatch.setattr(room.F, "batch_norm", lambda *given: lies.append(given[3].stride()) or way(*given))
    x = torch.randn(6, 5, 4, 4, generator=generator).contiguous(memory_format=torch.channels_last).requires_grad_()
    for training in (True, False):
        ours, torchs = (nn.BatchNorm2d(5, affine=False).train(training) for _ in range(2))
        gates = [torch.tensor(-0.7).requires_grad_() for _ in range(2)]
        slope = torch.randn(6, 5, 4, 4, generator=generator)
        scaled = _scaled(x, ours, gates[0])
        assert lies.pop() == (1,)
        with monkeypatch.context() as patch:
            patch.setattr(room.F, "batch_norm", way)
            outs = scaled, torchs(x) * gates[1]
        torch.testing.assert_close(*outs)
        a, b = (torch.autograd.grad(out, [x, gate], slope) for out, gate in zip(outs, gates, strict=True))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.state_dict(), torchs.state_dict())
    assert int(ours.num_batches_tracked) == 0


def test_pixels_are_left_out_once_for_all_that_leave_a_node(generator, monkeypatch):
    from bayesarch.nets import Supernet
    from bayesarch.nets import options as room
    from bayesarch.spaces import SPACES

    space, calls = SPACES["darts"], []
    net = Supernet(space, input_shape=(2, 8, 8), classes=2, sizes={"channels": 4, "layers": 3}, generator=generator)
    monkeypatch.setattr(room, "thinned", lambda x, d: calls.append(d) or thinning.thinned(x, d))
    images = torch.randn(4, 2, 8, 8, generator=generator)
    net.train()(images, torch.rand(1, 1, space.n_options, generator=generator))
    halving = [cell for cell in net.cells() if cell.stride == 2]
    assert calls == [2] * 2 * len(halving)  # of each of a cell's two inputs


def test_what_reaches_the_options_of_a_cell_is_dense(generator, monkeypatch):
    """The last node's gradient is a slice of the cell's; norms and products would go a slow way with it."""
    from bayesarch.nets import Supernet
    from bayesarch.spaces import SPACES

    monkeypatch.setattr(pieces, "LARGE", 0)
    space, dense, way = SPACES["darts"], [], pieces._product
    net = Supernet(space, input_shape=(2, 8, 8), classes=2, sizes={"channels": 4, "layers": 3}, generator=generator)
    net.train().to(memory_format=torch.channels_last)
    monkeypatch.setattr(
        pieces, "_product", lambda a, b: dense.append(a.is_contiguous(memory_format=torch.channels_last)) or way(a, b)
    )
    images = torch.randn(4, 2, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    gates = torch.rand(1, 1, space.n_options, generator=generator).requires_grad_()
    net(images, gates).sum().backward()
    assert len(dense) > 50
    assert all(dense)
