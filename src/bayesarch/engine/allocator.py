"""Pages of their own for large tensors, so that a process on a CPU takes what its tensors take.

glibc keeps what is freed in heaps that fragment: a search's process then takes up to three times what is alive in it.
From `LARGE` bytes on, an allocation can have pages of its own, which go back to the system when it is freed. They have
to be cleared each time, by half of a step's work where the system gives small ones, so that this is done where a limit
on memory asks for it and not elsewhere (decision 23).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

__all__ = ["LARGE", "own_pages", "pages_can_be_owned"]

LARGE = 2**20
"""Bytes from which an allocation has pages of its own."""
M_MMAP_THRESHOLD = -3
"""The parameter's number in glibc's malloc.h."""
HIGHEST = 32 * 2**20
"""Where glibc's own threshold ends up in a process that frees large blocks; it cannot be told to move again."""


@cache
def _glibc() -> Any:
    """Return the C library, if it is glibc; None otherwise."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, "gnu_get_libc_version") else None


def pages_can_be_owned() -> bool:
    """Return whether `own_pages` does anything here."""
    return _glibc() is not None


@contextmanager
def own_pages(wanted: bool) -> Iterator[None]:
    """Give large allocations of this process pages of their own inside the block, where that is wanted and possible."""
    library = _glibc() if wanted else None
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        if library is not None:
            library.mallopt(M_MMAP_THRESHOLD, HIGHEST)
