"""DARTS, second order: the architecture's gradient is taken through one step of the network weights.

Reference: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, equations 7 and 8. The
optimiser's own step is unrolled, momentum and weight decay included: w' = w + move(g), g = grad_w L_train(w, a). With
v = grad_w' L_arch(w', a) and u = move(v) - move(0), the change of the move when the gradient changes by v,

    dL_arch/da = grad_a L_arch(w', a) + d/da <u, grad_w L_train(w, a)>

(`move` is a multiple of g plus what does not depend on it). The last term is a central difference of grad_a L_train
along u, over a length of .01 each way.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bayesarch.data import Batch
from bayesarch.engine import Clock, Info, batch_loss, batch_statistics
from bayesarch.functional import Simplices
from bayesarch.methods.bilevel import AlphaConfig, Logits, adam_step, weights_pass
from bayesarch.methods.mixture import Mixture, Rule, Step
from bayesarch.nets import Supernet
from bayesarch.spaces import Space

__all__ = ["SecondOrderConfig", "darts_second_order", "unrolled_gradient"]


class SecondOrderConfig(AlphaConfig):
    """Settings of second-order DARTS."""


def unrolled_gradient(
    a: Tensor, choices: Simplices, net: Supernet, batches: Mapping[str, Batch], clock: Clock, *, length: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the architecture loss through one weight step, shape (G,), and that loss.

    The network is left as it was, its norms' running statistics included.

    Args:
        a: logits, shape (G,).
        choices: the live options.
        net: the supernet.
        batches: `weights` and `architecture`.
        clock: its `preview` says how the optimiser would move the weights.
        length: how far the difference reaches each way, in the norm of all weights.

    Raises:
        ValueError: if the clock has no preview.
    """
    if clock.preview is None:
        raise ValueError("second order needs to know how the optimiser would move the weights: Clock.preview")
    parameters = list(net.parameters())
    kept = [p.detach().clone() for p in parameters]
    leaf = a.detach().requires_grad_()

    def slopes(split: str, wanted: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        batch = batches[split]
        loss = batch_loss(net(batch.images, choices.softmax(leaf).view(1, 1, -1)), batch)
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        return loss.detach(), [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]

    @torch.no_grad()
    def place(moves: Sequence[Tensor] | None, scale: Tensor | float = 1.0) -> None:
        for i, p in enumerate(parameters):
            p.copy_(kept[i] if moves is None else kept[i] + scale * moves[i])

    with batch_statistics(net):
        place(clock.preview(slopes("weights", parameters)[1]))
        loss, (direct, *v) = slopes("architecture", [leaf, *parameters])
        place(None)
        still = clock.preview([torch.zeros_like(p) for p in parameters])
        u = [moved - rest for moved, rest in zip(clock.preview(v), still, strict=True)]
        size = torch.stack([part.square().sum() for part in u]).sum().sqrt()
        epsilon = length / size.clamp(min=torch.finfo(size.dtype).tiny)
        ends = []
        for sign in (1.0, -1.0):
            place(u, sign * epsilon)
            ends.append(slopes("weights", [leaf])[1][0])
        place(None)
    return direct + (ends[0] - ends[1]) / (2 * epsilon), loss


def darts_second_order(space: Space, config: SecondOrderConfig | None = None) -> Mixture:
    """Return second-order DARTS."""
    settings = config or SecondOrderConfig()

    def step(logits: Logits, at: Step) -> tuple[Logits, Info]:
        info = {}
        if at.moving:
            grad, loss = unrolled_gradient(logits.a, at.choices, at.net, at.batches, at.clock)
            logits = adam_step(logits, grad, at.lr, settings)
            info["architecture_loss"] = loss
        with torch.no_grad():
            gates = at.choices.softmax(logits.a)
        return logits, info | weights_pass(at.net, at.batches["weights"], gates)

    cite = "Liu, Simonyan and Yang, DARTS: Differentiable Architecture Search, ICLR 2019"
    return Mixture(space, Rule("darts-2nd", cite, settings, step))
