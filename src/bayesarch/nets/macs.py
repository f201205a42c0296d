"""MACs of a network, counted while one image goes through it."""

import torch
from torch import Tensor, nn

from bayesarch.errors import ConfigError
from bayesarch.nets.skeletons import Shape

__all__ = ["macs_by_parameter"]


def macs_by_parameter(net: nn.Module, input_shape: Shape, *, images: int = 1) -> dict[int, int]:
    """Return the MACs of each convolution and linear layer for one image, by the identity of its weight.

    Args:
        net: the network.
        input_shape: (channels, height, width).
        images: how many go through; none are enough, and cost nothing, where the network takes an empty batch.

    Raises:
        ConfigError: if the network takes no images of this shape; with what it said.
    """
    macs: dict[int, int] = {}

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            macs[id(module.weight)] = (
                macs.get(id(module.weight), 0) + output.shape[1:].numel() * module.weight[0].numel()
            )
        elif isinstance(module, nn.Linear):
            macs[id(module.weight)] = macs.get(id(module.weight), 0) + output.shape[1:].numel() * module.in_features

    handles = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    training = net.training
    try:
        net.eval()
        like = next(net.parameters(), torch.zeros(()))
        with torch.no_grad():
            net(torch.zeros(images, *input_shape, device=like.device, dtype=like.dtype))
    except RuntimeError as error:
        raise ConfigError(
            f"{type(net).__name__} takes no images of {' x '.join(map(str, input_shape))} (channels, height, width): "
            f"{error}; give data of the size that it was made for, or another network"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
        net.train(training)
    return macs
