"""How a network is made smaller: which units leave in a round, by which rule; knows no file and no command line."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.data import Split
from bayesarch.engine.masks import UnitMasks
from bayesarch.engine.pressure import Pressure
from bayesarch.engine.relevance import Relevance
from bayesarch.engine.switches import Switches, switch_curvature
from bayesarch.engine.weight_curvature import weight_curvature
from bayesarch.errors import ConfigError
from bayesarch.nets.coupling import Units

__all__ = ["RULES", "Asked", "Cut", "Rule", "ShrinkConfig", "Verdict", "cut_of_round", "pressure_of_round"]

TOO_MUCH = 1e6
"""How much larger than asked lambda may become in one round, in the search for somebody who is dead."""
LEFT = 0.01
"""A group is dead where the evidence leaves less than this part of its squared norm."""


class ShrinkConfig(Config):
    """How a network is made smaller."""

    method: str = "bernoulli"
    """bernoulli (PGNAS's masks, on units); evidence (BayesNAS's, of weights); switches (BayesNAS's, of units); or a
    baseline: magnitude, random, group-lasso."""
    rounds: int = Field(default=80, ge=1)
    """Cap on rounds of cutting and training."""
    also: tuple[
        Literal["filters", "channels", "shapes", "kernels", "kernel-rows", "kernel-columns", "weights"], ...
    ] = ()
    """Further groups, of the weights of units that stay: they go to zero for good, which makes no tensor smaller
    (evidence)."""
    at_most: float = Field(default=0.1, gt=0, lt=1)
    """Largest share of the units (and of further groups) that leaves in one round: each is judged as if the others
    stayed."""
    lam: float = Field(default=0.01, gt=0)
    """First weight of the prior, in units of 1 / n: 1 is the evidence of the n training examples."""
    growth: float = Field(default=1.3, gt=1)
    """By how much it grows when a round has cut all that were dead."""
    price: Literal["auto", "weights", "macs"] = "auto"
    """What the prior charges for: weights, or MACs (a weight as often as it is used on one image); auto: MACs where a
    limit is on MACs or latency."""
    penalty: bool = True
    """Whether the training between two cuts pays the penalty that the evidence makes."""
    penalty_share: float = Field(default=0.7, ge=0, le=1)
    """Part of that training that pays it: the rest lets what is left settle, so that the next cut sees an optimum."""
    form: Literal["sum", "mean"] = "sum"
    """Slopes of a group: summed, or divided by its size (not derived; as a public code has it)."""
    mask_lr: float = Field(default=0.1, gt=0)
    """Step on the masks' logits (bernoulli)."""
    mask_tau: float = Field(default=0.2, gt=0)
    """Temperature of the masks' draws (bernoulli)."""
    inputs: bool = False
    """Whether the network's inputs may leave too."""
    curvature: Literal["exact", "mc"] = "mc"
    """Curvature in the weights: exact (a backward pass per class), or by labels drawn from the model."""
    draws: int = Field(default=1, ge=1)
    """Labels drawn for each example (mc)."""
    curvature_examples: int = Field(default=8000, ge=1)
    """Examples that the curvature is averaged over."""


@dataclass
class Cut:
    """What leaves in a round.

    Attributes:
        keep: all but those that leave, bool, shape (U,).
        dead: how many the rule would have let go.
        lam: weight of the prior that was asked for, in units of 1 / n.
        pays: weight of the prior that training goes by.
        spent: whether all of them have left, so that the next round may ask for more.
        zeros: which weights of a tensor stay, bool, by parameter name, where other groups than units leave.
    """

    keep: Tensor
    dead: int
    lam: float
    pays: float
    spent: bool
    zeros: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a rule says.

    Attributes:
        dead: which units it would let go, bool, shape (U,).
        order: whom first: the lowest, shape (U,).
        lam: weight of the prior that was asked for, in units of 1 / n.
        pays: weight of the prior that training goes by; None: the same.
        zeros: as in `Cut`.
        spent: whether all other groups that are dead are in `zeros`.
    """

    dead: Tensor
    order: Tensor
    lam: float
    pays: float | None = None
    zeros: Mapping[str, Tensor] = field(default_factory=dict)
    spent: bool = True


@dataclass(frozen=True)
class Asked:
    """What a rule is told beside the network and its units.

    Attributes:
        split: examples for the curvature, without augmentation.
        config: how.
        lam: weight of the prior, in units of 1 / n.
        stream: what is drawn is drawn from it.
        known: drop logits that the training before has learned, shape (U,); None where it learned none.
        enough: (units that leave, bool, shape (U,)) -> whether the limits on cost are kept without them.
    """

    split: Split
    config: ShrinkConfig
    lam: float
    stream: torch.Generator
    known: Tensor | None = None
    enough: Callable[[Tensor], bool] = lambda gone: False

    @property
    def each(self) -> float:
        """Weight of the prior beside the mean loss."""
        return self.lam / len(self.split)

    def relevance(self, net: nn.Module, units: Units, free: Tensor, lam: float) -> Relevance:
        """Return the priors that the settings ask for, at some lambda."""
        config, each = self.config, lam / len(self.split)
        return Relevance(net, units, free, each, config.form, config.also, uses=config.price == "macs")

    def curvature(self, net: nn.Module) -> dict[str, Tensor]:
        """Return the curvature in the weights that the settings ask for, by parameter name."""
        return weight_curvature(net, self.split, **self._looking())

    def switches(self, net: nn.Module, units: Units) -> Tensor:
        """Return the curvature in the units' switches that they ask for, shape (U,)."""
        return switch_curvature(net, units, self.split, **self._looking())

    def _looking(self) -> dict[str, Any]:
        config = self.config
        return {"mode": config.curvature, "draws": config.draws, "limit": config.curvature_examples,
                "generator": self.stream}  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """Which units leave, and what the training until the next cut pays.

    Attributes:
        leaves: (network, units, which may leave, asked) -> what it says of them.
        pays: the same -> what training pays; None: nothing.
        by_training: whether nobody is dead unless training has paid.
        groups: whether it judges other groups than units.
    """

    leaves: Callable[[nn.Module, Units, Tensor, Asked], Verdict]
    pays: Callable[[nn.Module, Units, Tensor, Asked], Pressure | None] = lambda net, units, free, asked: None
    by_training: bool = False
    groups: bool = False


def _allowed(share: float, of: int) -> int:
    """Return how many may leave in a round: a share, one at least."""
    return max(1, int(share * of))


def _weakest(dead: Tensor, order: Tensor, share: float, of: int) -> tuple[Tensor, int]:
    """Return which of the dead leave in this round, bool, and how many are dead.

    Args:
        dead: bool, shape (N,).
        order: whom first: the lowest, shape (N,).
        share: largest part that leaves, one at least.
        of: of how many.
    """
    leaving, gone = dead.nonzero().flatten(), torch.zeros_like(dead)
    gone[leaving[order[leaving].argsort()][: _allowed(share, of)]] = True
    return gone, len(leaving)


def _as_few(gone: Tensor, order: Tensor, enough: Callable[[Tensor], bool]) -> Tensor:
    """Return the first of those that leave, as few as are enough; all where all are not.

    Args:
        gone: which would leave, bool, shape (U,).
        order: whom first: the lowest, shape (U,).
        enough: as in `Asked`; the more leave, the sooner it is so.
    """
    leaving = gone.nonzero().flatten()
    leaving = leaving[order[leaving].argsort()]

    def first(many: int) -> Tensor:
        chosen = torch.zeros_like(gone)
        chosen[leaving[:many]] = True
        return chosen

    return first(bisect_left(range(len(leaving)), True, key=lambda many: enough(first(many))))


def _grown(asked: Asked, anybody: Callable[[float], bool]) -> float:
    """Return lambda, grown to where somebody is dead: nothing is learned by training the same network again."""
    lam = asked.lam
    while not anybody(lam) and lam <= TOO_MUCH * asked.lam:
        lam *= asked.config.growth
    return lam


def _fallen(lam: float, asked: Asked, free: Tensor, dead: Callable[[float], int]) -> float:
    """Return the lambda that training goes by: where no more are dead than may leave, though not below its first value.

    The penalty presses on all who are dead, and a network that it has harmed asks for more deaths still.
    """
    config, many = asked.config, dead(lam)
    while many > _allowed(config.at_most, int(free.sum())) and lam > config.lam:
        lower = max(lam / config.growth, config.lam)
        many = dead(lower)
        lam = lower if many else lam
    return lam


def _evidence(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """The evidence in the quadratic model of the loss: dead where its optimum leaves nothing of a group."""
    curvature, config = asked.curvature(net), asked.config

    @cache
    def judged(lam: float) -> tuple[Relevance, Tensor, Tensor, Tensor]:
        relevance = asked.relevance(net, units, free, lam)
        left, order = relevance.settle(curvature)
        may = relevance.free.cpu() & (relevance.norms() > 0).cpu()
        may[: units.count] = free
        return relevance, (left < LEFT) & may, order, may

    def many(lam: float) -> int:
        return int(judged(lam)[1][: units.count].sum())

    high = _grown(asked, lambda lam: bool(judged(lam)[1].any()) or not bool(judged(lam)[3].any()))
    relevance, dead, order, may = judged(high)
    mine = torch.arange(len(dead)) < units.count
    gone, others = _weakest(dead & ~mine, order, config.at_most, int((may & ~mine).sum()))
    zeros, spent = relevance.staying(gone), others == int(gone.sum())
    return Verdict(dead[mine], order[mine], high, _fallen(high, asked, free, many), zeros, spent)


def _settled(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Pressure:
    """The penalty that the evidence makes."""
    relevance = asked.relevance(net, units, free, asked.lam)
    relevance.settle(asked.curvature(net))
    return relevance


def _switched(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """The evidence of switches: dead where the loss curves less in one than its unit is charged for."""
    counts = asked.relevance(net, units, free, asked.lam).sizes
    worth = (asked.switches(net, units) * len(asked.split) / counts.clamp(min=1e-12)).cpu()  # the lambda it dies at

    def dead(lam: float) -> Tensor:
        return (worth < lam) & free

    high = _grown(asked, lambda lam: bool(dead(lam).any()) or not bool(free.any()))
    return Verdict(dead(high), worth, high, _fallen(high, asked, free, lambda lam: int(dead(lam).sum())))


def _pull(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Pressure:
    """The penalty on switches."""
    counts = asked.relevance(net, units, free, asked.lam).sizes
    return Switches(net, units, asked.switches(net, units) / asked.each, counts, free, asked.each)


def _magnitude(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """Mean squares of the weights: as many leave as may in a round."""
    relevance = Relevance(net, units, free, 1.0)
    mean = relevance.norms().square() / relevance.sizes.clamp(min=1)
    return Verdict(torch.ones_like(free), mean.cpu(), asked.lam)


def _random(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """Any: as many leave as may in a round."""
    order = torch.rand(units.count, generator=asked.stream, device=asked.stream.device).cpu()
    return Verdict(torch.ones_like(free), order, asked.lam)


def _group_lasso(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """Units that the penalty has brought to zero."""
    norms = Relevance(net, units, free, asked.each).norms().cpu()
    return Verdict(norms == 0, norms, asked.lam)


def _sizes(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Pressure:
    """A penalty on every unit's norm, as heavy as it has weights."""
    relevance = Relevance(net, units, free, asked.each, asked.config.form)
    relevance.slopes = torch.where(relevance.free, relevance.sizes, torch.zeros_like(relevance.sizes))
    return relevance


def _unlikely(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Verdict:
    """Units that the masks of the training before drop more often than not."""
    if asked.known is None:
        return Verdict(torch.zeros_like(free), torch.zeros(units.count), asked.lam)
    return Verdict(asked.known > 0, -asked.known, asked.lam)


def _masks(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Pressure:
    """Masks to be learned with the weights."""
    config = asked.config
    prior = 0.5 * asked.lam * asked.relevance(net, units, free, asked.lam).sizes
    return UnitMasks(net, units, free, prior, len(asked.split), asked.known, lr=config.mask_lr, tau=config.mask_tau)


RULES: dict[str, Rule] = {
    "evidence": Rule(_evidence, _settled, groups=True),
    "switches": Rule(_switched, _pull),
    "bernoulli": Rule(_unlikely, _masks, by_training=True),
    "magnitude": Rule(_magnitude),
    "random": Rule(_random),
    "group-lasso": Rule(_group_lasso, _sizes, by_training=True),
}
"""Ways of making a network smaller, by name. To add one, add a line."""


def cut_of_round(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Cut:
    """Return which units leave now.

    Args:
        net: the network as it is.
        units: its units.
        free: which are there and may leave, bool, shape (U,).
        asked: by which rule, on which examples, how strongly.

    Raises:
        ConfigError: if no rule has the name in the settings.
    """
    config = asked.config
    if config.method not in RULES:
        raise ConfigError(f"compress.method: no rule {config.method!r}; there are {', '.join(RULES)}")
    may = free & units.present()
    said = RULES[config.method].leaves(net, units, may, asked)
    gone, dead = _weakest(said.dead & may, said.order, config.at_most, int(may.sum()))
    gone = _as_few(gone, said.order, asked.enough)
    pays = said.lam if said.pays is None else said.pays
    return Cut(~gone, dead, said.lam, pays, said.spent and dead == int(gone.sum()), said.zeros)


def pressure_of_round(net: nn.Module, units: Units, free: Tensor, asked: Asked) -> Pressure | None:
    """Return what training pays until the next cut; None: nothing. Arguments as in `cut_of_round`."""
    if not asked.config.penalty:
        return None
    return RULES[asked.config.method].pays(net, units, free & units.present(), asked)
