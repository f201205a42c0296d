"""What kernels are told of tensors: types, how rows of channels lie, addresses, threads."""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["BLOCK", "in_rows", "ints", "longs", "pointer", "pointers", "room", "step", "threads", "working"]

BLOCK = 16
"""Values that are whole blocks of the kernels on any machine."""
SMALL = 2**15
"""Values that one thread deals with, as in torch."""


class _Kept(threading.local):
    """What kernels of one thread of Python have worked in, by type."""

    def __init__(self) -> None:
        self.rooms: dict[torch.dtype, Tensor] = {}


_KEPT = _Kept()


def working(dtype: torch.dtype) -> torch.dtype:
    """Return the type that a kernel computes in, which is that of gates and running moments."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def in_rows(x: Tensor) -> Tensor:
    """Return x as rows of channels: as it is, where it is."""
    return x if step(x) else x.contiguous(memory_format=torch.channels_last)


def step(x: Tensor) -> int:
    """Return how far it is from pixel to pixel, where it is equally far everywhere and channels lie together, or 0."""
    sizes, strides = x.shape, x.stride()
    if strides[1] != 1 and sizes[1] != 1:
        return 0
    far, count = 0, 1
    for axis in (3, 2, 0):
        if sizes[axis] > 1:
            far = far or strides[axis] // count
            if not far or strides[axis] != far * count:
                return 0
        count *= sizes[axis]
    far = far or sizes[1]
    return far if far >= sizes[1] else 0


def threads(values: int) -> int:
    """Return how many threads deal with so many values."""
    return torch.get_num_threads() if values > SMALL else 1


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    """Return where a tensor begins; null for none."""
    return ctypes.c_void_p(None if x is None else x.data_ptr())


def pointers(tensors: Sequence[Tensor]) -> Any:
    """Return where tensors begin."""
    return (ctypes.c_void_p * len(tensors))(*[tensor.data_ptr() for tensor in tensors])


def ints(numbers: Sequence[int]) -> Any:
    """Return C ints."""
    return (ctypes.c_int * len(numbers))(*numbers)


def longs(numbers: Sequence[int]) -> Any:
    """Return C integers of 64 bits."""
    return (ctypes.c_int64 * len(numbers))(*numbers)


def room(count: int, dtype: torch.dtype) -> ctypes.c_void_p:
    """Return where so many numbers lie that a kernel works in. They are kept, since new ones would be new pages."""
    kept = _KEPT.rooms.get(dtype)
    if kept is None or kept.numel() < count:
        kept = _KEPT.rooms[dtype] = torch.empty(count, dtype=dtype)
    return pointer(kept)
