"""Strided 1 x 1 convolutions of few channels: another way through the library, the same numbers."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bayesarch.nets import Supernet
from bayesarch.nets.module import in_layout
from bayesarch.nets.pointwise import pixels_first
from bayesarch.spaces import SPACES


class Strided(TorchDispatchMode):
    """Keeps the input channels of every strided 1 x 1 convolution that the library is asked for."""

    def __init__(self):
        super().__init__()
        self.widths = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default and args[1].shape[2:] == (1, 1) and list(args[3]) != [1, 1]:
            self.widths.append(args[0].shape[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3, 7, 8, 12])
@pytest.mark.parametrize("stride", [2, (2, 1), 3])
def test_outputs_and_gradients_are_those_of_the_plain_convolution(channels, stride):
    plain = nn.Conv2d(channels, 5, 1, stride=stride).double()
    ours = pixels_first(copy.deepcopy(plain))
    x = torch.randn(4, channels, 7, 6, dtype=torch.float64)
    x, y = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(x), plain(y)
    torch.testing.assert_close(out, expected)
    sensitivity = torch.randn_like(out)
    found = torch.autograd.grad(out, [x, *ours.parameters()], sensitivity)
    wanted = torch.autograd.grad(expected, [y, *plain.parameters()], sensitivity)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_the_library_is_not_asked_for_what_it_does_wrong():
    for channels, asked in ((7, []), (8, [8])):
        conv = pixels_first(nn.Conv2d(channels, 4, 1, stride=2))
        with Strided() as seen:
            conv(torch.randn(2, channels, 6, 6))
        assert seen.widths == asked


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1, stride=2, groups=2),
        nn.Conv2d(4, 4, 3, stride=2),
        nn.Conv2d(4, 4, 1, stride=2, padding=1),
    ],
)
def test_other_convolutions_are_left_alone(conv):
    x = torch.randn(2, 4, 6, 6)
    expected = conv(x)
    pixels_first(conv)
    assert "_conv_forward" not in vars(conv)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize("name", ["darts", "bayesnas-cell"])
def test_narrow_supernets_do_not_ask_for_it(name):
    space, sizes, generator = SPACES[name], {"channels": 3, "layers": 3}, torch.Generator().manual_seed(0)
    net = Supernet(space, input_shape=(1, 8, 8), classes=3, sizes=sizes, generator=generator)
    halved = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2) and m.kernel_size == (1, 1)]
    assert any(1 < m.in_channels < 8 for m in halved), "nothing here is narrow: the test looks at nothing"
    with Strided() as seen, torch.no_grad():
        net(torch.randn(2, 1, 8, 8), torch.ones(1, 1, space.n_options))
    assert not [width for width in seen.widths if 1 < width < 8]


def test_nor_do_networks_of_somebody_else_once_they_are_in_layout_and_cut():
    net = in_layout(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 1, stride=2)), (1, 8, 8))
    net[0].weight, net[0].bias = nn.Parameter(net[0].weight[:5]), nn.Parameter(net[0].bias[:5])
    net[1].weight = nn.Parameter(net[1].weight[:, :5])
    twin = copy.deepcopy(net)
    for each in (net, twin):
        with Strided() as seen:
            each(torch.randn(2, 1, 8, 8))
        assert seen.widths == []


def test_a_process_lives_through_many_narrow_steps():
    """Without AVX-512 the library's own way ends this process by an abort or a segmentation fault."""
    code = """
import torch
from torch import nn
from bayesarch.nets.pointwise import pixels_first
torch.set_num_threads(1)
for width in range(2, 8):
    conv = pixels_first(nn.Conv2d(width, 6, 1, stride=2)).to(memory_format=torch.channels_last)
    kept = []
    for i in range(60):
        x = torch.randn(8, width, 12, 12).contiguous(memory_format=torch.channels_last)
        conv(x).square().sum().backward()
        kept.append(torch.randn(1 + 7 * i))
print("alive")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr
