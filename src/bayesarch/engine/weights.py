"""The weight optimiser: SGD with momentum whose state is known by parameter name and survives pruning."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

__all__ = ["Weights"]


class Weights:
    """Fits the parameters of one network.

    Args:
        net: the network.
        momentum: of SGD.
        weight_decay: L2 coefficient.
        nesterov: whether momentum looks ahead.
        clip: largest gradient norm; 0: no clipping.
    """

    def __init__(self, net: nn.Module, *, momentum: float, weight_decay: float, nesterov: bool, clip: float) -> None:
        self.net, self.clip = net, clip
        self.momentum, self.weight_decay, self.nesterov = momentum, weight_decay, nesterov
        self._sgd = torch.optim.SGD(
            net.parameters(),
            lr=0.0,
            momentum=momentum,
            weight_decay=weight_decay,
            nesterov=nesterov,
            fused=True,
        )

    def zero(self) -> None:
        """Forget all gradients; what gets none is left alone by the next step."""
        self._sgd.zero_grad(set_to_none=True)

    def step(self, lr: float) -> Tensor | None:
        """Clip, take one step at learning rate `lr`, and return the gradient's norm before clipping (0-dim).

        None where no weight has a gradient.
        """
        parameters = [p for p in self.net.parameters() if p.grad is not None]
        if not parameters:
            return None
        for p in parameters:  # the fused kernel takes no mixture of parameters with momentum and without
            if self.momentum and self._sgd.state[p].get("momentum_buffer") is None:
                self._sgd.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)
        norm = nn.utils.clip_grad_norm_(parameters, self.clip if self.clip > 0 else torch.inf)
        self._sgd.param_groups[0]["lr"] = lr
        self._sgd.step()
        return norm

    def preview(self, gradients: Sequence[Tensor], lr: float) -> list[Tensor]:
        """Return by how much a step at `lr` would move each parameter, unclipped; nothing is moved.

        Args:
            gradients: one per parameter of the network, in its order.
            lr: learning rate.
        """
        moves = []
        for p, grad in zip(self.net.parameters(), gradients, strict=True):
            slope = grad + self.weight_decay * p.detach()
            buffer = self._sgd.state.get(p, {}).get("momentum_buffer")
            velocity = slope if buffer is None else self.momentum * buffer + slope
            moves.append(-lr * (slope + self.momentum * velocity if self.nesterov else velocity))
        return moves

    def reconcile(self) -> None:
        """Drop parameters that the network no longer has; the others keep their momentum, by identity."""
        alive = list(self.net.parameters())
        known = {id(p) for p in alive}
        for gone in [p for p in self._sgd.state if id(p) not in known]:
            del self._sgd.state[gone]
        self._sgd.param_groups[0]["params"] = alive

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
        return {
            name: self._sgd.state[p]["momentum_buffer"]
            for name, p in self.net.named_parameters()
            if self._sgd.state.get(p, {}).get("momentum_buffer") is not None
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put momentum buffers back; the network must have been pruned as it was when they were saved."""
        for name, p in self.net.named_parameters():
            if name in state:
                buffer = torch.empty_like(p, memory_format=torch.preserve_format)
                self._sgd.state[p]["momentum_buffer"] = buffer.copy_(state[name])
