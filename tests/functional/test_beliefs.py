import itertools
import math

import pytest
import torch
from torch.distributions import Dirichlet, kl_divergence

from bayesarch.functional import (
    Simplices,
    concentration,
    cosine,
    dirichlet_rsample,
    falling_steps,
    kl_to_uniform,
    linear,
    warm_restarts,
)
from bayesarch.functional.pruning import fires, implied_cost, log_joint, log_prior, prune_order, relative_delta


def test_concentration_is_elu_plus_one():
    a = torch.linspace(-10, 10, 401, dtype=torch.float64)
    assert torch.allclose(concentration(a), torch.nn.functional.elu(a) + 1, atol=1e-15)
    assert concentration(torch.tensor(0.0)) == 1.0
    leaf = a.clone().requires_grad_()
    assert torch.autograd.gradcheck(concentration, leaf + 0.013)


def test_concentration_stays_positive_where_elu_plus_one_does_not():
    a = torch.tensor([-17.0, -40.0, -80.0], requires_grad=True)
    beta = concentration(a)
    assert bool((beta > 0).all())
    (grad,) = torch.autograd.grad(beta.sum(), a)
    assert bool(grad.isfinite().all())
    assert bool((torch.nn.functional.elu(a[1:].detach()) + 1 == 0).any())
    big = concentration(torch.tensor([1e30, -1e30]))
    assert bool(big.isfinite().all())


@pytest.mark.parametrize("k", [2, 3, 5])
def test_kl_to_uniform(k, generator):
    beta = torch.rand(7, k, generator=generator, dtype=torch.float64) * 4 + 0.05
    expected = kl_divergence(Dirichlet(beta), Dirichlet(torch.ones_like(beta)))
    assert torch.allclose(kl_to_uniform(beta), expected, atol=1e-12)
    assert torch.allclose(kl_to_uniform(torch.ones(k, dtype=torch.float64)), torch.zeros((), dtype=torch.float64))
    assert torch.autograd.gradcheck(kl_to_uniform, beta.clone().requires_grad_())


def ragged(live=None):
    columns = [[0, 1, 2, 3, 4], [5, 6, 7], [8, 9], [10, 11, 12, 13, 14]]
    mask = torch.ones(15, dtype=torch.bool) if live is None else live
    return columns, Simplices(columns, mask)


def test_simplices_against_a_naive_loop(generator):
    live = torch.ones(15, dtype=torch.bool)
    live[[0, 3, 9, 12]] = False
    columns, choices = ragged(live)
    beta = torch.rand(15, generator=generator, dtype=torch.float64) + 0.1
    for fn, naive in (
        (choices.mean, lambda x: x / x.sum()),
        (choices.softmax, lambda x: torch.softmax(x, 0)),
    ):
        expected = torch.zeros(15, dtype=torch.float64)
        for group in columns:
            alive = [g for g in group if live[g]]
            expected[alive] = naive(beta[alive])
        assert torch.allclose(fn(beta), expected)
    weights = choices.mean(beta)
    for m, group in enumerate(columns):
        alive = [g for g in group if live[g]]
        distance = math.sqrt(sum((float(weights[g]) - 1 / len(alive)) ** 2 for g in alive))
        entropy = -sum(float(weights[g]) * math.log(float(weights[g])) for g in alive)
        assert float(choices.distance_to_uniform(weights)[m]) == pytest.approx(distance, abs=1e-12)
        assert float(choices.entropy(weights)[m]) == pytest.approx(entropy, abs=1e-12)


def test_draws_lie_on_the_simplices_and_a_single_option_has_weight_one(generator):
    live = torch.ones(15, dtype=torch.bool)
    live[[0, 1, 2, 3, 9]] = False
    _, choices = ragged(live)
    a = torch.zeros(15, dtype=torch.float64, requires_grad=True)
    theta = choices.draw(concentration(a), generator=generator)
    assert bool((theta[~live] == 0).all())
    assert theta[4] == 1.0
    assert theta[8] == 1.0
    assert float(theta.detach()[5:8].sum()) == pytest.approx(1)
    (grad,) = torch.autograd.grad((theta * torch.arange(15)).sum(), a)
    assert grad[4] == 0
    assert bool((grad[~live] == 0).all())
    assert bool((grad[5:8] != 0).all())
    assert not choices.settled
    with pytest.raises(ValueError, match="at least one"):
        Simplices([[0, 1]], torch.zeros(2, dtype=torch.bool))


def test_drawing_over_live_options_is_zeroing_and_renormalising(generator):
    """Neutrality of the Dirichlet: means and second moments agree, within five standard errors of 40,000 draws."""
    beta = torch.tensor([0.5, 1.0, 2.0, 0.8], dtype=torch.float64)
    n = 40_000
    full = dirichlet_rsample(beta.expand(n, 4), generator=generator)[:, :3]
    renormalised = full / full.sum(1, keepdim=True)
    direct = dirichlet_rsample(beta[:3].expand(n, 3), generator=generator)
    for power in (1, 2):
        x, y = renormalised**power, direct**power
        error = (x.var(0) / n + y.var(0) / n).sqrt()
        assert bool(((x.mean(0) - y.mean(0)).abs() < 5 * error).all())


@pytest.mark.parametrize(
    ("k", "a", "distance"),
    [
        (5, 0.1, 0.0175), (5, 0.2, 0.034), (5, 0.5, 0.081), (5, 1.0, 0.149), (5, -0.1, 0.017), (5, -1.0, 0.129),
        (4, 0.3, 0.060), (3, 0.2, 0.051), (3, -0.5, 0.123), (2, 0.5, 0.141), (2, -1.0, 0.327),
    ],
)  # fmt: skip
def test_distances_of_the_specification(k, a, distance):
    free = torch.zeros(k, dtype=torch.float64)
    free[0] = a
    choices = Simplices([list(range(k))], torch.ones(k, dtype=torch.bool))
    measured = choices.distance_to_uniform(choices.mean(concentration(free)))
    assert float(measured[0]) == pytest.approx(distance, abs=6e-4)


def test_the_largest_distance_is_at_a_corner():
    for k in (2, 3, 4, 5):
        choices = Simplices([list(range(k))], torch.ones(k, dtype=torch.bool))
        corner = torch.eye(k, dtype=torch.float64)[0]
        assert float(choices.distance_to_uniform(corner)[0]) == pytest.approx(math.sqrt(1 - 1 / k))
        assert relative_delta(1.0, k) == pytest.approx(math.sqrt(1 - 1 / k))


def test_a_single_draw_at_the_flat_start_tests_noise(generator):
    """Why delta is tested on the mean: quantiles of the specification, section 1.5, K = 5."""
    theta = dirichlet_rsample(torch.ones(100_000, 5, dtype=torch.float64), generator=generator)
    distance = (theta - 0.2).norm(dim=1)
    assert float(distance.median()) == pytest.approx(0.336, abs=0.005)
    assert float(distance.quantile(0.999)) == pytest.approx(0.763, abs=0.02)


def test_fires_takes_any_edge_and_ignores_settled_ones():
    assert fires([0.01, 0.06, 0.9], [5, 5, 1], 0.05, scale="fixed") == 1
    assert fires([0.01, 0.049, 0.9], [5, 5, 1], 0.05, scale="fixed") is None
    assert fires([0.05, 0.05], [5, 2], 0.05, scale="fixed") == 0
    # relative: .046 passes .05 sqrt(1/2) = .035 at two options but not .05 sqrt(4/5) = .0447 by as much
    assert fires([0.046, 0.046], [5, 2], 0.05, scale="relative") == 1


def test_prune_order_is_global_and_spares_single_options():
    scores = torch.tensor([0.3, -0.2, 0.1, -0.9, 0.0, -0.2])
    assert prune_order(scores, [[0, 1, 2], [3], [4, 5]]) == [1, 5, 4, 2, 0]
    assert prune_order(scores, [[0], [3]]) == []


def test_pruning_moves_the_joint_by_c_minus_its_implied_cost():
    n, c, before, after = 700, 2.5, 0.31, 0.313
    rise = log_joint(after, n, [4, 5], c) - log_joint(before, n, [5, 5], c)
    assert rise == pytest.approx(c - implied_cost(before, after, n))
    assert log_prior([0, 3], c) == -math.inf
    assert log_prior([2, 3], c) == -5 * c


def test_warm_restarts_begin_again_after_10_30_70_and_150_epochs():
    for start, end in ((0, 10), (10, 30), (30, 70), (70, 150), (150, 310), (310, 630)):
        assert warm_restarts(start, 10, 0.05, 1e-4) == pytest.approx(0.05)
        assert warm_restarts((start + end) / 2, 10, 0.05, 1e-4) == pytest.approx((0.05 + 1e-4) / 2)
        assert warm_restarts(end - 1e-9, 10, 0.05, 1e-4) == pytest.approx(1e-4)


def test_steps_fall_at_their_milestones():
    rates = [falling_steps(epoch, (90, 140, 160), 0.1, 0.1) for epoch in (0, 89.9, 90, 139, 140, 160, 200)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-4, 1e-4])


def test_cosine():
    assert cosine(0, 10, 0.1, 0.01) == pytest.approx(0.1)
    assert cosine(10, 10, 0.1, 0.01) == cosine(99, 10, 0.1, 0.01) == pytest.approx(0.01)
    assert cosine(5, 10, 0.1, 0.01) == pytest.approx(0.055)
    values = [cosine(step, 10, 0.1, 0.01) for step in range(11)]
    assert all(a > b for a, b in itertools.pairwise(values))
    torch_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1), 10, eta_min=0.01
    )
    assert torch_schedule.get_last_lr()[0] == pytest.approx(values[0])


# --- Gumbel draws ----------------------------------------------------------------------------------------------------

CHOICES = Simplices([[0, 1, 2], [3, 4], [5]], torch.tensor([True] * 6))
LOGITS = torch.tensor([0.3, -1.0, 1.2, 2.0, 0.0, 7.0], dtype=torch.float64)


def test_straight_through_draws_are_one_hot_with_softmax_frequencies(generator):
    draws = torch.stack([CHOICES.straight_through(LOGITS, 0.7, generator=generator) for _ in range(4000)])
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert bool((draws[:, :3].sum(1) == 1).all())
    assert bool((draws[:, 5] == 1).all())
    expected = CHOICES.softmax(LOGITS)
    error = (expected * (1 - expected) / 4000).sqrt().clamp(min=1e-9)
    assert bool(((draws.mean(0) - expected).abs() < 4 * error).all())


def test_straight_through_has_the_gradient_of_the_relaxed_draw():
    """The same noise in both; the gradient of any function of the draw is that of the soft one."""
    weights = torch.tensor([0.2, -0.5, 1.0, 0.4, 0.1, 3.0], dtype=torch.float64)
    grads = []
    for draw in (CHOICES.relaxed, CHOICES.straight_through):
        leaf = LOGITS.clone().requires_grad_()
        value = draw(leaf, 0.7, generator=torch.Generator().manual_seed(5))
        grads.append(torch.autograd.grad((weights * value).sum(), leaf)[0])
    assert torch.allclose(*grads)
    assert float(grads[0][:5].abs().max()) > 0.01
    assert float(grads[0][5]) == 0.0


def test_relaxed_draws_lie_on_the_simplex_and_sharpen(generator):
    for tau in (10.0, 1.0, 1e-3):
        value = CHOICES.relaxed(LOGITS, tau, generator=generator)
        assert float(value[:3].sum()) == pytest.approx(1.0)
        assert float(value[3:5].sum()) == pytest.approx(1.0)
    assert float(value.max(0).values) > 1 - 1e-6  # the last, nearly one-hot
    flat = torch.stack([CHOICES.relaxed(LOGITS, 1e4, generator=generator) for _ in range(20)])
    assert float((flat[:, :3] - 1 / 3).abs().max()) < 1e-2


def test_linear_schedule():
    assert [linear(e, 4, 10.0, 0.0) for e in (-1, 0, 1, 2, 4, 9)] == [10.0, 10.0, 7.5, 5.0, 0.0, 0.0]
    assert linear(0, 0, 10.0, 0.1) == pytest.approx(0.1)
