"""1 x 1 convolutions at a stride, kept away from a fault in torch's library for CPUs.

Channels last, with 2 to 7 input channels, on a CPU without AVX-512, the gradient of such a kernel writes past the end
of a buffer (torch 2.13 with oneDNN 3.12, `jit_1x1:avx2`; the numbers it returns are right), and the process dies some
time later. A convolution at stride 1 of every s-th pixel is the same sum, and takes another way through the library.
"""

from functools import partial
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["pixels_first"]

M = TypeVar("M", bound=nn.Module)

WIDTH = 8
"""Input channels from which the library's buffer is long enough: the numbers that AVX2 takes at a time."""


def pixels_first(net: M) -> M:
    """Return the module, in place, whose strided 1 x 1 convolutions of few channels take their pixels first.

    Types, parameters, names and outputs stay what they are, and so does what is exported from it as code.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and _strided_point(module):
            module._conv_forward = partial(_convolve, stride=module.stride)  # type: ignore[method-assign, arg-type]
    return net


def _strided_point(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.padding in ((0, 0), "valid")
    return plain and conv.kernel_size == (1, 1) and conv.stride != (1, 1)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: tuple[int, int]) -> Tensor:
    """Return the convolution; the number of channels is looked at here, since it falls when units are cut."""
    if x.shape[1] < WIDTH:
        return F.conv2d(x[:, :, :: stride[0], :: stride[1]], weight, bias)
    return F.conv2d(x, weight, bias, stride)
