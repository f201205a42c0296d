"""Channels as a space: gates, counts of the published networks, and cutting that changes nothing but the size."""

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import ConfigError, SpaceError
from bayesarch.functional import seeded
from bayesarch.nets.cost import network_cost
from bayesarch.nets.gated import close_space, gate_groups, kept_by, network_of, supernet_from
from bayesarch.nets.module import in_layout
from bayesarch.nets.slicing import PickChannels
from bayesarch.nets.tracing import Chain, producers
from bayesarch.spaces import DENSENET121, ENAS_MICRO, RESNET50_MULTI, SHAKE_SHAKE, Architecture
from bayesarch.spaces.shake_shake import ShakeShakeSizes
from bayesarch.testing import check_space


class Separable(nn.Module):
    """A chain, a depthwise convolution, a residual sum, and two linear layers behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 6, 1)
        self.side = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.hidden = nn.Linear(6, 10)
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(F.relu(self.depthwise(F.relu(self.norm(self.stem(x))))))
        x = x + self.side(F.relu(x))
        return self.out(F.relu(self.hidden(x.mean((2, 3)))))


class Branching(Separable):
    """Code that torch.fx cannot trace."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if float(x.sum()) > 1e9 else 1.0 * x)


def gated(make: type[nn.Module] = Separable):
    torch.manual_seed(0)  # noqa: TID251 - initial weights of a test's own network
    net = supernet_from(make().double(), input_shape=(2, 6, 6), classes=3)
    images = torch.randn(5, 2, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    net.train()
    for _ in range(3):  # statistics that are not the initial ones
        net(images, torch.ones(1, 1, net.space.n_options, dtype=torch.float64))
    return net.eval(), images


@pytest.mark.parametrize(("width", "millions"), [(96, 26.193), (160, 72.695)])
def test_shake_shake_has_the_published_parameters(width: int, millions: float):
    with torch.device("meta"):
        net = network_of(SHAKE_SHAKE, ShakeShakeSizes(width=width), (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)
    # a scalar per convolution: the stem, two branches of two in twelve blocks, two paths of three shortcuts, the head
    assert len(gate_groups(net)) == 1 + 12 * 4 + 3 * 2 + 1


def test_densenet_has_the_published_layers_groups_and_weights():
    with torch.device("meta"):
        net = network_of(DENSENET121, DENSENET121.sizes(), (3, 224, 224), 1000)
    segments = net.segments()
    assert len(segments) == 119
    assert len(gate_groups(net)) == 638
    assert sum(net.get_submodule(name).weight.numel() for name in segments) == 6_860_800
    assert sum(p.numel() for p in net.parameters()) == 7_978_856, "torchvision's densenet121"
    assert [g for g in gate_groups(net) if g.name.startswith("layers.2.conv1")] == [
        ("layers.2.conv1/0", 64), ("layers.2.conv1/1", 32), ("layers.2.conv1/2", 32)
    ]  # fmt: skip
    for name, sizes in segments.items():
        assert net.get_submodule(name).in_channels == sum(sizes)


@pytest.mark.parametrize(("filters", "params"), [(36, 3_894_382), (72, 14_784_562)])
def test_enas_micro_with_its_auxiliary_head_is_as_large_as_published(filters: int, params: int):
    """The paper has 15.3 M for EI, head included; for E it repeats ENAS's own 4.6 M, where we count 4.4 M with head."""
    with torch.device("meta"):
        net = network_of(ENAS_MICRO, ENAS_MICRO.sizes(filters=filters), (3, 32, 32), 10)
    assert sum(p.numel() for p in net.parameters()) == params
    features = net.cells[12].outputs
    auxiliary = 128 * features + 2 * 128 + 128 * 768 * 4 + 2 * 768 + 768 * 10 + 10
    assert (params + auxiliary) / 1e6 == pytest.approx(15.3 if filters == 72 else 4.4, abs=0.08)
    depthwise = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert not set(depthwise) & {group.name for group in gate_groups(net)}
    # two stacked separable convolutions for each of the cells' separable operations: 6 in a normal cell, 6 in the other
    assert len(depthwise) == 17 * 6 * 2


def test_resnet_with_several_kernel_sizes_is_as_its_text_says():
    with torch.device("meta"):
        net = network_of(RESNET50_MULTI, RESNET50_MULTI.sizes(), (3, 224, 224), 1000)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(28.1, abs=0.05)
    branches = [group for group in gate_groups(net) if "branches" in group.name]
    assert len(branches) == 16 * 4
    reach = {d * (b.kernel_size[0] - 1) + 1 for b in net.blocks[0].branches for d in b.dilation}
    assert reach == {1, 3, 5, 9}


SMALL_NETWORKS = [
    (SHAKE_SHAKE, {"width": 4, "blocks": 2}),
    (ENAS_MICRO, {"filters": 4, "layers": 3}),
    (DENSENET121, {"growth": 4, "blocks": (2, 3), "small_images": True}),
    (DENSENET121, {"growth": 4, "blocks": (2, 2)}),
    (RESNET50_MULTI, {"width": 8, "blocks": (1, 2), "small_images": True}),
]


@pytest.mark.parametrize(("space", "sizes"), SMALL_NETWORKS, ids=lambda value: getattr(value, "name", ""))
def test_networks_cut_masked_and_counted_agree(space, sizes):
    """One mask, four ways: gates, cut weights, masked weights with folded norms, and costs by counting."""
    torch.manual_seed(0)  # noqa: TID251 - initial weights of a test's own network
    shape = (2, 16, 16)
    net = supernet_from(network_of(space, space.sizes(**sizes), shape, 3).double(), input_shape=shape, classes=3)
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = torch.Generator().manual_seed(2)
    for module in net.net.modules():  # norms whose scale and shift are not the initial ones
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=draws)
            module.bias.data.normal_(generator=draws)
    net.train()
    for _ in range(3):
        net(images, torch.ones(1, 1, net.space.n_options, dtype=torch.float64))
    net.eval()
    masked, rng = net.masked(), random.Random(3)
    for share in (0.1, 0.5, 0.9):
        picks = tuple(tuple(i for i in range(len(c.options)) if rng.random() < share) for c in net.space.choices)
        arch = Architecture(net.space, picks)
        told = net(images, net.one_hot(arch))
        small = net.inherit(arch)
        assert torch.allclose(small(images), told, atol=1e-9)
        masked.mask(kept_by(arch))
        assert torch.allclose(masked(images), told.float(), atol=1e-5)
        params, macs = net.costs.of(net.one_hot(arch)[0].bool().numpy())
        cost = network_cost(small, shape)
        assert (params[0], macs[0]) == (cost.params, cost.macs)


def test_a_dropped_pointwise_input_takes_its_depthwise_filter_along():
    net = supernet_from(
        network_of(ENAS_MICRO, ENAS_MICRO.sizes(filters=4, layers=3), (2, 16, 16), 3),
        input_shape=(2, 16, 16),
        classes=3,
    )
    choices = [
        tuple(range(len(c.options) - 1)) if c.name == "cells.0.operations.1.2" else tuple(range(len(c.options)))
        for c in net.space.choices
    ]
    small = net.inherit(Architecture(net.space, tuple(choices)))
    assert isinstance(small.cells[0].operations[1][1], PickChannels), "the input is shared, so it is picked from"
    assert small.cells[0].operations[1][1].layer.groups == 3
    assert small.cells[0].operations[1][2].in_channels == 3


def test_the_shortcut_keeps_its_second_path_one_pixel_away():
    torch.manual_seed(0)  # noqa: TID251 - initial weights of a test's own network
    from bayesarch.nets.shake import Shortcut

    short = Shortcut(1, 2, 2).eval()
    with torch.no_grad():
        short.first.weight.fill_(1.0)
        short.second.weight.fill_(1.0)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    out = short(image) * (1 + 1e-5) ** 0.5
    assert torch.allclose(out[0, 0], torch.tensor([[0.0, 2.0], [8.0, 10.0]]))
    assert torch.allclose(out[0, 1], torch.tensor([[5.0, 7.0], [13.0, 15.0]]))


def test_shaking_has_the_value_of_one_mixture_and_the_gradient_of_another():
    from bayesarch.nets.shake import Block

    block = Block(2, 2, 1, shake=True).double().train()
    block.left, block.right, block.skip = nn.Conv2d(2, 2, 1).double(), nn.Conv2d(2, 2, 1).double(), nn.Identity()
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(7)  # noqa: TID251 - the network draws from the global stream
        out = block(x)
        torch.manual_seed(7)  # noqa: TID251 - the same draws again
        forward, backward = (torch.rand(3, 1, 1, 1, dtype=torch.float64) for _ in range(2))
    a, b = block.left(x), block.right(x)
    assert torch.allclose(out, x + forward * a + (1 - forward) * b)
    (bias,) = torch.autograd.grad(out.sum(), block.left.bias)
    assert torch.allclose(bias, backward.sum().expand(2) * 16)
    assert torch.allclose(block.eval()(x), x + (a + b) / 2)


def test_gates_multiply_inputs_example_by_example():
    net, images = gated()
    g = net.space.n_options
    each = torch.rand(5, 1, g, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = net(images, each)
    alone = torch.cat([net(images[i : i + 1], each[i : i + 1]) for i in range(5)])
    assert torch.allclose(together, alone)
    full = net(images, torch.ones(1, 1, g, dtype=torch.float64))
    everything = Architecture(net.space, tuple(tuple(range(len(c.options))) for c in net.space.choices))
    assert torch.allclose(full, net.inherit(everything)(images)), "gates of 1 are the network, nothing rescaled"
    for wrong in (None, torch.ones(g), torch.ones(1, 2, g), torch.ones(4, 1, g)):
        with pytest.raises(ValueError, match="gates"):
            net(images, wrong)


def test_a_layer_called_behind_the_supernets_back_is_refused():
    net, images = gated()
    with pytest.raises(ValueError, match="told its gates"):
        net.net(images)


@pytest.mark.parametrize("make", [Separable, Branching])
def test_cutting_equals_masking(make: type[nn.Module]):
    net, images = gated(make)
    rng = random.Random(0)
    for _ in range(20):
        arch = Architecture(net.space, net.space.random_picks(rng))
        small = net.inherit(arch)
        assert torch.allclose(small(images), net(images, net.one_hot(arch)), atol=1e-12), str(arch)
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.net.parameters())


def test_layers_that_keep_nothing_give_their_bias():
    net, images = gated()
    empty = Architecture(net.space, ((),) * len(net.space.choices))
    assert torch.allclose(net.inherit(empty)(images), net.net.out.bias.expand(5, 3))
    assert torch.allclose(net(images, net.one_hot(empty)), net.net.out.bias.expand(5, 3))


def test_shake_shake_cut_equals_shake_shake_masked():
    torch.manual_seed(0)  # noqa: TID251 - initial weights of a test's own network
    whole = network_of(SHAKE_SHAKE, ShakeShakeSizes(width=4, blocks=2), (1, 8, 8), 3).double()
    net = supernet_from(whole, input_shape=(1, 8, 8), classes=3).eval()
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arch = Architecture(net.space, net.space.random_picks(random.Random(3)))
    small = net.inherit(arch)
    assert torch.allclose(small(images), net(images, net.one_hot(arch)), atol=1e-12)
    # the second convolution's dropped inputs took the first one's filters and norms along
    kept = len(arch.picks[net.space.choice_index("blocks.1.left.conv2")])
    assert small.blocks[1].left.norm1.num_features == kept
    assert isinstance(small.blocks[1].left.conv1, PickChannels)
    assert small.blocks[1].left.conv1.layer.out_channels == kept


def test_producers_are_found_through_norms_and_depthwise_convolutions():
    assert producers(Separable()) == {
        "pointwise": Chain(("stem", "norm", "depthwise"), True), "out": Chain(("hidden",), True)
    }  # fmt: skip
    assert producers(Branching()) == {}


def test_squared_norms_are_those_of_the_weights_behind_each_gate():
    net, _ = gated()
    norms = net.channel_sqnorm()
    start = net.space.offsets[net.space.choice_index("pointwise")]
    expected = torch.stack([net.net.pointwise.weight[:, k].square().sum() for k in range(8)])
    assert torch.allclose(norms[start : start + 8], expected.float())


def test_the_space_keeps_the_contract_and_names_what_is_wrong():
    net, _ = gated()
    check_space(net.space, samples=30)
    with pytest.raises(SpaceError, match="bits beyond"):
        Architecture.parse(str(Architecture(net.space, ((),) * 5)).replace("stem=0", "stem=ff"), net.space)
    with pytest.raises(SpaceError, match="no mask given for"):
        Architecture.parse("(stem=1)", net.space)
    with pytest.raises(SpaceError, match="can be gated"):
        supernet_from(nn.Flatten(), input_shape=(1, 2, 2), classes=4)
    assert SHAKE_SHAKE.open
    closed = close_space(SHAKE_SHAKE, ShakeShakeSizes(width=4), (1, 8, 8), 10)
    assert closed.n_options == sum(len(choice.options) for choice in closed.choices) > 100
    with pytest.raises(ConfigError, match="partial"):
        net.resize(4, generator=torch.Generator())
    shut = torch.ones_like(net.live)
    shut[0] = False
    net.prune(shut)
    with pytest.raises(ValueError, match="only removes"):
        net.prune(torch.ones_like(net.live))


class _Views(nn.Module):
    """Flattens by `view`, which needs features in the order of their axes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 1), nn.Linear(4 * 36, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))).view(len(x), -1))


def test_networks_that_flatten_by_view_run_on_images_in_any_layout():
    generator = torch.Generator().manual_seed(0)
    with seeded(generator):
        net = _Views()
    images = torch.randn(5, 8, 8, 1, generator=generator).permute(0, 3, 1, 2)
    expected = net(images.clone(memory_format=torch.contiguous_format))
    with pytest.raises(RuntimeError, match="view size"):
        copy.deepcopy(net).to(memory_format=torch.channels_last)(images)
    held = in_layout(copy.deepcopy(net), (1, 8, 8)).to(memory_format=torch.channels_last)
    torch.testing.assert_close(held(images), expected)
    supernet = supernet_from(net, input_shape=(1, 8, 8), classes=3).to(memory_format=torch.channels_last)
    gates = torch.ones(1, 1, supernet.space.n_options)
    torch.testing.assert_close(supernet(images, gates), expected, rtol=1e-4, atol=1e-5)
