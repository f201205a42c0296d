"""Curvature of the mean loss in the gates of a supernet, and in scalars that the gates are made of.

Batch norm is in eval mode on its running statistics, which must have been recalibrated: then examples do not touch one
another, gates expanded per example give each example's gradient, and the curvature is the generalised Gauss-Newton
diagonal. In train mode the exact diagonal comes out negative, because norms undo the scale of what they see.
"""

from collections.abc import Callable, Iterator
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
        batch_size: examples in a batch, of which half are looked at together: with gates of their own they take the
            memory of a step. The result does not depend on it.
        limit: at most so many batches; None: all.
        generator: stream for drawn labels, on the network's device; needed by `mc`.
        late: asked after every half of a batch; where it is, what was seen so far stands for all.

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
        with net.weights_held():  # nothing is kept for their gradients
            for images, labels in _halves(split, batch_size, limit):
                b = len(labels)
                each = gates.detach().expand(b, copies, options).clone().requires_grad_()
                logits = _logits(net, images, each)
                p = logits.detach().softmax(1)
                onehot = torch.nn.functional.one_hot(labels, p.shape[1]).to(p)
                if mode == "exact":
                    jacobian = torch.stack(_slopes(net, images, each, logits, list(torch.eye(p.shape[1]).to(p))), 1)
                    slope = torch.einsum("bk,bklg->lg", p - onehot, jacobian)
                    pulled = pull(jacobian)
                    parts = [ggn_diagonal(j.flatten(2), p).view(j.shape[2:]) for j in (pulled, jacobian)]
                else:
                    assert generator is not None
                    drawn = torch.nn.functional.one_hot(fisher_draw(p, generator=generator), p.shape[1]).to(p)
                    score, residual = _slopes(net, images, each, logits, [p - drawn, p - onehot])
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


def _halves(split: Split, batch_size: int, limit: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in split.in_order(batch_size, limit):
        yield from zip(batch.images.chunk(2), batch.labels.chunk(2), strict=True)


def _logits(net: Supernet, images: Tensor, gates: Tensor) -> Tensor:
    logits: Tensor = net(images, gates)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))  # bf16 is too coarse


def _slopes(net: Supernet, images: Tensor, gates: Tensor, logits: Tensor, along: list[Tensor]) -> list[Tensor]:
    """Return the gradients in the gates of sums of logits times each of `along`.

    One backward pass for each; where cells are computed twice, a forward pass too, because a graph that is gone through
    again holds what each time was computed.
    """
    found = []
    for k, weights in enumerate(along):
        if k and net.recomputes:
            logits = _logits(net, images, gates)
        kept = not net.recomputes and k + 1 < len(along)
        found.append(torch.autograd.grad((logits * weights).sum(), gates, retain_graph=kept)[0])
    return found
