"""The bilevel step that methods with free parameters share."""

import weakref

import pytest
import torch

from bayesarch.data import Batch
from bayesarch.methods.bilevel import AlphaConfig, bilevel_step, default_lr, fresh_logits
from bayesarch.methods.single import simplices
from bayesarch.nets import Supernet
from bayesarch.spaces import TOY


def test_bilevel_step_equals_torch_optimisers(generator):
    """Architecture step by torch.optim.Adam, gradients of the weights at the gates drawn after it."""
    net = Supernet(TOY, input_shape=(1, 1, 6), classes=2, generator=generator)
    logits = fresh_logits(9, generator=generator, device=torch.device("cpu"))
    batch = [Batch(torch.randn(8, 1, 1, 6, generator=generator), torch.arange(8) % 2) for _ in range(2)]
    batches = {"architecture": batch[0], "weights": batch[1]}
    choices = simplices(TOY, torch.ones(9, dtype=torch.bool), "cpu")
    config = AlphaConfig(alpha_decay=0.01)
    leaf = logits.a.clone().requires_grad_()
    adam = torch.optim.Adam([leaf], lr=0.03, betas=(0.5, 0.999), weight_decay=0.01)
    for _ in range(3):
        net.zero_grad()
        logits, info = bilevel_step(logits, choices.softmax, net, batches, config=config, lr=0.03, moving=True)
        ours = [p.grad.clone() for p in net.parameters()]
        gates = choices.softmax(leaf).view(1, 1, -1)
        loss = torch.nn.functional.cross_entropy(net(batch[0].images, gates), batch[0].labels)
        assert float(info["architecture_loss"]) == pytest.approx(float(loss.detach()), abs=1e-6)
        (leaf.grad,) = torch.autograd.grad(loss, leaf)
        adam.step()
        assert torch.allclose(logits.a, leaf.detach(), atol=1e-7)
        gates = choices.softmax(leaf.detach()).view(1, 1, -1)
        loss = torch.nn.functional.cross_entropy(net(batch[1].images, gates), batch[1].labels)
        theirs = torch.autograd.grad(loss, list(net.parameters()))
        assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(ours, theirs, strict=True))
    assert not torch.equal(logits.a, fresh_logits(9, generator=generator, device=torch.device("cpu")).a)


class Passing(torch.autograd.Function):
    """The identity; a graph that holds it can be asked for."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope


def test_nothing_is_left_of_the_architectures_graph_when_the_weights_pass_begins(generator):
    """Neither tensors nor nodes, which would lie between the holes of the heap."""
    net = Supernet(TOY, input_shape=(1, 1, 6), classes=2, generator=generator)
    batch = Batch(torch.randn(8, 1, 1, 6, generator=generator), torch.arange(8) % 2)
    choices, marks, seen = simplices(TOY, torch.ones(9, dtype=torch.bool), "cpu"), [], []

    def gates_of(a):
        gates = Passing.apply(choices.softmax(a))
        if gates.requires_grad:
            marks.append(weakref.ref(gates.grad_fn))
        return gates

    net.register_forward_pre_hook(lambda *_: seen.append(marks[0]() is None))
    logits = fresh_logits(9, generator=generator, device=torch.device("cpu"))
    batches = {"architecture": batch, "weights": batch}
    bilevel_step(logits, gates_of, net, batches, config=AlphaConfig(), lr=0.03, moving=True)
    assert seen == [False, True]


def test_default_learning_rate_is_per_step():
    assert default_lr(AlphaConfig(), 11) == pytest.approx(0.02)
    assert default_lr(AlphaConfig(), 2000) == 3e-4
    assert default_lr(AlphaConfig(alpha_lr=0.1), 11) == 0.1
