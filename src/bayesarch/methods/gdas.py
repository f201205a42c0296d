"""GDAS: mixing weights of each edge are a one-hot Gumbel draw; only the options drawn are computed.

Reference: Dong and Yang, "Searching for a Robust Neural Architecture in Four GPU Hours", CVPR 2019, equations 3 to 6.
The draw is one-hot on the way forward; the gradient of the relaxed draw flows back through the gate of the option that
was drawn. The temperature falls linearly from 10 to 0.1. (The published code also adds the other options' weights to
the features as bare numbers, which gives them a gradient that has nothing to do with what those options compute; that
is not reproduced.)
"""

from pydantic import Field

from bayesarch.engine import Info
from bayesarch.functional import linear
from bayesarch.methods.bilevel import AlphaConfig, Logits, bilevel_step
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.spaces import Space

__all__ = ["GDASConfig", "gdas"]


class GDASConfig(AlphaConfig):
    """Settings of GDAS."""

    tau_first: float = Field(default=10.0, gt=0)
    """Temperature of the draws in the first epoch."""
    tau_last: float = Field(default=0.1, gt=0)
    """Temperature in the last epoch."""


def gdas(space: Space, config: GDASConfig | None = None) -> Mixture:
    """Return GDAS."""
    settings = config or GDASConfig()

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        tau = linear(at.clock.reached(), at.clock.epochs - 1, settings.tau_first, settings.tau_last)
        return bilevel_step(
            logits,
            lambda a: at.choices.straight_through(a, tau, generator=at.generator),
            at.net,
            at.batches,
            config=settings,
            lr=at.lr,
            moving=at.moving,
            sparse=True,
        )

    cite = "Dong and Yang, Searching for a Robust Neural Architecture in Four GPU Hours, CVPR 2019"
    return Mixture(space, Rule("gdas", cite, settings, step))
