"""Mixing weights of many choices at once, over the options that are still live.

Choices have different numbers of live options as a search goes on. `Simplices` sorts them by that number once, so
that a draw is one call per distinct number and not one per choice. Drawing over the live options only is the same
law as drawing over all, zeroing and renormalising, because a Dirichlet is neutral; it is cheaper and numerically
safer. A choice with one live option has weight exactly 1: no draw, no gradient.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bayesarch.functional.dirichlet import kl_to_uniform
from bayesarch.functional.random import dirichlet_rsample

__all__ = ["Simplices"]


class Simplices:
    """The live options of every choice, grouped by how many there are.

    Args:
        columns: for each choice, the flat indices of all its options.
        live: mask of shape (G,), on the CPU.
        device: where weights are computed.

    Raises:
        ValueError: if a choice has no live option.
    """

    def __init__(self, columns: Sequence[Sequence[int]], live: Tensor, device: torch.device | str = "cpu") -> None:
        self.n_options = live.numel()
        self.live_columns: list[list[int]] = [[g for g in group if live[g]] for group in columns]
        if any(not group for group in self.live_columns):
            raise ValueError("every choice needs at least one live option")
        self.single = [group[0] for group in self.live_columns if len(group) == 1]
        sizes = sorted({len(group) for group in self.live_columns if len(group) > 1})
        grouped = (torch.tensor([group for group in self.live_columns if len(group) == size]) for size in sizes)
        self.groups = [group.to(device, non_blocking=True) for group in grouped]  # made on the host: no card waits
        ones = torch.zeros(self.n_options)
        ones[self.single] = 1.0
        self._ones = ones.to(device, non_blocking=True)
        self._each = [torch.tensor(group).to(device, non_blocking=True) for group in self.live_columns]

    @property
    def settled(self) -> bool:
        """True when every choice has one live option."""
        return not self.groups

    def _fill(self, values: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
        """Return fn applied to each group's rows of `values`, laid out flat, shape (G,)."""
        flat = self._ones.to(values.dtype)
        for group in self.groups:
            flat = flat.index_put((group,), fn(values[group]))
        return flat

    def draw(self, beta: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return one Dirichlet draw per choice, shape (G,), zero for dead options; differentiable in `beta` (G,)."""
        return self._fill(beta, lambda rows: dirichlet_rsample(rows, generator=generator))

    def mean(self, beta: Tensor) -> Tensor:
        """Return the Dirichlet means beta / sum(beta) per choice, shape (G,), zero for dead options."""
        return self._fill(beta, lambda rows: rows / rows.sum(-1, keepdim=True))

    def softmax(self, logits: Tensor) -> Tensor:
        """Return the softmax of `logits` (G,) over each choice's live options, zero for dead ones."""
        return self._fill(logits, lambda rows: torch.softmax(rows, -1))

    def relaxed(self, logits: Tensor, tau: float, *, generator: torch.Generator) -> Tensor:
        """Return a relaxed one-hot draw per choice, shape (G,): softmax((log softmax(logits) + Gumbel) / tau).

        References: Maddison, Mnih and Teh, ICLR 2017; Jang, Gu and Poole, ICLR 2017; SNAS (ICLR 2019), equation 4.

        Args:
            logits: shape (G,).
            tau: temperature > 0; towards 0 the draw becomes one-hot with probabilities softmax(logits).
            generator: the stream to draw from.
        """
        return self._fill(logits, lambda rows: torch.softmax(_perturbed(rows, generator) / tau, -1))

    def straight_through(self, logits: Tensor, tau: float, *, generator: torch.Generator) -> Tensor:
        """Return one-hot draws per choice, shape (G,), exactly 0 and 1, with the gradient of the relaxed draw.

        Reference: Dong and Yang, "Searching for a Robust Neural Architecture in Four GPU Hours" (GDAS), CVPR 2019,
        equations 5 and 6.
        """

        def draw(rows: Tensor) -> Tensor:
            soft = torch.softmax(_perturbed(rows, generator) / tau, -1)
            hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
            return hard + (soft - soft.detach())

        return self._fill(logits, draw)

    def distance_to_uniform(self, weights: Tensor) -> Tensor:
        """Return ||weights_m - 1/n_m||_2 for each choice m with n_m live options, shape (M,); 0 where n_m = 1.

        Args:
            weights: shape (G,), summing to 1 over each choice's live options.
        """
        rows = [weights[group] - 1.0 / len(group) for group in self.live_columns]
        return torch.stack([torch.linalg.vector_norm(row) for row in rows])

    def kl_to_uniform(self, beta: Tensor) -> Tensor:
        """Return the sum over choices of KL(Dir(beta_m) || Dir(1)) on live options, in nats, shape ()."""
        parts = [kl_to_uniform(beta[group]).sum() for group in self.groups]
        return torch.stack(parts).sum() if parts else beta.new_zeros(())

    def entropy(self, weights: Tensor) -> Tensor:
        """Return the entropy in nats of each choice's weights, shape (M,)."""
        return torch.stack([torch.special.entr(weights[group]).sum() for group in self._each])


def _perturbed(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return log softmax(logits) plus standard Gumbel noise; the largest entry has probability softmax(logits)."""
    waits = torch.empty_like(logits).exponential_(generator=generator).clamp(min=torch.finfo(logits.dtype).tiny)
    return torch.log_softmax(logits, -1) - waits.log()
