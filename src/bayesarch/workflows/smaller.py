"""Networks by name, and what a finished compression left of one."""

from types import SimpleNamespace
from typing import TYPE_CHECKING

import safetensors.torch
from torch import nn

from bayesarch.errors import ConfigError, RunError, nearest
from bayesarch.nets import CLASSICS, cut_units, pick_inputs, units_of
from bayesarch.nets.module import own_module

if TYPE_CHECKING:
    from bayesarch.workflows.run import Run

__all__ = ["named_network", "small_network"]


def named_network(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a network by name, or by file and name.

    Raises:
        ConfigError: if there is none.
    """
    if name in CLASSICS:
        return CLASSICS[name](input_shape, classes)
    if ":" not in name:
        raise ConfigError(f"compress.module: no network {name!r}, {nearest(name, CLASSICS)}; or give FILE.py:NAME")
    return own_module(SimpleNamespace(path=name), input_shape, classes)


def small_network(run: "Run", module: nn.Module | None = None) -> nn.Module:
    """Return the smaller network of a finished compression, in eval mode.

    Args:
        run: its folder.
        module: the network it was made of, where it was given as a module.

    Raises:
        RunError: if it is not finished, or the module is missing.
    """
    path = run.folder.path / "networks" / "small.safetensors"
    if not path.exists():
        raise RunError(f"{run.path} is {run.status.get('state')}, so there is no smaller network yet")
    name = run.config["compress"]["module"]
    if module is None and name is None:
        raise RunError(f"{run.path} is of a module given in Python: pass it as run.network(module)")
    shape = tuple(run.data["input_shape"])
    dense = module if module is not None else named_network(name, shape, len(run.data["classes"]))
    state = safetensors.torch.load_file(path)
    keep = state.pop("keep").bool()
    units = units_of(dense, shape)
    net = pick_inputs(cut_units(dense, units, keep), units.after(keep), keep)
    net.load_state_dict({name.removeprefix("net/"): tensor for name, tensor in state.items()})
    return net.eval()
