"""A convolution and a 1 x 1 convolution right behind it, which are one convolution.

With nothing between them, kernels W (M, C, k, k) and P (O, M, 1, 1) give what the kernels P W give: at each tap a
product of two matrices. Where there are more pixels than C k k, that takes less than the 1 x 1 convolution of them, and
what lies between the two need neither be made nor kept. BayesNAS's dilated options are such pairs.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bayesarch.nets.dense import is_dense
from bayesarch.nets.depthwise import is_point

__all__ = ["Straight", "kernels_of", "straightened"]


class Straight(nn.Module):
    """Two convolutions without bias as one layer; the parameters stay theirs.

    Args:
        first: dense, with kernels of odd sides.
        second: 1 x 1, of all channels.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d) -> None:
        super().__init__()
        self.first, self.second = first, second

    @property
    def weight(self) -> Tensor:
        """Kernels of the convolution that the two are, shape (O, C, k, k), channels last."""
        first, second = self.first.weight, self.second.weight
        taps = first.permute(0, 2, 3, 1)
        joined = second.flatten(1) @ taps.flatten(1)
        return joined.view(-1, *taps.shape[1:]).permute(0, 3, 1, 2)

    def pays(self, x: Tensor) -> bool:
        """Return whether the product of kernels takes less than a 1 x 1 convolution of what x (B, C, H, W) gives."""
        pixels = x.shape[0]
        for length, stride in zip(x.shape[2:], self.first.stride, strict=True):
            pixels *= -(-length // stride)
        return pixels > self.first.weight[0].numel()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the one convolution gives, shape (B, O, H / stride, W / stride)."""
        first = self.first
        return F.conv2d(x, self.weight, None, first.stride, first.padding, first.dilation)


def straightened(layers: Sequence[nn.Module]) -> list[nn.Module]:
    """Return layers with such pairs as one."""
    found: list[nn.Module] = []
    for layer in layers:
        before = found[-1] if found else None
        if is_point(layer) and before is not None and is_dense(before):
            found[-1] = Straight(before, layer)
        else:
            found.append(layer)
    return found


def kernels_of(layer: nn.Module) -> Tensor:
    """Return the kernels of a convolution, or of the one that two are."""
    assert isinstance(layer, nn.Conv2d | Straight)
    return layer.weight
