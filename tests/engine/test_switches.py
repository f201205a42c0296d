"""Switches of units: their curvature against autograd, what dies, what the penalty presses on."""

import pytest
import torch
from test_relevance import Split, hidden, of, perceptron
from torch import nn

from bayesarch.engine import Asked, ShrinkConfig, Switches, cut_of_round, pressure_of_round, switch_curvature
from bayesarch.functional import groups as fg
from bayesarch.functional import seeded
from bayesarch.nets import units_of

DOUBLE = torch.float64


@pytest.fixture
def net():
    return perceptron()


def of_all_together(net, images, moved):
    """Mean over examples of v' J' (diag p - p p') J v, naive: J of the logits in a parameter, v what moves."""
    name, direction = moved
    total = 0.0
    for image in images:

        def logits(t, image=image):
            changed = {name: net.get_parameter(name).detach() + t * direction}
            return torch.func.functional_call(net, changed, (image[None],))[0]

        slope = torch.autograd.functional.jacobian(logits, torch.zeros((), dtype=DOUBLE))
        p = logits(torch.zeros((), dtype=DOUBLE)).detach().softmax(0)
        total += float((p * slope.square()).sum() - (p * slope).sum() ** 2)
    return total / len(images)


def test_a_switch_curves_as_all_the_weights_that_read_its_unit_moved_together(net):
    units, data = units_of(net, (1, 8, 8)), Split()
    h = switch_curvature(net, units, data)
    for layer, place in ((3, 2), (3, 7), (5, 0), (5, 4)):
        unit = of(units, f"{layer}.weight", 1)[place]
        direction = torch.zeros_like(net[layer].weight)
        direction[:, place] = net[layer].weight.detach()[:, place]
        expected = of_all_together(net, data.images, (f"{layer}.weight", direction))
        assert float(h[unit]) == pytest.approx(expected, rel=1e-9, abs=1e-15)
    assert net.training
    torch.testing.assert_close(h, switch_curvature(net, units, data, batch_size=3), rtol=1e-12, atol=0)


def test_a_switch_is_on_all_that_reads_a_unit_even_twice_and_in_norms_and_sums():
    """A residual network whose convolution is used twice: against a network with the gate written into it."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
            self.norm, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

        def forward(self, x, gate=None):
            gate = torch.ones(1, 3, 1, 1, dtype=x.dtype) if gate is None else gate
            h = self.first(x)
            h = h + self.norm(self.again(gate * h))
            h = h + self.norm(self.again(gate * h))
            return self.head((gate * h).mean((2, 3)))

    with seeded(torch.Generator().manual_seed(4)):
        net = Twice().double().eval()
    data = Split()
    units = units_of(net, (1, 8, 8))
    h = switch_curvature(net.train(), units, data)  # whose norms are looked at as they answer, not as they train
    assert not any(module._forward_pre_hooks for module in net.modules())
    net.eval()
    places = of(units, "head.weight", 1)
    expected = torch.zeros(3, dtype=DOUBLE)
    for image in data.images:
        one = torch.ones(1, 3, 1, 1, dtype=DOUBLE)
        slope = torch.autograd.functional.jacobian(lambda gate, image=image: net(image[None], gate)[0], one).view(3, 3)
        p = net(image[None])[0].detach().softmax(0)
        expected += torch.einsum("k,kp->p", p, slope.square()) - torch.einsum("k,kp->p", p, slope).square()
    torch.testing.assert_close(h[places], expected / len(data.images), rtol=1e-9, atol=1e-15)


def test_labels_drawn_from_the_model_give_it_on_average(net):
    units = units_of(net, (1, 8, 8))
    exact = switch_curvature(net, units, Split())
    drawn = switch_curvature(net, units, Split(), mode="mc", draws=3000, generator=torch.Generator().manual_seed(0))
    free = hidden(units)
    assert float(drawn[free].sum()) == pytest.approx(float(exact[free].sum()), rel=0.05)
    strong = free & (exact > exact[free].median())
    assert (drawn[strong] / exact[strong]).tolist() == pytest.approx([1.0] * int(strong.sum()), rel=0.15)


@pytest.mark.parametrize(("h", "c"), [(8.0, 2.0), (2.5, 2.0), (1.0, 2.0), (0.0, 2.0), (30.0, 0.5), (0.3, 0.5)])
def test_the_slope_is_that_of_as_many_tied_copies_as_are_charged_for(h, c):
    h, c = torch.tensor([h], dtype=DOUBLE), torch.tensor([c], dtype=DOUBLE)
    gamma = fg.group_fixed_point(c, h / c, float(c))  # squares of c copies at 1, each with its share of the curvature
    assert torch.equal(gamma, (1 - c / h).clamp(min=0))
    alpha = c * fg.group_slopes(gamma.clamp(min=1e-12), h / c, [torch.zeros(1, dtype=torch.long)])
    torch.testing.assert_close(fg.switch_slope(h, c), (alpha * c).sqrt(), rtol=1e-6, atol=1e-9)
    groups, free = [[torch.zeros(1, dtype=torch.long)]], torch.tensor([True])
    _, left = fg.quadratic_optimum([torch.ones(1, dtype=DOUBLE)], [h], groups, free, counts=[float(c)], rounds=400)
    assert bool(left < 0.01) == bool(h < c)


def test_units_die_where_the_loss_curves_less_than_they_are_charged_for(net):
    units, free = units_of(net, (1, 8, 8)), hidden(units_of(net, (1, 8, 8)))
    sizes = {
        **dict.fromkeys(of(units, "1.weight", 0).tolist(), 71),
        **dict.fromkeys(of(units, "3.weight", 0).tolist(), 12),
    }
    h = switch_curvature(net, units, Split())
    worth = {u: float(h[u]) * len(Split()) / n for u, n in sizes.items()}
    lam = sorted(worth.values())[5] * 1.0001
    config = ShrinkConfig(method="switches", curvature="exact", at_most=0.9, lam=lam)
    made = cut_of_round(net, units, free, Asked(Split(), config, lam, torch.Generator()))
    gone = (~made.keep).nonzero().flatten().tolist()
    assert gone == sorted(u for u in worth if worth[u] < lam)
    assert (made.dead, made.lam, made.pays, made.spent) == (6, lam, lam, True)
    few = config.model_copy(update={"at_most": 0.2, "lam": 1e-12, "growth": 1.1})
    made = cut_of_round(net, units, free, Asked(Split(), few, lam, torch.Generator()))
    assert (~made.keep).nonzero().flatten().tolist() == sorted(sorted(worth, key=worth.get)[:2])
    assert made.lam == lam
    assert sum(w < made.pays for w in worth.values()) <= 2 < sum(w < 1.1 * made.pays for w in worth.values())
    first = few.model_copy(update={"lam": lam / 1.05})  # one step would lead below it
    assert cut_of_round(net, units, free, Asked(Split(), first, lam, torch.Generator())).pays == lam / 1.05
    low = 0.3 * min(worth.values())
    grown = cut_of_round(net, units, free, Asked(Split(), few, low, torch.Generator()))
    assert sum(w < grown.lam for w in worth.values()) >= 1 > sum(w < grown.lam / 1.1 for w in worth.values())


def test_the_penalty_presses_on_what_reads_a_unit_and_on_nothing_else(net):
    units, free = units_of(net, (1, 8, 8)), hidden(units_of(net, (1, 8, 8)))
    config = ShrinkConfig(method="switches", curvature="exact")
    asked = Asked(Split(), config, 0.4, torch.Generator())
    made = pressure_of_round(net, units, free, asked)
    assert isinstance(made, Switches)
    each = 0.4 / len(Split())
    h, before = switch_curvature(net, units, Split()), {n: p.detach().clone() for n, p in net.named_parameters()}
    made.step(0.3)
    counts = {1: 0, 3: 71, 5: 12}
    for layer in (1, 3, 5):
        c, own = counts[layer], h[of(units, f"{layer}.weight", 1)]
        slope = each * torch.sqrt(c * torch.minimum(torch.full_like(own, c), own / each))
        expected = before[f"{layer}.weight"] * (1 - 0.3 * slope)
        torch.testing.assert_close(net[layer].weight.detach(), expected)
        assert torch.equal(net[layer].bias.detach(), before[f"{layer}.bias"])
    made.step(1e9)
    assert not (net[5].weight[:, own > 0] != 0).any()
