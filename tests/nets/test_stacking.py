"""Networks side by side: the same numbers as one after another, one memory, and what cannot be stacked is named."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.errors import SpaceError
from bayesarch.nets import build, stack
from bayesarch.spaces import SPACES, Architecture

SMALL = {
    "nb201": ({"channels": 4, "cells": 1}, (3, 8, 8)),
    "nb201-series": ({"channels": 4, "cells": 1}, (2, 1, 16)),
    "darts": ({"channels": 4, "layers": 3}, (3, 8, 8)),
    "bayesnas-cell": ({"channels": 4, "layers": 3}, (3, 8, 8)),
}


def networks(name, seed, of=3):
    sizes, shape = SMALL[name]
    generator = torch.Generator().manual_seed(seed)
    arch = Architecture(SPACES[name], SPACES[name].random_picks(random.Random(seed)))
    return [build(arch, input_shape=shape, classes=4, sizes=sizes, generator=generator).double() for _ in range(of)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(SMALL))
def test_outputs_gradients_and_statistics_are_those_of_each_network_alone(name, seed):
    nets = networks(name, seed)
    alone = [copy.deepcopy(net) for net in nets]
    joint = stack(nets)
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(3, 6, *SMALL[name][1], dtype=torch.float64, generator=generator)
    labels = torch.randint(4, (3, 6), generator=generator)
    logits = joint(images)
    F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum").backward()
    joint.hand_out_gradients()
    for net, mine, own, y, out in zip(alone, nets, images, labels, logits, strict=True):
        expected = net(own)
        F.cross_entropy(expected, y, reduction="sum").backward()
        torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
        for (label, p), q in zip(mine.named_parameters(), net.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), label
            if q.grad is not None:
                torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9)
        for p, q in zip(mine.buffers(), net.buffers(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)


def test_the_networks_are_slices_of_the_stack():
    nets = networks("nb201", 0)
    joint = stack(nets)
    images = torch.randn(3, 2, *SMALL["nb201"][1], dtype=torch.float64)
    joint.eval()
    before = joint(images)
    with torch.no_grad():
        for p in nets[1].parameters():
            p.mul_(1.5)
    after = joint(images)
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], rtol=0, atol=0)
    torch.testing.assert_close(after[1], nets[1].eval()(images[1]), rtol=1e-9, atol=1e-9)
    assert (after[1] - before[1]).abs().max() > 1e-3


class _Rolls(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(torch.roll(x, 1, dims=1))


class _Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(self.drop(x))


class _Groups(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.GroupNorm(2, 4), nn.Conv2d(4, 3, 1)

    def forward(self, x):
        return self.layer(self.norm(x))


class _Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


@pytest.mark.parametrize(
    ("kind", "named"), [(_Rolls, "roll"), (_Drops, "drop"), (_Groups, "norm"), (_Branches, "_Branches")]
)
def test_what_cannot_be_stacked_is_named(kind, named):
    with pytest.raises(SpaceError, match=named):
        stack([kind(), kind()])


def test_only_one_architecture_can_be_stacked():
    with pytest.raises(SpaceError, match="one architecture"):
        stack([nn.Linear(3, 2), nn.Linear(4, 2)])
