"""Which convolutions of a network are computed by kernels of ours, and that they are the same."""

import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.nets import convolving
from bayesarch.nets.kernels import filtered_conv, grouped, grouped_conv, winograd
from helpers import images, needs_cc

pytestmark = needs_cc


@pytest.fixture
def asked(monkeypatch):
    """Names of the kernels that are asked, in order."""
    room, names = sys.modules["bayesarch.nets.convolving"], []
    for own in (filtered_conv, grouped_conv):
        monkeypatch.setattr(
            room, own.__name__, lambda *a, own=own, **more: names.append(own.__name__) or own(*a, **more)
        )
    return names


@pytest.mark.parametrize(
    ("conv", "expected"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), ["filtered_conv"]),
        (nn.Conv2d(16, 24, 5, padding=4, dilation=2, bias=False), ["filtered_conv"]),
        (nn.Conv2d(16, 16, 3, padding=1, groups=2), ["grouped_conv"]),
        (nn.Conv2d(16, 64, 3, padding=1, groups=2), ["grouped_conv"]),
        (nn.Conv2d(16, 16, 3, stride=2, padding=(1, 0), groups=2, bias=False), ["grouped_conv"]),
        (nn.Conv2d(16, 8, (1, 3), groups=2), ["grouped_conv"]),
        (nn.Conv2d(16, 16, 3, padding=1, stride=2), []),
        (nn.Conv2d(16, 16, 3), []),
        (nn.Conv2d(16, 16, 3, padding=1, dilation=(1, 2)), []),
        (nn.Conv2d(16, 16, (3, 1), padding=(1, 0)), []),
        (nn.Conv2d(16, 16, 1), []),
        (nn.Conv2d(16, 16, 3, padding=1, groups=16), []),
        (nn.Conv2d(16, 64, 3, padding=1, groups=16), []),
        (nn.Conv2d(16, 6, 3, padding=1, groups=2), []),
        (nn.Conv2d(16, 16, 3, padding="same", groups=2), []),
    ],
)
def test_what_a_kernel_computes_is_the_same(conv, expected, asked):
    conv, x = conv.double(), images(2, 16, 8, 8).requires_grad_()
    found = []
    for fused in (False, True):
        assert asked == []
        with convolving(fused):
            out = conv(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), (x, *conv.parameters()))])
    assert asked == expected
    for theirs, mine in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


def test_wide_groups_take_fewer_products(asked):
    conv, x = nn.Conv2d(64, 64, 3, padding=1, groups=2).double(), images(2, 64, 8, 8)
    with convolving(True):
        out = conv(x)
    assert asked == ["filtered_conv"]
    torch.testing.assert_close(out, conv(x), rtol=1e-9, atol=1e-9)


def test_a_function_is_seen_as_well_and_the_library_has_the_rest(asked):
    x, weight = images(2, 16, 8, 8), images(16, 8, 3, 3, seed=1)
    with convolving(True):
        mine = F.conv2d(x, weight, stride=(2,), padding=1, groups=2)
        assert asked == ["grouped_conv"]
        F.conv2d(images(1, 16, 16, 8)[0], weight, padding=1, groups=2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.conv2d(x.float(), weight.float(), padding=1, groups=2).dtype == torch.bfloat16
        F.conv2d(x.bfloat16(), weight.bfloat16(), padding=1, groups=2)
        with pytest.raises(RuntimeError, match="type"):
            F.conv2d(x.float(), weight, groups=2)
        for features, kernels in ((x.to("meta"), weight), (x, weight.to("meta"))):
            assert F.conv2d(features, kernels, groups=2).shape == (2, 16, 6, 6)
    F.conv2d(x, weight, groups=2)
    assert asked == ["grouped_conv"]
    torch.testing.assert_close(mine, F.conv2d(x, weight, stride=2, padding=1, groups=2))


@pytest.mark.parametrize(
    ("x", "weight", "groups", "said"),
    [
        ((2, 12, 8, 8), (16, 8, 3, 3), 2, "channels"),
        ((2, 16, 8, 8), (15, 8, 3, 3), 2, "divisible"),
        ((2, 16, 2, 8), (16, 8, 3, 3), 2, "Kernel size"),
        ((2, 15, 8, 8), (16, 16, 3, 3), 1, "channels"),
    ],
)
def test_what_does_not_fit_is_refused_by_the_library(x, weight, groups, said, asked):
    padding = 1 if groups == 1 else 0
    with convolving(True), pytest.raises(RuntimeError, match=said):
        F.conv2d(images(*x), images(*weight), padding=padding, groups=groups)
    assert asked == []


@pytest.mark.parametrize(
    ("room", "conv", "name", "ins"),
    [
        (winograd, filtered_conv, "winograd", 2),
        (grouped, partial(grouped_conv, groups=2, stride=(1, 1), padding=(1, 1), dilation=(1, 1)), "grouped", 1),
    ],
    ids=["winograd", "grouped"],
)
def test_no_gradient_is_computed_that_is_not_wanted(room, conv, name, ins, monkeypatch):
    asked, own = [], room.kernel
    monkeypatch.setattr(room, "kernel", lambda *words: asked.append(words[0]) or own(*words))
    for x_wanted, weight_wanted, expected in (
        (True, True, [name, name, f"{name}_kernel"]),
        (True, False, [name, name]),
        (False, True, [name, f"{name}_kernel"]),
    ):
        asked.clear()
        x, weight = images(1, 2, 4, 4).requires_grad_(x_wanted), images(2, ins, 3, 3).requires_grad_(weight_wanted)
        conv(x, weight).sum().backward()
        assert (x.grad is not None, weight.grad is not None) == (x_wanted, weight_wanted)
        assert asked == expected
