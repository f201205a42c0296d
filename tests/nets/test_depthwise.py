"""Depthwise convolutions with a faster backward pass: torch's own numbers, float64, any kernel, dilation and size."""

import pytest
import torch
from torch import nn

from bayesarch.functional import seeded
from bayesarch.nets.depthwise import depthwise, is_depthwise, kernel_gradient


def conv_of(channels, kernel, dilation, generator):
    with seeded(generator):
        padding = dilation * (kernel - 1) // 2
        return nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=False).double()


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(
    ("kernel", "dilation", "side"),
    [
        (3, 1, (8, 8)),
        (5, 1, (7, 6)),
        (3, 2, (8, 6)),
        (5, 2, (8, 8)),
        (5, 2, (10, 12)),
        (5, 2, (4, 12)),
        (3, 2, (7, 9)),
        (3, 3, (6, 9)),
    ],
)
def test_values_and_gradients_are_torchs(kernel, dilation, side, layout, generator):
    conv = conv_of(4, kernel, dilation, generator)
    x = torch.randn(3, 4, *side, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    dy = torch.randn(3, 4, *side, generator=generator, dtype=torch.float64)
    assert is_depthwise(conv)
    found = []
    for call in (conv, lambda x: depthwise(x, conv)):
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        found.append([y.detach(), *torch.autograd.grad((y * dy).sum(), [leaf, conv.weight])])
    for torchs, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-10, atol=1e-11)
    assert float(found[0][2].abs().max()) > 0.1


class Alone(nn.Module):
    """A convolution called by `depthwise`."""

    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return depthwise(x, self.conv)


def test_second_derivatives(generator):
    net = Alone(conv_of(2, 3, 2, generator))
    x = torch.randn(1, 2, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)

    def call(x, weight):
        return torch.func.functional_call(net, {"conv.weight": weight}, (x,))

    assert torch.autograd.gradcheck(call, (x, net.conv.weight))
    assert torch.autograd.gradgradcheck(call, (x, net.conv.weight))


@pytest.mark.parametrize(
    ("kernel", "dilation", "side", "seen"),
    [
        (5, 2, (8, 8), (12, 12)),
        (5, 2, (10, 8), (14, 12)),
        (5, 2, (10, 10), (5, 5)),
        (3, 3, (9, 9), (3, 3)),
        (3, 3, (9, 6), (12, 9)),
    ],
)
def test_images_that_are_smaller_than_the_kernel_lie_beside_one_another(kernel, dilation, side, seen, monkeypatch):
    """The library is slow where they lie one behind the other."""
    shapes = []
    library = torch.ops.aten.convolution_backward

    def watched(gradient, x, *rest):
        shapes.append((gradient.shape[2:], x.shape[2:]))
        return library(gradient, x, *rest)

    monkeypatch.setattr("torch.ops.aten.convolution_backward", watched)
    x = torch.ones(2, 4, *side)
    kernel_gradient(x, x, torch.ones(4, 1, kernel, kernel), dilation)
    assert shapes == [(torch.Size(seen), torch.Size(seen))]


def test_what_it_does_not_compute():
    assert is_depthwise(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False))
    for other in (
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, 2, 1, groups=4, bias=False),
        nn.Conv2d(4, 8, 3, padding=1, groups=4, bias=False), nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 4, 2, padding=1, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False, padding_mode="reflect"),
    ):  # fmt: skip
        assert not is_depthwise(other), other
