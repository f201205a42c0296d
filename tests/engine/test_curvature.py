"""Curvature in gates: against a naive loop, autograd's Hessian, curvlinops, and its own Monte-Carlo estimate."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.data import Batch
from bayesarch.engine import gate_curvature
from bayesarch.functional.curvature import ggn_diagonal, ggn_matrix
from bayesarch.nets import Supernet
from bayesarch.spaces import NB201

G = NB201.n_options


class Images:
    """A split of made-up images, in float64."""

    def __init__(self, n: int = 11) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
        self.labels = torch.randint(0, 3, (n,), generator=generator)

    def in_order(self, batch_size, limit=None):
        starts = range(0, len(self.labels), batch_size)
        for start in list(starts)[:limit]:
            yield Batch(self.images[start : start + batch_size], self.labels[start : start + batch_size])


@pytest.fixture(scope="module")
def net():
    generator = torch.Generator().manual_seed(0)
    made = Supernet(NB201, input_shape=(1, 8, 8), classes=3, sizes={"channels": 3, "cells": 1}, generator=generator)
    made = made.double().train()
    for _ in range(5):
        made(Images().images, 0.5 * torch.ones(1, 1, G, dtype=torch.float64))
    return made.eval()


@pytest.fixture(scope="module")
def gates(net):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(1, net.n_copies, G, generator=generator, dtype=torch.float64)


def loss_of(net, gates, data):
    return F.cross_entropy(net(data.images, gates), data.labels)


def naive(net, gates, data):
    """Gradient and GGN diagonal by one Jacobian per example."""
    total = torch.zeros_like(gates[0])
    for image in data.images:
        jacobian = torch.autograd.functional.jacobian(lambda g, x=image: net(x[None], g)[0], gates)[:, 0]
        p = net(image[None], gates)[0].softmax(0).detach()
        middle = torch.diag(p) - torch.outer(p, p)
        total += torch.einsum("klg,kj,jlg->lg", jacobian, middle, jacobian)
    gradient = torch.autograd.functional.jacobian(lambda g: loss_of(net, g, data), gates)[0]
    return gradient, total / len(data.labels)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_equals_a_naive_loop_for_batches_of_any_size(net, gates, batch_size):
    gradient, h = naive(net, gates, Images())
    got = gate_curvature(net, gates, Images(), batch_size=batch_size)
    assert got.n == 11
    assert torch.allclose(got.gate_h, h)
    assert torch.allclose(got.gate_gradient, gradient, atol=1e-10)
    assert torch.equal(got.h, got.gate_h)
    assert float(h.max()) > 1e-3


def test_equals_the_diagonal_of_autograds_hessian(net, gates):
    """Logits are piecewise linear in each gate of its own: the Hessian's diagonal is the GGN's; off it they differ."""
    data, flat = Images(), gates.flatten()
    hessian = torch.autograd.functional.hessian(lambda g: loss_of(net, g.view_as(gates), data), flat)
    got = gate_curvature(net, gates, data, batch_size=4).gate_h.flatten()
    assert torch.allclose(hessian.diagonal(), got, atol=1e-10)


def test_train_mode_is_no_curvature(net, gates):
    """Norms in train mode undo scale: some diagonal entries of the Hessian are negative, which the GGN's never are."""
    data, flat = Images(), gates.flatten()
    net.train()
    hessian = torch.autograd.functional.hessian(lambda g: loss_of(net, g.view_as(gates), data), flat)
    net.eval()
    assert float(hessian.diagonal().min()) < -1e-4
    assert float(gate_curvature(net, gates, data, batch_size=4).gate_h.min()) >= 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # curvlinops loads torch.jit
def test_equals_curvlinops(net, gates):
    curvlinops = pytest.importorskip("curvlinops", reason="installed without its dependencies, see .ci/run")
    data = Images()

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gates = torch.nn.Parameter(gates.detach().clone())

        def forward(self, images):
            return net(images, self.gates)

    told = Told()
    operator = curvlinops.GGNLinearOperator(
        told, torch.nn.CrossEntropyLoss(), [told.gates], [(data.images, data.labels)], check_deterministic=False
    )
    size = gates.numel()
    dense = torch.stack([operator @ row for row in torch.eye(size, dtype=torch.float64)])
    got = gate_curvature(net, gates, data, batch_size=4).gate_h.flatten()
    assert torch.allclose(dense.diagonal(), got, atol=1e-10)


def test_scalars_behind_the_gates_by_the_chain_rule(net, gates):
    """One scalar shared by all copies and multiplied by two: its curvature is not the sum of the copies'."""
    data = Images()

    def pull(jacobian):
        return 2.0 * jacobian.sum(-2, keepdim=True)

    shared = gates.mean(1, keepdim=True) / 2.0
    _, h = naive(net, 2.0 * shared.expand_as(gates), data)
    got = gate_curvature(net, 2.0 * shared.expand_as(gates), data, batch_size=4, pull=pull)
    leaf = shared.clone().requires_grad_()
    loss_of(net, (2.0 * leaf).expand_as(gates), data).backward()
    assert torch.allclose(got.gradient, leaf.grad[0], atol=1e-10)
    jacobians = [
        torch.autograd.functional.jacobian(lambda s, x=x: net(x[None], (2.0 * s).expand_as(gates))[0], shared)[:, 0, 0]
        for x in data.images
    ]
    p = net(data.images, 2.0 * shared.expand_as(gates)).softmax(1).detach()
    assert torch.allclose(got.h[0], ggn_diagonal(torch.stack(jacobians), p) / 11, atol=1e-10)
    assert not torch.allclose(got.h[0], 4.0 * h.sum(0), rtol=0.2)


def test_monte_carlo_is_unbiased(net, gates):
    data, generator = Images(), torch.Generator().manual_seed(5)
    exact = gate_curvature(net, gates, data, batch_size=11).gate_h
    draws = torch.stack(
        [gate_curvature(net, gates, data, batch_size=11, mode="mc", generator=generator).gate_h for _ in range(100)]
    )
    error = draws.std(0) / 100**0.5
    assert bool(((draws.mean(0) - exact).abs() <= 5 * error + 1e-9).all())
    got = gate_curvature(net, gates, data, batch_size=4, mode="mc", generator=generator)
    assert torch.allclose(got.gate_gradient, naive(net, gates, data)[0], atol=1e-10)
    with pytest.raises(ValueError, match="generator"):
        gate_curvature(net, gates, data, batch_size=4, mode="mc")


def test_training_mode_is_put_back(net, gates):
    net.train()
    gate_curvature(net, gates, Images(), batch_size=11)
    assert net.training
    net.eval()


def test_matrix_and_diagonal_agree():
    generator = torch.Generator().manual_seed(0)
    jacobian = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    p = torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(1)
    middle = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    expected = torch.einsum("bkp,bkj,bjq->pq", jacobian, middle, jacobian)
    assert torch.allclose(ggn_matrix(jacobian, p), expected)
    assert torch.allclose(ggn_diagonal(jacobian, p), expected.diagonal())
