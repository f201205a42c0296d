"""A search made to fit in memory: the first way of holding less, from the cheapest on, that keeps the limit."""

from dataclasses import replace

import torch

from bayesarch.engine import pages_can_be_owned
from bayesarch.errors import ConfigError
from bayesarch.workflows.heap import heap_is_tight
from bayesarch.workflows.job import Job

__all__ = ["fitted", "mebibytes", "resident"]

PAGES, BESIDE = 1.1, 220 * 2**20
"""Resident memory over what tensors take, and bytes beside them (torch's convolutions, small blocks, what a search
loads on its way), where large tensors have pages of their own."""
HEAP, LIBRARIES = 3.0, 180 * 2**20
"""The same where they lie in the heap: 1.2 to 3.4 times and 150 MiB were measured."""
TIGHT, ABOUT = 1.7, 200 * 2**20
"""The same in a tight heap (`workflows.heap`)."""
COMPILER = 70 * 2**20
"""Of the bytes beside, what resident memory grows by with `import torch._dynamo`: torch's compiler, which torch loads
where cells are computed twice, and nothing else does."""
CARD = 1.15
"""The same on a GPU, whose allocator keeps blocks for reuse; assumed, not measured."""


def mebibytes(text: str | None, flag: str) -> float | None:
    """Return MiB from a size such as 900M, 4G or 4GiB; None stays None.

    Raises:
        ConfigError: if it is no size.
    """
    if text is None:
        return None
    plain = text.strip().lower().removesuffix("b").removesuffix("i")
    factor = {"m": 1.0, "g": 1024.0}.get(plain[-1:])
    try:
        if factor is None:
            raise ValueError
        return float(plain[:-1]) * factor
    except ValueError:
        raise ConfigError(f"{flag} takes a size such as 900M or 4G; got {text!r}") from None


def resident(tensors: int, device: torch.device, *, paged: bool, recomputed: bool) -> float:
    """Return how many bytes a process takes at most for so many bytes of tensors, beside Python and torch.

    Args:
        tensors: bytes alive at once.
        device: where they lie.
        paged: whether large ones have pages of their own.
        recomputed: whether cells are computed twice.
    """
    if device.type == "cuda":
        return CARD * tensors
    saved = 0 if recomputed else COMPILER
    if paged:
        return PAGES * tensors + BESIDE - saved
    return (TIGHT * tensors + ABOUT if heap_is_tight() else HEAP * tensors + LIBRARIES) - saved


def fitted(job: Job) -> Job:
    """Return the job with the cheapest way of holding memory that keeps `engine.memory_limit`; itself without one.

    Whole, then cells computed twice; either with pages of their own for large tensors, where they can be had; then
    batches in 2, 4, ... parts as well, of 4 examples at least, without such pages and with them.

    Raises:
        ConfigError: if none keeps it; says what the smallest takes.
    """
    engine, batch = job.settings.engine, 0
    if engine.memory_limit is None:
        return job
    if job.world.size > 1:
        raise ConfigError("engine.memory_limit: not with several processes, which share the batch already")
    pages = (engine.own_pages, job.device.type == "cpu" and pages_can_be_owned())
    ways = [(recompute, engine.parts, paged) for paged in pages for recompute in (engine.recompute, True)]
    most = min(engine.batch_size, *job.partition.sizes.values()) // 4
    while ways[-1][1] * 2 <= most:
        ways += [(True, ways[-1][1] * 2, paged) for paged in pages]
    least = float("inf")
    for recompute, parts, paged in dict.fromkeys(ways):
        new = engine.model_copy(update={"recompute": recompute, "parts": parts, "own_pages": paged})
        candidate = replace(job, settings=replace(job.settings, engine=new))
        try:
            trial = candidate.trial()
        except ConfigError:  # a network of channels holds what it holds
            break
        batch = trial.setting.batch_size
        needs = resident(trial.memory(), job.device, paged=paged, recomputed=recompute or parts > 1) / 2**20
        if needs <= engine.memory_limit:
            return candidate
        least = min(least, needs)
    raise ConfigError(
        f"engine.memory_limit={engine.memory_limit:.0f} MiB cannot be kept: the smallest way takes about {least:.0f} "
        f"MiB. Lower engine.batch_size (now {batch}) or the sizes of the space, or take a method with partial channels"
    )
