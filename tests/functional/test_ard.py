"""Hierarchical relevance priors: properties of the variances, bound, updates, fixed points, criteria."""

import itertools
import math

import pytest
import torch

from bayesarch.functional import ard

DEPENDENCIES = ("none", "gate", "full")
# two inputs' edges into node a, one into b, then a -> c and b -> c; gates 0, 3, 6, 9, 12
EDGES = [
    ard.Edge(0, (1, 2), (), True),
    ard.Edge(3, (4, 5), (), True),
    ard.Edge(6, (7, 8), (), True),
    ard.Edge(9, (10, 11), (0, 1), False),
    ard.Edge(12, (13, 14), (2,), False),
    ard.Edge(15, (16, 17), (3, 4), False),
]
G = 18


def uniform(low: float, high: float, seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(*(shape or (G,)), generator=generator, dtype=torch.float64)


def test_series_and_parallel_by_hand():
    gamma = uniform(0.2, 2.0, 0)
    s = ard.prior_variances(gamma, EDGES, "full")
    entering_a = sum(s[i] for i in (1, 2, 4, 5))
    assert s[1] == pytest.approx(1 / (1 / gamma[1] + 1 / gamma[0]))
    assert s[9] == pytest.approx(1 / (1 / gamma[9] + 1 / entering_a))
    assert s[10] == pytest.approx(1 / (1 / gamma[10] + 1 / gamma[9] + 1 / entering_a))
    gate = ard.prior_variances(gamma, EDGES, "gate")
    assert gate[10] == pytest.approx(1 / (1 / gamma[10] + 1 / gamma[9]))
    assert gate[9] == gamma[9]
    assert torch.equal(ard.prior_variances(gamma, EDGES, "none"), gamma)


def test_variances_never_exceed_own_nor_what_feeds_them():
    for seed in range(50):
        gamma = 10 ** uniform(-4, 4, seed)
        s = ard.prior_variances(gamma, EDGES, "full")
        assert bool((s <= gamma * (1 + 1e-12)).all())
        for edge in EDGES:
            entering = sum(s[o] for p in edge.feeds for o in EDGES[p].operations)
            for o in (*edge.operations, edge.gate):
                assert edge.rooted or s[o] <= entering * (1 + 1e-12)
                assert o == edge.gate or s[o] <= s[edge.gate] * (1 + 1e-12)


def test_what_loses_its_predecessors_dies_and_one_is_enough():
    gamma = uniform(0.2, 2.0, 1)
    gamma[[1, 2, 4, 5]] = 0.0  # every operation into node a; its gates are alive and must not feed it
    s = ard.prior_variances(gamma, EDGES, "full")
    assert bool((s[[9, 10, 11]] == 0).all())
    assert bool((s[[12, 13, 14, 15, 16, 17]] > 0).all()), "node c is still fed through b"
    gamma[4] = 0.5
    assert bool((ard.prior_variances(gamma, EDGES, "full")[[9, 10, 11]] > 0).all())


def test_a_dead_gate_is_a_dead_edge_whatever_its_operations():
    gamma = uniform(0.2, 2.0, 2)
    gamma[9] = 0.0
    for dependency in ("gate", "full"):
        assert bool((ard.prior_variances(gamma, EDGES, dependency)[[9, 10, 11]] == 0).all())


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_jacobian_is_autograds(dependency):
    gamma = uniform(0.1, 3.0, 3)
    expected = torch.autograd.functional.jacobian(lambda g: ard.prior_variances(g, EDGES, dependency), gamma)
    assert torch.allclose(ard.variance_jacobian(gamma, EDGES, dependency), expected, atol=1e-12)


def test_jacobian_of_dead_switches_is_finite():
    gamma = uniform(0.1, 3.0, 3)
    gamma[[0, 4, 5, 13]] = 0.0
    assert bool(ard.variance_jacobian(gamma, EDGES, "full").isfinite().all())
    gamma[[1, 2]] = 0.0
    assert bool(ard.variance_jacobian(gamma, EDGES, "full").isfinite().all())


def test_slope_is_the_derivative_and_the_papers_form_cancels():
    gamma, h = uniform(0.1, 3.0, 4), uniform(0.0, 5.0, 5, 2, G)
    leaf = gamma.clone().requires_grad_()
    torch.log1p(leaf * h).sum().backward()
    assert torch.allclose(ard.concave_slope(h, gamma), leaf.grad)
    variance = ard.posterior_variance(h, gamma)
    assert torch.allclose((1 / gamma - variance / gamma**2).sum(0), leaf.grad)
    single, tiny = torch.tensor([3.0]), torch.tensor([[1e-9]])
    assert float(ard.concave_slope(tiny, single)) == pytest.approx(1e-9)
    cancelled = float((1 / single - ard.posterior_variance(tiny, single) / single**2).sum())
    assert cancelled != pytest.approx(1e-9, rel=0.5)


@pytest.mark.parametrize("dependency", DEPENDENCIES)
def test_share_of_flow_is_tight_and_an_upper_bound_elsewhere(dependency):
    """Thomson's principle: 1 / s_i(gamma') <= sum_k Q_ik / gamma'_k with equality at the gamma of Q."""
    gamma = uniform(0.1, 3.0, 6)
    s, jacobian = ard.prior_variances(gamma, EDGES, dependency), ard.variance_jacobian(gamma, EDGES, dependency)
    flows = ard._flows(gamma, s, jacobian)
    assert torch.allclose(flows @ (1 / gamma), 1 / s)
    for seed in range(30):
        other = 10 ** uniform(-2, 2, seed)
        assert bool((1 / ard.prior_variances(other, EDGES, dependency) <= (flows @ (1 / other)) * (1 + 1e-9)).all())


@pytest.mark.parametrize("dependency", DEPENDENCIES)
@pytest.mark.parametrize("seed", range(5))
def test_bound_never_rises_on_quadratic_problems(dependency, seed):
    """E = sum h (w - w_ML)^2 / 2 over two tied copies; switches step on E plus the penalty of the bound."""
    h, optimum = 10 ** uniform(-1, 2, seed, 2, G), uniform(-1.0, 1.0, seed + 100, 2, G)
    gamma, w = torch.ones(G, dtype=torch.float64), torch.ones(2, G, dtype=torch.float64)

    def loss(at: torch.Tensor) -> torch.Tensor:
        return (h * (at - optimum).square()).sum() / 2

    def bound(at: torch.Tensor, variances: torch.Tensor) -> float:
        s = ard.prior_variances(variances, EDGES, dependency)
        return float(ard.evidence_bound(loss(at), at.square().sum(0), s, h))

    values = [bound(w, gamma)]
    for _ in range(40):
        terms = ard.penalty_of(gamma, h, EDGES, dependency)
        before = float(loss(w) + ard.penalty(terms, w.square().sum(0), floor=0.0))
        for _ in range(50):
            w = ard.proximal(w - (h * (w - optimum)) / h.max(), terms, 1.0 / float(h.max()), before=w)
        assert float(loss(w) + ard.penalty(terms, w.square().sum(0), floor=0.0)) <= before + 1e-9
        gamma = ard.exact_update(gamma, w.square().sum(0), h, EDGES, dependency).clamp(min=1e-12)
        values.append(bound(w, gamma))
    rises = [after - before for before, after in itertools.pairwise(values)]
    assert max(rises) <= 1e-8
    assert values[-1] < values[0] - 1.0


def test_published_update_can_raise_the_bound():
    """With dependency the separable update ignores cross terms; the bound can rise, by the exact one never."""
    rises = []
    for seed in range(50):
        h, w = 10 ** uniform(-1, 2, seed, 1, G), uniform(-1.0, 1.0, seed + 100, 1, G)
        squares, gamma = w.square().sum(0), uniform(0.2, 2.0, seed + 200)

        def bound(variances: torch.Tensor, squares=squares, h=h) -> float:
            zero = torch.zeros((), dtype=torch.float64)
            return float(ard.evidence_bound(zero, squares, ard.prior_variances(variances, EDGES, "gate"), h))

        rises.append(bound(ard.published_update(gamma, squares, h, EDGES, "gate")) - bound(gamma))
        assert bound(ard.exact_update(gamma, squares, h, EDGES, "gate")) <= bound(gamma) + 1e-9
    assert max(rises) > 1e-3


def test_both_updates_are_the_papers_without_dependency():
    gamma, h, squares = uniform(0.1, 2.0, 7), uniform(0.1, 5.0, 8, 3, G), uniform(0.0, 2.0, 9)
    omega = ard.concave_slope(h, gamma).sqrt()
    assert torch.allclose(ard.exact_update(gamma, squares, h, EDGES, "none"), squares.sqrt() / omega)
    assert torch.allclose(ard.published_update(gamma, squares, h, EDGES, "none"), squares.sqrt() / omega)
    assert torch.allclose(ard.published_penalty(gamma, h).weight, omega)
    assert torch.allclose(ard.penalty_of(gamma, h, EDGES, "none").weight, omega)


def test_gate_update_is_the_sparse_group_form():
    """gamma_0 = sqrt((w_0^2 + sum w_c^2) / (alpha_0 + sum alpha_c->0)), spec 1.7."""
    gamma, h, squares = uniform(0.1, 2.0, 7), uniform(0.1, 5.0, 8, 1, G), uniform(0.1, 2.0, 9)
    s, new = ard.prior_variances(gamma, EDGES, "gate"), ard.exact_update(gamma, squares, h, EDGES, "gate")
    spread = s - ard.posterior_variance(h, s)[0]
    for edge in EDGES:
        own, gate = list(edge.operations), edge.gate
        slope = spread[gate] / gamma[gate] ** 2 + (spread[own] / gamma[gate] ** 2).sum()
        assert new[gate] == pytest.approx(float(((squares[gate] + squares[own].sum()) / slope).sqrt()))
        assert torch.allclose(new[own], (squares[own] / (spread[own] / gamma[own] ** 2)).sqrt())
    terms = ard.penalty_of(gamma, h, EDGES, "gate")
    first = EDGES[0]
    expected = (terms.weight[1] * squares[1].sqrt() + terms.weight[2] * squares[2].sqrt()) + terms.weight[0] * (
        squares[[0, *first.operations]].sum().sqrt()
    )
    alone = torch.zeros(G, dtype=torch.float64)
    alone[[0, 1, 2]] = squares[[0, 1, 2]]
    assert float(ard.penalty(terms, alone, floor=0.0)) == pytest.approx(float(expected))


def test_published_children_drift_down_when_updated_again():
    gamma, h, squares = (
        torch.ones(3, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64),
        torch.ones(3).double(),
    )
    edge = [ard.Edge(0, (1, 2), (), True)]
    once = ard.published_update(gamma, squares, h, edge, "gate")
    twice = ard.published_update(once, squares, h, edge, "gate")
    free = ard.published_update(torch.ones(3).double(), squares, h, edge, "none")
    free = ard.published_update(free, squares, h, edge, "none")
    assert twice[1] < ard.prior_variances(free, edge, "gate")[1] - 1e-3


@pytest.mark.parametrize(("h", "optimum", "expected"), [(100, 0.2, 0.03), (5, 0.3, 0), (1, 2, 3), (0.001, 1, 0)])
def test_joint_fixed_point(h, optimum, expected):
    """With the switch re-optimised each time, gamma ends at max(0, w_ML^2 - 1/h): a flat switch does die."""
    curvature = torch.tensor([[float(h)]], dtype=torch.float64)
    edge, gamma = [ard.Edge(None, (0,), (), True)], torch.ones(1, dtype=torch.float64)
    for _ in range(20_000):
        weight = ard.penalty_of(gamma, curvature, edge, "none").weight
        start = torch.tensor([[float(optimum)]], dtype=torch.float64)
        w = ard.proximal(start, ard.Penalty(weight, None), 1 / h, before=start)
        before, gamma = gamma, ard.exact_update(gamma, w.square().sum(0), curvature, edge, "none")
        if abs(float(gamma - before)) < 1e-7:
            break
    assert float(gamma) == pytest.approx(expected, abs=2e-3)
    wanted = torch.tensor(float(optimum), dtype=torch.float64)
    assert float(ard.joint_fixed_point(wanted, curvature[0])) == pytest.approx(expected, abs=1e-12)


def test_frozen_fixed_point_grows_as_the_loss_gets_flat():
    edge = [ard.Edge(None, (0,), (), True)]
    values = []
    for h in (1e-4, 1e-2, 1.0):
        curvature, gamma = torch.tensor([[h]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        for _ in range(200):
            gamma = ard.exact_update(gamma, torch.ones(1).double(), curvature, edge, "none")
        assert float(gamma) == pytest.approx(float(ard.frozen_fixed_point(torch.ones(1).double(), curvature[0])))
        values.append(float(gamma))
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("h", "expected"), [(1e-4, 10.05), (1e-3, 3.32), (1e-2, 1.41), (1e-1, 1.05), (1, 1.005)])
def test_one_update_of_six_tied_copies(h, expected):
    """w = 1, six copies, lambda = .01, gamma_0 = 1 (spec 1.5)."""
    curvature = torch.full((6, 1), h / 0.01, dtype=torch.float64)
    edge = [ard.Edge(None, (0,), (), True)]
    new = ard.published_update(torch.ones(1).double(), torch.tensor([6.0]).double(), curvature, edge, "none")
    assert float(new) == pytest.approx(expected, abs=0.005)


def test_scaling_an_operation_scales_gamma_and_leaves_the_evidence_rule():
    """Operation times c, switch over c: h c^2, w / c, gamma / c^2; support and Bayes factor (slab / c^2) stay."""
    w, h, g = torch.tensor([[0.4]]).double(), torch.tensor([[30.0]]).double(), torch.tensor([[0.2]]).double()
    edge, c = [ard.Edge(None, (0,), (), True)], 3.0
    gamma = ard.exact_update(torch.ones(1).double(), w.square().sum(0), h, edge, "none")
    scaled = ard.exact_update(torch.ones(1).double() / c**2, (w / c).square().sum(0), h * c**2, edge, "none")
    assert float(scaled) == pytest.approx(float(gamma) / c**2)
    b, b_scaled = ard.newton_optimum(w, h, g), ard.newton_optimum(w / c, h * c**2, g * c)
    assert float(ard.support(b_scaled, h * c**2)) == pytest.approx(c**2 * float(ard.support(b, h)))
    assert float(ard.log_bayes_factor(b_scaled, h * c**2, 1.0 / c**2)) == pytest.approx(
        float(ard.log_bayes_factor(b, h, 1.0))
    )


def test_support_is_the_slope_of_the_evidence_at_zero():
    b, h = uniform(-3.0, 3.0, 10, 2, 5), uniform(0.1, 4.0, 11, 2, 5)
    v = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    (0.5 * v * b.square() / (1 + v * h) - 0.5 * torch.log1p(v * h)).sum().backward()
    assert torch.allclose(ard.support(b, h), 2 * v.grad)


def test_support_changes_its_sign_where_lambda_breaks_even():
    """b falls by the square of lambda's factor and h by the factor; a switch without curvature goes at any lambda."""
    b, h = uniform(-3.0, 3.0, 10, 2, 5), uniform(0.1, 4.0, 11, 2, 5)
    b[:, 4] = h[:, 4] = 0.0
    even = ard.break_even(b, h)
    assert float(even[4]) == 0
    for factor, sign in ((0.999, 1), (1.001, -1)):
        lam = factor * even[:4]
        assert torch.equal(ard.support(b[:, :4] / lam, h[:, :4] / lam).sign(), torch.full((4,), sign).double())


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99, 5.0])
def test_what_goes_by_a_share_is_worth_less_than_that_share_of_the_whole(share):
    generator = torch.Generator().manual_seed(1)
    for spread in (0.0, 0.5, 4.0):
        w, h = torch.randn(1, 50, generator=generator).double(), torch.randn(1, 50, generator=generator).double()
        h = (spread * h).exp()
        even = ard.break_even(h * w, h)
        worth = 2 * (0.5 * h * w.square())[0]  # twice what a quadratic loss rises by, from its least value, at w = 0
        assert torch.allclose(even, worth)
        lam = ard.relative_lambda(even, share)
        gone = ard.support(h * w / lam, h / lam) <= 0
        assert float(worth[gone].sum()) <= share * float(worth.sum())
        assert share >= 1 or not bool(gone.all())
        assert torch.allclose(ard.relative_lambda(1e6 * even, share), 1e6 * lam)
    assert share >= 1 or not bool((torch.ones(9) <= ard.relative_lambda(torch.ones(9), share)).any())
    assert float(ard.relative_lambda(torch.zeros(9), share)) > 0, "1 / lambda is taken"
    with_slope = torch.tensor([1.0, math.inf])
    assert float(ard.relative_lambda(with_slope, share)) == pytest.approx(share / 2)


def test_bayes_factor_is_the_ratio_of_integrals():
    """N(w; w_ML, 1/h) integrated over the slab, over its value at 0."""
    for b, h, slab in ((2.0, 5.0, 1.0), (0.1, 5.0, 0.5), (4.0, 2.0, 3.0)):
        grid = torch.linspace(-30, 30, 400_001, dtype=torch.float64)
        likelihood = torch.exp(-0.5 * h * grid.square() + b * grid)
        density = torch.exp(-0.5 * grid.square() / slab) / math.sqrt(2 * math.pi * slab)
        integral = torch.trapezoid(likelihood * density, grid)
        got = ard.log_bayes_factor(torch.tensor([[b]]).double(), torch.tensor([[h]]).double(), slab)
        assert float(got) == pytest.approx(math.log(float(integral)), abs=1e-8)
    assert float(ard.inclusion(torch.tensor(0.0), 3.0)) == pytest.approx(0.75)


def test_entropy_is_zero_at_the_threshold():
    assert pytest.approx(0.058550, abs=1e-6) == ard.ENTROPY_THRESHOLD
    assert float(ard.switch_entropy(torch.tensor(ard.ENTROPY_THRESHOLD, dtype=torch.float64))) == pytest.approx(0.0)
    assert float(ard.switch_entropy(torch.tensor(1.0))) > 0 > float(ard.switch_entropy(torch.tensor(0.01)))


def test_soft_threshold_is_the_proximal_operator():
    """argmin |v - w|^2 / 2 + t omega |v| over both copies, by brute force; and exact zeros."""
    w, omega = torch.tensor([[0.6, 0.05], [0.8, -0.02]]).double(), torch.tensor([1.0, 1.0]).double()
    got = ard.proximal(w, ard.Penalty(omega, None), 0.3, before=w)
    v = w.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([v], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        value = (v - w).square().sum() / 2 + 0.3 * v[:, 0].square().sum().sqrt()
        value.backward()
        return value

    optimiser.step(closure)
    assert torch.allclose(got[:, 0], v.detach()[:, 0], atol=1e-6)
    assert bool((got[:, 1] == 0).all())


def test_implicit_step_lowers_the_penalty_and_never_crosses_zero():
    gamma, h = uniform(0.1, 2.0, 12), uniform(0.1, 50.0, 13, 2, G)
    terms = ard.penalty_of(gamma, h, EDGES, "full")
    w = uniform(-1.0, 1.0, 14, 2, G)
    for amount in (1e-3, 1.0, 1e6):
        after = ard.proximal(w, terms, amount, before=w)
        assert bool((after * w >= 0).all())
        assert bool((after.abs() <= w.abs()).all())
        assert float(ard.penalty(terms, after.square().sum(0))) < float(ard.penalty(terms, w.square().sum(0)))
