"""The kernels' libraries, one for each type: compiled once for a processor and a compiler, kept in the user's cache."""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from bayesarch.errors import DeviceError

__all__ = ["TYPES", "kernel", "library"]

TYPES = {torch.float32: "f32", torch.float64: "f64", torch.bfloat16: "bf16"}
"""Types that there are kernels for, by their names in C."""

SOURCE = "rows.c"
"""What is compiled; it includes the headers beside it."""
FLAGS = "-ffp-contract=fast -fno-math-errno -Wno-psabi -fPIC -shared"
LEVELS = {torch.float32: "-O2", torch.float64: "-O1", torch.bfloat16: "-O2"}
"""How much is optimised: float64 is to be right and not to be fast, and less saves much of the compiling."""
WAYS = ("-march=native -fopenmp -mprefer-vector-width=512", "-march=native -fopenmp", "-march=native", "")
"""What is tried, the best first: not all compilers know this processor, have threads or ask how wide registers are."""


def kernel(name: str, dtype: torch.dtype) -> Callable[..., None]:
    """Return a kernel for values of one type.

    Raises:
        DeviceError: as `library`.
    """
    found: Callable[..., None] = getattr(library(dtype), name)
    return found


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the library for one type, compiled if need be, which takes some seconds.

    The compiler is `CC`, or cc. Its threads are those of torch, whose OpenMP is loaded already.

    Args:
        dtype: a key of `TYPES`.

    Raises:
        DeviceError: if there is no C compiler, or it does not compile the kernels; with what it said.
    """
    compiler = shlex.split(os.environ.get("CC", "cc"))
    if shutil.which(compiler[0]) is None:
        raise DeviceError(
            f"engine.fused and train.fused need a C compiler, and {compiler[0]} was not found; install one "
            "(Debian: gcc), set CC, or leave them off"
        )
    here, version = Path(__file__).parent, subprocess.run([*compiler, "--version"], capture_output=True, check=False)
    made_of = [path.read_bytes() for path in sorted(here.glob("*.[ch]"))]
    level = LEVELS[dtype]
    made_of += [version.stdout, _processor(), f"{level} {FLAGS}".encode(), torch.__version__.encode()]
    name = f"rows-{TYPES[dtype]}-{hashlib.sha256(b'|'.join(made_of)).hexdigest()[:16]}.so"
    path = _cache() / name
    if not path.exists():
        _compile([*compiler, level, f"-DOF_{TYPES[dtype]}"], here / SOURCE, path)
    return ctypes.CDLL(str(path))


def _processor() -> bytes:
    """Return what -march=native depends on."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {platform.processor()} {flags}".encode()


def _cache() -> Path:
    """Return a folder that can be written to."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bayesarch"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return Path(tempfile.mkdtemp(prefix="bayesarch-"))


def _compile(compiler: list[str], source: Path, path: Path) -> None:
    """Compile to a file that is there whole or not at all."""
    said = ""
    for way in WAYS:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".so", delete=False) as part:
            words = [*compiler, *FLAGS.split(), *way.split(), "-o", part.name, str(source), "-lm"]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            Path(part.name).replace(path)
            return
        Path(part.name).unlink(missing_ok=True)
        said = done.stderr
    raise DeviceError(
        f"{compiler[0]} does not compile {source.name}: {said.strip()[-500:]}; leave engine.fused and train.fused off"
    )
