"""Curvature of the mean loss in the gates of a supernet, and in scalars that the gates are made of.

Batch norm is in eval mode on its running statistics, which must have been recalibrated: then examples do not touch one
another, gates expanded per example give each example's gradient, and the curvature is the generalised Gauss-Newton
diagonal. In train mode the exact diagonal comes out negative, because norms undo the scale of what they see.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bayesarch.data import Split
from bayesarch.functional.curvature import fisher_draw, ggn_diagonal
from bayesarch.nets import Supernet

__all__ = ["Curvature", "gate_curvature"]


@dataclass(frozen=True)
class Curvature:
    """Means over examples.

    Attributes:
        gradient: of the loss in the scalars, shape (L, P).
        h: curvature in the scalars, shape (L, P), >= 0.
        gate_gradient: of the loss in the gates, shape (L, G).
        gate_h: curvature in the gates, shape (L, G), >= 0.
        n: number of examples.
    """

    gradient: Tensor
    h: Tensor
    gate_gradient: Tensor
    gate_h: Tensor
    n: int


def gate_curvature(  # noqa: PLR0913 - what is looked at, how much of it, and how
    net: Supernet,
    gates: Tensor,
    split: Split,
    *,
    pull: Callable[[Tensor], Tensor] | None = None,
    mode: Literal["exact", "mc"] = "exact",
    batch_size: int,
    limit: int | None = None,
    generator: torch.Generator | None = None,
    late: Callable[[], bool] = lambda: False,
) -> Curvature:
    """Return gradient and GGN diagonal of the mean cross-entropy, in gates and in scalars behind them.

    `exact` takes one backward pass per class; `mc` one backward pass for a label drawn from the model (an unbiased
    estimate with heavy tails where the model is sure of itself) and one for the true label.

    Args:
        net: its norms' running statistics must belong to these gates.
        gates: shape (1, 1 or L, G).
        split: the examples, without augmentation.
        pull: gradients in gates (..., L, G) -> gradients in scalars (..., L, P), linear; None: the gates themselves.
        mode: `exact`, or Monte-Carlo Fisher.
        batch_size: examples at a time; the result does not depend on it.
        limit: at most so many batches; None: all.
        generator: stream for drawn labels, on the network's device; needed by `mc`.
        late: asked after every batch; where it is, the batches so far stand for all.

    Raises:
        ValueError: if `mc` has no generator.
    """
    if mode == "mc" and generator is None:
        raise ValueError("Monte-Carlo curvature draws labels: pass generator=")
    pull, training = pull or (lambda jacobian: jacobian), net.training
    net.eval()
    totals: list[Tensor] = []
    n = 0
    copies, options = net.n_copies, net.space.n_options
    try:
        for batch in split.in_order(batch_size, limit):
            b = len(batch.labels)
            each = gates.detach().expand(b, copies, options).clone().requires_grad_()
            logits = net(batch.images, each)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 is too coarse
            p = logits.detach().softmax(1)
            onehot = torch.nn.functional.one_hot(batch.labels, p.shape[1]).to(p)
            if mode == "exact":
                jacobian = torch.stack(
                    [
                        torch.autograd.grad(logits[:, k].sum(), each, retain_graph=k + 1 < p.shape[1])[0]
                        for k in range(p.shape[1])
                    ],
                    1,
                )
                slope = torch.einsum("bk,bklg->lg", p - onehot, jacobian)
                pulled = pull(jacobian)
                parts = [ggn_diagonal(j.flatten(2), p).view(j.shape[2:]) for j in (pulled, jacobian)]
            else:
                assert generator is not None
                drawn = torch.nn.functional.one_hot(fisher_draw(p, generator=generator), p.shape[1]).to(p)
                (score,) = torch.autograd.grad((logits * (p - drawn)).sum(), each, retain_graph=True)
                (residual,) = torch.autograd.grad((logits * (p - onehot)).sum(), each)
                slope = residual.sum(0)
                parts = [pull(score).square().sum(0), score.square().sum(0)]
            found = [pull(slope), parts[0], slope, parts[1]]
            totals = [a + c for a, c in zip(totals, found, strict=True)] if totals else found
            n += b
            if late():
                break
    finally:
        net.train(training)
    mean = [total / n for total in totals]
    return Curvature(mean[0], mean[1], mean[2], mean[3], n)
