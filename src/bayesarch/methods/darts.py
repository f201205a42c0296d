"""DARTS, first order: mixing weights of each edge are a softmax; the largest wins.

Reference: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, as NAS-Bench-201 runs it
(`none` takes part in the argmax). The smallest method made of a rule.
"""

from bayesarch.engine import Info
from bayesarch.methods.bilevel import AlphaConfig, Logits, bilevel_step
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.spaces import Space

__all__ = ["DARTSConfig", "darts"]

CITE = "Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, ICLR 2019"


class DARTSConfig(AlphaConfig):
    """Settings of first-order DARTS."""


def darts(space: Space, config: DARTSConfig | None = None) -> Mixture:
    """Return first-order DARTS: the architecture's gradient is taken at the current network weights."""
    settings = config or DARTSConfig()

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        return bilevel_step(logits, at.choices.softmax, at.net, at.batches, config=settings, lr=at.lr, moving=at.moving)

    return Mixture(space, Rule("darts", CITE, settings, step))
