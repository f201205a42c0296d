"""Kernels of our own for the CPU, compiled where they are used: C, through ctypes, without torch's headers."""

from bayesarch.nets.kernels.build import library
from bayesarch.nets.kernels.rows import Norm, Part, box_mean, fits, parts_of, sum_of

__all__ = ["Norm", "Part", "box_mean", "fits", "library", "parts_of", "sum_of"]
