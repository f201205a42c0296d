"""What options bring to a node, and its sum: products with gates are added and never made."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bayesarch.nets.kernels import Part, sum_of

__all__ = ["Piece", "gates_of", "mixed", "total"]

Piece = Tensor | tuple[Tensor, Tensor] | Part
"""What one option brings to a node: features, features and the gate that they are multiplied by, or a kernel's part."""


def gates_of(gates: Tensor, columns: Sequence[int]) -> Tensor:
    """Return the gates of some options, shape (B, n), from those of all (B, G); the host does not wait for a card.

    With a list as its index it would: that is copied there first.
    """
    return torch.stack([gates[:, g] for g in columns], 1) if columns else gates[:, :0]


def mixed(parts: Sequence[Piece], like: Tensor) -> Tensor:
    """Return the sum of gated pieces, as `total` does; partial sums are added to in place, which nothing else holds.

    Args:
        parts: features, or (features, gate) for their product, which is then never made; or parts of kernels.
        like: features of the node's shape.
    """
    if not parts:
        return torch.zeros_like(like)
    of_kernels = [part for part in parts if isinstance(part, Part)]
    if of_kernels:
        return sum_of(of_kernels)
    first, *others = (part for part in parts if not isinstance(part, Part))
    whole = first if isinstance(first, Tensor) else first[0] * first[1]
    own = not isinstance(first, Tensor)
    for part in others:
        if isinstance(part, Tensor):
            whole = whole.add_(part) if own and part.dtype == whole.dtype else whole + part
        else:
            features, gate = part
            same = features.dtype == whole.dtype and gate.dtype == whole.dtype
            whole = whole.addcmul_(features, gate) if own and same else whole + features * gate
        own = True
    return whole


def total(parts: Sequence[Tensor], like: Tensor) -> Tensor:
    """Return the sum of `parts`; zeros shaped as `like` where there are none.

    A node that nothing reaches holds zeros, as in the benchmark: a norm behind it may still add its shift.
    """
    if not parts:
        return torch.zeros_like(like)
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
