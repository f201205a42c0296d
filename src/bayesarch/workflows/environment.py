"""What a run ran on: versions, machine, device, threads, and the commit of the folder it was started in."""

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import torch

from bayesarch.version import __version__

__all__ = ["environment"]


def environment(device: torch.device) -> dict[str, Any]:
    """Return a JSON-ready record of where this process runs."""
    return {
        "bayesarch": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "commit": _commit(),
    }


def _processor() -> str:
    """Return the processor's name where the system tells it."""
    try:
        with Path("/proc/cpuinfo").open() as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _commit() -> str | None:
    """Return the git commit of the working folder, marked if it has changes; None where there is none."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None
