"""Devices and precision, checked before anything starts."""

import contextlib
import os
from typing import Literal

import torch

from bayesarch.errors import DeviceError

__all__ = ["Precision", "autocast", "resolve_device"]

Precision = Literal["fp32", "bf16"]
"""`bf16` runs the network under autocast; architecture parameters stay fp32 (a Dirichlet has no bf16 kernel)."""


def resolve_device(name: str) -> torch.device:
    """Return the device called `name`: auto, cpu, cuda or cuda:N.

    Raises:
        DeviceError: if it is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))  # torchrun: one card per process
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}, but torch {torch.__version__} sees no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise DeviceError(f"--device {name}, but there are {torch.cuda.device_count()} CUDA devices")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"--device {name}: only cpu and cuda are supported")
    return device


def autocast(device: torch.device, precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Return the context that network passes run in."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
