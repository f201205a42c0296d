"""Maxima over windows by a kernel of ours: torch's own values and gradients, with ties, borders and no numbers."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets import Supernet
from bayesarch.nets.kernels import images as kernel_images
from bayesarch.nets.kernels import window_max
from bayesarch.spaces import SPACES
from helpers import images, needs_cc, on_threads

pytestmark = needs_cc


def both(x, stride):
    """Return maxima and gradients of our way and of torch's."""
    found = []
    for way in (window_max(x, stride), F.max_pool2d(x, 3, stride, 1)):
        slope = images(*way.shape, seed=1).to(x.dtype)
        found.append((way, *torch.autograd.grad(way, x, slope)))
    return found


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 4), (1, 16, 1, 1), (3, 17, 1, 6), (2, 37, 7, 1), (1, 8, 2, 2), (5, 20, 8, 9)]
)
def test_values_and_gradients_are_torchs(shape, stride):
    (mine, my_slope), (theirs, their_slope) = both(images(*shape).requires_grad_(), stride)
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(my_slope, their_slope, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-8)], ids=["float", "bf16"])
def test_of_equal_values_the_first_takes_the_gradient(dtype, rounding):
    """Behind a ReLU half of an image is zero, and in bf16 many values are equal; the sums are rounded once."""
    x = images(4, 24, 12, 11).relu().to(dtype)
    for stride in (1, 2):
        slope = images(4, 24, -(-12 // stride), -(-11 // stride), seed=1).to(dtype)
        found = []
        for way, features in ((window_max, x), (lambda x, s: F.max_pool2d(x, 3, s, 1), x.double())):
            features.requires_grad_()
            out = way(features, stride)
            found += [out, *torch.autograd.grad(out, features, slope.to(features.dtype))]
        assert found[0].dtype == found[1].dtype == dtype
        assert torch.equal(found[0].double(), found[2])
        torch.testing.assert_close(found[1].double(), found[3], rtol=rounding, atol=1e-6)


def test_extreme_values_and_no_numbers():
    x = images(1, 3, 4, 4)
    x[0, 0, 1, 1], x[0, 1, 2, 2] = torch.nan, torch.inf
    x[0, 2] = -torch.inf
    (mine, my_slope), (theirs, their_slope) = both(x.requires_grad_(), 1)
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.equal(mine[:, 1:], theirs[:, 1:])
    torch.testing.assert_close(my_slope, their_slope)


def test_threads_share_the_images():
    x = images(16, 20, 24, 24, dtype=torch.float32).requires_grad_()
    with on_threads(1):
        one = both(x, 2)[0]
    with on_threads(3):
        three = both(x, 2)[0]
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_a_second_derivative_is_refused():
    x = images(1, 2, 4, 4).requires_grad_()
    (slope,) = torch.autograd.grad(window_max(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("space", ["darts", "bayesnas-cell"])
def test_supernets_take_both_strides_by_the_kernel(space, monkeypatch, generator):
    strides, whole = set(), kernel_images._Top.forward
    monkeypatch.setattr(
        kernel_images._Top,
        "forward",
        staticmethod(lambda ctx, x, stride: strides.add(stride) or whole(ctx, x, stride)),
    )
    sizes = {"channels": 4, "layers": 3}
    net = Supernet(SPACES[space], input_shape=(3, 9, 8), classes=4, sizes=sizes, generator=generator)
    x, gates = torch.rand(4, 3, 9, 8), torch.rand(1, 1, net.space.n_options)
    net(x, gates)
    assert not strides
    net.fuse()
    net(x, gates)
    assert strides == {1, 2}
