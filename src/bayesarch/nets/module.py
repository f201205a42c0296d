"""A user's own network, named by file and class: `my_net.py:Net`."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bayesarch.errors import ConfigError
from bayesarch.nets.pointwise import pixels_first
from bayesarch.nets.skeletons import Shape

__all__ = ["in_layout", "own_module"]


def in_layout(net: nn.Module, input_shape: Shape) -> nn.Module:
    """Return the network, in place, able to run in the layout of memory that is fastest: channels last.

    Code that flattens by `view` needs its features in the order of their axes; the convolutions of such a network are
    made to give them so, and it gets its images so.

    Args:
        net: any module.
        input_shape: (channels, height, width) of an image.
    """
    like, training = next(net.parameters(), None), net.training
    if like is None:
        return net
    c, h, w = input_shape
    images = torch.zeros(2, h, w, c, device=like.device, dtype=like.dtype).permute(0, 3, 1, 2)
    pixels_first(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        with torch.no_grad():
            net.eval()(images)
    except RuntimeError:
        net.register_forward_pre_hook(_images_in_order)
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(_features_in_order)
    return net.train(training)


def _images_in_order(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Copy the images: where they have one channel, `contiguous` would leave their strides as they are."""
    return tuple(x.clone(memory_format=torch.contiguous_format) if isinstance(x, torch.Tensor) else x for x in inputs)


def _features_in_order(module: nn.Module, inputs: tuple[Any, ...], features: torch.Tensor) -> torch.Tensor:
    return features.contiguous()


def own_module(sizes: Any, input_shape: Shape, classes: int) -> nn.Module:
    """Return the network that `sizes.path` names, as `FILE.py:NAME`; NAME is a class or a function.

    It is called with `input_shape` and `classes` if it takes arguments of these names, and with nothing else. The file
    is run.

    Raises:
        ConfigError: if there is no such file or name, or what it gives is no module.
    """
    path, _, name = sizes.path.rpartition(":")
    form = "--module FILE.py:NAME, such as examples/my_net.py:Net"
    if not path or not Path(path).is_file():
        raise ConfigError(f"space.path: no file {path or sizes.path!r}; give {form}")
    spec = importlib.util.spec_from_file_location("bayesarch_user_module", path)
    assert spec is not None
    assert spec.loader is not None
    file = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(file)
    make = getattr(file, name, None)
    if not callable(make):
        offered = [key for key, value in vars(file).items() if inspect.isclass(value) and issubclass(value, nn.Module)]
        raise ConfigError(f"space.path: {path} has no {name!r}; its modules are {', '.join(offered) or 'none'}")
    known: dict[str, Any] = {"input_shape": input_shape, "classes": classes}
    takes = inspect.signature(make).parameters
    net = make(**{key: value for key, value in known.items() if key in takes})
    if not isinstance(net, nn.Module):
        raise ConfigError(f"space.path: {name} gave a {type(net).__name__} and no torch.nn.Module; give {form}")
    return net
