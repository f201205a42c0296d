"""Bernoulli masks on a network's units, learned with its weights: which of them are worth what keeping them costs.

Reference: Zhou et al., AAAI 2020 (PGNAS), whose masks lie on the input channels of a supernet's layers. Here a unit has
one mask on everything that reads it, so that a mask at zero is the network without the unit. The prior on dropping is
ours, as is its strength: half of lambda for every weight of the unit (or for each of its uses), which is what the
evidence asks of a unit whose loss is quadratic. The weights' own prior is the optimiser's weight decay.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from bayesarch.engine.pressure import Pressure
from bayesarch.engine.unit_gates import UnitGates
from bayesarch.functional.bernoulli import keep_gates, logit_kl
from bayesarch.nets import Units

__all__ = ["UnitMasks"]

START = -3.0
"""Drop logit of a unit of which nothing is known: it is dropped once in 21 times."""
SUREST = -4.0
"""Drop logit that a unit enters a round with at least, so that it can still change its mind."""


class UnitMasks(Pressure):
    """Masks of a network's units, while it is trained.

    Args:
        net: the network; its layers get hooks, which `close` removes.
        units: its units.
        free: which may leave, bool, shape (U,).
        prior: log odds of dropping each, shape (U,).
        n: training examples.
        known: drop logits that an earlier round learned, shape (U,); None: nothing is known.
        lr: step of Adam on the drop logits.
        tau: temperature of the relaxed draws.
    """

    def __init__(
        self,
        net: nn.Module,
        units: Units,
        free: Tensor,
        prior: Tensor,
        n: int,
        known: Tensor | None = None,
        *,
        lr: float = 0.1,
        tau: float = 0.2,
    ) -> None:
        self.prior = prior
        self.free, self.n, self.tau = free.to(prior.device), n, tau
        begin = torch.full_like(self.prior, START) if known is None else known.to(self.prior).clamp(min=SUREST)
        self.phi = nn.Parameter(begin)
        self.optimizer = torch.optim.Adam([self.phi], lr=lr)
        self.gates = UnitGates(net, units)

    def around(self, examples: int, stream: torch.Generator) -> AbstractContextManager[None]:
        """Return the block in which every example sees units of its own draw."""
        drawn = keep_gates(self.phi, (examples,), tau=self.tau, generator=stream)
        return self.gates.at(torch.where(self.free, drawn, 1.0))

    def cost(self) -> Tensor:
        """Return the KL of all masks over n, 0-dim."""
        kl = logit_kl(self.phi, self.prior)
        return torch.where(self.free, kl, torch.zeros_like(kl)).sum() / self.n

    def step(self, amount: float) -> None:
        """Take Adam's step on the drop logits, along the gradients that are in them."""
        self.optimizer.step()
        self.optimizer.zero_grad()

    def learned(self) -> Tensor:
        """Return the drop logits, shape (U,), on the CPU."""
        return self.phi.detach().float().cpu().clone()

    def state(self) -> dict[str, Tensor]:
        """Return logits and Adam's moments."""
        return {"phi": self.phi.detach().clone()} | {
            f"adam/{key}": value.clone() for key, value in self.optimizer.state.get(self.phi, {}).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        with torch.no_grad():
            self.phi.copy_(state["phi"])
        moments = {key.removeprefix("adam/"): value for key, value in state.items() if key.startswith("adam/")}
        if moments:  # the count of steps stays on the host, as Adam has it
            self.optimizer.state[self.phi] = {k: v if k == "step" else v.to(self.phi) for k, v in moments.items()}

    def close(self) -> None:
        """Take the hooks off the network."""
        self.gates.close()
