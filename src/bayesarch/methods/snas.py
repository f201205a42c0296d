"""SNAS: mixing weights of each edge are a relaxed Gumbel draw; the largest softmax wins.

Reference: Xie, Zheng, Liu and Lin, "SNAS: Stochastic Neural Architecture Search", ICLR 2019, equation 4; the
temperature falls linearly from 10 to 1, as DrNAS's re-run on NAS-Bench-201 has it.
"""

from pydantic import Field

from bayesarch.engine import Info
from bayesarch.functional import linear
from bayesarch.methods.bilevel import AlphaConfig, Logits, bilevel_step
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.spaces import Space

__all__ = ["SNASConfig", "snas"]


class SNASConfig(AlphaConfig):
    """Settings of SNAS."""

    tau_first: float = Field(default=10.0, gt=0)
    """Temperature of the draws in the first epoch."""
    tau_last: float = Field(default=1.0, gt=0)
    """Temperature in the last epoch."""


def snas(space: Space, config: SNASConfig | None = None) -> Mixture:
    """Return SNAS."""
    settings = config or SNASConfig()

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        tau = linear(at.clock.reached(), at.clock.epochs - 1, settings.tau_first, settings.tau_last)
        return bilevel_step(
            logits,
            lambda a: at.choices.relaxed(a, tau, generator=at.generator),
            at.net,
            at.batches,
            config=settings,
            lr=at.lr,
            moving=at.moving,
        )

    cite = "Xie, Zheng, Liu and Lin, SNAS: Stochastic Neural Architecture Search, ICLR 2019"
    return Mixture(space, Rule("snas", cite, settings, step))
