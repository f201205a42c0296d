"""A user's own network, named by file and class: `my_net.py:Net`."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any

from torch import nn

from bayesarch.errors import ConfigError
from bayesarch.nets.skeletons import Shape

__all__ = ["own_module"]


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
