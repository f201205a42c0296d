"""The weight optimiser: SGD with momentum whose state is known by parameter name and survives pruning."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

__all__ = ["Weights"]


class Weights:
    """Fits the parameters of one network.

    Args:
        net: the network; after a change of its parameters, `reconcile` or `grow`.
        momentum: of SGD.
        weight_decay: L2 coefficient.
        nesterov: whether momentum looks ahead.
        clip: largest gradient norm; 0: no clipping.
    """

    def __init__(self, net: nn.Module, *, momentum: float, weight_decay: float, nesterov: bool, clip: float) -> None:
        self.net, self.clip = net, clip
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self._momenta: dict[nn.Parameter, Tensor] = {}  # `torch.optim.SGD` would load torch's compiler
        self._all = list(net.parameters())  # to look for them in thousands of modules takes a while

    def zero(self) -> None:
        """Forget all gradients; what gets none is left alone by the next step."""
        for p in self._all:
            p.grad = None

    def step(self, lr: float | Tensor) -> Tensor | None:
        """Clip, take one step at learning rate `lr`, and return the gradient's norm before clipping (0-dim).

        None where no weight has a gradient.
        """
        moved = {p: p.grad for p in self._all if p.grad is not None}
        if not moved:
            return None
        norm = nn.utils.clip_grad_norm_(list(moved), self.clip if self.clip > 0 else torch.inf)
        with torch.no_grad():
            sgd(
                list(moved),
                list(moved.values()),
                [self._momentum(p) for p in moved],
                fused=True,
                weight_decay=self.weight_decay,
                momentum=self.momentum,
                lr=lr,  # type: ignore[arg-type]  # torch takes a tensor of the card here
                dampening=0.0,
                nesterov=self.nesterov,
                maximize=False,
            )
        return norm

    def _momentum(self, p: nn.Parameter) -> Tensor | None:
        if self.momentum and p not in self._momenta:
            self._momenta[p] = torch.zeros_like(p, memory_format=torch.preserve_format)
        return self._momenta.get(p)

    def preview(self, gradients: Sequence[Tensor], lr: float | Tensor) -> list[Tensor]:
        """Return by how much a step at `lr` would move each parameter, unclipped; nothing is moved.

        Args:
            gradients: one per parameter of the network, in its order.
            lr: learning rate.
        """
        moves = []
        for p, grad in zip(self._all, gradients, strict=True):
            slope = grad + self.weight_decay * p.detach()
            buffer = self._momenta.get(p)
            velocity = slope if buffer is None else self.momentum * buffer + slope
            moves.append(-lr * (slope + self.momentum * velocity if self.nesterov else velocity))
        return moves

    def reconcile(self) -> None:
        """Drop parameters that the network no longer has, and take up new ones; the others keep their momentum."""
        self._all = list(self.net.parameters())
        alive = set(self._all)
        self._momenta = {p: buffer for p, buffer in self._momenta.items() if p in alive}

    def grow(self, before: Mapping[str, Tensor], grown: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Take over a network whose parameters were resized: momentum is copied as the channels were.

        Args:
            before: momentum by parameter name, from before the resize.
            grown: which channels were copied, by parameter name; other resized parameters start without momentum.
        """
        self.reconcile()
        kept = {name: buffer for name, buffer in before.items() if name not in grown}
        shapes = {name: p.shape for name, p in self.net.named_parameters()}
        kept = {name: buffer for name, buffer in kept.items() if shapes.get(name) == buffer.shape}
        copied = {name: before[name][outs][:, ins] for name, (outs, ins) in grown.items() if name in before}
        self.restore({**kept, **copied})

    def state(self) -> dict[str, Tensor]:
        """Return momentum buffers by parameter name."""
        return {name: self._momenta[p] for name, p in self.net.named_parameters() if p in self._momenta}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put momentum buffers back; the network must have been pruned as it was when they were saved."""
        for name, p in self.net.named_parameters():
            if name in state:
                buffer = torch.empty_like(p, memory_format=torch.preserve_format)
                self._momenta[p] = buffer.copy_(state[name])
