"""What the supernet of every space keeps, in float64."""

import random
from collections.abc import Mapping
from typing import Any

import torch

from bayesarch.nets import Supernet
from bayesarch.spaces import Architecture, Space

__all__ = ["check_supernet"]


def check_supernet(
    space: Space,
    *,
    input_shape: tuple[int, int, int] = (1, 8, 8),
    sizes: Mapping[str, Any] | None = None,
    samples: int = 5,
) -> None:
    """Check gates, pruning, inheritance and reopening of a space's supernet.

    Args:
        space: the space.
        input_shape: (channels, height, width).
        sizes: macro sizes; small ones make this fast.
        samples: random architectures to check.

    Raises:
        AssertionError: saying what is broken.
    """
    generator, rng = torch.Generator().manual_seed(0), random.Random(0)
    net = Supernet(space, input_shape=input_shape, classes=3, sizes=sizes, generator=generator).double()
    images = torch.randn(6, *input_shape, generator=generator, dtype=torch.float64)
    net.train()
    for _ in range(3):  # give the norms statistics that are not their initial ones
        net(images, torch.rand(1, 1, space.n_options, generator=generator, dtype=torch.float64))
    net.eval()
    _check_gate_shapes(net, images, generator)
    for _ in range(samples):
        arch = Architecture(space, space.random_picks(rng))
        expected = net(images, net.one_hot(arch))
        assert torch.allclose(net.inherit(arch)(images), expected), f"inherit must equal one-hot gates: {arch}"
        active = frozenset(arch.columns)
        assert torch.allclose(net(images, net.one_hot(arch), active), expected), "active must equal zero gates"
        _check_pruning(net, arch, images, generator)


def _check_gate_shapes(net: Supernet, images: torch.Tensor, generator: torch.Generator) -> None:
    """Check that missing and misshapen gates raise, and that shared, per-copy and per-example gates agree."""
    g = net.space.n_options
    for wrong in (None, torch.ones(g), torch.ones(1, 1, g + 1), torch.ones(2, 1, g)):
        try:
            net(images, wrong)
        except ValueError:
            continue
        raise AssertionError(f"gates of shape {None if wrong is None else tuple(wrong.shape)} must raise")
    gates = torch.randn(1, 1, g, generator=generator, dtype=torch.float64)
    shared = net(images, gates)
    for form in (gates.expand(1, net.n_copies, g), gates.expand(len(images), 1, g)):
        assert torch.allclose(net(images, form), shared), "gate forms must agree"
    each = torch.randn(len(images), net.n_copies, g, generator=generator, dtype=torch.float64)
    rows = torch.cat([net(images[i : i + 1], each[i : i + 1]) for i in range(len(images))])
    assert torch.allclose(net(images, each), rows), "per-example gates must act on their own example"


def _check_pruning(net: Supernet, arch: Architecture, images: torch.Tensor, generator: torch.Generator) -> None:
    """Check that pruning equals zero gates, keeps parameters' identity, and that reopening warm-starts survivors."""
    live = torch.rand(net.space.n_options, generator=generator) < 0.5
    live[list(arch.columns)] = True
    gates = torch.randn(1, 1, net.space.n_options, generator=generator, dtype=torch.float64)
    masked = torch.where(live, gates, 0.0)
    pruned = net.reopened(net.live, generator=generator)
    assert torch.allclose(pruned(images, gates), net(images, gates)), "a copy must be equal"
    before = dict(pruned.named_parameters())
    pruned.prune(live)
    after = dict(pruned.named_parameters())
    assert all(after[name] is before[name] for name in after), "survivors must keep their identity"
    assert torch.equal(pruned.live, live), "live must say what exists"
    leaf = gates.clone().requires_grad_()
    output = pruned(images, leaf)
    assert torch.allclose(output, net(images, masked)), "pruning must equal zero gates"
    (grad,) = torch.autograd.grad(output.square().sum(), leaf)
    assert bool((grad[0, 0][~live] == 0).all()), "gates of removed options must have zero gradient"
    again = pruned.reopened(torch.ones_like(live), generator=generator)
    assert torch.allclose(again(images, masked), output), "reopening must keep survivors"
    try:
        pruned.prune(torch.ones_like(live))
    except ValueError:
        return
    assert bool(live.all()), "pruning must not bring options back"
