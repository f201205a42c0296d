import pytest
import torch
from torch.nn import functional as F

from bayesarch.nets import Supernet, architecture_cost
from bayesarch.spaces import NB201, SPACES, Architecture
from bayesarch.testing import check_supernet, tricky_space
from naive import naive_forward

TWO_INPUTS = {"channels": 4, "layers": 3}
SMALL = {
    "nb201": {"channels": 4, "cells": 1},
    "toy": {},
    "darts": TWO_INPUTS,
    "bayesnas-cell": TWO_INPUTS,
    "tree-cell": {"channels": 4, "alpha": 6},
    "mlp": {},
    "nb201-series": {"channels": 4, "cells": 1},
}
MANY_BLOCKS = "tree-cell-18"
"""54 blocks: the same cells as tree-cell, too many to build again and again."""


CELLS = [space for space in SPACES.values() if space.name != MANY_BLOCKS and not space.open]


LARGE = ("darts", "tree-cell", "bayesnas-cell")
"""Spaces whose networks take seconds: odd sides in one of them, where all have the same operations."""


@pytest.mark.parametrize(
    ("space", "input_shape"),
    [
        pytest.param(
            space, shape, marks=pytest.mark.long if space.name in LARGE and again else (), id=f"{space.name}-{again}"
        )
        for space in CELLS
        for again, shape in enumerate([(3, 7, 9), (1, 8, 8)])
    ],
)
def test_contract(space, input_shape):
    check_supernet(space, input_shape=input_shape, sizes=SMALL[space.name], samples=2)


def test_contract_on_the_tricky_space():
    check_supernet(tricky_space())


def double_net(generator, cells=2, channels=3):
    sizes = {"channels": channels, "cells": cells}
    net = Supernet(NB201, input_shape=(2, 6, 6), classes=3, sizes=sizes, generator=generator)
    return net.double().train()


@pytest.mark.parametrize("form", ["shared", "per copy", "per example", "per example and copy"])
@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("partial", [1, 2])
def test_outputs_and_all_gradients_equal_the_naive_network(form, pruned, partial, generator):
    net = double_net(generator, channels=4)
    net.resize(partial, generator=generator)
    if pruned:  # leaves stacks of one row and of several
        net.prune(torch.rand(30, generator=generator) < 0.6)
    shape = {
        "shared": (1, 1, 30),
        "per copy": (1, net.n_copies, 30),
        "per example": (5, 1, 30),
        "per example and copy": (5, net.n_copies, 30),
    }[form]
    gates = torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
    images = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 1, 2, 0, 1])
    inputs = [gates, images, *net.parameters()]
    ours, naive = net(images, gates), naive_forward(net, images, gates)
    assert torch.allclose(ours, naive, atol=1e-10)
    our_grads = torch.autograd.grad(F.cross_entropy(ours, labels), inputs, allow_unused=True)
    naive_grads = torch.autograd.grad(F.cross_entropy(naive, labels), inputs, allow_unused=True)
    for mine, theirs in zip(our_grads, naive_grads, strict=True):
        assert torch.allclose(mine, torch.zeros_like(mine) if theirs is None else theirs, atol=1e-9)


def test_a_stack_of_one_row_has_finite_gradients():
    """torch's batch-norm backward reads past a weight of stride 0; in float32, channels last, it gave 1e24."""
    generator = torch.Generator().manual_seed(0)
    net = Supernet(NB201, input_shape=(1, 8, 8), classes=10, sizes={"cells": 1}, generator=generator)
    net = net.to(memory_format=torch.channels_last).train()
    gates = torch.full((1, 1, 30), 0.2, requires_grad=True)
    for _ in range(8):
        images = torch.randn(64, 1, 8, 8, generator=generator)
        (grad,) = torch.autograd.grad(net(images, gates).square().mean(), gates)
        assert float(grad.abs().max()) < 1e3


def test_one_row_stacks_pass_a_contiguous_scale(monkeypatch, generator):
    seen = []
    original = F.batch_norm

    def spy(x, mean, var, weight=None, *args, **kwargs):
        seen.append(weight is None or weight.is_contiguous())
        return original(x, mean, var, weight, *args, **kwargs)

    net = double_net(generator, cells=1)
    arch = Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", NB201)
    net.prune(net.one_hot(arch)[0, 0] > 0)
    monkeypatch.setattr("bayesarch.nets.conv_stack.F.batch_norm", spy)
    net(torch.zeros(2, 2, 6, 6, dtype=torch.float64), torch.ones(1, 1, 30, dtype=torch.float64))
    assert seen
    assert all(seen)


def test_running_statistics_are_those_of_batch_norm(generator):
    """After one training pass, an option's buffers equal nn.BatchNorm2d's."""
    net = double_net(generator, cells=1)
    images = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        h = torch.relu(net.stem(images))
        stack = net.cells()[0].stacks["0_3"]
        column = stack.columns[1]
        y = F.conv2d(h, stack.weights[str(column)], padding=1)
        reference = torch.nn.BatchNorm2d(3).double()
        reference(y)
        net(images, torch.ones(1, 1, 30, dtype=torch.float64))
    assert torch.allclose(stack.running_mean[1], reference.running_mean)
    assert torch.allclose(stack.running_var[1], reference.running_var)


def test_a_pass_of_some_options_updates_their_statistics_alone(generator):
    """With the other gates at 0, computing only the active options leaves the same statistics as computing all."""
    arch = Architecture.parse("|nor_conv_3x3~0|+|nor_conv_1x1~0|none~1|+|none~0|nor_conv_3x3~1|none~2|", NB201)
    images = torch.randn(5, 2, 6, 6, generator=generator, dtype=torch.float64)
    some, every = double_net(torch.Generator(), cells=1), double_net(torch.Generator(), cells=1)
    with torch.no_grad():
        some(images, some.one_hot(arch), frozenset(arch.columns))
        every(images, every.one_hot(arch))
    moved = 0
    for mine, theirs in zip(some.cells(), every.cells(), strict=True):
        for name, stack in mine.stacks.items():
            for row, column in enumerate(stack.columns):
                if column in arch.columns:
                    assert torch.allclose(stack.running_mean[row], theirs.stacks[name].running_mean[row])
                    assert torch.allclose(stack.running_var[row], theirs.stacks[name].running_var[row])
                    moved += 1
                else:
                    assert bool((stack.running_mean[row] == 0).all())
    assert moved == 9


def test_option_sqnorm(generator):
    net = double_net(generator)
    norms = net.option_sqnorm()
    for g, label in enumerate(NB201.labels):
        expected = sum(
            float(p.detach().square().sum()) for name, p in net.named_parameters() if name.endswith(f".weights.{g}")
        )
        assert float(norms[g].detach()) == pytest.approx(expected), label
    assert bool((norms[::5] == 0).all())  # none


def test_inherit_refuses_what_was_removed(generator):
    net = double_net(generator)
    live = torch.ones(30, dtype=torch.bool)
    live[3] = False
    net.prune(live)
    with pytest.raises(ValueError, match="1<-0/nor_conv_3x3"):
        net.inherit(Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", NB201))


def test_init_stream_decides_the_weights():
    def weights(seed):
        net = Supernet(NB201, input_shape=(1, 8, 8), classes=2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([p.detach().flatten() for p in net.parameters()])

    before = torch.random.get_rng_state()
    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))
    assert torch.equal(torch.random.get_rng_state(), before)


# --- partial channels, and what is counted ---------------------------------------------------------------------------


def test_the_first_width_is_fresh_and_later_ones_are_copies(generator):
    net = double_net(generator, cells=1, channels=8)
    assert net.resize(4, generator=generator) == {}
    assert net.partial == 4
    narrow = {name: p.detach().clone() for name, p in net.named_parameters() if ".weights." in name}
    assert {tuple(p.shape[:2]) for p in narrow.values()} == {(2, 2), (4, 4), (8, 8)}  # stages of 8, 16, 32 channels
    net(torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=generator), torch.full((1, 1, 30), 0.2).double())
    means = {
        name: buffer.clone()
        for name, buffer in net.named_buffers()
        if ".stacks." in name and name.endswith("running_mean")
    }
    grown = net.resize(2, generator=generator)
    assert grown.keys() == narrow.keys()
    for name, parameter in net.named_parameters():
        if name in grown:
            outs, ins = grown[name]
            width = len(narrow[name])
            assert outs[:width].tolist() == list(range(width)), "old channels keep their place"
            assert parameter.shape[:2] == (2 * width, 2 * width)
            assert torch.equal(parameter, narrow[name][outs][:, ins])
    for name, buffer in net.named_buffers():
        if name in means:
            assert buffer.shape[1] == 2 * means[name].shape[1]
            assert torch.equal(buffer[:, : means[name].shape[1]], means[name])


def test_a_network_of_partial_channels_is_not_inherited(generator):
    net = double_net(generator, channels=4)
    arch = Architecture.parse("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", NB201)
    net.resize(2, generator=generator)
    with pytest.raises(ValueError, match="resize"):
        net.inherit(arch)
    net.resize(1, generator=generator)
    net.eval()
    images = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=generator)
    assert torch.allclose(net.inherit(arch)(images), net(images, net.one_hot(arch)))


def test_work_is_counted_from_what_is_computed(generator):
    net = double_net(generator)
    arch = Architecture.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|nor_conv_1x1~2|", NB201)
    images = torch.zeros(5, 2, 6, 6, dtype=torch.float64)
    gates = net.one_hot(arch)
    net(images, gates, frozenset(arch.columns))
    cost = architecture_cost(arch, sizes=net.sizes, input_shape=(2, 6, 6), classes=3)
    assert (net.images_seen, net.macs_spent) == (5, 5 * cost.macs)
    net(images, gates)
    every = cost.macs + int(net.option_macs.sum()) - sum(int(net.option_macs[g]) for g in arch.columns)
    assert (net.images_seen, net.macs_spent) == (10, 5 * cost.macs + 5 * every)
    net.prune(gates[0, 0] > 0)
    net(images, gates)
    assert net.macs_spent == 10 * cost.macs + 5 * every


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("width", ["16", "64"])
def test_a_narrow_perceptron_is_normed_over_its_own_units(norm, width):
    space = SPACES["mlp"]
    net = Supernet(space, input_shape=(5, 1, 1), classes=3, generator=torch.Generator().manual_seed(0)).double()
    x = torch.randn(20, 5, 1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    text = f"(width={width}, depth=3, activation=gelu, skip=residual, norm={norm})"
    arch = Architecture.parse(text, space)
    net.train()
    for _ in range(3):
        net(x, net.one_hot(arch))
    net.eval()
    assert torch.allclose(net.inherit(arch)(x), net(x, net.one_hot(arch)))
