"""What each option computes, by name: the only place where an option's name meets torch.

An operation is one of four kinds: *nothing* (`none`), *free* of weights (computed once per source node and shared by
all edges that leave it), a *convolution* ReLU -> conv k x k without bias -> batch norm (convolutions that leave one
node are stacked into one), or a *module* of its own. Cells that change size take every operation as a module with a
stride.
To add an operation, add a line to `OPERATIONS`.

References: Dong and Yang, NAS-Bench-201, ICLR 2020 (`none` to `avg_pool_3x3`); Liu et al., DARTS, ICLR 2019
(`max_pool_3x3` to `dil_conv_5x5`); Zhou et al., BayesNAS, ICML 2019, released code (`sep3` to `id`); Cai et al.,
"Path-Level Network Transformation", ICML 2018 (`dw_sep_3x3` to `max_3x3`); `product` is ours (`spaces/toy.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.errors import SpaceError, nearest
from bayesarch.nets.kernels import box_mean, window_max
from bayesarch.nets.pointwise import pixels_first

__all__ = ["OPERATIONS", "Free", "Halving", "Operation", "factorized_reduce", "operation", "operation_module"]


@dataclass(frozen=True)
class Operation:
    """One option's computation; all fields empty: nothing passes."""

    kernel: int | None = None
    """Side k of the ReLU -> conv k x k -> batch norm block, or None."""
    series: bool = False
    """Whether that block is 1 x k, along the only axis of a series."""
    free: Callable[[Tensor], Tensor] | None = None
    """A function of the source node's features that has no weights, or None."""
    fused: Callable[[Tensor], Tensor] | None = None
    """The same function by a kernel of ours, for the CPU, or None."""
    make: Callable[[int, int, bool], nn.Module] | None = None
    """(channels, stride, affine norms) -> a module; None: made of the fields above, at stride 1 only."""

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the convolution's kernel."""
        assert self.kernel is not None
        return (1 if self.series else self.kernel, self.kernel)

    @property
    def passive(self) -> bool:
        """Whether nothing is computed: nothing passes, or the features as they are."""
        return self.kernel is None and self.free in (None, _identity) and (self.make is None or self.free is not None)


def _identity(h: Tensor) -> Tensor:
    return h


def _avg_pool_3x3(h: Tensor) -> Tensor:
    """Return the 3 x 3 mean at stride 1; border pixels average what is inside the image."""
    return F.avg_pool2d(h, 3, stride=1, padding=1, count_include_pad=False)


def _avg_pool_3(h: Tensor) -> Tensor:
    """Return the mean over 3 places of a series; its ends average what is inside."""
    return F.avg_pool2d(h, (1, 3), stride=1, padding=(0, 1), count_include_pad=False)


def _product(h: Tensor) -> Tensor:
    """Return x_i x_{i+1} over features, shape (B, D) as the input."""
    return h * torch.roll(h, -1, dims=1)


def _pool(kind: type[nn.Module], stride: int, **options: bool) -> nn.Module:
    return kind(3, stride=stride, padding=1, **options)


def _separable(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    """Return DARTS's separable convolution: ReLU, depthwise, 1 x 1, norm, twice; the first at `stride`."""
    return nn.Sequential(*_depthwise(channels, kernel, stride, 1, affine), *_depthwise(channels, kernel, 1, 1, affine))


def _depthwise(channels: int, kernel: int, stride: int, dilation: int, affine: bool) -> list[nn.Module]:
    padding = dilation * (kernel - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, padding, dilation, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    ]


def _norm_first(channels: int, kernel: int, stride: int, affine: bool) -> list[nn.Module]:
    """Return BayesNAS's half of a separable convolution: norm, ReLU, depthwise, 1 x 1."""
    return [
        nn.BatchNorm2d(channels, affine=affine),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    ]


def _separable_norm_first(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    return nn.Sequential(*_norm_first(channels, kernel, stride, affine), *_norm_first(channels, kernel, 1, affine))


def _dilated_dense(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    """Return BayesNAS's dilated convolution: norm, ReLU, *dense* k x k at dilation 2, 1 x 1."""
    return nn.Sequential(
        nn.BatchNorm2d(channels, affine=affine),
        nn.ReLU(),
        nn.Conv2d(channels, channels, kernel, stride, kernel - 1, 2, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def _point(inputs: int, outputs: int, stride: int) -> nn.Conv2d:
    return pixels_first(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False))


class Halving(nn.Module):
    """Two 1 x 1 convolutions at stride 2, the second of the image shifted by one pixel, side by side.

    Args:
        inputs: channels in.
        outputs: channels out.
        before: what comes first, or None.
        after: what comes last, or None.
    """

    def __init__(
        self, inputs: int, outputs: int, *, before: nn.Module | None = None, after: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.before, self.after = before or nn.Identity(), after or nn.Identity()
        self.even = _point(inputs, outputs // 2, 2)
        self.odd = _point(inputs, outputs - outputs // 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of half the side, rounded up, shape (B, outputs, ceil(H/2), ceil(W/2))."""
        x = self.before(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.after(torch.cat([self.even(x), self.odd(shifted)], 1))
        return out

    def at_once(self, x: Tensor) -> Tensor:
        """Return the same by one 2 x 2 convolution, two of whose weights are zero: its gradients need no slices."""
        x = self.before(x)
        x = F.pad(x, (0, x.shape[3] % 2, 0, x.shape[2] % 2)) if x.shape[2] % 2 or x.shape[3] % 2 else x
        weight = torch.cat([F.pad(self.even.weight, (0, 1, 0, 1)), F.pad(self.odd.weight, (1, 0, 1, 0))])
        # channels last as its input, or the gradient of that would be copied to and fro
        out: Tensor = self.after(F.conv2d(x, weight.contiguous(memory_format=torch.channels_last), stride=2))
        return out


def factorized_reduce(inputs: int, outputs: int, affine: bool) -> nn.Module:
    """Return DARTS's reduction by two: ReLU, two halves, norm."""
    return Halving(inputs, outputs, before=nn.ReLU(), after=nn.BatchNorm2d(outputs, affine=affine))


def _skip(channels: int, stride: int, affine: bool) -> nn.Module:
    return nn.Identity() if stride == 1 else factorized_reduce(channels, channels, affine)


def _skip_norm_first(channels: int, stride: int, affine: bool) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    return nn.Sequential(nn.BatchNorm2d(channels, affine=affine), _point(channels, channels, stride))


def _tree_conv(channels: int, kernel: int, stride: int, affine: bool) -> nn.Module:
    """Return norm, ReLU, then depthwise k x k and 1 x 1, or for k = 1 a 1 x 1 convolution alone."""
    if kernel > 1:
        return nn.Sequential(*_norm_first(channels, kernel, stride, affine))
    norm = nn.BatchNorm2d(channels, affine=affine)
    return nn.Sequential(norm, nn.ReLU(), _point(channels, channels, stride))


def _max_3x3(h: Tensor) -> Tensor:
    return F.max_pool2d(h, 3, stride=1, padding=1)


def _avg_3x3(h: Tensor) -> Tensor:
    """Return the 3 x 3 mean at stride 1; border pixels average the zeros around the image too."""
    return F.avg_pool2d(h, 3, stride=1, padding=1)


OPERATIONS: dict[str, Operation] = {
    "none": Operation(),
    "skip_connect": Operation(free=_identity, make=_skip),
    "nor_conv_1x1": Operation(kernel=1),
    "nor_conv_3x3": Operation(kernel=3),
    "avg_pool_3x3": Operation(
        free=_avg_pool_3x3, fused=box_mean, make=lambda c, s, a: _pool(nn.AvgPool2d, s, count_include_pad=False)
    ),
    "nor_conv_1": Operation(kernel=1, series=True),
    "nor_conv_3": Operation(kernel=3, series=True),
    "avg_pool_3": Operation(free=_avg_pool_3),
    "max_pool_3x3": Operation(free=_max_3x3, fused=window_max, make=lambda c, s, a: _pool(nn.MaxPool2d, s)),
    "sep_conv_3x3": Operation(make=lambda c, s, a: _separable(c, 3, s, a)),
    "sep_conv_5x5": Operation(make=lambda c, s, a: _separable(c, 5, s, a)),
    "dil_conv_3x3": Operation(make=lambda c, s, a: nn.Sequential(*_depthwise(c, 3, s, 2, a))),
    "dil_conv_5x5": Operation(make=lambda c, s, a: nn.Sequential(*_depthwise(c, 5, s, 2, a))),
    "sep3": Operation(make=lambda c, s, a: _separable_norm_first(c, 3, s, a)),
    "sep5": Operation(make=lambda c, s, a: _separable_norm_first(c, 5, s, a)),
    "dil3": Operation(make=lambda c, s, a: _dilated_dense(c, 3, s, a)),
    "dil5": Operation(make=lambda c, s, a: _dilated_dense(c, 5, s, a)),
    "max3": Operation(free=_max_3x3, fused=window_max, make=lambda c, s, a: _pool(nn.MaxPool2d, s)),
    "avg3": Operation(free=_avg_3x3, make=lambda c, s, a: _pool(nn.AvgPool2d, s)),
    "id": Operation(free=_identity, make=_skip_norm_first),
    "dw_sep_3x3": Operation(make=lambda c, s, a: _tree_conv(c, 3, s, a)),
    "dw_sep_5x5": Operation(make=lambda c, s, a: _tree_conv(c, 5, s, a)),
    "dw_sep_7x7": Operation(make=lambda c, s, a: _tree_conv(c, 7, s, a)),
    "conv_1x1": Operation(make=lambda c, s, a: _tree_conv(c, 1, s, a)),
    "identity": Operation(free=_identity),
    "max_3x3": Operation(free=_max_3x3, fused=window_max),
    "avg_3x3": Operation(free=_avg_3x3),
    "skip": Operation(free=_identity),
    "product": Operation(free=_product),
}
"""Every operation by the name that spaces use."""


def operation(name: str) -> Operation:
    """Return the operation called `name`.

    Raises:
        SpaceError: if there is none; names the nearest.
    """
    if name not in OPERATIONS:
        raise SpaceError(f"no operation is called {name!r}, {nearest(name, OPERATIONS)}")
    return OPERATIONS[name]


class Free(nn.Module):
    """A weight-free operation as a module."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.kernel = name, OPERATIONS[name].fused

    def forward(self, h: Tensor) -> Tensor:
        """Return the operation of features."""
        fn = OPERATIONS[self.name].free
        assert fn is not None
        return fn(h)

    def extra_repr(self) -> str:
        """Return the operation's name."""
        return self.name


def operation_module(name: str, channels: int, stride: int = 1, *, affine: bool = True) -> nn.Module | None:
    """Return the operation as a module on `channels` channels, or None where nothing passes.

    Norms are affine in stand-alone networks and are not in supernets.

    Raises:
        SpaceError: if the operation has no form at this stride.
    """
    op = operation(name)
    if op.make is not None and (stride > 1 or op.free is None):
        return op.make(channels, stride, affine)
    if stride > 1 and op.passive and op.free is None:
        return None
    if stride > 1:
        raise SpaceError(f"operation {name!r} has no form at stride {stride}")
    if op.kernel is not None:
        return nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(channels, channels, op.sides, padding=(op.sides[0] // 2, op.sides[1] // 2), bias=False),
            nn.BatchNorm2d(channels, affine=affine),
        )
    return Free(name) if op.free is not None else None
