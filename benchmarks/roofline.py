"""How far from the machine's own limits a step is, by kind of operation: time, FLOPs, bytes, the least time they need.

The limits are measured first: a matrix product in fp32, and a copy of memory larger than the caches. An operation needs
at least the longer of FLOPs over the one and bytes (what it reads and writes, once) over the other.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

__all__ = ["ceilings", "roofline"]

KINDS = {
    "convolution": "convolution", "convolution_backward": "convolution, backward", "native_batch_norm": "norm",
    "_native_batch_norm_legit": "norm", "cudnn_batch_norm": "norm", "native_batch_norm_backward": "norm, backward",
    "avg_pool2d": "pooling", "avg_pool2d_backward": "pooling", "max_pool2d_with_indices": "pooling",
    "max_pool2d_with_indices_backward": "pooling",
}  # fmt: skip
FREE = ("view", "expand", "detach", "t", "split", "slice", "select", "unsqueeze", "as_strided", "alias", "_unsafe_view")
"""Operations that touch no memory."""


def ceilings(
    side: int = 2048,
    floats: int = 2**26,
    *,
    like: Tensor | None = None,
    done: Callable[[], Any] = lambda: None,
) -> dict[str, float]:
    """Return the best of five: FLOP/s of a product of matrices, bytes/s of a copy.

    Args:
        side: of the matrices.
        floats: values that are copied, in fp32.
        like: a tensor of the device and type of the product; None: fp32 on the CPU.
        done: waits until a work has really ended, on a card.
    """
    like = torch.empty(0) if like is None else like
    a, b = (torch.randn(side, side).to(like) for _ in range(2))
    x, y = (torch.ones(floats, device=like.device) for _ in range(2))

    def best(work: Callable[[], Any]) -> float:
        work()
        done()
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            work()
            done()
            seconds.append(time.perf_counter() - began)
        return min(seconds)

    return {"flops": 2 * side**3 / best(lambda: a @ b), "bytes": 8 * floats / best(lambda: y.copy_(x))}


class _Timed(TorchDispatchMode):
    """Adds up calls, seconds, FLOPs and bytes of every operation, by kind."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, list[float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        began = time.perf_counter()
        out = func(*args, **(kwargs or {}))
        seconds = time.perf_counter() - began
        name = func.overloadpacket.__name__
        if name in FREE:
            return out
        kind = KINDS.get(name, "element by element")
        if "convolution" in kind and args[9 if "backward" in kind else 8] > 1:
            kind = f"depthwise {kind}"
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        row = self.rows.setdefault(kind, [0.0] * 4)
        row[0] += 1
        row[1] += seconds
        row[2] += _flops(func, args, kwargs or {}, out)
        row[3] += sum(t.numel() * t.element_size() for t in tensors)
        return out


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """Return 2 per MAC; torch's own counter takes grouped convolutions, on the way back, for dense ones."""
    name = func.overloadpacket.__name__
    if name == "convolution":
        return 2 * int(out.numel()) * int(args[1][0].numel())
    if name == "convolution_backward":
        wanted = sum(map(bool, args[10][:2]))  # of the input, of the kernel: as much as forward, each
        return 2 * wanted * int(args[0].numel()) * int(args[2][0].numel())
    count = flop_registry.get(func.overloadpacket)
    return int(count(*args, **kwargs, out_val=out)) if count is not None else 0


def roofline(step: Callable[[], None], limits: dict[str, float]) -> dict[str, dict[str, float]]:
    """Return, by kind of operation, what one step spends and what it needs at least.

    Args:
        step: a whole step; run once before it is looked at.
        limits: from `ceilings`.
    """
    step()
    with _Timed() as seen:
        step()
    found = {}
    for kind, (calls, seconds, flops, moved) in sorted(seen.rows.items(), key=lambda item: -item[1][1]):
        least = max(flops / limits["flops"], moved / limits["bytes"])
        found[kind] = {"calls": calls, "seconds": seconds, "flops": flops, "bytes": moved, "least": least}
    return found
