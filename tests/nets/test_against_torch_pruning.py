"""What leaves together is what torch-pruning finds: cutting one channel costs as many parameters there as here."""

import copy

import pytest
import torch
from torch import nn

from bayesarch.functional import seeded
from bayesarch.nets import cut_units, units_of
from bayesarch.nets.classics import CLASSICS
from bayesarch.nets.densenet import DenseNet

tp = pytest.importorskip("torch_pruning")

SIZES = {
    "lenet-5": ((1, 16, 16), {}),
    "mobilenet": ((3, 16, 16), {"width": 4}),
    "resnet18": ((3, 16, 16), {"width": 4}),
    "vgg16": ((3, 32, 32), {"width": 4}),
}


def network(name):
    with seeded(torch.Generator().manual_seed(0)):
        if name == "densenet":
            shape = (3, 8, 8)
            return DenseNet(growth=4, blocks=(2, 2), small_images=True, input_shape=shape, classes=5), shape
        shape, sizes = SIZES[name]
        return CLASSICS[name](shape, 5, **sizes), shape


@pytest.mark.parametrize("name", [*SIZES, "densenet"])
def test_a_channel_takes_with_it_what_torch_pruning_says(name):
    net, shape = network(name)
    units, images = units_of(net, shape), torch.zeros(1, *shape)
    whole = sum(p.numel() for p in net.parameters())
    layers = [key for key, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    compared = 0
    for layer in layers:
        axis = next(a for a in units.axes if a.name == f"{layer}.weight" and a.dim == 0)
        theirs = copy.deepcopy(net)
        module = theirs.get_submodule(layer)
        graph = tp.DependencyGraph().build_dependency(theirs, example_inputs=images)
        depthwise = module.groups > 1
        prune = tp.prune_depthwise_conv_out_channels if depthwise else tp.prune_conv_out_channels
        graph.get_pruning_group(module, prune, idxs=[1]).prune()
        keep = torch.ones(units.count, dtype=torch.bool)
        keep[axis.units[1]] = False
        mine = cut_units(net, units, keep)
        assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters()) < whole, layer
        shapes = {key: tuple(p.shape) for key, p in theirs.named_parameters()}
        assert {key: tuple(p.shape) for key, p in mine.named_parameters()} == shapes
        x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
        assert torch.allclose(mine.eval()(x), theirs.eval()(x), atol=1e-5)
        compared += 1
    assert compared == len(layers) > 1
