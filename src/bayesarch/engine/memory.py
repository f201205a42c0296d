"""What a step of a search holds in memory, told from two small ones; and how to hold less.

Tensors that are alive at once grow in a straight line with the batch, so that two small steps tell a large one. A limit
is kept by computing cells twice, once forward without keeping anything and again on the way back (the same numbers),
and, where that is not enough, by taking the batch in parts, of which one at a time is held (norms then take the
statistics of each part).
Reference: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, 2016.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from bayesarch.engine.score import norm_momentum, norms_of
from bayesarch.errors import ConfigError
from bayesarch.nets import Supernet

SCORED = 4
"""Batches that are scored are so many times as large as those of a step."""

__all__ = ["SCORED", "Line", "economise", "live_bytes", "recomputed"]


class Line(NamedTuple):
    """Bytes of a step as a function of its batch.

    Attributes:
        fixed: whatever the batch.
        each: per example.
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, step: Callable[[int], object], small: int, large: int) -> "Line":
        """Return the line through the peaks of two steps.

        Args:
            step: takes a step with so many examples.
            small: the one number.
            large: another, larger.
        """
        a, b = (live_bytes(partial(step, n)) for n in (small, large))
        each = (b - a) / (large - small)
        return cls(a - each * small, each)

    def at(self, n: int) -> int:
        """Return bytes for n examples."""
        return round(self.fixed + self.each * n)


def live_bytes(work: Callable[[], object]) -> int:
    """Return the most bytes of tensors made by `work` that were alive at once.

    What an operation takes for itself inside is not seen.
    """
    with _Live() as seen:
        work()
    return seen.peak


class _Live(TorchDispatchMode):
    """Counts storages that operations return, until they die."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._held: dict[int, tuple[weakref.ref[Any], int]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled in here; torch would load its compiler to say so."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._held:
            self._held[key] = (weakref.ref(storage, lambda _: self._gone(key)), size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _gone(self, key: int) -> None:
        self.now -= self._held.pop(key)[1]


def recomputed(function: Callable[..., Tensor], module: nn.Module, *inputs: Any) -> Tensor:
    """Return `function(*inputs)`, of which nothing is kept: it is computed again on the way back.

    Args:
        function: draws nothing at random.
        module: what it runs; its running statistics, and its count of work, move the first time only.
        inputs: its arguments.
    """
    if not torch.is_grad_enabled():
        return function(*inputs)

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), _still(module)  # entered once: whoever goes back twice goes forward twice (`recomputes`)

    out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
    return out


@contextmanager
def _still(module: nn.Module) -> Iterator[None]:
    """Run a block that leaves running statistics, counts of batches and a supernet's count of work alone."""
    norms = norms_of(module)
    counted = [(norm, norm.num_batches_tracked.clone()) for norm in norms if hasattr(norm, "num_batches_tracked")]
    work = (module.images_seen, module.macs_spent) if isinstance(module, Supernet) else None
    try:  # the second pass is broken off, by an exception, as soon as everything is there again
        with norm_momentum(norms, 0.0):
            yield
    finally:
        for norm, count in counted:
            norm.num_batches_tracked.copy_(count)
        if isinstance(module, Supernet) and work is not None:
            module.images_seen, module.macs_spent = work


def economise(net: Supernet, *, recompute: bool, parts: int) -> None:
    """Let a supernet hold less at a time from now on; `recompute=False` and one part change nothing.

    Args:
        net: the supernet.
        recompute: compute cells twice.
        parts: take each batch in so many parts, of which one at a time is held.

    Raises:
        ConfigError: if it is no supernet of operations.
    """
    if (recompute or parts > 1) and not isinstance(net, Supernet):
        raise ConfigError(
            "engine.recompute and engine.parts hold less of supernets of operations; a network of channels may draw "
            "noise inside, which a second pass would draw anew. Take a smaller engine.batch_size"
        )
    if recompute or parts > 1:
        net.recomputes = True
    if recompute:
        for layer in net.layers:
            _twice(layer)
    if parts > 1:
        net.forward = _InParts(net, parts)  # type: ignore[method-assign]


def _twice(layer: nn.Module) -> None:
    whole = layer.forward

    def forward(*inputs: Any) -> Tensor:
        return recomputed(whole, layer, *inputs)

    layer.forward = forward


class _InParts:
    """`forward(images, gates, active)` of a supernet, a part of the images at a time."""

    def __init__(self, net: Supernet, parts: int) -> None:
        self.net, self.parts, self.whole = net, parts, net.forward

    def __call__(self, images: Tensor, gates: Tensor | None = None, active: frozenset[int] | None = None) -> Tensor:
        statistics = self.net.training and not torch.is_grad_enabled()  # taken anew, over whole batches
        parts = self.parts if self.net.training else min(SCORED * self.parts, len(images))
        if gates is None or statistics or len(images) < 2 * self.parts:
            return self.whole(images, gates, active)
        told = gates.tensor_split(parts) if len(gates) == len(images) else [gates] * parts
        return torch.cat(
            [
                recomputed(self.whole, self.net, part, mine, active)
                for part, mine in zip(images.tensor_split(parts), told, strict=True)
            ]
        )
