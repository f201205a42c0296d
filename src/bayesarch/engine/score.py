"""Scores of a network under given gates: loss and accuracy on a split, and the batch-norm statistics behind them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.data import Batch, Split
from bayesarch.nets import Supernet
from bayesarch.nets.conv_stack import ConvStack

__all__ = [
    "RECALIBRATED",
    "Score",
    "batch_loss",
    "batch_statistics",
    "norm_momentum",
    "norms_of",
    "recalibrate",
    "score",
]

Norm = nn.BatchNorm1d | nn.BatchNorm2d | ConvStack

RECALIBRATED = 20
"""Batches that the statistics of norms are averaged over."""


class Score(NamedTuple):
    """What a network makes of a split.

    Attributes:
        loss: mean cross-entropy in nats, weighted by class where the data say so.
        accuracy: share that is right.
        n: number of examples.
        balanced_accuracy: mean recall over the classes that occur.
        macro_f1: mean F1 over the classes that occur.
    """

    loss: float
    accuracy: float
    n: int
    balanced_accuracy: float
    macro_f1: float


def batch_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch in nats, shape (), weighted by class where the data say so."""
    if batch.weights is None:
        return F.cross_entropy(logits, batch.labels)
    return (F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights).mean()


def norms_of(net: nn.Module) -> list[Any]:
    """Return the batch norms of a network, those inside stacked convolutions too."""
    return [module for module in net.modules() if isinstance(module, Norm)]


@contextmanager
def norm_momentum(norms: list[Any], momentum: float) -> Iterator[list[Any]]:
    """Run a block with another momentum of the running statistics of `norms`."""
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = momentum
    try:
        yield norms
    finally:
        for norm, value in zip(norms, before, strict=True):
            norm.momentum = value


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Run a block in which norms use each batch's statistics and leave the running ones alone.

    For comparing sub-networks of one supernet, whose running statistics belong to none of them.
    """
    training = net.training
    net.train()
    try:
        with norm_momentum(norms_of(net), 0.0):
            yield
    finally:
        net.train(training)


@torch.no_grad()
def recalibrate(net: Supernet, gates: Tensor, split: Split, *, batch_size: int, limit: int = RECALIBRATED) -> None:
    """Set the running statistics of all norms to plain averages over up to `limit` batches under `gates`.

    To be called after a pruning, before any curvature and before any score of inherited weights.
    """
    training = net.training
    net.train()
    with norm_momentum(norms_of(net), 0.1) as norms:
        for count, batch in enumerate(split.in_order(batch_size, limit)):
            for norm in norms:
                norm.momentum = 1.0 / (count + 1)
            net(batch.images, gates)
    net.train(training)


@torch.no_grad()
def score(forward: Callable[[Tensor], Tensor], split: Split, *, batch_size: int, limit: int | None = None) -> Score:
    """Return loss and accuracy of `forward` (images -> logits) on a split, in order, without augmentation.

    Args:
        forward: in whatever mode the caller has put the network.
        split: the examples.
        batch_size: examples at a time.
        limit: at most so many batches; None: all.
    """
    loss, n, counts = torch.zeros((), device=split.device), 0, torch.zeros(0)
    for batch in split.in_order(batch_size, limit):
        logits = forward(batch.images).float()
        k = logits.shape[1]
        loss += batch_loss(logits, batch) * len(batch.labels)
        pairs = torch.bincount(batch.labels * k + logits.argmax(1), minlength=k * k).view(k, k)
        counts = pairs if n == 0 else counts + pairs
        n += len(batch.labels)
    return Score(float(loss) / n, *_measures(counts.double().cpu(), n))


def _measures(counts: Tensor, n: int) -> tuple[float, int, float, float]:
    """Return accuracy, n, balanced accuracy and macro F1 of a confusion matrix (true class, predicted class).

    Both means are over the classes that occur, as in scikit-learn's `balanced_accuracy_score`.
    """
    right, true, said = counts.diagonal(), counts.sum(1), counts.sum(0)
    there = true > 0
    recall = (right[there] / true[there]).mean()
    f1 = (2 * right[there] / (true[there] + said[there])).mean()
    return float(right.sum()) / n, n, float(recall), float(f1)
