"""Kernels of our own for the CPU, compiled where they are used: C, through ctypes, without torch's headers."""

from bayesarch.nets.kernels.build import library
from bayesarch.nets.kernels.cell import Wired, Wiring, cell_features
from bayesarch.nets.kernels.grouped import grouped_conv
from bayesarch.nets.kernels.images import box_mean, window_max
from bayesarch.nets.kernels.node import Bunch, Outgoing, outgoing_fits, outgoing_parts
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
    "Moments",
    "Norm",
    "Outgoing",
    "Pair",
    "Part",
    "Rise",
    "Wired",
    "Wiring",
    "box_mean",
    "cell_features",
    "fan",
    "filtered_conv",
    "fits",
    "grouped_conv",
    "library",
    "moments_of",
    "norm_relu",
    "outgoing_fits",
    "outgoing_parts",
    "parts_of",
    "pays",
    "separable_parts",
    "sum_of",
    "window_max",
]
