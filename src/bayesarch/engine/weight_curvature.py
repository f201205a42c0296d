"""Diagonal of the generalised Gauss-Newton matrix in the weights of a plain network.

Per example and without a loop over examples: a layer's weight gradient is made from what went into it and what came
back, squared, and summed. Batch norm is in eval mode, so that examples do not touch one another.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.data import Split
from bayesarch.errors import ConfigError
from bayesarch.functional.curvature import fisher_draw

__all__ = ["curved_parameters", "logit_pulls", "weight_curvature"]

Squares = Callable[[Any, Tensor, Tensor], dict[str, Tensor]]
"""(layer, its input, gradient of its output) -> squared gradients of its parameters summed over examples."""


def _linear(layer: nn.Linear, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    if x.ndim == 2:
        return {"weight": g.square().t() @ x.square(), "bias": g.square().sum(0)}
    x, g = x.flatten(1, -2), g.flatten(1, -2)
    each = torch.einsum("bto,bti->boi", g, x)
    return {"weight": each.square().sum(0), "bias": g.sum(1).square().sum(0)}


def _conv(layer: nn.Conv2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    b, groups = len(x), layer.groups
    padding = layer._reversed_padding_repeated_twice
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    cols = F.unfold(F.pad(x, padding, mode=mode), layer.kernel_size, layer.dilation, 0, layer.stride)
    cols = cols.view(b, groups, -1, cols.shape[-1])
    g = g.flatten(2)
    each = torch.einsum("bgol,bgil->bgoi", g.view(b, groups, -1, g.shape[-1]), cols)
    return {"weight": each.square().sum(0).view_as(layer.weight), "bias": g.sum(2).square().sum(0)}


def _norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    shape = (1, -1, *[1] * (x.ndim - 2))
    assert layer.running_mean is not None
    assert layer.running_var is not None
    normal = (x - layer.running_mean.view(shape)) * torch.rsqrt(layer.running_var + layer.eps).view(shape)
    over = list(range(2, x.ndim))
    scale, shift = g * normal, g
    if over:
        scale, shift = scale.sum(over), shift.sum(over)
    return {"weight": scale.square().sum(0), "bias": shift.square().sum(0)}


RULES: dict[type[nn.Module], Squares] = {
    nn.Linear: _linear, nn.Conv2d: _conv, nn.BatchNorm1d: _norm, nn.BatchNorm2d: _norm,
}  # fmt: skip
"""How a layer's squared gradients are made. For another kind of layer add a line."""


def curved_parameters(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters whose curvature can be had, by name: those of the layers that `RULES` knows."""
    return {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, module in net.named_modules()
        if type(module) in RULES
        for name, parameter in module.named_parameters(recurse=False)
    }


class _Seen:
    """Inputs and outputs of the layers while a batch goes forward."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    @contextmanager
    def watching(self, net: nn.Module) -> Iterator[None]:
        def note(name: str) -> Callable[..., Tensor]:
            def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
                # clones, since what follows may write into them in place
                self.calls.append((name, module, inputs[0].detach().clone(), output))
                return output.clone()

            return hook

        layers = [(name, module) for name, module in net.named_modules() if type(module) in RULES]
        handles = [module.register_forward_hook(note(name)) for name, module in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def weight_curvature(
    net: nn.Module,
    split: Split,
    *,
    mode: Literal["exact", "mc"] = "exact",
    draws: int = 1,
    batch_size: int = 64,
    limit: int | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the GGN diagonal of the mean cross-entropy in the weights, by parameter name.

    `exact` takes one backward pass per class, `mc` one per draw of a label from the model: unbiased, with heavy tails
    where the model is sure of itself.

    Args:
        net: a plain network; in eval mode while this lasts.
        split: examples, without augmentation.
        mode: exact or mc.
        draws: labels drawn for each example (mc).
        batch_size: examples at a time; a convolution holds its weight's size times that.
        limit: use only so many examples, from the front; None: all.
        generator: where labels are drawn from (mc).

    Raises:
        ConfigError: if a layer is called more than once for a batch: its gradients would have to be added first.
    """
    totals: dict[str, Tensor] = {name: torch.zeros_like(p) for name, p in curved_parameters(net).items()}
    training, n = net.training, 0
    net.eval()
    try:
        for batch in split.in_order(batch_size, None if limit is None else -(-limit // batch_size)):
            seen = _Seen()
            with seen.watching(net), torch.enable_grad():
                logits = net(batch.images)
            names = [name for name, *_ in seen.calls]
            if len(set(names)) < len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise ConfigError(f"{twice} is used twice in the network, and its curvature cannot be had; copy it")
            for pull in logit_pulls(logits.detach(), mode, draws, generator):
                back = torch.autograd.grad(
                    logits, [output for *_, output in seen.calls], pull, retain_graph=True, allow_unused=True
                )
                for (name, layer, x, _), g in zip(seen.calls, back, strict=True):
                    if g is not None:
                        _add(totals, name, RULES[type(layer)](layer, x, g.detach()))
            n += len(batch.labels)
    finally:
        net.train(training)
    return {name: total / n for name, total in totals.items()}


def logit_pulls(
    logits: Tensor, mode: Literal["exact", "mc"], draws: int, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Return vectors v with sum (or mean of sums) of v v' = diag p - p p', each of shape (B, K)."""
    p = logits.softmax(1)
    if mode == "exact":
        for k in range(p.shape[1]):
            v = -p * p[:, k : k + 1].sqrt()
            v[:, k] += p[:, k].sqrt()
            yield v
        return
    assert generator is not None
    for _ in range(draws):
        drawn = F.one_hot(fisher_draw(p, generator=generator), p.shape[1]).to(p)
        yield (p - drawn) / draws**0.5


def _add(totals: dict[str, Tensor], layer: str, squares: dict[str, Tensor]) -> None:
    for key, value in squares.items():
        name = f"{layer}.{key}" if layer else key
        if name in totals:
            totals[name] += value
