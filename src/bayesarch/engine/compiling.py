"""Cells whose regions are compiled, and what that needs."""

import importlib.util
import os
import shutil

import torch

from bayesarch.errors import ConfigError, DeviceError
from bayesarch.nets import Supernet

__all__ = ["compile_cells"]


def compile_cells(net: Supernet, device: torch.device) -> None:
    """Compile what leaves each node of a supernet's cells, when it is first trained.

    Raises:
        ConfigError: if it is no supernet of operations.
        DeviceError: if there is no C++ compiler for programs of the CPU, or no triton for those of a card.
    """
    if not isinstance(net, Supernet):
        raise ConfigError("engine.compile is for supernets of operations; leave it off where channels are searched")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise DeviceError("engine.compile on a card needs triton, which is not installed; leave it off")
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise DeviceError(
            f"engine.compile needs a C++ compiler, and {compiler} was not found; install one (Debian: g++), "
            "set CXX, or leave engine.compile off"
        )
    net.compile_regions()
