"""Gates of PGNAS: draws, the KL, its stationary point, the drift of groups that the data ignore (spec, section 6)."""

import math

import pytest
import torch
from torch import Tensor

from bayesarch.functional import bernoulli


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("pi", "expected"), [(0.1, 0.8953), (0.3, 0.6950)])
def test_soft_gates_have_the_mean_of_the_specification(pi: float, expected: float):
    phi = torch.logit(f64(pi))
    gates = bernoulli.keep_gates(phi, (400_000,), tau=0.2, generator=torch.Generator().manual_seed(0))
    assert gates.mean() == pytest.approx(expected, abs=5 * float(gates.std()) / math.sqrt(400_000) + 5e-5)


def test_soft_gates_harden_as_the_temperature_falls():
    phi = torch.logit(f64(0.1))
    gates = bernoulli.keep_gates(phi, (100_000,), tau=1e-4, generator=torch.Generator().manual_seed(0))
    assert ((gates > 0.01) & (gates < 0.99)).double().mean() < 1e-3
    assert gates.mean() == pytest.approx(0.9, abs=5 * 0.3 / math.sqrt(100_000))


def test_gradient_of_a_soft_gate_is_the_closed_form():
    phi = f64(-2.0, 0.5, 3.0).requires_grad_()
    gates = bernoulli.keep_gates(phi, (4,), tau=0.2, generator=torch.Generator().manual_seed(3))
    (slope,) = torch.autograd.grad(gates.sum(), phi)
    assert torch.allclose(slope, -(gates * (1 - gates)).sum(0) / 0.2)


def test_hard_masks_keep_with_one_minus_pi_and_repeat_with_the_seed():
    phi = torch.logit(f64(0.2).expand(50_000))
    u = torch.rand(50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    again = torch.rand(50_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept = bernoulli.kept_mask(phi, u)
    assert kept.double().mean() == pytest.approx(0.8, abs=5 * 0.4 / math.sqrt(50_000))
    assert torch.equal(kept, bernoulli.kept_mask(phi, again))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_at_extreme_logits(dtype: torch.dtype):
    phi = torch.tensor([-40.0, -1e-3, 0.0, 40.0], dtype=dtype, requires_grad=True)
    for value in (bernoulli.negative_entropy(phi).sum(), bernoulli.deletion_kl(phi, 0.9).sum()):
        (slope,) = torch.autograd.grad(value, phi)
        assert math.isfinite(float(value.detach()))
        assert bool(torch.isfinite(slope).all())


def test_entropy_is_that_of_torch():
    phi = torch.linspace(-8, 8, 33, dtype=torch.float64)
    expected = -torch.distributions.Bernoulli(logits=phi).entropy()
    assert torch.allclose(bernoulli.negative_entropy(phi), expected, atol=1e-12)


@pytest.mark.parametrize("u", [0.5, 0.7, 0.95])
def test_deletion_kl_is_that_of_torch(u: float):
    phi = torch.linspace(-8, 8, 33, dtype=torch.float64)
    prior = torch.distributions.Bernoulli(probs=f64(u).expand(33))
    expected = torch.distributions.kl_divergence(torch.distributions.Bernoulli(logits=phi), prior)
    assert torch.allclose(bernoulli.deletion_kl(phi, u), expected, atol=1e-12)


@pytest.mark.parametrize("u", [None, 0.8])
@pytest.mark.parametrize("c", [0.5, 1.0])
def test_the_kl_has_its_minimum_at_the_stationary_logit(c: float, u: float | None):
    sqnorm = f64(0.0, 0.01, 0.3, 0.9)
    expected = bernoulli.stationary_logit(sqnorm, l2=4.0, c=c, lambda_d=0.7, u=u)

    def slope(phi: Tensor) -> Tensor:
        phi = phi.clone().requires_grad_()
        (found,) = torch.autograd.grad(bernoulli.gate_kl(phi, sqnorm, l2=4.0, c=c, lambda_d=0.7, u=u), phi)
        return found

    assert torch.allclose(slope(expected), torch.zeros_like(expected), atol=1e-12)
    assert bool((slope(expected - 0.1) < 0).all()), "below, descent goes up"
    assert bool((slope(expected + 0.1) > 0).all()), "above, it goes down"
    assert float(torch.sigmoid(expected[0])) == pytest.approx(0.5 if u is None else u)


def test_a_group_of_k_channels_weighs_k_times():
    phi, sqnorm = f64(-1.0), f64(0.5)
    one = bernoulli.gate_kl(phi, sqnorm, l2=2.0)
    assert bernoulli.gate_kl(phi.expand(7), sqnorm.expand(7), l2=2.0) == pytest.approx(7 * float(one))


def test_length_scale_acts_as_weight_decay():
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    l2 = bernoulli.length_scale(3e-4, 1000, keep=0.9)
    kl = bernoulli.gate_kl(torch.logit(f64(0.1)).expand(3), weight.square().sum(0), l2=l2) / 1000
    (slope,) = torch.autograd.grad(kl, weight)
    assert torch.allclose(slope, 3e-4 * weight)
    # the published rows of M: l2 = 50, N = 5e5 act as 2e-4 (1 - pi) with c = 1 and 1e-4 (1 - pi) with c = 1/2
    assert bernoulli.length_scale(2e-4, 5e5) == pytest.approx(50)
    assert bernoulli.length_scale(1e-4, 5e5, c=0.5) == pytest.approx(50)


def imagenet(epochs: int, batch: int, drops: tuple[int, ...]) -> list[float]:
    per_epoch = -(-1281167 // batch)
    return [0.1 * 0.1 ** sum(epoch >= drop for drop in drops) for epoch in range(epochs) for _ in range(per_epoch)]


def test_drift_alone_predicts_the_repeated_rates_of_the_published_log():
    # D-121, l2 = 100: batch 300, 180 epochs, learning rate divided at 90 and 150 as its log has it; .414 to .415 there
    curve = bernoulli.drift(0.1, imagenet(180, 300, (90, 150)), channels=32, n=1281167)
    assert curve[-1] == pytest.approx(0.414, abs=2e-3)


def test_drift_is_torchs_sgd_on_the_entropy():
    rates = [0.3, 0.3, 0.1, 0.1, 0.05]
    for nesterov in (False, True):
        phi = torch.logit(f64(0.1)).requires_grad_()
        sgd = torch.optim.SGD([phi], lr=0.3, momentum=0.9, nesterov=nesterov)
        seen = []
        for lr in rates:
            sgd.param_groups[0]["lr"] = lr
            sgd.zero_grad()
            (16 * bernoulli.deletion_kl(phi, 0.7).sum() / 20).backward()
            sgd.step()
            seen.append(float(torch.sigmoid(phi.detach())))
        curve = bernoulli.drift(0.1, rates, channels=16, n=20, nesterov=nesterov, u=0.7)
        assert curve == pytest.approx(seen, rel=1e-12)
