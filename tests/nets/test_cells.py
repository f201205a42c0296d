"""Two-input and tree cells against what they are said to compute, written out by hand; and drop path."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bayesarch.errors import ConfigError
from bayesarch.nets import PathDrop, Supernet, build
from bayesarch.nets.operations import Halving, operation_module
from bayesarch.nets.options import Options
from bayesarch.nets.pieces import mixed
from bayesarch.spaces import BAYESNAS_CELL, DARTS, SPACES, Architecture, tree_cell
from helpers import images, needs_cc

SIZES = {"channels": 4, "layers": 3}


def picks_of(space, **named):
    picks = [()] * len(space.choices)
    for name, options in named.items():
        position = space.choice_index(name.replace("__", "/").replace("_from_", "<-"))
        picks[position] = tuple(space.choices[position].index(option) for option in options)
    return Architecture(space, tuple(picks))


def test_a_darts_network_by_hand(generator):
    arch = picks_of(
        DARTS,
        normal__2_from_0=["sep_conv_3x3"],
        normal__2_from_1=["skip_connect", "max_pool_3x3"],
        normal__5_from_2=["dil_conv_5x5"],
        reduce__2_from_1=["skip_connect"],
        reduce__3_from_2=["avg_pool_3x3"],
    )
    net = build(arch, input_shape=(2, 8, 8), classes=3, sizes=SIZES, generator=generator).double().eval()
    images = torch.randn(3, 2, 8, 8, generator=generator, dtype=torch.float64)

    def module(cell, key):
        return cell.options.modules_of[key]

    stem = net.stem(images)
    first = net.layers[0]
    a, b = first.adapt_older(stem), first.adapt_newer(stem)
    two = module(first, "sep_conv_3x3_0_2")(a) + b + module(first, "max_pool_3x3_1")(b)
    five = module(first, "dil_conv_5x5_2_5")(two)
    zero = torch.zeros_like(two)
    out = torch.cat([two, zero, zero, five], 1)
    older, newer = stem, out
    for cell in list(net.layers)[1:]:  # layers 1 and 2 of 3 are reductions
        adapted = cell.adapt_newer(newer)
        two = module(cell, "skip_connect_1_2")(adapted)
        assert two.shape[-1] == -(-adapted.shape[-1] // 2)
        three = module(cell, "avg_pool_3x3_2")(two)
        older, newer = newer, torch.cat([two, three, torch.zeros_like(two), torch.zeros_like(two)], 1)
    assert torch.allclose(net(images), net.head(newer))
    assert older.shape[1] == 4 * 8


def test_halving_sees_every_second_pixel_and_its_neighbour(generator):
    halving = Halving(2, 5)
    x = torch.randn(1, 2, 5, 5, generator=generator)
    out = halving(x)
    assert out.shape == (1, 5, 3, 3)
    assert torch.allclose(out[:, :2], F.conv2d(x[:, :, ::2, ::2], halving.even.weight))
    assert torch.allclose(out[:, 2:, :2, :2], F.conv2d(x[:, :, 1::2, 1::2], halving.odd.weight))


@pytest.mark.parametrize("side", [(6, 8), (5, 5), (6, 7), (1, 2)])
def test_halving_at_once_is_the_same(side, generator):
    halving = Halving(3, 5, before=nn.ReLU(), after=nn.BatchNorm2d(5)).double()
    x = torch.randn(4, 3, *side, generator=generator, dtype=torch.float64)
    x, found = x.contiguous(memory_format=torch.channels_last).requires_grad_(), []
    for way in (halving, halving.at_once):
        out = way(x)
        slope = torch.ones_like(out).cumsum(1).cumsum(2).sin()
        found.append([out, *torch.autograd.grad(out, [x, *halving.parameters()], slope)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("space", ["darts", "bayesnas-cell"])
def test_supernets_halve_at_once(space, monkeypatch, generator):
    net = Supernet(
        SPACES[space], input_shape=(3, 9, 8), classes=4, sizes={"channels": 4, "layers": 3}, generator=generator
    )
    x, gates = torch.rand(4, 3, 9, 8), torch.rand(1, 1, net.space.n_options)
    with monkeypatch.context() as patch:
        patch.setattr(Halving, "forward", Halving.at_once)
        expected = net(x, gates)
    monkeypatch.setattr(Halving, "forward", None)  # to call it would fail
    assert torch.allclose(net(x, gates), expected)


def test_operations_of_bayesnas_as_released():
    """Norm first; the dilated one is dense; the identity of a reduction has a norm and a 1 x 1 convolution."""
    count = lambda name, stride: sum(p.numel() for p in operation_module(name, 6, stride).parameters())  # noqa: E731
    assert count("sep5", 1) == 2 * (2 * 6 + 25 * 6 + 36)
    assert count("dil3", 2) == 2 * 6 + 9 * 36 + 36
    assert count("id", 2) == 2 * 6 + 36
    assert count("id", 1) == 0
    border = operation_module("avg3", 1)(torch.ones(1, 1, 4, 4))
    assert border[0, 0, 0, 0] == pytest.approx(4 / 9), "zeros around the image are averaged in"


def test_a_tree_by_hand(generator):
    """The output is the sum of leaves; a node without a live child is a leaf."""
    space = tree_cell(1)
    net = (
        Supernet(space, input_shape=(1, 6, 6), classes=2, sizes={"channels": 4, "alpha": 6}, generator=generator)
        .double()
        .eval()
    )
    cell, x = net.layers[0], torch.randn(2, 4, 6, 6, generator=generator, dtype=torch.float64)
    root = cell.before(x)

    def value(key, h):
        return cell.options.modules_of[key](h)

    def told(**gates):
        row = torch.zeros(1, space.n_options, dtype=torch.float64)
        for name, gate in gates.items():
            source, target, option = name.split("__")
            row[0, space.labels.index(f"block0/{target}<-{source}/{option}")] = gate
        return cell(x, row)

    def finish(total):
        return cell.after(total) + cell._shortcut(x)

    left = 0.5 * value("dw_sep_3x3_root_l", root)
    assert torch.allclose(told(root__l__dw_sep_3x3=0.5), finish(left)), "no live child: l is a leaf itself"
    below = 2.0 * value("conv_1x1_l_ll", left)
    both = told(root__l__dw_sep_3x3=0.5, l__ll__conv_1x1=2.0)
    assert torch.allclose(both, finish(below)), "l has a live child: its own value is not in the sum"
    right = 3.0 * root
    assert torch.allclose(told(root__l__dw_sep_3x3=0.5, root__r__identity=3.0), finish(left + right))
    assert torch.allclose(told(), finish(root)), (
        "nothing left: the block is its two 1 x 1 convolutions and the shortcut"
    )


def test_every_block_of_a_tree_space_is_its_own(generator):
    space = tree_cell(1)
    net = Supernet(space, input_shape=(1, 6, 6), classes=2, sizes={"channels": 4, "alpha": 6}, generator=generator)
    assert net.occupancy.shape == (3, space.n_options)
    assert bool((net.occupancy.sum(0) == 1).all())
    with pytest.raises(ConfigError, match="partial"):
        net.resize(2, generator=generator)


def test_normal_and_reduction_cells_share_no_option(generator):
    net = Supernet(
        BAYESNAS_CELL, input_shape=(1, 8, 8), classes=2, sizes={"channels": 4, "layers": 5}, generator=generator
    )
    assert net.occupancy.sum(1).tolist() == [64] * 5
    assert [bool(row[0]) for row in net.occupancy] == [True, False, True, False, True]


@pytest.mark.parametrize("partial", [2, 4])
def test_partial_channels_of_a_two_input_cell(partial, generator):
    """Channels beyond C / K pass every edge, times the sum of its gates; all live gates at 0 give nothing."""
    net = Supernet(DARTS, input_shape=(1, 8, 8), classes=2, sizes={"channels": 8, "layers": 3}, generator=generator)
    net.resize(partial, generator=generator)
    net.double().eval()
    cell, width = net.layers[0], 8 // partial
    x = torch.randn(2, 24, 8, 8, generator=generator, dtype=torch.float64)
    gates = torch.zeros(1, DARTS.n_options, dtype=torch.float64)
    gates[0, DARTS.labels.index("normal/2<-0/skip_connect")] = 0.5
    gates[0, DARTS.labels.index("normal/2<-1/none")] = 2.0
    a, b = cell.adapt_older(x), cell.adapt_newer(x)
    through = 0.5 * a[:, :width]
    past = 0.5 * a[:, width:] + 2.0 * b[:, width:]
    expected = torch.cat([through, past], 1)
    expected = expected.view(2, partial, width, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)
    assert torch.allclose(cell(x, x, gates)[:, :8], expected)


def test_drop_path_scales_what_it_keeps_and_is_off_in_eval_mode(generator):
    drop = PathDrop(0.25, generator=generator)
    out = drop(torch.ones(4000, 2))
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert bool((out[:, 0] == out[:, 1]).all()), "an example is dropped whole"
    assert float(out.mean()) == pytest.approx(1.0, abs=0.05)
    arch = picks_of(DARTS, normal__2_from_0=["sep_conv_3x3"], reduce__2_from_1=["skip_connect"])
    net = build(arch, input_shape=(1, 8, 8), classes=2, sizes=SIZES, generator=generator)
    images = torch.randn(8, 1, 8, 8, generator=generator)
    net.drop_paths(PathDrop(0.5, generator=generator))
    net.eval()
    assert torch.equal(net(images), net(images))
    net.train()
    assert not torch.equal(net(images), net(images))
    net.drop_paths(None)
    assert torch.equal(net(images), net(images))


@pytest.mark.parametrize("space", ["nb201", "darts", "bayesnas-cell"])
def test_shared_gates_move_the_statistics_that_gates_per_example_move(space, generator):
    """Norms take their scale from gates that all examples share; their statistics are those of what comes in."""
    from bayesarch.spaces import SPACES

    sizes = {"channels": 4, "cells": 1} if space == "nb201" else SIZES
    nets = []
    for _ in range(2):
        seed = torch.Generator().manual_seed(3)
        nets.append(Supernet(SPACES[space], input_shape=(2, 8, 8), classes=3, sizes=sizes, generator=seed).double())
    images = torch.randn(4, 2, 8, 8, generator=generator, dtype=torch.float64)
    gates = torch.randn(1, 1, nets[0].space.n_options, generator=generator, dtype=torch.float64)
    outputs = [nets[0](images, gates), nets[1](images, gates.expand(4, 1, -1))]
    torch.testing.assert_close(*outputs, rtol=1e-9, atol=1e-10)
    for (name, mine), (_, theirs) in zip(nets[0].named_buffers(), nets[1].named_buffers(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-11, msg=name)
    moved = [name for name, buffer in nets[0].named_buffers() if name.endswith("batches_tracked") and int(buffer) == 1]
    assert len(moved) >= 3


def test_gated_pieces_are_summed_and_left_as_they_are(generator):
    x, y = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    kept, gate, each = [x.clone(), y.clone()], torch.tensor(0.5), torch.randn(2, 1, 1, 1, generator=generator)
    for parts, expected in (
        ([x, y, x], x + y + x),
        ([x], x),
        ([(x, gate), y, (y, each)], x * gate + y + y * each),
        ([x, (y, gate), y], x + y * gate + y),
        ([(x.bfloat16(), gate), (y, gate)], (x.bfloat16() * gate).float() + y * gate),
        ([x.bfloat16(), y.bfloat16(), y], (x.bfloat16() + y.bfloat16()).float() + y),
        ([], torch.zeros_like(x)),
    ):
        out = mixed(parts, x)
        assert out.dtype == expected.dtype
        torch.testing.assert_close(out, expected)
        assert torch.equal(x, kept[0])
        assert torch.equal(y, kept[1])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("side", [8, 9])
@pytest.mark.parametrize("cell", ["normal", "reduce"])
@pytest.mark.parametrize("space", ["darts", "bayesnas-cell"])
def test_what_options_compute_together_is_what_each_computes(space, cell, side, training, generator):
    """Outputs, all gradients, running statistics: what options begin with alike, gates as scales, pixels left out."""
    from bayesarch.spaces import SPACES

    seed = torch.Generator().manual_seed(3)
    net = Supernet(SPACES[space], input_shape=(2, side, side), classes=3, sizes=SIZES, generator=seed).double()
    stride = {"normal": 1, "reduce": 2}[cell]
    options, width = next((made.options, made.channels) for made in net.cells() if made.stride == stride)
    node = next(source for source, _ in options.wiring.values())
    columns = [g for source, users in options.wiring.values() if source == node for g, _ in users]
    h = torch.randn(3, width, side, side, generator=generator, dtype=torch.float64) + 0.3
    scales = torch.randn(1, net.space.n_options, generator=generator, dtype=torch.float64)
    scales[0, columns[0]] = 0.0
    found = []
    for alone in (False, True):
        ours = copy.deepcopy(options).train(training)
        leaf, gates = h.clone().requires_grad_(), scales.clone().requires_grad_()
        outs = []
        for _ in range(2):
            if alone:
                mine = [(ours.modules_of[key](leaf), users) for key, (at, users) in ours.wiring.items() if at == node]
                outs = [out * gates[0, g] for out, users in mine for g, _ in users]
            else:
                pieces = [piece for _, piece in ours.leaving(node, leaf, gates, None)]
                outs = [piece if isinstance(piece, torch.Tensor) else piece[0] * piece[1] for piece in pieces]
        sum(((i + 1) * out.square()).sum() for i, out in enumerate(outs)).backward()
        grads = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
        found.append((outs, leaf.grad, gates.grad, grads, dict(ours.named_buffers())))
    assert len(found[0][0]) == len(columns) >= 6
    assert len(found[0][3]) >= 6
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-10)
    moved = [name for name, buffer in found[0][4].items() if name.endswith("tracked") and int(buffer) == 2]
    assert len(moved) >= 6 if training else not moved


@pytest.mark.parametrize("space", [DARTS, BAYESNAS_CELL], ids=lambda s: s.name)
def test_gates_on_what_options_take(space, generator):
    sizes = {"channels": 4, "layers": 3, "gate_position": "input"}
    net = Supernet(space, input_shape=(2, 8, 8), classes=2, sizes=sizes, generator=generator).double().train()
    cell = next(layer for layer in net.layers if getattr(layer, "stride", 0) == 1)
    gates = torch.randn(3, space.n_options, generator=generator, dtype=torch.float64)
    h = torch.randn(3, 4, 8, 8, generator=generator, dtype=torch.float64)
    seen = 0
    for node in cell.order:
        made = list(cell.options.leaving(node, h, gates, None))
        expected = [
            (target, cell.options.modules_of[key](h * gates[:, g, None, None, None]))
            for key, (source, users) in cell.options.wiring.items()
            if source == node
            for g, target in users
        ]
        assert [target for target, _ in made] == [target for target, _ in expected]
        assert all(torch.equal(a, b) for (_, a), (_, b) in zip(made, expected, strict=True))
        seen += len(made)
    assert seen == sum(len(users) for _, users in cell.options.wiring.values()) > 20


def test_an_option_that_begins_with_a_norm_does_not_feel_a_gate_before_it(generator):
    """Why gates multiply what options give: the norm of a batch takes the scale out again, and the gradient with it."""
    images = torch.randn(6, 2, 8, 8, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    of_position = {}
    for position in ("input", "output"):
        sizes = {"channels": 4, "layers": 3, "gate_position": position}
        start = torch.Generator().manual_seed(3)
        net = Supernet(BAYESNAS_CELL, input_shape=(2, 8, 8), classes=2, sizes=sizes, generator=start).double().train()
        gates = torch.ones(1, 1, BAYESNAS_CELL.n_options, dtype=torch.float64, requires_grad=True)
        loss = torch.nn.functional.cross_entropy(net(images, gates), labels)
        (slopes,) = torch.autograd.grad(loss, gates)
        of_position[position] = {
            kind: float(slopes[0, 0, [i for i, label in enumerate(BAYESNAS_CELL.labels) if kind in label]].abs().max())
            for kind in ("sep", "dil", "max", "avg")
        }
    first, last = of_position["input"], of_position["output"]
    for kind in ("sep", "dil"):
        assert first[kind] < last[kind] / 2000
    for kind in ("max", "avg"):  # poolings are linear enough: the same slope on either side
        assert first[kind] == pytest.approx(last[kind], rel=1e-6)
        assert last[kind] > 1e-3


@pytest.mark.parametrize("gone", [False, True], ids=["resting", "removed"])
@pytest.mark.parametrize("way", ["leaving", pytest.param("parting", marks=needs_cc)])
def test_options_that_rest_or_are_removed_bring_nothing(way, gone):
    """Whatever their gates: they are not computed."""
    options = Options(
        DARTS, "normal", 4, range(DARTS.n_options), stride_of=lambda node: 1, affine=False, norm_free=True
    ).double()
    h, gates = images(3, 4, 6, 5), torch.ones(1, DARTS.n_options, dtype=torch.float64)
    live = torch.arange(DARTS.n_options) % 3 == 0
    expected = mixed([piece for _, piece in getattr(options, way)("0", h, gates * live, None)], h)
    if gone:
        options.keep(live)
    active = None if gone else frozenset(live.nonzero().flatten().tolist())
    found = mixed([piece for _, piece in getattr(options, way)("0", h, gates, active)], h)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9)
