"""A convolution and a 1 x 1 one right behind it: as one they give what the two give, with all gradients, in float64."""

import pytest
import torch
from torch import nn

from bayesarch.nets.by_kernels import by_kernels
from bayesarch.nets.options import in_supernet
from bayesarch.nets.straight import Straight, straightened
from helpers import images, needs_cc


def two(side=3, stride=1, dilation=1, channels=(3, 5, 4)):
    """Return two convolutions, of weights of their own."""
    ins, between, outs = channels
    first = nn.Conv2d(ins, between, side, stride, dilation * (side - 1) // 2, dilation, bias=False)
    second = nn.Conv2d(between, outs, 1, bias=False)
    for seed, conv in enumerate((first, second)):
        conv.weight = nn.Parameter(images(*conv.weight.shape, seed=seed))
    return [first, second]


def by_torch(layers, x):
    return in_supernet(nn.Sequential(*layers), x, torch.ones(1, 1), fused=False)


def by_ours(layers, x):
    return by_kernels(straightened(layers), x)[0]


@pytest.mark.parametrize("way", [by_torch, pytest.param(by_ours, marks=needs_cc)])
@pytest.mark.parametrize(
    ("side", "stride", "dilation"), [(3, 1, 2), (5, 1, 2), (3, 2, 2), (5, 2, 2), (3, 2, 1), (5, 1, 1), (1, 1, 1)]
)
@pytest.mark.parametrize("size", [(9, 8), (2, 2)], ids=["many pixels", "few pixels"])
def test_two_in_a_row_are_one(size, side, stride, dilation, way):
    layers = two(side, stride, dilation)
    x = images(3, 3, *size, seed=5).requires_grad_()
    found = []
    for work in (lambda x: way(layers, x), nn.Sequential(*layers)):
        out = work(x)
        found.append(
            [out, *torch.autograd.grad(out, [x, *(conv.weight for conv in layers)], images(*out.shape, seed=7))]
        )
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("way", [by_torch, pytest.param(by_ours, marks=needs_cc)])
@pytest.mark.parametrize(("size", "kept"), [((6, 6), False), ((3, 4), True), ((3, 3), True)])
def test_what_lies_between_is_made_where_there_are_few_pixels(size, kept, way):
    """Up to 27 of them, which are the rows of the product of kernels: 3 channels and 3 x 3 taps."""
    x = images(2 if size == (3, 4) else 3, 3, *size)
    out = way(two(), x)
    saved = {t.shape for node in nodes_of(out.grad_fn) for t in tensors_of(node)}
    assert (torch.Size([len(x), 5, *size]) in saved) == kept


def test_pixels_are_those_of_the_output():
    """27 and 36 of them, where 27 are the rows of the product of kernels."""
    assert not Straight(*two(stride=2)).pays(torch.zeros(3, 3, 6, 6))
    assert Straight(*two(stride=2)).pays(torch.zeros(3, 3, 7, 6))


def nodes_of(node):
    """Return a function of autograd and all behind it."""
    if node is None:
        return []
    return [node, *(one for behind, _ in node.next_functions for one in nodes_of(behind))]


def tensors_of(node):
    """Return what a function of autograd keeps."""
    names = [name for name in dir(node) if name.startswith("_saved_")]
    kept = [getattr(node, name) for name in names] + list(getattr(node, "saved_tensors", ()))
    return [tensor for tensor in kept if isinstance(tensor, torch.Tensor)]


def test_which_layers_are_one():
    (first, second), norm, relu = two(), nn.BatchNorm2d(3, affine=False), nn.ReLU()
    found = straightened([norm, relu, first, second])
    assert found[:2] == [norm, relu]
    assert isinstance(found[2], Straight)
    assert (found[2].first, found[2].second) == (first, second)
    deep, biased = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), nn.Conv2d(3, 5, 3, padding=1)
    shrinking, whole = nn.Conv2d(3, 5, 3, bias=False), nn.Conv2d(5, 4, 3, padding=1, bias=False)
    for layers in (
        [], [first], [second], [first, relu, second], [first, norm, second], [biased, second], [shrinking, second],
        [deep, nn.Conv2d(3, 4, 1, bias=False)], [first, whole], [first, nn.Conv2d(5, 4, 1)],
        [first, nn.Conv2d(5, 4, 1, 2, bias=False)], [first, nn.Conv2d(5, 5, 1, groups=5, bias=False)],
    ):  # fmt: skip
        assert straightened(layers) == layers


def test_positive_parts_are_taken_in_place_of_what_a_norm_gives_and_of_nothing_else():
    adapter = nn.Sequential(nn.ReLU(), two()[0], nn.BatchNorm2d(5), nn.ReLU()).double()
    x = images(3, 3, 6, 6)
    before = x.clone()
    normed = []
    adapter[2].register_forward_hook(lambda _m, inputs, out: normed.append((inputs[0], inputs[0].clone(), out)))
    out = in_supernet(adapter, x, torch.ones(1, 1), fused=False)
    ((given, as_it_was, made),) = normed
    assert torch.equal(x, before)
    assert torch.equal(given, as_it_was)
    assert out.data_ptr() == made.data_ptr()
    torch.testing.assert_close(out, adapter(x))
