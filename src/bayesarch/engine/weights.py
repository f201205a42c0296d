"""The weight optimiser: SGD with momentum whose state is known by parameter name and survives pruning."""

from collections.abc import Mapping

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
        norm = nn.utils.clip_grad_norm_(parameters, self.clip if self.clip > 0 else torch.inf)
        self._sgd.param_groups[0]["lr"] = lr
        self._sgd.step()
        return norm

    def reconcile(self) -> None:
        """Drop parameters that the network no longer has; the others keep their momentum, by identity."""
        alive = list(self.net.parameters())
        known = {id(p) for p in alive}
        for gone in [p for p in self._sgd.state if id(p) not in known]:
            del self._sgd.state[gone]
        self._sgd.param_groups[0]["params"] = alive

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
