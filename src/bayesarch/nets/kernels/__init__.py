"""Kernels of our own for the CPU, compiled where they are used: C, through ctypes, without torch's headers."""

from bayesarch.nets.kernels.build import library
from bayesarch.nets.kernels.images import SIDES, box_mean, depthwise_gradients, window_max
from bayesarch.nets.kernels.rows import (
    Norm,
    Part,
    fan,
    fits,
    norm_relu,
    parts_of,
    sum_of,
)
from bayesarch.nets.kernels.winograd import filtered_conv, pays

__all__ = [
    "SIDES",
    "Norm",
    "Part",
    "box_mean",
    "depthwise_gradients",
    "fan",
    "filtered_conv",
    "fits",
    "library",
    "norm_relu",
    "parts_of",
    "pays",
    "sum_of",
    "window_max",
]
