"""Curvature in weights: against a loop over examples, autograd's Hessian, curvlinops, and its Monte-Carlo estimate."""

import pytest
import torch
from test_curvature import Images
from torch import nn
from torch.nn import functional as F

from bayesarch.data import Batch
from bayesarch.engine import curved_parameters, weight_curvature
from bayesarch.errors import ConfigError
from bayesarch.functional import seeded


class Mixed(nn.Module):
    """Every layer there is a rule for, strides, dilation, groups, padding of two kinds, an activation in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.deep = nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4, bias=False)
        self.pairs = nn.Conv2d(4, 6, (3, 1), padding=(1, 0), groups=2, padding_mode="circular")
        self.relu = nn.ReLU(inplace=True)
        self.middle = nn.Linear(6, 5)
        self.flat = nn.BatchNorm1d(5, affine=True)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        x = self.relu(self.norm(self.first(x)))
        x = torch.tanh(self.pairs(self.deep(x))).mean((2, 3))
        return self.last(torch.tanh(self.flat(self.middle(x))))


@pytest.fixture(scope="module")
def net():
    with seeded(torch.Generator().manual_seed(0)):
        made = Mixed().double()
    for _ in range(3):
        made(Images().images)
    return made


def naive(net, data):
    """Sum over examples and classes of squared Jacobians around their mean, one example after another."""
    net.eval()
    named = dict(net.named_parameters())
    totals = {name: torch.zeros_like(p) for name, p in named.items()}
    for image in data.images:
        logits = net(image[None])[0]
        p = logits.softmax(0).detach()
        rows = [torch.autograd.grad(z, list(named.values()), retain_graph=True) for z in logits]
        for i, name in enumerate(named):
            jacobian = torch.stack([row[i] for row in rows])
            mean = torch.einsum("k,k...->...", p, jacobian)
            totals[name] += torch.einsum("k,k...->...", p, (jacobian - mean).square())
    return {name: total / len(data.labels) for name, total in totals.items()}


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_exact_is_the_loop_over_examples(net, batch_size):
    found, expected = weight_curvature(net, Images(), batch_size=batch_size), naive(net, Images())
    assert set(found) == set(expected) == set(dict(net.named_parameters()))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # curvlinops loads torch.jit
def test_exact_agrees_with_curvlinops(net):
    curvlinops = pytest.importorskip("curvlinops", reason="installed without its dependencies, see .ci/run")
    data, named = Images(), dict(net.eval().named_parameters())
    operator = curvlinops.GGNLinearOperator(
        net, nn.CrossEntropyLoss(), list(named.values()), [(data.images, data.labels)], check_deterministic=False
    )
    size = sum(p.numel() for p in named.values())
    diagonal = torch.stack([operator @ unit for unit in torch.eye(size, dtype=torch.float64)]).diagonal()
    found = weight_curvature(net, data)
    torch.testing.assert_close(torch.cat([found[name].flatten() for name in named]), diagonal, rtol=1e-6, atol=1e-12)


def test_it_is_the_hessians_diagonal_where_logits_are_linear_in_the_weights():
    with seeded(torch.Generator().manual_seed(1)):
        net, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), Images()
    weight = net[1].weight.detach().clone()

    def loss(w):
        return F.cross_entropy(F.linear(data.images.flatten(1), w, net[1].bias), data.labels)

    hessian = torch.autograd.functional.hessian(loss, weight).reshape(weight.numel(), -1).diagonal()
    torch.testing.assert_close(weight_curvature(net, data)["1.weight"].flatten(), hessian, rtol=1e-9, atol=1e-12)


def test_monte_carlo_is_unbiased(net):
    exact, draws = weight_curvature(net, Images()), 1500
    found = weight_curvature(net, Images(), mode="mc", draws=draws, generator=torch.Generator().manual_seed(0))
    for name in exact:
        assert (found[name] - exact[name]).norm() < 0.12 * exact[name].norm(), name


def test_linear_layers_over_tokens():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.each, self.last = nn.Linear(8, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(torch.tanh(self.each(x[:, 0])).mean(1))

    with seeded(torch.Generator().manual_seed(2)):
        net = Tokens().double()
    found, expected = weight_curvature(net, Images()), naive(net, Images())
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)


def test_the_limit_and_the_mode_of_the_network(net):
    net.train()
    few = weight_curvature(net, Images(), batch_size=4, limit=4)
    assert net.training

    class First(Images):
        def in_order(self, batch_size, limit=None):
            yield Batch(self.images[:4], self.labels[:4])

    expected = weight_curvature(net, First())
    for name in expected:
        torch.testing.assert_close(few[name], expected[name])
    net.eval()


def test_what_has_no_rule_is_left_out_and_what_is_used_twice_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.shift = nn.Linear(64, 64), nn.Parameter(torch.zeros(64))

        def forward(self, x):
            return self.layer(self.layer(x.flatten(1)) + self.shift)

    net = Twice().double()
    assert set(curved_parameters(net)) == {"layer.weight", "layer.bias"}
    with pytest.raises(ConfigError, match="layer is used twice"):
        weight_curvature(net, Images())
