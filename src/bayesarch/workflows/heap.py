"""glibc's heap without the holes that its aligned allocations leave (decision 29). No torch.

Tensors are allocated aligned to 64 bytes. For that glibc cuts a few bytes off both ends of a block, and its caches of
small pieces keep them from growing together again: the hole that a tensor leaves does not take the next of its size.
Without those caches a process takes far less beyond its tensors; and where the top of the heap is not given back after
each step, the system need not clear it anew. glibc reads this once, when a process starts.
"""

import os
import sys

__all__ = ["TUNABLES", "heap_is_tight", "tighten"]

VARIABLE = "GLIBC_TUNABLES"
CACHES = ("glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0")
TUNABLES = ":".join((*CACHES, f"glibc.malloc.mmap_threshold={32 * 2**20}", f"glibc.malloc.trim_threshold={16 * 2**30}"))
"""For the environment of a process that trains. 32 MiB is what glibc's own threshold ends at."""


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, OSError, ValueError):  # another C library, or no such call
        return False


def heap_is_tight() -> bool:
    """Return whether this process was started without those caches."""
    given = os.environ.get(VARIABLE, "").split(":")
    return _is_glibc() and all(one in given for one in CACHES)


def tighten() -> None:
    """Start this process anew, as it was called, with `TUNABLES`; not where the user has said something of the kind."""
    if VARIABLE not in os.environ and _is_glibc():
        os.environ[VARIABLE] = TUNABLES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
