"""What options bring to a node, and its sum: products with gates are added and never made."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayesarch.nets.kernels import Part, sum_of
from bayesarch.nets.thinning import by_torch_alone

__all__ = ["Piece", "gates_of", "mixed", "total"]

Piece = Tensor | tuple[Tensor, Tensor] | Part
"""What one option brings to a node: features, features and the gate that they are multiplied by, or a kernel's part."""


def gates_of(gates: Tensor, columns: Sequence[int]) -> Tensor:
    """Return the gates of some options, shape (B, n), from those of all (B, G); the host does not wait for a card.

    With a list as its index it would: that is copied there first.
    """
    return torch.stack([gates[:, g] for g in columns], 1) if columns else gates[:, :0]


LARGE = 2**17
"""Values of features from which their weighed sum is a function of its own; below, calling it costs what it saves."""


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
    plain = [part for part in parts if isinstance(part, Tensor)]
    products = [(part[0], part[1]) for part in parts if isinstance(part, tuple)]
    if not products:
        whole, *others = plain
        for k, part in enumerate(others):
            whole = whole.add_(part) if k and part.dtype == whole.dtype else whole + part
        return whole
    whole = _weighed(products)
    for part in plain:
        whole = whole.add_(part) if part.dtype == whole.dtype else whole + part
    return whole


def _weighed(products: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the sum of features times gates, a tensor of its own."""
    if products[0][0].numel() >= LARGE and _alike(products):
        out: Tensor = _Weighed.apply(torch.stack([gate for _, gate in products]), *(part for part, _ in products))
        return out
    (first, weight), *others = products
    whole = first * weight
    for features, gate in others:
        same = features.dtype == whole.dtype and gate.dtype == whole.dtype
        whole = whole.addcmul_(features, gate) if same else whole + features * gate
    return whole


def _alike(products: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Return whether gates are numbers of the features' type, and nobody but torch computes with them."""
    dtype = products[0][0].dtype
    numbers = all(gate.ndim == 0 and part.dtype == gate.dtype == dtype for part, gate in products)
    return numbers and by_torch_alone(*(tensor for product in products for tensor in product))


class _Weighed(torch.autograd.Function):
    """Sum of features times numbers; the gradient of a number is one pass over memory, with no product made.

    Features are kept for the way back only where the numbers have a gradient.
    """

    @staticmethod
    def forward(ctx: Any, gates: Tensor, *features: Tensor) -> Tensor:
        ctx.save_for_backward(gates, *(features if ctx.needs_input_grad[0] else ()))
        first, *others = gates.unbind()
        whole = features[0] * first
        for part, gate in zip(features[1:], others, strict=True):
            whole.addcmul_(part, gate)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (gates, *features) = gradients, ctx.saved_tensors
        wanted, of_gates = ctx.needs_input_grad[1:], None
        if ctx.needs_input_grad[0]:
            of_gates = torch.stack([_product(gradient, part) for part in features])
        return of_gates, *(gradient * gate if want else None for gate, want in zip(gates.unbind(), wanted, strict=True))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of the products of two tensors of one shape, shape ()."""
    if a.ndim == 4:
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)  # as they lie
    return torch.dot(a.reshape(-1), b.reshape(-1)) if a.is_contiguous() and b.is_contiguous() else (a * b).sum()


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
