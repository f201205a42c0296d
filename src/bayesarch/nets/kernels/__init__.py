"""Kernels of our own for the CPU, compiled where they are used: C, through ctypes, without torch's headers."""

from bayesarch.nets.kernels.build import library
from bayesarch.nets.kernels.grouped import grouped_conv
from bayesarch.nets.kernels.images import box_mean, window_max
from bayesarch.nets.kernels.node import Bunch, Leaving, leaving_fits, leaving_parts
from bayesarch.nets.kernels.rows import (
    Moments,
    Norm,
    Part,
    fan,
    fits,
    moments_of,
    norm_relu,
    parts_of,
    sum_of,
)
from bayesarch.nets.kernels.separable import SIDES, Chain, Pair, Rise, separable_parts
from bayesarch.nets.kernels.winograd import filtered_conv, pays

__all__ = [
    "SIDES",
    "Bunch",
    "Chain",
    "Leaving",
    "Moments",
    "Norm",
    "Pair",
    "Part",
    "Rise",
    "box_mean",
    "fan",
    "filtered_conv",
    "fits",
    "grouped_conv",
    "leaving_fits",
    "leaving_parts",
    "library",
    "moments_of",
    "norm_relu",
    "parts_of",
    "pays",
    "separable_parts",
    "sum_of",
    "window_max",
]
