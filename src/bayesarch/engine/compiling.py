"""Cells whose regions are compiled, and what that needs."""

import importlib.util
import os
import shutil

import torch

from bayesarch.errors import ConfigError, DeviceError
from bayesarch.nets import Supernet

__all__ = ["check_compiler", "compile_cells"]


def check_compiler(device: torch.device) -> None:
    """Look for what `torch.compile` needs.

    Raises:
        DeviceError: if there is no C++ compiler for programs of the CPU, or no triton for those of a card.
    """
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise DeviceError("engine.compile on a card needs triton, which is not installed; leave it off")
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise DeviceError(
            f"engine.compile needs a C++ compiler, and {compiler} was not found; install one (Debian: g++), "
            "set CXX, or leave engine.compile off"
        )


def compile_cells(net: Supernet, device: torch.device) -> None:
    """Compile what leaves each node of a supernet's cells, when it is first trained.

    Raises:
        ConfigError: if it is no supernet of operations.
        DeviceError: as `check_compiler`.
    """
    if not isinstance(net, Supernet):
        raise ConfigError("engine.compile is for supernets of operations; leave it off where channels are searched")
    check_compiler(device)
    net.compile_regions()
