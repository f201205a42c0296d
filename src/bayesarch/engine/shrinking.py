"""How a network is made smaller: which units leave in a round, by which rule; knows no file and no command line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from bayesarch.config import Config
from bayesarch.data import Split
from bayesarch.engine.relevance import Relevance
from bayesarch.engine.weight_curvature import weight_curvature
from bayesarch.errors import ConfigError
from bayesarch.nets.coupling import Units

__all__ = ["RULES", "Cut", "ShrinkConfig", "cut_of_round", "penalised"]

LEFT = 0.01
"""A unit is dead where the evidence leaves less than this part of its squared norm."""


class ShrinkConfig(Config):
    """How a network is made smaller."""

    method: str = "evidence"
    """evidence, or a baseline: magnitude, random, group-lasso."""
    rounds: int = Field(default=80, ge=1)
    """Cap on rounds of cutting and training."""
    at_most: float = Field(default=0.1, gt=0, lt=1)
    """Largest share of the units that leave in one round: each is judged as if the others stayed."""
    lam: float = Field(default=0.01, gt=0)
    """First weight of the prior, in units of 1 / n: 1 is the evidence of the n training examples."""
    growth: float = Field(default=1.3, gt=1)
    """By how much it grows when a round has cut all that were dead."""
    penalty: bool = True
    """Whether the training between two cuts pays the penalty that the evidence makes."""
    penalty_share: float = Field(default=0.7, ge=0, le=1)
    """Part of that training that pays it: the rest lets what is left settle, so that the next cut sees an optimum."""
    form: Literal["sum", "mean"] = "sum"
    """Slopes of a group: summed, or divided by its size (not derived; as a public code has it)."""
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
        lam: weight of the prior, in units of 1 / n; 0 where there is none.
        spent: whether all of them have left, so that the next round may ask for more.
    """

    keep: Tensor
    dead: int
    lam: float
    spent: bool


Rule = Callable[[nn.Module, Units, Tensor, Split, ShrinkConfig, float, torch.Generator], tuple[Tensor, Tensor]]
"""(network, units, which may leave, examples, settings, lambda, stream) -> (which are dead, order: lowest first)."""


def _evidence(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The evidence in the quadratic model of the loss: dead where its optimum leaves nothing of a unit."""
    left, saliency = Relevance(net, units, free, lam, config.form).settle(_looked_at(net, split, config, stream))
    return left < LEFT, saliency


def _magnitude(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Mean squares of the weights: as many leave as may in a round."""
    relevance = Relevance(net, units, free, 1.0)
    return torch.ones_like(free), (relevance.norms().square() / relevance.sizes.clamp(min=1)).cpu()


def _random(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Any: as many leave as may in a round."""
    return torch.ones_like(free), torch.rand(units.count, generator=stream, device=stream.device).cpu()


def _group_lasso(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Units that the penalty has brought to zero."""
    norms = Relevance(net, units, free, lam).norms().cpu()
    return norms == 0, norms


RULES: dict[str, Rule] = {
    "evidence": _evidence,
    "magnitude": _magnitude,
    "random": _random,
    "group-lasso": _group_lasso,
}
"""Which units leave, by name. To add a rule, add a line."""


def _looked_at(net: nn.Module, split: Split, config: ShrinkConfig, stream: torch.Generator) -> dict[str, Tensor]:
    """Return the curvature that the settings ask for."""
    return weight_curvature(
        net, split, mode=config.curvature, draws=config.draws, limit=config.curvature_examples, generator=stream
    )


def cut_of_round(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> Cut:
    """Return which units leave now.

    Args:
        net: the network as it is.
        units: its units.
        free: which are there and may leave, bool, shape (U,).
        split: examples for the curvature, without augmentation.
        config: how.
        lam: weight of the prior, in units of 1 / n.
        stream: what is drawn is drawn from it.

    Raises:
        ConfigError: if no rule has the name in the settings.
    """
    if config.method not in RULES:
        raise ConfigError(f"compress.method: no rule {config.method!r}; there are {', '.join(RULES)}")
    may = free & units.present()
    dead, order = RULES[config.method](net, units, may, split, config, lam / len(split), stream)
    leaving = (dead & may).nonzero().flatten()
    leaving = leaving[order[leaving].argsort()]
    allowed = max(1, int(config.at_most * int(may.sum())))
    keep = torch.ones_like(free)
    keep[leaving[:allowed]] = False
    return Cut(keep, len(leaving), lam, len(leaving) <= allowed)


def penalised(
    net: nn.Module, units: Units, free: Tensor, split: Split, config: ShrinkConfig, lam: float, stream: torch.Generator
) -> Relevance | None:
    """Return the penalty that training pays until the next cut; None: none. Arguments as in `cut_of_round`."""
    if not config.penalty or config.method in ("magnitude", "random"):
        return None
    relevance = Relevance(net, units, free & units.present(), lam / len(split), config.form)
    if config.method == "group-lasso":
        relevance.slopes = torch.where(relevance.free, relevance.sizes, torch.zeros_like(relevance.sizes))
    else:
        relevance.settle(_looked_at(net, split, config, stream))
    return relevance
