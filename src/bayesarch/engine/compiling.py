"""Other ways to compute what leaves a node of a supernet: compiled, or by kernels of ours; and what these need."""

import importlib.util
import os
import shutil

import torch

from bayesarch.engine.place import EngineConfig
from bayesarch.engine.trainer import TrainConfig
from bayesarch.errors import ConfigError, DeviceError
from bayesarch.nets import Supernet
from bayesarch.nets.kernels import library

__all__ = ["check_graphs", "check_training", "check_ways", "take_way"]


def check_ways(config: EngineConfig, device: torch.device, processes: int = 1) -> None:
    """Look for what the settings ask for, before anything is written.

    Raises:
        ConfigError: if two ways are asked for at once, or kernels of ours where several processes share the batch.
        DeviceError: if there is no compiler, or the device is not the right one.
    """
    if config.compile and config.fused:
        raise ConfigError("engine.compile and engine.fused are two ways to compute the same; set one of them")
    if config.compile:
        check_compiler(device)
    if config.fused:
        if processes > 1:
            raise ConfigError("engine.fused takes the moments of its own examples, and several processes share theirs")
        _check_kernels(device, "engine.fused")
        if config.precision == "bf16":
            library(torch.bfloat16)
    if config.graphs:
        check_graphs(device, processes)


def take_way(net: Supernet, config: EngineConfig, device: torch.device, processes: int = 1) -> None:
    """Let a supernet's cells compute as the settings say.

    Raises:
        ConfigError: as `check_ways`; and if it is no supernet of operations.
        DeviceError: as `check_ways`.
    """
    check_ways(config, device, processes)
    for asked, name in ((config.compile, "compile"), (config.fused, "fused")):
        if asked and not isinstance(net, Supernet):
            raise ConfigError(f"engine.{name} is for supernets of operations; leave it off where channels are searched")
    if config.compile:
        net.compile_regions()
    if config.fused:
        net.fuse()


def check_training(config: TrainConfig, device: torch.device) -> None:
    """Look for what a training's settings ask for, before anything is written.

    Raises:
        ConfigError: if kernels of ours are asked for where they compute nothing.
        DeviceError: if there is no compiler, or the device is not the right one.
    """
    if config.graphs:
        check_graphs(device, setting="train.graphs")
    if config.fused:
        if config.precision != "fp32":
            raise ConfigError(
                f"train.fused computes in fp32, and train.precision is {config.precision}; leave one of them off"
            )
        _check_kernels(device, "train.fused")


def _check_kernels(device: torch.device, setting: str) -> None:
    if device.type != "cpu":
        raise DeviceError(f"{setting} is for the CPU, and the device is {device}; leave it off")
    library(torch.float32)


def check_graphs(device: torch.device, processes: int = 1, setting: str = "engine.graphs") -> None:
    """Look for what replaying steps needs.

    Raises:
        ConfigError: where several processes share the batch.
        DeviceError: if there is no card.
    """
    if processes > 1:
        raise ConfigError(f"{setting} captures the steps of one process, and {processes} share the batch; leave it off")
    if device.type != "cuda":
        raise DeviceError(f"{setting} is for cards, and the device is {device}; leave it off")


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
