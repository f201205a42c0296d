"""The loss of every option of every choice, with the rest of a found architecture fixed.

After a search to one option per choice the other options have no weights left. They are brought back in a copy of the
network, freshly initialised, and only they are trained, one at a time and equally often, while the found network is
frozen; then every neighbour of the found cell is scored on the architecture split. The found option has been trained
for the whole search and the others have not: the losses of the others are upper bounds, and weights made of them lean
towards what was found.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from bayesarch.data import Feeder, Split
from bayesarch.engine.score import batch_loss, batch_statistics, score
from bayesarch.engine.weights import Weights
from bayesarch.functional import Streams, cosine
from bayesarch.nets import Supernet
from bayesarch.spaces import Architecture

__all__ = ["conditional_losses"]

LR = 0.025
"""First learning rate of options that were brought back, falling to 0 as a cosine."""


def conditional_losses(
    net: Supernet,
    mode: Architecture,
    data: Mapping[str, Split],
    *,
    streams: Streams,
    steps_per_option: int,
    batch_size: int,
    among: Tensor | None = None,
    late: Callable[[], bool] = lambda: False,
) -> Tensor | None:
    """Return the mean loss of each option given the rest of `mode`, shape (G,), on the architecture split.

    Norms use batch statistics, which belong to the neighbour that is scored. Options of inactive choices change
    nothing: all of theirs have the loss of the mode.

    Args:
        net: the found network, left as it is.
        mode: the found architecture, one option per choice.
        data: splits `weights` and `architecture`.
        streams: `reopen` starts the weights, orders and picks.
        steps_per_option: training steps of each option that was brought back and has weights.
        batch_size: examples per step.
        among: options to measure, shape (G,); the others get the loss of the mode. None: all.
        late: asked before every step and every score; once it says yes there is no answer, since half of one would be
            no fair comparison.
    """
    space = net.space
    wide = net.reopened(torch.ones_like(net.live), generator=streams["reopen"])
    wide = wide.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    inactive = mode.inactive
    neighbours = {
        g: Architecture(space, (*mode.picks[:position], (option,), *mode.picks[position + 1 :]))
        for position in range(len(space.choices))
        if position not in inactive
        for option, g in enumerate(space.columns(position))
        if among is None or among[g]
    }
    for _ in _train_reopened(wide, mode, neighbours, data["weights"], streams, steps_per_option, batch_size):
        if late():
            return None

    def loss_of(arch: Architecture) -> float:
        gates, active = wide.one_hot(arch), frozenset(arch.columns)
        return score(lambda x: wide(x, gates, active), data["architecture"], batch_size=4 * batch_size).loss

    with batch_statistics(wide):
        losses = torch.full((space.n_options,), loss_of(mode), dtype=torch.float64)
        for g, arch in neighbours.items():
            if late():
                return None
            if g not in mode.columns:
                losses[g] = loss_of(arch)
    return losses


def _train_reopened(
    wide: Supernet,
    mode: Architecture,
    neighbours: Mapping[int, Architecture],
    split: Split,
    streams: Streams,
    steps_per_option: int,
    batch_size: int,
) -> Iterator[None]:
    """Train the weights of every option that `mode` has not, one neighbour per step, all equally often."""
    norms = wide.option_sqnorm()
    fresh = [g for g in neighbours if g not in mode.columns and norms[g] > 0]
    wide.requires_grad_(False)
    for g in fresh:
        for parameter in wide.option_parameters(g):
            parameter.requires_grad_(True)
    if not fresh or steps_per_option == 0:
        return
    feeder = Feeder(split, batch_size, order=streams["reopen/order"], augment=streams["augment/reopen"])
    weights = Weights(wide, momentum=0.9, weight_decay=3e-4, nesterov=False, clip=5.0)
    total = steps_per_option * len(fresh)
    for step in range(total):
        yield
        if step % len(fresh) == 0:
            turn = torch.randperm(len(fresh), generator=streams["reopen/order"]).tolist()
        arch = neighbours[fresh[turn[step % len(fresh)]]]
        batch = feeder.next()
        weights.zero()
        logits = wide(batch.images, wide.one_hot(arch), frozenset(arch.columns))
        batch_loss(logits, batch).backward()
        weights.step(cosine(step, total, LR, 0.0))
