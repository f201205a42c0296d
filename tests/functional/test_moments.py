"""Batch normalisation over groups equals that of the whole batch: moments and gradients, float64."""

import pytest
import torch
from torch.nn import functional as F

from bayesarch.functional.moments import joint_moments, norm_input_gradient, norm_sums


def whole(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=g, dtype=torch.float64) * 3 + 5
    return x, torch.randn(*shape, generator=g, dtype=torch.float64)


def parts_of(x, sizes):
    return x.split(sizes)


@pytest.mark.parametrize("sizes", [(4, 4), (1, 6, 1), (8,), (3, 5)])
def test_joint_moments_are_those_of_the_union(sizes):
    x, _ = whole((8, 3, 2, 2))
    parts = parts_of(x, sizes)
    means = torch.stack([p.mean([0, 2, 3]) for p in parts])
    variances = torch.stack([p.var([0, 2, 3], correction=0) for p in parts])
    mean, variance = joint_moments(means, variances, torch.tensor([4.0 * n for n in sizes], dtype=torch.float64))
    assert torch.allclose(mean, x.mean([0, 2, 3]), atol=1e-13, rtol=0)
    assert torch.allclose(variance, x.var([0, 2, 3], correction=0), atol=1e-13, rtol=0)


def test_joint_moments_keep_their_digits_far_from_zero():
    x = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float32)[:, None] + 4096.0  # squares would lose them
    means, variances = torch.stack([x[:2].mean(0), x[2:].mean(0)]), torch.full((2, 1), 0.25)
    mean, variance = joint_moments(means, variances, torch.tensor([2.0, 2.0]))
    assert float(mean) == 4097.5
    assert float(variance) == 1.25


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 4), (6, 3, 2, 5)])
def test_parts_have_the_gradient_of_the_whole(shape, weighted):
    x, dy = whole(shape, seed=1)
    weight = torch.tensor([0.5, -2.0, 0.0], dtype=torch.float64, requires_grad=True) if weighted else None
    leaf = x.clone().requires_grad_()
    y = F.batch_norm(leaf, None, None, weight, None, training=True, eps=1e-5)
    expected = torch.autograd.grad((y * dy).sum(), [leaf, *([weight] if weighted else [])])
    over = [0, *range(2, len(shape))]
    mean, scale = x.mean(over), (x.var(over, correction=0) + 1e-5).rsqrt()
    pairs = list(zip(parts_of(x, (2, 4)), parts_of(dy, (2, 4)), strict=True))
    each = [norm_sums(p, g, mean, scale) for p, g in pairs]
    sums = (each[0][0] + each[1][0], each[0][1] + each[1][1])
    n = x.numel() // 3
    plain = None if weight is None else weight.detach()
    dx = torch.cat([norm_input_gradient(p, g, mean, scale, plain, sums, n) for p, g in pairs])
    assert torch.allclose(dx, expected[0], atol=1e-12, rtol=0)
    assert torch.allclose(sums[0], dy.sum(over), atol=1e-12, rtol=0)
    if weighted:
        assert torch.allclose(sums[1], expected[1], atol=1e-12, rtol=0)
