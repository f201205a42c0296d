"""`doctor`: does everything work here?"""

import importlib.util
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bayesarch.runs import write_atomically
from bayesarch.workflows.environment import environment

__all__ = ["doctor"]

EXTRAS = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "data": ("datasets", "pyarrow", "pandas"),
    "ray": ("ray",),
    "tensorboard": ("tensorboard",),
}


def doctor(out: str = "runs") -> dict[str, Any]:
    """Return what this machine has, and a list of checks with name, whether it passed, and a word on it.

    Args:
        out: a place that runs would be written to.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checks = [_digits(), _step(device), _writable(out)]
    extras = {
        name: all(importlib.util.find_spec(module) is not None for module in modules)
        for name, modules in EXTRAS.items()
    }
    return {"environment": environment(device), "checks": checks, "extras": extras}


def _digits() -> dict[str, Any]:
    """Check that the built-in data load."""
    from bayesarch.data import DataConfig, load

    examples = load(DataConfig())
    return {"name": "built-in data", "passed": len(examples.labels) == 1797, "detail": "1797 digits, 8 x 8"}


def _step(device: torch.device) -> dict[str, Any]:
    """Check that a supernet trains one step with finite gradients, and time it."""
    from bayesarch.functional import Streams
    from bayesarch.nets import Supernet
    from bayesarch.spaces import NB201

    streams = Streams(0, device)
    net = Supernet(NB201, input_shape=(1, 8, 8), classes=10, sizes={"cells": 1}, generator=streams["init"])
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator(device).manual_seed(0), device=device)
    gates = torch.full((1, 1, NB201.n_options), 0.2, device=device)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        net(images, gates).square().mean().backward()
        times.append(time.perf_counter() - start)
    finite = all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)
    detail = f"{1e3 * min(times):.0f} ms on {device} for 64 images of 8 x 8, forward and backward"
    return {"name": "supernet step", "passed": finite, "detail": detail}


def _writable(out: str) -> dict[str, Any]:
    """Check that a run folder could be written."""
    place = Path(out)
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            write_atomically(Path(folder) / "probe", b"probe")
    except Exception as error:  # whatever it is, it is the answer
        return {"name": "run folder", "passed": False, "detail": f"{place}: {error}"}
    return {"name": "run folder", "passed": True, "detail": f"{place.resolve()} can be written"}
