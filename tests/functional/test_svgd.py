"""Particles: the kernel's gradient by autograd, a Gaussian's moments, and that diversity spreads them."""

import pytest
import torch

from bayesarch.functional.svgd import one_hot_mixture, particles, svgd_direction


def test_the_direction_is_the_formula_written_out():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    score = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    h, delta = 0.7, 0.4
    expected = torch.zeros_like(x)
    for i in range(5):
        for j in range(5):
            a = x[j].clone().requires_grad_()
            k = torch.exp(-(a - x[i]).square().sum() / h)
            (slope,) = torch.autograd.grad(k, a)
            expected[i] += (k.detach() * score[j] + (1 + 2 * delta) * slope) / 5
    assert torch.allclose(svgd_direction(x, score, diversity=delta, bandwidth=h), expected)


def test_the_diversity_term_descends_the_mean_kernel():
    """With no score, minus the gradient of M delta E[k] in the particles' places, beside plain SVGD's own push."""
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    h, delta = 1.3, 0.8
    leaf = x.clone().requires_grad_()
    square = (leaf[:, None] - leaf[None]).square().sum(-1)
    energy = len(x) * delta * torch.exp(-square / h).mean()
    (gradient,) = torch.autograd.grad(energy, leaf)
    zero = torch.zeros_like(x)
    with_, without = (svgd_direction(x, zero, diversity=d, bandwidth=h) for d in (delta, 0.0))
    assert torch.allclose(with_ - without, -gradient)


def test_particles_take_the_moments_of_a_gaussian():
    mean, sd = torch.tensor([1.0, -2.0], dtype=torch.float64), torch.tensor([0.5, 1.5], dtype=torch.float64)

    def log_density(x):
        return -(((x - mean) / sd) ** 2).sum(1) / 2

    start = torch.randn(60, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ended = particles(log_density, start, diversity=0.0, steps=1500, lr=0.05)
    assert ended.mean(0) == pytest.approx(mean, abs=0.05)
    assert ended.std(0) == pytest.approx(sd, rel=0.15)


def test_spread_grows_with_diversity():
    columns, weights = [(0, 1, 2), (3, 4)], torch.tensor([0.8, 0.1, 0.1, 0.7, 0.3])
    density = one_hot_mixture(columns, weights, 0.3)
    start = torch.rand(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    spreads = []
    for diversity in (-0.4, 0.0, 1.0, 4.0):
        x = particles(density, start, diversity=diversity, steps=400, lr=0.02)
        assert torch.isfinite(x).all()
        spreads.append(float((x[:, None] - x[None]).norm(dim=-1).mean()))
    assert spreads == sorted(spreads)
    assert spreads[-1] > 1.3 * spreads[0]


def test_the_density_is_highest_at_the_likeliest_one_hot():
    columns, weights = [(0, 1), (2, 3)], torch.tensor([0.9, 0.1, 0.4, 0.6])
    density = one_hot_mixture(columns, weights, 0.2)
    corners = torch.tensor([[1, 0, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1.0]], dtype=torch.float64)
    values = density(corners)
    assert values.argmax() == 1
    assert torch.allclose((values[1] - values[0]).exp(), torch.tensor(1.5, dtype=torch.float64), rtol=1e-4)
