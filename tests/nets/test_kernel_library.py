"""The library of kernels: compiled once and whole, by what compiler there is, with the threads of torch."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bayesarch.errors import DeviceError
from bayesarch.nets.kernels import (
    Chain,
    Norm,
    Pair,
    box_mean,
    build,
    fan,
    filtered_conv,
    library,
    moments_of,
    norm_relu,
    separable_parts,
    sum_of,
)
from bayesarch.nets.operations import OPERATIONS
from helpers import needs_cc

pytestmark = needs_cc


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """No library is known, the cache is empty, and compiling is quick."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "LEVELS", dict.fromkeys(build.TYPES, "-O0"))
    library.cache_clear()
    yield tmp_path / "bayesarch"
    library.cache_clear()


def test_a_library_is_compiled_once_and_whole(fresh, monkeypatch):
    library(torch.float32)
    (path,) = fresh.glob("*")
    made = path.stat().st_mtime_ns
    library.cache_clear()
    library(torch.float32)
    assert path.stat().st_mtime_ns == made
    monkeypatch.setattr(build, "_compile", lambda compiler, source, to: shutil.copy(path, to))
    monkeypatch.setattr(build, "FLAGS", build.FLAGS + " -DOTHER")
    library.cache_clear()
    library(torch.float32)
    assert len(list(fresh.glob("*"))) == 2
    monkeypatch.setattr(build, "_processor", lambda: b"another")  # a home that two machines share
    library.cache_clear()
    library(torch.float32)
    assert len(list(fresh.glob("*"))) == 3


def test_every_type_has_a_library_of_its_own_that_is_compiled_when_it_is_asked_for(fresh, monkeypatch):
    asked = []
    monkeypatch.setattr(build, "_compile", lambda compiler, source, to: asked.append(compiler[-1]) or to.touch())
    monkeypatch.setattr(build.ctypes, "CDLL", str)
    assert library(torch.float32) != library(torch.bfloat16)
    library(torch.float32)
    assert asked == ["-DOF_f32", "-DOF_bf16"]


@pytest.mark.parametrize("name", ["rows.c", "block.h", "images.h"])
def test_a_library_of_other_sources_is_another(fresh, monkeypatch, tmp_path, name):
    copied = shutil.copytree(Path(build.__file__).parent, tmp_path / "kernels")
    monkeypatch.setattr(build, "__file__", str(copied / "build.py"))
    monkeypatch.setattr(build, "_compile", lambda compiler, source, path: path.write_text(source.read_text()))
    monkeypatch.setattr(build.ctypes, "CDLL", str)
    first = library(torch.float32)
    library.cache_clear()
    assert library(torch.float32) == first
    with (copied / name).open("a") as file:
        file.write("\n")
    library.cache_clear()
    assert library(torch.float32) != first


def test_a_compiler_that_is_not_there_or_fails_is_named(fresh, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(DeviceError, match=r"need a C compiler, and no-such-compiler was not found.*set CC"):
        library(torch.float32)
    monkeypatch.setenv("CC", f"{sys.executable} -c 'import sys; sys.exit(\"no kernels today\")'")
    with pytest.raises(DeviceError, match="no kernels today"):
        library(torch.float32)
    assert not list(fresh.glob("*"))


def test_ways_of_lesser_compilers_are_tried(fresh, monkeypatch):
    """A compiler without OpenMP gives a library of one thread, which computes the same."""
    script = fresh.parent / "cc"
    script.write_text('#!/bin/sh\ncase "$*" in *openmp*) echo no threads >&2; exit 1;; esac\nexec cc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    x = torch.rand(2, 3, 4, 5)
    torch.testing.assert_close(box_mean(x), OPERATIONS["avg_pool_3x3"].free(x))
    (path,) = fresh.glob("*.so")
    assert "GOMP" not in subprocess.run(["nm", "-D", path], capture_output=True, text=True, check=True).stdout


def separated(x, depth, point):
    """Return a separable convolution by kernels of ours."""
    (part,) = separable_parts(x, torch.ones(1, 1, dtype=depth.dtype), [Chain((Pair(depth, point, 1, 1, None),), 0)])
    return sum_of([part])


def convolved(x, depth, point):
    """Return the same by torch, in float64."""
    middle = F.conv2d(x.double(), depth.double(), padding=depth.shape[2] // 2, groups=len(depth))
    return F.conv2d(middle, point.double())


@pytest.mark.parametrize(
    ("dtype", "flags"),
    [
        (torch.float32, "-DPLAIN -DBLOCK=8"),
        (torch.float32, "-DBLOCK=16"),
        (torch.float64, "-DBLOCK=8"),
        (torch.float64, "-DPLAIN -DBLOCK=16"),
        (torch.bfloat16, "-DBLOCK=8"),
        (torch.bfloat16, "-DPLAIN -DBLOCK=16"),
    ],
    ids=str,
)
def test_registers_of_either_width_and_compilers_that_cannot_shuffle_them_compute_the_same(
    fresh, monkeypatch, dtype, flags
):
    """31 channels are blocks of 16, 8, 4, 2 and 1."""
    monkeypatch.setattr(build, "FLAGS", f"{build.FLAGS} {flags}")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 31, 5, 3, generator=generator).to(dtype=dtype, memory_format=torch.channels_last)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    moments = torch.zeros(31, dtype=wide), torch.ones(31, dtype=wide)
    outs = []
    mine = norm_relu(x, moments_of(x, Norm(*moments, 0.1, 1e-5)))
    theirs = F.relu(F.batch_norm(x.double(), None, None, None, None, True, 0.1, 1e-5))
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(mine.double(), theirs, rtol=tolerance, atol=1e-5)
    ((risen,), _) = fan(x.requires_grad_(), 1, 1)
    (slope,) = torch.autograd.grad(risen, x, x.detach())
    torch.testing.assert_close(slope, x.relu())
    kernels = [torch.randn(*size, generator=generator, dtype=wide) for size in ((31, 1, 5, 5), (18, 31, 1, 1))]
    for way in (separated, convolved):
        leaves = [tensor.detach().requires_grad_() for tensor in (x, *kernels)]
        out = way(*leaves)
        outs.append([t.double() for t in (out.detach(), *torch.autograd.grad(out, leaves, torch.ones_like(out)))])
    for a, b in zip(*outs, strict=True):
        assert float((a - b).norm() / b.norm()) < tolerance
    outs.clear()
    if dtype != torch.bfloat16:
        weight = torch.randn(18, 31, 3, 3, generator=generator).to(dtype).requires_grad_()
        for way in (filtered_conv, partial(F.conv2d, padding=1)):
            outs.append([way(x, weight), *torch.autograd.grad(way(x, weight).square().sum(), (x, weight))])
        for a, b in zip(*outs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_threads_are_those_of_torch():
    """One pool of threads: a second would wait in the way of the first."""
    code = (
        "import torch; torch.set_num_threads(2)\n"
        "from bayesarch.nets.kernels import box_mean\n"
        "box_mean(torch.rand(8, 16, 32, 32)); torch.rand(512, 512) @ torch.rand(512, 512)\n"
        "print(len({line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 1
