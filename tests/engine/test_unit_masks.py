"""Masks on units: a mask at zero is the network without the unit, the prior's cost, what is learned, what is kept."""

import copy
import math

import pytest
import torch
from test_relevance import Split, hidden, of, perceptron
from torch import nn
from torch.distributions import Bernoulli, kl_divergence

from bayesarch.data import SEARCH_SPLITS, DataConfig, load, split, splits_on
from bayesarch.engine import (
    Asked,
    Interrupted,
    Observer,
    PenalisedTrainer,
    Relevance,
    ShrinkConfig,
    TrainConfig,
    UnitMasks,
    pressure_of_round,
)
from bayesarch.functional import Streams, seeded
from bayesarch.functional.bernoulli import deletion_kl, logit_kl
from bayesarch.nets import mask_units, units_of
from bayesarch.nets.classics import CLASSICS
from bayesarch.nets.densenet import DenseNet

SHAPES = {"lenet-300-100": (1, 8, 8), "lenet-5": (1, 16, 16), "mobilenet": (3, 8, 8), "resnet18": (3, 8, 8)}


class Grouped(nn.Sequential):
    """Two groups in the middle, whose channels go in pairs; rows of an image are read one by one."""

    def __init__(self, shape, classes):
        super().__init__(
            nn.Conv2d(shape[0], 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.Flatten(),
            nn.Linear(12 * 16, classes),
        )  # fmt: skip


def network(name):
    with seeded(torch.Generator().manual_seed(1)):
        if name == "grouped":
            return Grouped((3, 8, 8), 4), (3, 8, 8)
        if name == "densenet":
            sizes = {"growth": 3, "blocks": (2, 2), "small_images": True}
            return DenseNet(**sizes, input_shape=(3, 8, 8), classes=4), (3, 8, 8)
        small = {"width": 4} if name in ("resnet18", "mobilenet") else {}
        return CLASSICS[name](SHAPES[name], 4, **small), SHAPES[name]


def odds(net, units, lam):
    """Half of lambda for every weight of a unit."""
    return 0.5 * lam * Relevance(net, units, units.free, 1.0).sizes


@pytest.mark.parametrize("name", [*SHAPES, "densenet", "grouped"])
def test_a_mask_at_zero_is_the_network_without_the_unit(name):
    net, shape = network(name)
    net = net.double().train()
    with torch.no_grad():
        for _ in range(20):  # norms whose statistics are those of features, so that something arrives at the end
            net(torch.randn(8, *shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    net.eval()
    units = units_of(net, shape)
    free = units.free.clone()
    free[units.inputs] = False
    masks = UnitMasks(net, units, free, odds(net, units, 0.1), 100)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    keep = (torch.rand(3, units.count, generator=generator) < 0.6) | ~free
    with torch.no_grad(), masks.gates.at(keep.double()):
        seen = net(images)
    masks.close()
    assert not torch.allclose(seen, net(images))  # and no hook is left
    for i in range(3):
        without = mask_units(copy.deepcopy(net), units, keep[i])
        assert torch.allclose(seen[i], without(images[i : i + 1])[0], atol=1e-9)


def test_the_divergence_is_that_of_two_coins_and_finite_at_any_logit():
    phi = torch.linspace(-8, 8, 33, dtype=torch.float64, requires_grad=True)
    prior = torch.linspace(9, -9, 33, dtype=torch.float64)
    expected = kl_divergence(Bernoulli(logits=phi), Bernoulli(logits=prior))
    assert torch.allclose(logit_kl(phi, prior), expected)
    assert torch.allclose(deletion_kl(phi, 0.8), logit_kl(phi, torch.tensor(math.log(4.0), dtype=torch.float64)))
    (slope,) = torch.autograd.grad(logit_kl(phi, prior).sum(), phi)
    pi = torch.sigmoid(phi.detach())
    assert torch.allclose(slope, pi * (1 - pi) * (phi.detach() - prior))
    extreme = torch.tensor([-1e4, -200.0, 200.0, 1e4], requires_grad=True)
    value = logit_kl(extreme, torch.tensor([1e4, 300.0, -300.0, -1e4]))
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), extreme)[0]).all()


def test_every_example_sees_a_draw_of_its_own_and_what_may_not_leave_stays(net):
    units = units_of(net, (1, 8, 8))
    masks = UnitMasks(net, units, hidden(units), odds(net, units, 0.1), 100, torch.zeros(units.count), tau=0.01)
    with masks.around(400, torch.Generator().manual_seed(0)):
        gates = masks.gates._gates.detach()
    assert gates.shape == (400, units.count)
    assert (gates[:, ~hidden(units)] == 1).all()
    kept = gates[:, hidden(units)]
    assert kept.mean(0) == pytest.approx(0.5, abs=0.12)  # at a logit of 0, each by itself
    assert ((kept < 0.01) | (kept > 0.99)).double().mean() > 0.9
    assert masks.gates._gates is None
    masks.close()


@pytest.fixture
def net():
    return perceptron()


def test_keeping_costs_half_of_lambda_for_every_weight(net):
    units = units_of(net, (1, 8, 8))
    free = hidden(units)
    config, data = ShrinkConfig(method="bernoulli"), Split()
    masks = pressure_of_round(net, units, free, Asked(data, config, 0.03, torch.Generator()))
    first = of(units, "1.weight", 0)
    assert torch.allclose(masks.prior[first], torch.tensor(0.5 * 0.03 * (64 + 1 + 6), dtype=torch.float64))
    phi = masks.phi.detach()
    expected = sum(float(logit_kl(phi[u], masks.prior[u])) for u in free.nonzero().flatten())
    assert float(masks.cost().detach()) == pytest.approx(expected / len(data))
    for _ in range(400):  # nothing but the prior: every free unit ends at its odds
        masks.cost().backward()
        masks.step(0.1)
    assert torch.allclose(masks.phi[free], masks.prior[free], atol=0.05)
    assert (masks.phi[~free] == -3.0).all()
    masks.close()


def test_what_the_loss_needs_stays_and_what_it_does_not_goes(net):
    units, data = units_of(net, (1, 8, 8)), Split()
    first = of(units, "1.weight", 0)
    with torch.no_grad():
        net[1].weight[3:] *= 1e-3  # next to nothing is left of these
        net[1].bias[3:] = 0
        net[1].weight[:3] *= 3
        net[3].weight[:, :3] *= 3
        net[3].weight[:, 3:] *= 1e-3
    masks = UnitMasks(net, units, hidden(units), odds(net, units, 0.02), len(data))
    net.requires_grad_(False)
    batch, stream = next(iter(data.in_order(64))), torch.Generator().manual_seed(0)
    labels = net(batch.images).argmax(1)  # what the network itself says: its large units are needed for it
    for _ in range(300):
        with masks.around(len(labels), stream):
            loss = nn.functional.cross_entropy(20 * net(batch.images), labels)
        (loss + masks.cost()).backward()
        masks.step(0.1)
    masks.close()
    learned = masks.learned()
    assert (learned[first[3:]] > 0).all()
    assert (learned[first[:3]] < 0).any()


def training(folder, stop=lambda: False):
    config, streams = DataConfig(source="digits", limit=400), Streams(0)
    examples = load(config)
    parts = splits_on(examples, split(examples, config), SEARCH_SPLITS, config=config, device=torch.device("cpu"))
    with seeded(torch.Generator().manual_seed(0)):
        net = CLASSICS["lenet-300-100"]((1, 8, 8), 10)
    trainer = PenalisedTrainer(
        net, classes=10, training=parts["weights"], selection=parts["selection"],
        config=TrainConfig(epochs=3, batch_size=32, lr=0.05), streams=streams, checkpoint=folder / "last.safetensors",
        observer=Observer(should_stop=stop),
    )  # fmt: skip
    units = units_of(net, (1, 8, 8))
    trainer.pressure = UnitMasks(net, units, hidden(units), odds(net, units, 0.1), len(parts["weights"]))
    trainer.share = 0.6
    return trainer


def test_a_training_under_masks_goes_on_to_the_bit_and_settles_without(tmp_path):
    whole = training(tmp_path / "a").run()
    learned = whole.pressure.learned()
    assert not any(module._forward_pre_hooks for module in whole.net.modules())
    assert not torch.equal(learned, torch.full_like(learned, -3.0))
    calls = []
    broken = training(tmp_path / "b", lambda: calls.append(1) or len(calls) == 7)
    with pytest.raises(Interrupted):
        broken.run()
    assert broken.place.step > 0
    assert not torch.equal(broken.pressure.learned(), learned)
    gone_on = training(tmp_path / "b").restore().run()
    assert torch.equal(gone_on.pressure.learned(), learned)
    mine, theirs = whole.net.state_dict(), gone_on.net.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    late = training(tmp_path / "c")
    late.place.epoch = 2  # past the share: the masks rest
    late.begin_epoch()
    late._step(late.feeder.next())
    assert (late.pressure.learned() == -3.0).all()


def test_a_step_pays_the_prior_and_sees_the_masks(tmp_path):
    trainer = training(tmp_path)
    batch = trainer.feeder.next()
    with torch.no_grad():
        trainer.pressure.phi.fill_(60.0)  # everything is dropped: the last layer's bias is all that answers
    total, loss = trainer._losses(batch)
    bias = list(trainer.net.parameters())[-1]
    alone = nn.functional.cross_entropy(bias.expand(len(batch.labels), -1), batch.labels)
    assert float(loss.detach()) == pytest.approx(float(alone.detach()), rel=1e-5)
    assert float((total - loss).detach()) == pytest.approx(float(trainer.pressure.cost().detach()), abs=1e-5)
    assert float((total - loss).detach()) > 1e-4


def test_a_unit_that_was_sure_can_change_its_mind(net):
    units = units_of(net, (1, 8, 8))
    known = torch.full((units.count,), -50.0)
    known[0] = 2.0
    masks = UnitMasks(net, units, hidden(units), odds(net, units, 0.1), 40, known)
    assert float(masks.phi.detach()[0]) == 2.0
    assert (masks.phi[1:] == -4.0).all()
