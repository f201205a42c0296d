"""Units that leave together: cut networks give what masked ones give, costs are right, what is whole is named."""

import copy
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.functional import seeded
from bayesarch.nets import network_cost
from bayesarch.nets.classics import CLASSICS, VGG16, MobileNet, ResNet18
from bayesarch.nets.coupling import cut_units, mask_units, pick_inputs
from bayesarch.nets.densenet import densenet
from bayesarch.nets.following import units_of


def settled(net, shape, seed=0):
    """Return the network in float64 with norms that have seen something, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().train()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.copy_(torch.rand(p.shape, dtype=p.dtype, generator=generator) + 0.5)
        for _ in range(2):
            net(torch.randn(4, *shape, dtype=torch.float64, generator=generator))
    return net.eval()


def some(units, share, seed):
    keep = torch.rand(units.count, generator=torch.Generator().manual_seed(seed)) < share
    return keep | ~units.free


def same(net, shape, share=0.5, seed=0, inputs=True):
    """Cut, mask, compare; return the cut network and its units."""
    net = settled(net, shape, seed)
    units = units_of(net, shape)
    free = units.free.clone()
    if not inputs:
        free[units.inputs] = False
    keep = some(units, share, seed) | ~free
    keep[units.inputs] = True  # the images stay as they are
    masked, small = mask_units(copy.deepcopy(net), units, keep), cut_units(net, units, keep)
    images = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        torch.testing.assert_close(small(images), masked(images), rtol=1e-9, atol=1e-9)
    cost = network_cost(small, shape)
    assert units.cost(keep) == (cost.params, cost.macs)
    return small, units, keep


NETWORKS = {
    "lenet-300-100": (lambda: CLASSICS["lenet-300-100"]((1, 8, 8), 10), (1, 8, 8)),
    "lenet-5": (lambda: CLASSICS["lenet-5"]((1, 28, 28), 10), (1, 28, 28)),
    "resnet18": (lambda: ResNet18((3, 16, 16), 10, width=8), (3, 16, 16)),
    "vgg16": (lambda: VGG16((3, 32, 32), 10, width=8), (3, 32, 32)),
    "mobilenet": (lambda: MobileNet((3, 16, 16), 10, width=8), (3, 16, 16)),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_cut_network_gives_what_the_masked_one_gives(name, seed):
    make, shape = NETWORKS[name]
    net = make()
    small, units, _ = same(net, shape, seed=seed)
    assert type(small) is type(net)
    assert not units.whole
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())


def test_residual_sums_tie_every_layer_of_a_stage():
    net = ResNet18((3, 8, 8), 10, width=4)
    units = units_of(net, (3, 8, 8))
    of = {(axis.name, axis.dim): axis.units for axis in units.axes}
    first = of["stem.0.weight", 0]
    assert torch.equal(first, of["blocks.0.body.3.weight", 0])
    assert torch.equal(first, of["blocks.1.body.3.weight", 0])
    assert torch.equal(first, of["blocks.2.body.0.weight", 1])
    assert torch.equal(first, of["stem.1.running_mean", 0])
    assert not set(first.tolist()) & set(of["blocks.0.body.0.weight", 0].tolist())
    assert not units.free[of["head.2.weight", 0]].any()


def test_one_unit_of_a_flattened_convolution_is_a_block_of_features():
    units = units_of(CLASSICS["lenet-5"]((1, 28, 28), 10), (1, 28, 28))
    of = {(axis.name, axis.dim): axis.units for axis in units.axes}
    assert torch.equal(of["head.0.weight", 1], of["features.2.weight", 0].repeat_interleave(16))


class _Squeeze(nn.Module):
    """Squeeze and excitation, a shuffle by chunks, a concatenation, grouped convolutions, a view of baked size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.left, self.right = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.grouped = nn.Conv2d(12, 8, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 16, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        a, b = x.chunk(2, dim=1)
        x = torch.cat([self.left(a), self.right(b)], 1)
        x = F.max_pool2d(F.relu(self.norm(self.grouped(x))), 2)
        return self.head(x.view(-1, 8 * 16))


@pytest.mark.parametrize("seed", range(4))
def test_squeezes_chunks_groups_and_views(seed):
    small, units, _ = same(_Squeeze(), (3, 8, 8), seed=seed)
    assert not units.whole
    assert units.baked
    assert type(small).__name__ == "_Squeeze"  # the traced code under the same name: sizes were written into it


class _Tokens(nn.Module):
    """A layer norm over channels, attention, a bare parameter: nothing of it may be cut, and each is named."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.place = nn.Parameter(torch.zeros(1, 8, 2, 2))
        self.norm = nn.GroupNorm(2, 8)
        self.wide, self.narrow = nn.Conv2d(8, 16, 1), nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x) + self.place
        x = x + self.narrow(F.gelu(self.wide(self.norm(x))))
        return self.head(x.mean((2, 3)))


def test_what_cannot_be_followed_is_left_whole_and_named():
    small, units, _ = same(_Tokens(), (3, 8, 8))
    assert set(units.whole) == {"add", "norm"}
    assert "GroupNorm" in units.whole["norm"]
    assert small.stem.out_channels == 8
    assert small.wide.out_channels < 16
    assert small.head.in_features == 8


def test_what_a_network_takes_beside_images_is_as_its_defaults_are():
    class Options(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3)

        def forward(self, x, mask=None, times: float = 0.5, *, flat: bool = True):
            h = self.first(x) * times
            h = self.second(torch.relu(h if mask is None else h * mask))
            return h.mean((2, 3)) if flat else h

    with seeded(torch.Generator().manual_seed(0)):
        net = Options().double()
    units = units_of(net, (1, 8, 8))
    assert units.whole == {}
    assert int(units.free.sum()) == 1 + 4
    keep = torch.ones(units.count, dtype=torch.bool)
    keep[next(axis.units[2] for axis in units.axes if axis.name == "first.weight" and axis.dim == 0)] = False
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    small, masked = cut_units(net, units, keep), mask_units(copy.deepcopy(net), units, keep)
    assert small.first.out_channels == 3
    for given in ({}, {"times": 2.0, "flat": False}, {"mask": torch.zeros((), dtype=torch.float64)}):
        torch.testing.assert_close(small(x, **given), masked(x, **given))


def test_code_that_cannot_be_traced_is_left_whole():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            x = x.flatten(1)
            return self.layer(x) if x.sum() > 0 else self.layer(-x)

    units = units_of(Branching(), (1, 2, 2))
    assert units.count == 0
    assert "cannot be traced" in units.whole[""]


def test_a_layer_that_is_used_twice_keeps_its_two_ends_together():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.same, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = torch.relu(self.stem(x.flatten(1)))
            return self.head(torch.relu(self.same(torch.relu(self.same(x)))))

    small, units, _ = same(Twice(), (1, 2, 2), seed=3)
    of = {(axis.name, axis.dim): axis.units for axis in units.axes}
    assert torch.equal(of["same.weight", 0], of["same.weight", 1])
    assert small.same.in_features == small.same.out_features < 6


@pytest.mark.parametrize("name", ["lenet-300-100", "lenet-5", "resnet18"])
def test_inputs_are_picked_where_they_may_go(name):
    make, shape = NETWORKS[name]
    net = settled(make(), shape)
    units = units_of(net, shape)
    keep = some(units, 0.5, 1)
    pixels = len(units.inputs)
    assert pixels == {"lenet-300-100": 1 + 64, "lenet-5": 1, "resnet18": 3}[name]
    keep[units.inputs[-pixels // 2 :]] = False
    keep[units.inputs[: pixels // 2]] = True
    masked = mask_units(copy.deepcopy(net), units, keep)
    small = pick_inputs(cut_units(net, units, keep), units.after(keep), keep)
    images = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(small(images), masked(images), rtol=1e-9, atol=1e-9)
    cost = network_cost(small, shape)
    assert units.cost(keep) == (cost.params, cost.macs)


def test_units_of_the_cut_network_keep_their_numbers():
    make, shape = NETWORKS["resnet18"]
    net = settled(make(), shape)
    units = units_of(net, shape)
    first = some(units, 0.7, 0)
    first[units.inputs] = True
    small, left = cut_units(net, units, first), units.after(first)
    assert {name: tuple(p.shape) for name, p in small.named_parameters()} == dict(left.shapes)
    assert left.cost(first) == units.cost(first)
    second = first & some(units, 0.7, 1)
    second[units.inputs] = True
    images = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(cut_units(small, left, second)(images), cut_units(net, units, second)(images))
    assert bool((left.present() == first).all())


def test_a_layer_that_loses_everything_gives_its_bias_and_nothing_else():
    net = settled(CLASSICS["lenet-300-100"]((1, 4, 4), 3), (1, 4, 4))
    units = units_of(net, (1, 4, 4))
    keep = ~units.free
    keep[units.inputs] = True
    small = cut_units(net, units, keep)
    images = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(small(images), net[5].bias.expand(2, 3))
    assert small[1].out_features == 1


class _Random(nn.Module):
    """A random graph of layers, joined by sums, products and concatenations."""

    def __init__(self, rng):
        super().__init__()
        self.plan, self.layers, widths = [], nn.ModuleList(), [3]

        def layer(module):
            self.layers.append(module)
            return len(self.layers) - 1

        for _ in range(rng.randint(4, 9)):
            source = rng.randrange(len(widths))
            width, kind = (
                widths[source],
                rng.choice(["conv", "depthwise", "norm", "grouped", "act", "sum", "cat", "gate"]),
            )
            mates = [i for i, w in enumerate(widths) if w == width and i != source]
            if kind == "grouped" and width % 2 == 0:
                out = 2 * rng.randint(1, 4)
                self.plan.append(("layer", layer(nn.Conv2d(width, out, 3, padding=1, groups=2)), source))
            elif kind == "depthwise":
                out = width * rng.choice([1, 1, 2])
                self.plan.append(("layer", layer(nn.Conv2d(width, out, 3, padding=1, groups=width)), source))
            elif kind == "norm":
                out = width
                self.plan.append(("layer", layer(nn.BatchNorm2d(width)), source))
            elif kind == "act":
                out = width
                self.plan.append(("layer", layer(rng.choice([nn.ReLU(), nn.Sigmoid(), nn.SiLU()])), source))
            elif kind in ("sum", "gate") and mates:
                out = width
                self.plan.append((kind, rng.choice(mates), source))
            elif kind == "cat":
                other = rng.randrange(len(widths))
                out = width + widths[other]
                self.plan.append(("cat", other, source))
            else:
                out = rng.randint(2, 6)
                self.plan.append(("layer", layer(nn.Conv2d(width, out, rng.choice([1, 3]), padding="same")), source))
            widths.append(out)
        self.flat = rng.random() < 0.5
        self.head = nn.Linear(widths[-1] * (16 if self.flat else 1), 4)

    def forward(self, x):
        values = [x]
        for kind, which, source in self.plan:
            h = values[source]
            if kind == "layer":
                values.append(self.layers[which](h))
            elif kind == "sum":
                values.append(h + values[which])
            elif kind == "gate":
                values.append(h * torch.sigmoid(values[which]))
            else:
                values.append(torch.cat([h, values[which]], dim=1))
        last = values[-1]
        return self.head(last.flatten(1) if self.flat else last.mean((2, 3)))


@pytest.mark.parametrize("seed", range(50))
def test_random_graphs(seed):
    _, units, _ = same(_Random(random.Random(seed)), (3, 4, 4), share=0.6, seed=seed)
    assert not units.whole


def test_a_densenet():
    from bayesarch.spaces import SPACES

    sizes = SPACES["densenet121"].sizes(growth=4, blocks=(2, 2))
    _, units, _ = same(densenet(sizes, (3, 8, 8), 5), (3, 8, 8))
    assert not units.whole
