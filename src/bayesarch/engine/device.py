"""Devices and precision, checked before anything starts."""

import contextlib
import os
from collections.abc import Iterator
from typing import Literal

import torch

from bayesarch.errors import DeviceError

__all__ = [
    "MACS_PER_THREAD",
    "SHARED_THREADS",
    "Precision",
    "autocast",
    "resolve_device",
    "threads_are_told",
    "working_threads",
]

MACS_PER_THREAD = 2**28
"""MACs of a forward pass that keep a thread busy; below, threads wait for one another more than they work. Measured:
docs/decisions/0009-waiting-threads-sleep.md."""

SHARED_THREADS = "BAYESARCH_SHARED_THREADS"
"""Set for processes that run side by side: `OMP_NUM_THREADS` is then their share of the cores, and nobody's word."""

Precision = Literal["fp32", "bf16"]
"""`bf16` runs the network under autocast; architecture parameters stay fp32 (a Dirichlet has no bf16 kernel)."""


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu, cuda or cuda:N.

    Raises:
        DeviceError: if it is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun: one card per process
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}, but torch {torch.__version__} sees no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}, but there are {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: only cpu and cuda are supported")
    return device


def threads_are_told() -> bool:
    """Return whether the user has said how many threads there are to be."""
    return "OMP_NUM_THREADS" in os.environ and SHARED_THREADS not in os.environ


@contextlib.contextmanager
def working_threads(macs: float, given: int | None = None) -> Iterator[int]:
    """Run a block with as many of torch's threads as its passes keep busy, and put the number back afterwards.

    The rule looks at sizes, not at a clock: one and two threads are not equal to the bit, and equal runs stay equal.

    Args:
        macs: of a forward pass over a batch.
        given: so many, whatever the rule says; None: the rule, unless `OMP_NUM_THREADS` says how many.
    """
    before = torch.get_num_threads()
    wanted = before if threads_are_told() else max(1, min(before, round(macs / MACS_PER_THREAD)))
    torch.set_num_threads(wanted if given is None else given)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the context that network passes run in."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
