"""The penalty of units: what a step takes away, what may not leave, and the rules that let units go."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from test_curvature import Images
from torch import nn

from bayesarch.engine import RULES, Asked, Relevance, ShrinkConfig, cut_of_round, pressure_of_round, weight_curvature
from bayesarch.errors import ConfigError
from bayesarch.functional import seeded
from bayesarch.functional.groups import combined_variance
from bayesarch.nets import units_of


class Split(Images):
    def __len__(self):
        return len(self.labels)


def perceptron():
    with seeded(torch.Generator().manual_seed(0)):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)
        ).double()


@pytest.fixture
def net():
    return perceptron()


@pytest.fixture
def units(net):
    return units_of(net, (1, 8, 8))


def hidden(units):
    free = units.free.clone()
    free[units.inputs] = False
    return free


def of(units, name, dim):
    return next(axis.units for axis in units.axes if (axis.name, axis.dim) == (name, dim))


def test_norms_count_every_weight_of_a_unit_wherever_it_is(net, units):
    relevance = Relevance(net, units, hidden(units), 0.1)
    norms, sizes = relevance.norms(), relevance.sizes
    for i, unit in enumerate(of(units, "1.weight", 0).tolist()):
        parts = torch.cat([net[1].weight[i], net[1].bias[i : i + 1], net[3].weight[:, i]]).detach()
        assert float(norms[unit]) == pytest.approx(float(parts.norm()))
        assert int(sizes[unit]) == len(parts) == 64 + 1 + 6


def test_a_proximal_step_shrinks_each_unit_and_leaves_what_may_not_leave(net, units):
    relevance = Relevance(net, units, hidden(units), 0.5)
    before, other = relevance.norms().clone(), copy.deepcopy(net)
    first = of(units, "1.weight", 0)
    relevance.slopes[first[0]] = 1e9
    relevance.slopes[first[1]] = 0.04
    relevance.shrink(0.1)
    after = relevance.norms()
    assert float(after[first[0]]) == 0
    assert float(after[first[1]]) == pytest.approx(float(before[first[1]]) - 0.1 * 0.5 * 0.2)
    assert torch.equal(net[5].bias, other[5].bias)
    assert torch.equal(net[1].weight[2:], other[1].weight[2:])


def test_the_evidence_lets_units_go_that_the_loss_does_not_need_and_no_others(net, units):
    """Two units that nothing reads, one that is not read at all; lambda so small that the others stay."""
    with torch.no_grad():
        net[3].weight[:, :2] = 1e-7
        net[5].weight[:, 4] = 0
    relevance = Relevance(net, units, hidden(units), 1e-7)
    left, saliency = relevance.settle(weight_curvature(net, Split()))
    gone = left < 0.01
    first, second = of(units, "1.weight", 0), of(units, "3.weight", 0)
    assert gone[first[:2]].all()
    assert gone[second[4]]
    alive = [*first[2:].tolist(), *second[[0, 1, 2, 3, 5]].tolist()]
    strong = [u for u in alive if saliency[u] > 100]
    assert len(strong) >= 6
    assert not gone[strong].any()
    assert not gone[~hidden(units)].any()


def test_more_lambda_lets_more_go(net, units):
    counts = []
    for lam in (1e-6, 1e-4, 1e-2, 1.0):
        left, _ = Relevance(net, units, hidden(units), lam).settle(weight_curvature(net, Split()))
        counts.append(int((left < 0.01).sum()))
    assert counts == sorted(counts)
    assert counts[-1] == int(hidden(units).sum())
    assert counts[0] < counts[-1]


def cut(net, units, seed=0, known=None, **settings):
    config = ShrinkConfig(**{"method": "evidence", "curvature": "exact", "lam": 1e6, **settings})
    stream = torch.Generator().manual_seed(seed)
    return cut_of_round(net, units, hidden(units), Asked(Split(), config, 1e6, stream, known))


@pytest.mark.parametrize("method", sorted(RULES))
def test_no_rule_cuts_more_than_it_may_or_what_may_not_leave(net, units, method):
    made = cut(net, units, method=method, at_most=0.25)
    gone = ~made.keep
    assert int(gone.sum()) == min(made.dead, int(0.25 * 14))
    assert not (gone & ~hidden(units)).any()
    assert made.spent == (made.dead <= int(0.25 * 14))


def test_the_least_important_leave_first(net, units):
    with torch.no_grad():
        net[1].weight[3] = 0
        net[1].bias[3] = 0
        net[3].weight[:, 3] = 0
    first = of(units, "1.weight", 0)
    for method in ("evidence", "switches", "magnitude", "group-lasso"):
        made = cut(net, units, method=method, at_most=0.08)
        assert (~made.keep).nonzero().flatten().tolist() == [int(first[3])], method


@pytest.mark.parametrize("wanted", [0, 1, 3, 7, 9])
def test_as_few_leave_as_the_limits_ask_for_the_least_important_first(net, units, wanted):
    """Seven may; nine never are enough, so that all seven leave."""
    config = ShrinkConfig(method="magnitude", at_most=0.5)
    asked = Asked(Split(), config, 1.0, torch.Generator(), enough=lambda gone: int(gone.sum()) >= wanted)
    made = cut_of_round(net, units, hidden(units), asked)
    relevance = Relevance(net, units, hidden(units), 1.0)
    mean = relevance.norms().square() / relevance.sizes.clamp(min=1)
    first = [unit for unit in mean.argsort().tolist() if hidden(units)[unit]][: min(wanted, 7)]
    assert (~made.keep).nonzero().flatten().tolist() == sorted(first)
    assert (made.dead, made.spent) == (14, False)


def test_lambda_grows_at_once_until_somebody_is_dead(net, units):
    free, stream = hidden(units), torch.Generator()
    config = ShrinkConfig(method="evidence", curvature="exact", growth=1.5)
    asked = Asked(Split(), config, 1e-9, stream)
    made = cut_of_round(net, units, free, asked)
    assert made.dead > 0
    assert made.lam > 1e-9
    steps = round(math.log(made.lam / 1e-9) / math.log(1.5))
    assert made.lam == pytest.approx(1e-9 * 1.5**steps)
    left, _ = Relevance(net, units, free, made.lam / 1.5 / len(asked.split)).settle(weight_curvature(net, Split()))
    assert not (left < 0.01).any()
    again = cut_of_round(net, units, free, Asked(Split(), config, made.lam, stream))
    assert (again.lam, again.dead) == (made.lam, made.dead)
    gone = cut_of_round(net, units, torch.zeros_like(free), asked)  # nobody may leave, and the search ends
    assert (gone.dead, gone.lam) == (0, 1e-9)


def test_other_groups_go_to_zero_inside_units_that_stay(net, units):
    """Single weights and columns that carry nothing: the evidence names them, the units that hold them stay."""
    with torch.no_grad():
        net[3].weight[2, 5] = 1e-8
        net[5].weight[:, 1] = torch.tensor([1e-8, 1e-8, 1e-8], dtype=torch.float64)
    config = ShrinkConfig(method="evidence", curvature="exact", also=("weights", "channels"), at_most=0.9)
    made = cut_of_round(net, units, hidden(units), Asked(Split(), config, 1e-6, torch.Generator()))
    assert set(made.zeros) == {"1.weight", "3.weight", "5.weight"}
    assert not made.zeros["3.weight"][2, 5]
    assert not made.zeros["5.weight"][:, 1].any()
    for name, h in weight_curvature(net, Split()).items():
        if name in made.zeros:
            needed = h * net.get_parameter(name).square() > 100 * 1e-6 / len(Split())
            assert needed.sum() >= 5
            assert made.zeros[name][needed].all()
    assert made.keep[of(units, "3.weight", 0)[2]]
    assert made.keep[of(units, "1.weight", 0)[5]]


def test_no_more_of_the_other_groups_go_than_may_and_zeros_are_not_counted_again(net, units):
    config = ShrinkConfig(method="evidence", curvature="exact", also=("weights",), at_most=0.1, lam=1e6)
    asked = Asked(Split(), config, 1e6, torch.Generator())
    with torch.no_grad():
        net[1].weight[:, :32] = 0  # 256 of 8 * 64 + 6 * 8 + 3 * 6 = 578
    made = cut_of_round(net, units, hidden(units), asked)
    gone = {name: ~stays for name, stays in made.zeros.items()}
    assert sum(int(g.sum()) for g in gone.values()) == int(0.1 * (578 - 256))
    assert not gone["1.weight"][:, :32].any()
    assert not made.spent
    assert not cut_of_round(net, units, torch.zeros_like(hidden(units)), asked).spent  # nor where no unit may leave
    units_alone = cut(net, units)
    assert units_alone.zeros == {}


def test_the_penalty_falls_on_other_groups_too(net, units):
    relevance = Relevance(net, units, hidden(units), 0.5, also=("filters", "weights"))
    assert relevance.count == units.count + (8 + 6 + 3) + 578
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    first = relevance.within["3.weight"][1]  # single weights of the layer
    relevance.slopes[first[4, 2]] = 0.04
    relevance.slopes[first[1, 1]] = 1e9
    relevance.shrink(0.1)
    changed = (net[3].weight != before["3.weight"]).nonzero().tolist()
    assert changed == [[1, 1], [4, 2]]
    after = net[3].weight.detach()
    assert float(after[1, 1]) == 0
    was = float(before["3.weight"][4, 2])
    assert float(after[4, 2]) == pytest.approx(math.copysign(max(abs(was) - 0.1 * 0.5 * 0.2, 0), was))
    assert torch.equal(net[1].weight, before["1.weight"])


def test_training_goes_by_a_lower_lambda_where_more_are_dead_than_may_leave(net, units):
    config = ShrinkConfig(method="evidence", curvature="exact", growth=1.5, lam=1e-9, at_most=0.2)
    asked = Asked(Split(), config, 1e-2, torch.Generator())
    made = cut_of_round(net, units, hidden(units), asked)
    high = replace(asked, config=config.model_copy(update={"lam": 1e-2}))  # not below its first value
    stays = cut_of_round(net, units, hidden(units), high)
    assert stays.pays == stays.lam == made.lam == 1e-2
    assert torch.equal(stays.keep, made.keep)
    assert made.dead == stays.dead > int(0.2 * 14) == int((~made.keep).sum())

    def dead(lam):
        left, _ = Relevance(net, units, hidden(units), lam / len(Split())).settle(weight_curvature(net, Split()))
        return int((left < 0.01).sum())

    assert 0 < dead(made.pays) <= int(0.2 * 14) < dead(1.5 * made.pays)
    assert not made.spent


def test_the_price_of_a_weight_is_how_often_it_is_used():
    """Two convolutions, the second on a quarter of the places, and a layer that is used once."""
    with seeded(torch.Generator().manual_seed(0)):
        net = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4),
            nn.Flatten(), nn.Linear(64, 3),
        ).double()  # fmt: skip
    units = units_of(net, (1, 8, 8))
    average = (64 * 27 + 16 * 108 + 192) / (27 + 108 + 192)
    used = {"0.weight": 64, "0.bias": 64, "2.weight": 16, "2.bias": 16, "5.weight": 1, "5.bias": 1}
    assert units.uses == pytest.approx({name: times / average for name, times in used.items()})
    free = hidden(units)
    sizes = Relevance(net, units, free, 1.0, uses=True).sizes
    channel, second = of(units, "0.weight", 0)[0], of(units, "2.weight", 0)[0]
    assert float(sizes[channel]) == pytest.approx((64 * 10 + 16 * 36) / average)
    assert float(sizes[second]) == pytest.approx((16 * 28 + 48) / average + 2)  # and its norm, which has no MACs
    assert units.after(~torch.eye(units.count, dtype=torch.bool)[channel]).uses == units.uses
    relevance = Relevance(net, units, free, 0.5, uses=True)
    before, norm = net[2].weight.detach().clone(), float(relevance.norms()[second])
    relevance.slopes[second] = 0.04
    relevance.shrink(0.1)
    factor = 1 - 0.1 * 0.5 * 0.2 * 16 / average / norm
    torch.testing.assert_close(net[2].weight.detach()[0], before[0] * factor)
    assert torch.equal(net[2].weight.detach()[1:], before[1:])


def test_a_price_on_uses_lets_go_of_early_channels_first():
    """Two like layers, the first on sixteen times as many places: at equal saliency a channel of it goes first."""
    with seeded(torch.Generator().manual_seed(0)):
        net = nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(24, 3),
        ).double()  # fmt: skip
    units = units_of(net, (1, 8, 8))
    gone = {}
    for price in ("weights", "macs"):
        config = ShrinkConfig(method="evidence", curvature="exact", price=price, at_most=0.5)
        asked = Asked(Split(), config, 1e-4, torch.Generator())
        left, _ = asked.relevance(net, units, hidden(units), asked.lam).settle(weight_curvature(net, Split()))
        gone[price] = [int((left[of(units, f"{layer}.weight", 0)] < 0.01).sum()) for layer in (0, 3)]
        if price == "macs":  # the penalty's slopes, weight by weight
            relevance = asked.relevance(net, units, hidden(units), asked.lam)
            relevance.settle(h := weight_curvature(net, Split()))
            unit = of(units, "0.weight", 0)[int(relevance.slopes[of(units, "0.weight", 0)].argmax())]
            total = 0.0
            for name, groups in relevance.tensors.items():
                c, s = units.uses.get(name, 1.0), combined_variance(relevance.gamma, groups)
                each = h.get(name, torch.zeros_like(net.get_parameter(name))).detach() / relevance.lam / c
                for index in groups:
                    own = (index == unit).expand_as(each)
                    share = (s / relevance.gamma[unit]).square() * each / (1 + s * each)
                    total += c * float(share[own].sum())
            assert float(relevance.slopes[unit]) == pytest.approx(total)
    assert gone["macs"][0] > gone["weights"][0]
    assert gone["macs"][1] < gone["weights"][1]


def test_masks_let_go_what_they_drop_more_often_than_not_likeliest_first(net, units):
    first = of(units, "1.weight", 0)
    known = torch.full((units.count,), -1.0)
    known[first[:4]] = torch.tensor([0.5, 3.0, 2.0, -0.1])
    known[~hidden(units)] = 9.0
    made = cut(net, units, method="bernoulli", at_most=0.15, known=known)
    assert (~made.keep).nonzero().flatten().tolist() == sorted([int(first[1]), int(first[2])])
    assert (made.dead, made.spent) == (3, False)
    assert cut(net, units, method="bernoulli", at_most=0.5).dead == 0  # where nothing has been learned


def test_random_is_random_and_repeats_itself(net, units):
    picks = [cut(net, units, method="random", seed=seed).keep for seed in (0, 0, 1)]
    assert torch.equal(picks[0], picks[1])
    assert not torch.equal(picks[0], picks[2])


def test_only_rules_with_a_penalty_train_under_one(net, units):
    def made(**settings):
        config = ShrinkConfig(**{"method": "evidence", "curvature": "exact", **settings})
        return pressure_of_round(net, units, hidden(units), Asked(Split(), config, 1.0, torch.Generator()))

    assert made(method="magnitude") is None
    assert made(method="random") is None
    assert made(penalty=False) is None
    lasso = made(method="group-lasso")
    assert torch.equal(lasso.slopes[hidden(units)], lasso.sizes[hidden(units)])
    assert (lasso.slopes[~hidden(units)] == 0).all()
    evidence = made()
    assert (evidence.slopes[~hidden(units)] == 0).all()
    assert (evidence.slopes[hidden(units)] > 0).sum() >= 12  # a unit that no image switches on is flat


def test_an_unknown_rule_is_named(net, units):
    with pytest.raises(ConfigError, match=r"evidnce.*evidence"):
        cut(net, units, method="evidnce")
