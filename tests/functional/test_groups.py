"""Groups of weights: slopes against autograd, the bound along exact updates, fixed points, limits, the two forms."""

import itertools
import math

import pytest
import torch

from bayesarch.functional import groups as fg

DOUBLE = torch.float64


def random_case(seed, e=40, g=7, t=2):
    generator = torch.Generator().manual_seed(seed)
    groups = torch.stack([torch.randperm(g, generator=generator)[:t] for _ in range(e)])
    gamma = torch.rand(g, dtype=DOUBLE, generator=generator) + 0.05
    h = torch.rand(e, dtype=DOUBLE, generator=generator) * 50
    return gamma, h, list(groups.T)


@pytest.mark.parametrize("t", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
def test_slopes_are_the_derivative_of_the_concave_part(seed, t):
    gamma, h, groups = random_case(seed, t=t)
    free = gamma.clone().requires_grad_()
    torch.log1p(fg.combined_variance(free, groups) * h).sum().backward()
    torch.testing.assert_close(fg.group_slopes(gamma, h, groups), free.grad, rtol=1e-10, atol=1e-12)


def test_precisions_add_up():
    s = fg.combined_variance(
        torch.tensor([0.5, 0.25, 0.0], dtype=DOUBLE), list(torch.tensor([[0, 1], [0, 0], [0, 2]]).T)
    )
    torch.testing.assert_close(s, torch.tensor([1 / 6, 0.25, 0.0], dtype=DOUBLE))


def test_the_slope_with_the_own_variance_in_place_of_the_combined_one_is_too_large():
    gamma, h, groups = random_case(0)
    naive = torch.zeros_like(gamma)
    for i, row in enumerate(torch.stack(groups, 1)):
        for g in row:
            naive[g] += 1 / gamma[g] - (1 / (1 / gamma[g] + h[i])) / gamma[g] ** 2
    assert (naive > fg.group_slopes(gamma, h, groups) * 1.01).all()


def test_one_group_each_is_the_papers_formula():
    gamma, h, groups = random_case(1, t=1)
    expected = torch.zeros_like(gamma)
    for i, g in enumerate(groups[0].tolist()):
        c = 1 / (1 / gamma[g] + h[i])
        expected[g] += 1 / gamma[g] - c / gamma[g] ** 2
    torch.testing.assert_close(fg.group_slopes(gamma, h, groups), expected, rtol=1e-9, atol=1e-12)
    sizes = torch.bincount(groups[0], minlength=len(gamma)).to(DOUBLE)
    torch.testing.assert_close(fg.group_sizes(h, groups, len(gamma)), sizes)


@pytest.mark.parametrize("seed", range(4))
def test_exact_updates_on_a_quadratic_loss_never_raise_the_bound(seed):
    """E(W) = sum h/2 (W - W_ML)^2; the penalised optimum by many proximal steps, then gamma, again and again."""
    gamma, h, groups = random_case(seed, t=2)
    h = h + 1.0
    best = torch.randn(len(h), dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * 0.4
    w, bounds = best.clone(), []
    for _ in range(25):
        slopes = fg.group_slopes(gamma, h, groups)
        omega = slopes.sqrt()
        for _ in range(400):  # iteratively reweighted ridge: the penalised optimum for overlapping groups
            norms = fg.group_squares(w, groups, len(gamma)).sqrt().clamp(min=1e-150)
            w = h * best / (h + sum((omega / norms)[index] for index in groups))
        gamma = fg.group_update(fg.group_squares(w, groups, len(gamma)).sqrt(), slopes, gamma)
        loss = 0.5 * (h * (w - best).square()).sum()
        bounds.append(float(fg.group_bound(loss, w, gamma.clamp(min=1e-300), h, groups)))
    assert all(later <= earlier + 1e-7 * abs(earlier) for earlier, later in itertools.pairwise(bounds))
    assert bounds[-1] < bounds[0] - 1e-3


@pytest.mark.parametrize(
    ("h", "norm2", "n"), [(100.0, 1.0, 5), (1.0, 3.0, 5), (0.5, 40.0, 4), (2.0, 2.0, 8), (50.0, 0.01, 1)]
)
def test_a_group_alone_ends_at_its_fixed_point(h, norm2, n):
    best = torch.full((n,), math.sqrt(norm2 / n), dtype=DOUBLE)
    groups, curvature = [torch.zeros(1, dtype=torch.long)], torch.full((n,), h, dtype=DOUBLE)
    gamma = torch.ones(1, dtype=DOUBLE)
    for _ in range(1500):
        omega = fg.group_slopes(gamma, curvature, groups).sqrt()
        # the optimum of h/2 ||W - best||^2 + omega ||W||: a group soft threshold
        w = best * (1 - omega / (h * best.norm())).clamp(min=0)
        gamma = fg.group_update(w.norm().view(1), omega.square(), gamma)
    expected = fg.group_fixed_point(torch.tensor(norm2, dtype=DOUBLE), torch.tensor(h, dtype=DOUBLE), n)
    assert float(gamma) == pytest.approx(float(expected), rel=1e-3, abs=2e-3)


def test_frozen_weights_put_sensitive_groups_first_in_line_which_is_why_nothing_is_pruned_before_training():
    """At equal norm and without re-optimised weights the larger curvature has the smaller gamma (spec, section 6)."""
    groups = [torch.arange(4).repeat_interleave(300)]
    h = torch.tensor([1e4, 1e2, 1.0, 1e-2], dtype=DOUBLE).repeat_interleave(300)
    gamma = torch.ones(4, dtype=DOUBLE)
    slopes = fg.group_slopes(gamma, h, groups)
    after = fg.group_update(torch.ones(4, dtype=DOUBLE) * 0.04, slopes, gamma)
    assert (after[1:] > after[:-1]).all()


@pytest.mark.parametrize("mean", [False, True])
def test_only_the_sum_form_is_a_variance_per_weight(mean):
    """As h grows the fixed point of the sum form is ||W||^2 / n, and that of the mean form ||W||^2."""
    n, h = 300, 1e9
    w = torch.full((n,), 0.02, dtype=DOUBLE)
    groups, gamma = [torch.zeros(1, dtype=torch.long)], torch.ones(1, dtype=DOUBLE)
    for _ in range(200):
        slopes = fg.group_slopes(gamma, torch.full((n,), h, dtype=DOUBLE), groups)
        slopes = slopes / fg.group_sizes(w, groups, 1) if mean else slopes
        gamma = fg.group_update(w.norm().view(1), slopes, gamma)
    assert float(gamma) == pytest.approx(float(w.square().sum()) / (1 if mean else n), rel=1e-4)


def test_the_proximal_step_is_the_group_soft_threshold():
    w = torch.tensor([3.0, 4.0, 0.3, 0.4, 0.0], dtype=DOUBLE)
    groups = [torch.tensor([0, 0, 1, 1, 2])]
    factors = fg.shrink(fg.group_squares(w, groups, 3).sqrt(), torch.tensor([4.0, 4.0, 4.0], dtype=DOUBLE), 0.5)
    torch.testing.assert_close(factors, torch.tensor([0.8, 0.0, 0.0], dtype=DOUBLE))
    moved = w * factors[groups[0]]

    def objective(v):
        return 0.5 * (v - w[:2]).square().sum() + 0.5 * 2.0 * v.norm()

    around = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = moved[:2] + 0.1 * torch.randn(2, dtype=DOUBLE, generator=around)
        assert objective(moved[:2]) <= objective(other)


def test_dead_groups_stay_dead_and_nothing_is_not_a_number():
    gamma = torch.tensor([0.0, 0.3], dtype=torch.float32)
    groups = list(torch.tensor([[0, 1], [1, 1]]).T)
    slopes = fg.group_slopes(gamma, torch.tensor([1e30, 0.0]), groups)
    assert torch.isfinite(slopes).all()
    assert torch.isfinite(fg.group_update(torch.zeros(2), slopes, gamma)).all()
    assert fg.shrink(torch.zeros(2), torch.ones(2), 0.1).tolist() == [0.0, 0.0]


def test_every_type_of_group_on_a_convolution_is_the_sum_over_its_weights():
    """All types at once, against a loop over all weights; how many groups of a type there are is counted by hand."""
    o, i, k, groups, count = 3, 2, 2, [], 0
    for kind in fg.GROUP_TYPES:
        groups.append(fg.group_index(kind, (o, i, k, k), count))
        assert int(groups[-1].min()) == count
        count += groups[-1].numel()
    many = [o, i, i * k * k, o * i, o * i * k, o * i * k, o * i * k * k]
    assert [index.numel() for index in groups] == many
    place = dict(zip(fg.GROUP_TYPES, groups, strict=True))
    together = [(1, 0, 1, 1), (1, 1, 0, 1)]  # same filter, another channel; same row, another column, and so on
    assert len({int(place["filters"].expand(o, i, k, k)[at]) for at in together}) == 1
    assert len({int(place["kernel-rows"].expand(o, i, k, k)[1, 0, 1, b]) for b in range(k)}) == 1
    assert len({int(place["kernel-columns"].expand(o, i, k, k)[1, 0, a, 1]) for a in range(k)}) == 1
    assert len({int(place["shapes"].expand(o, i, k, k)[f, 1, 0, 1]) for f in range(o)}) == 1
    generator = torch.Generator().manual_seed(0)
    gamma = torch.rand(count, dtype=DOUBLE, generator=generator) + 0.1
    w, h = (torch.rand(o, i, k, k, dtype=DOUBLE, generator=generator) for _ in range(2))
    slopes, squares = torch.zeros(count, dtype=DOUBLE), torch.zeros(count, dtype=DOUBLE)
    for a, b, c, d in itertools.product(range(o), range(i), range(k), range(k)):
        mine = [int(index.expand(o, i, k, k)[a, b, c, d]) for index in groups]
        s = 1 / sum(1 / float(gamma[g]) for g in mine)
        for g in mine:
            slopes[g] += (s - 1 / (1 / s + float(h[a, b, c, d]))) / float(gamma[g]) ** 2
            squares[g] += w[a, b, c, d] ** 2
    torch.testing.assert_close(fg.group_slopes(gamma, h, groups), slopes, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(fg.group_squares(w, groups, count), squares, rtol=1e-12, atol=1e-12)


def test_a_linear_layer_has_rows_columns_and_single_weights():
    shapes = {kind: tuple(fg.group_index(kind, (4, 5)).shape) for kind in fg.GROUP_TYPES}
    single = dict.fromkeys(("kernels", "kernel-rows", "kernel-columns", "weights"), (4, 5))
    assert shapes == {"filters": (4, 1), "channels": (1, 5), "shapes": (1, 5), **single}


@pytest.mark.parametrize(
    ("h", "norm2", "n"), [(100.0, 1.0, 5), (1.0, 3.0, 5), (0.5, 40.0, 4), (2.0, 2.0, 8), (50.0, 0.01, 1)]
)
def test_the_quadratic_model_ends_at_the_fixed_point(h, norm2, n):
    """A group alone: gamma = max(0, ||W||^2 / n - 1 / h), and it dies where its saliency is below 1."""
    weights = [torch.full((n,), math.sqrt(norm2 / n), dtype=DOUBLE)]
    curved, groups = [torch.full((n,), h, dtype=DOUBLE)], [[torch.zeros(1, dtype=torch.long)]]
    gamma, left = fg.quadratic_optimum(weights, curved, groups, torch.tensor([True]), rounds=500, inner=3)
    expected = float(fg.group_fixed_point(torch.tensor(norm2, dtype=DOUBLE), torch.tensor(h, dtype=DOUBLE), n))
    assert float(gamma) == pytest.approx(expected, rel=1e-3, abs=2e-3)
    dies = float(fg.saliency(weights, curved, groups, 1)) < 1
    assert dies == (expected == 0)
    assert (float(left) < 0.01) == dies


def test_the_quadratic_model_with_overlapping_groups_agrees_with_small_steps():
    """Against the same bound descended by single updates with the weights' part solved to convergence."""
    gamma, h, groups = random_case(2, e=60, g=8, t=2)
    h = h * 4 + 0.1
    best = torch.randn(len(h), dtype=DOUBLE, generator=torch.Generator().manual_seed(1)) * 0.3
    found, left = fg.quadratic_optimum([best], [h], [groups], torch.ones(8, dtype=torch.bool), rounds=600)
    gamma, w = torch.full((8,), 0.1, dtype=DOUBLE), best
    for _ in range(600):
        slopes = fg.group_slopes(gamma, h, groups)
        for _ in range(20):
            norms = fg.group_squares(w, groups, 8).sqrt().clamp(min=1e-12)
            w = h * best / (h + sum((slopes.sqrt() / norms)[index] for index in groups))
        gamma = fg.group_update(fg.group_squares(w, groups, 8).sqrt(), slopes, gamma)
    # a group that others explain has no precision of its own, and its gamma grows without end: s is what is compared
    assert float(found.max()) > 500
    s, expected = fg.combined_variance(found, groups), fg.combined_variance(gamma, groups)
    torch.testing.assert_close(s, expected, rtol=2e-2, atol=1e-4)
    kept = fg.group_squares(w, groups, 8) / fg.group_squares(best, groups, 8)
    torch.testing.assert_close(left, kept, atol=1e-2, rtol=0)


def test_a_weight_that_counts_three_times_is_three_copies_that_share_its_curvature():
    """Naive: the tensor repeated, each copy with a third of the curvature. Its groups reach over another tensor too."""
    generator = torch.Generator().manual_seed(3)
    w, v = (0.2 * torch.randn(*shape, dtype=DOUBLE, generator=generator) for shape in ((6, 4), (5, 6)))
    h, k = (30 * torch.rand(*t.shape, dtype=DOUBLE, generator=generator) for t in (w, v))
    mine = [torch.arange(6).view(6, 1), 6 + torch.arange(4).view(1, 4)]
    other = [torch.arange(6).view(1, 6)]
    free = torch.ones(10, dtype=torch.bool)
    found = fg.quadratic_optimum([w, v], [h, k], [mine, other], free, counts=[3.0, 1.0])
    copies = fg.quadratic_optimum([w, w, w, v], [h / 3, h / 3, h / 3, k], [mine, mine, mine, other], free)
    for one, three in zip(found, copies, strict=True):
        torch.testing.assert_close(one, three, rtol=1e-9, atol=1e-12)
    assert 0 < int((found[1] < 0.01).sum()) < 10
    torch.testing.assert_close(
        fg.saliency([w, v], [h, k], [mine, other], 10, [3.0, 1.0]),
        fg.saliency([w, w, w, v], [h / 3, h / 3, h / 3, k], [mine, mine, mine, other], 10),
        check_dtype=False,
    )


@pytest.mark.parametrize(("h", "w2", "c"), [(50.0, 0.4, 4.0), (50.0, 0.06, 4.0), (3.0, 0.5, 0.5), (3.0, 0.1, 0.5)])
def test_a_group_dies_where_its_curvature_pays_for_less_than_its_uses(h, w2, c):
    weights, curved = [torch.full((3,), math.sqrt(w2), dtype=DOUBLE)], [torch.full((3,), h, dtype=DOUBLE)]
    groups, free = [[torch.zeros(1, dtype=torch.long)]], torch.tensor([True])
    _, left = fg.quadratic_optimum(weights, curved, groups, free, counts=[c], rounds=300)
    assert bool(left < 0.01) == (h * w2 < c)


def test_groups_that_may_not_die_are_left_as_they_are():
    weights, h = [torch.full((3,), 1e-3, dtype=DOUBLE)], [torch.full((3,), 1e-3, dtype=DOUBLE)]
    gamma, left = fg.quadratic_optimum(weights, h, [[torch.tensor([0, 0, 1])]], torch.tensor([False, True]))
    assert float(left[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(left[1]) < 1e-3
    assert float(gamma[0]) == 1e10
